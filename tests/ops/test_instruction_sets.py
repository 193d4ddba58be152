"""The instruction set can be chosen for a whole process, so that one machine tests what others run."""

import os
import subprocess
import sys

from filigree.ops import kernels


def isa_of(wanted):
    program = "import filigree as fg; print(fg.ops.kernels.isa())"
    environment = os.environ | {"FILIGREE_ISA": wanted}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)


def test_the_environment_names_it():
    lowest = kernels.isas()[-1]
    assert isa_of(lowest).stdout.strip() == lowest == "portable"


def test_one_that_the_processor_lacks_is_refused():
    lacking = "avx512" if "neon" in kernels.isas() else "neon"
    refused = isa_of(lacking)
    assert refused.returncode == 1
    assert refused.stderr.strip().endswith(
        f"must be one of {', '.join(kernels.isas())}, what this processor has. Got {lacking!r}."
    )
