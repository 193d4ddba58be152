"""`make bench`: run every suite (or those named) and write benchmarks/results/. On an idle machine."""

import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    here = Path(__file__).parent
    chosen = [str(here / f"test_{name}.py") for name in sys.argv[1:]] or [str(here)]
    options = ["-s", "-q", "-p", "no:cacheprovider", "--benchmark-disable-gc", "--benchmark-columns=median,iqr,rounds"]
    sys.exit(pytest.main([*chosen, *options]))
