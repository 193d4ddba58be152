"""Refuse, when it is imported, a torch that is too old, by one line: what is absent in it would fail anywhere."""

import torch

OLDEST = 2, 11


def refuse_old_torch(version: str) -> None:
    """`ImportError` where the version of torch, such as "2.13.0+cpu", is older than filigree needs."""
    major, minor = (int("".join(filter(str.isdigit, part))) for part in version.split(".")[:2])
    if (major, minor) < OLDEST:
        raise ImportError(
            f"filigree needs torch {OLDEST[0]}.{OLDEST[1]} or newer. Got {version}: pip install 'torch>={OLDEST[0]}."
            f"{OLDEST[1]}', in a virtual environment where torch is the system's.",
            name="torch",
        )


refuse_old_torch(torch.__version__)
