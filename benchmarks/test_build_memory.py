"""Peak memory of building 784-4000-4000-4000-4000-10 sparse, above the interpreter with torch imported."""

import subprocess
import sys

CODE = """
import resource, torch, filigree as fg
def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) / 1024
before = peak()
{body}
print(peak() - before)
"""
SPARSE = """
with torch.device("meta"):
    model = fg.models.mlp([784, 4000, 4000, 4000, 4000, 10])
fg.convert_(model, fg.Sparse(fg.ErdosRenyi(epsilon=20)))
assert sum(p.numel() for p in model.parameters()) == 631_690
"""
DENSE = "model = fg.models.mlp([784, 4000, 4000, 4000, 4000, 10])"


def _peak(body):
    run = subprocess.run([sys.executable, "-c", CODE.format(body=body)], capture_output=True, text=True, check=True)
    return float(run.stdout.split()[-1])


def test_build_memory(suite, benchmark):
    sparse, dense = _peak(SPARSE), _peak(DENSE)
    suite.add(sparse_megabytes=sparse, dense_megabytes=dense, ratio=sparse / dense, goal=100)
    benchmark.pedantic(lambda: _peak(SPARSE), rounds=1)
