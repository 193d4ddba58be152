"""Packages that only some of the work needs: they are loaded when it begins, and an absent one is one line."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import shlex
from typing import Any

from filigree.config import one_line

DISTRIBUTION = (
    "filigree-nn"  # what pip calls this library; another project is called filigree on the Python package index
)
_PACKAGES = {"sklearn": "scikit-learn", "onnx_ir": "onnx-ir"}  # not named as modules


def needed(module: str, by: str, extra: str) -> Any:
    """Import and return a module of an optional package.

    Args:
        module: its full name, such as "plotly.graph_objects".
        by: the name of what needs it, which begins the message. extra: the extra of filigree that installs it.

    Raises:
        ModuleNotFoundError: it is absent; one line with the `pip install` that brings it.
        ImportError: it is installed, but cannot be loaded.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        error.name = error.name or module
        raise absent(error, by, extra) from None


def absent(error: ImportError, by: str, extra: str) -> ImportError:
    """The error to raise in place of the one that `import` raised; arguments as of `needed`.

    It names the packages themselves, since this library is not on the Python package index yet.
    """
    root = (error.name or "").partition(".")[0]
    if root == "filigree":  # a fault of our own is not explained away
        return error
    package = _PACKAGES.get(root, root)
    install = install_command(extra, package)
    if isinstance(error, ModuleNotFoundError):
        return ModuleNotFoundError(f"{by}: {package} is needed. {install}", name=error.name)
    return ImportError(f"{by}: {package} could not be loaded ({one_line(error)}). {install}", name=error.name)


def install_command(extra: str, package: str) -> str:
    """The `pip install` of all that an extra of the installed filigree brings; else of one package."""
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        requirements = []
    named = [
        line.partition(";")[0].strip() for line in requirements if re.search(rf"""extra == ['"]{extra}['"]""", line)
    ]
    return f"pip install {shlex.join(named or [package])}"
