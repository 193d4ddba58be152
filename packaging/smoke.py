"""What an installed wheel with its extra `data` must do, in less than a minute on an idle machine.

`packaging/try_wheel.sh` runs it where no compiler is.
"""

import platform
import subprocess
import sys
from pathlib import Path

import torch

import filigree as fg
from filigree.ops import compiled, kernels

assert compiled, "the wheel has no kernels"
torch.manual_seed(0)
x = torch.randn(400, 20)
y = (x[:, :3].sum(1) > 0).long()
model = fg.models.mlp([20, 64, 2], 0.0, "relu")
fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)))
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
history = fg.fit(model, (x, y), optimizer=optimizer, epochs=10, callbacks=fg.SET(model, optimizer, 0.3, epochs=10))
assert history.rows[-1]["train_loss"] < history.rows[0]["train_loss"] / 2
fg.save(model, "smoke.safetensors")
again = fg.load("smoke.safetensors").eval()
assert torch.equal(again(x), model.eval()(x))
Path("smoke.csv").write_text(
    "\n".join(["a,b,kind", *(f"{i % 7},{i % 3},{'odd' if i % 2 else 'even'}" for i in range(60))])
)
command = [
    sys.executable,
    "-m",
    "filigree.cli",
    "train",
    "demo",
    "--data",
    "smoke.csv",
    "--method",
    "SET",
    "--no-report",
]
subprocess.run([*command, "--set", "training.epochs=2", "--seed", "0", "--out", "smoke", "--overwrite"], check=True)
subprocess.run([sys.executable, "-m", "filigree.cli", "predict", "smoke/SET-0", "smoke.csv"], check=True)
system = platform.freedesktop_os_release()["PRETTY_NAME"]
print(f"| {system} | {platform.python_version()} | {torch.__version__} | {kernels.isa()} | all of packaging/smoke.py |")
