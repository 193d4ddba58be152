"""CMake refuses compilers that are too old for the kernels, in one line, and takes the oldest that will do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CMAKE = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
pytestmark = pytest.mark.skipif(CMAKE is None, reason="cmake is not installed: pip brings its own while it builds")


def check(compiler, version):
    given = [f"-DCMAKE_CXX_COMPILER_ID={compiler}", f"-DCMAKE_CXX_COMPILER_VERSION={version}"]
    return subprocess.run([CMAKE, *given, "-P", ROOT / "cmake" / "compiler.cmake"], capture_output=True, text=True)


@pytest.mark.parametrize("named", ["GNU 11.4.0", "Clang 14.0.6", "AppleClang 14.0.0", "MSVC 19.40"])
def test_refused(named):
    refused = check(*named.split())
    assert refused.returncode != 0
    assert f"filigree needs GCC 12, Clang 15, Xcode 14.3 or newer. CXX is {named}.\n" in refused.stderr


@pytest.mark.parametrize("named", ["GNU 12.1.0", "Clang 15.0.0", "Clang 21.1.0", "AppleClang 14.0.3"])
def test_taken(named):
    assert check(*named.split()).returncode == 0
