"""Peak memory of training steps of GPT-2 small's shape, above the interpreter with torch imported: dense, sparse, and
with the loss that never holds all logits.

124 million parameters: 12 blocks of 768 / 3,072, 12 heads, 50,257 tokens, tied head; 1 x 256 tokens, AdamW, two steps.
Sparse: all linear layers but the head at 90%. Goal: at most 40% of dense's memory. Nothing is timed.
"""

import json
import subprocess
import sys

import pytest

CODE = """
import json, torch, filigree as fg
from torch.nn import functional as F
def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) / 1024
torch.manual_seed(0)
before = peak()
with torch.device("meta" if {sparse} else "cpu"):
    model = fg.models.gpt(50_257, 1024, 768, 12, 12, bias=True)
if {sparse}:
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.1), init=0.02), where=["*.attention.*", "*.feed_forward.*"])
    for module in model.modules():
        if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            module.to_empty(device="cpu", recurse=False)
            module.reset_parameters()
    torch.nn.init.normal_(model.tokens.weight, 0.0, 0.02)
    torch.nn.init.normal_(model.positions.weight, 0.0, 0.02)
built = peak() - before
optimizer = torch.optim.AdamW(model.parameters(), 3e-4)
losses = []
text = torch.randint(50_257, (1, {length} + 1))
for _ in range(2):
    optimizer.zero_grad()
    x, y = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    loss = model.loss(x, y) if {chunked} else F.cross_entropy(model(x).flatten(0, 1), y.flatten())
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
parameters = sum(parameter.numel() for parameter in model.parameters())
print(json.dumps(dict(parameters=parameters, built_megabytes=built, step_megabytes=peak() - before, losses=losses)))
"""
CASES = {
    "dense": (False, False), "dense, chunked loss": (False, True), "sparse 90%": (True, False),
    "sparse 90%, chunked loss": (True, True),
}  # fmt: skip


def _run(sparse, chunked, length):
    code = CODE.format(sparse=sparse, chunked=chunked, length=length)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("length", [256])
def test_gpt_memory(suite, benchmark, length):
    peaks = {name: _run(*case, length) for name, case in CASES.items()}
    dense = peaks["dense"]["step_megabytes"]
    for name, row in peaks.items():
        share = row["step_megabytes"] / dense
        goal = 0.4 if name.endswith("chunked loss") and name.startswith("sparse") else None
        suite.add(contestant=name, length=length, **row, share_of_dense=share, goal=goal)
    for one, other in (("dense", "dense, chunked loss"), ("sparse 90%", "sparse 90%, chunked loss")):
        assert peaks[one]["losses"] == pytest.approx(peaks[other]["losses"], rel=1e-4)
    benchmark.pedantic(lambda: None, rounds=1)
