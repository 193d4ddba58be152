"""Peak memory of training steps of GPT-2 small's shape, above the interpreter with torch and its optimizers loaded.

124 million parameters: 12 blocks of 768 / 3,072, 12 heads, 50,257 tokens, tied head; 1 x 256 tokens, AdamW, two steps.
Sparse: all linear layers but the head at 90%. Goal: at most 40% of dense's memory. Nothing is timed.

"Lean" is what any network may have, so dense is measured with it too: `model.loss`, which never holds all logits,
`AdamW(fused=True)`, which has no temporaries, and from glibc blocks of 256 KiB and more apart from the heap
(`MALLOC_MMAP_THRESHOLD_`), so that what was let go leaves no holes. "Recomputed": lean, and of each block only the
input is kept for the backward pass (`torch.utils.checkpoint`).
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

CODE = """
import functools, json, torch, filigree as fg
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) / 1024
torch.manual_seed(0)
torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
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
if {recomputed}:
    for block in model.blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
optimizer = torch.optim.AdamW(model.parameters(), 3e-4, fused={lean} or None)
losses = []
text = torch.randint(50_257, (1, {length} + 1))
for _ in range(2):
    optimizer.zero_grad()
    x, y = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    loss = model.loss(x, y) if {lean} else F.cross_entropy(model(x).flatten(0, 1), y.flatten())
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
parameters = sum(parameter.numel() for parameter in model.parameters())
print(json.dumps(dict(parameters=parameters, built_megabytes=built, step_megabytes=peak() - before, losses=losses)))
"""
KINDS = {"plain": (False, False), "lean": (True, False), "recomputed": (True, True)}  # lean, recomputed
LEAN = {"MALLOC_MMAP_THRESHOLD_": str(2**18)}


def _run(sparse, lean, recomputed, length):
    code = CODE.format(sparse=sparse, lean=lean, recomputed=recomputed, length=length)
    environment = os.environ | (LEAN if lean else {})
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("length", [256])
def test_gpt_memory(suite, benchmark, length):
    with ThreadPoolExecutor(3) as pool:  # beside one another, since nothing is timed
        dense, sparse = (
            {kind: pool.submit(_run, is_sparse, *options, length) for kind, options in KINDS.items()}
            for is_sparse in (False, True)
        )
    dense, sparse = ({kind: run.result() for kind, run in runs.items()} for runs in (dense, sparse))
    for name, peaks in (("dense", dense), ("sparse 90%", sparse)):
        for kind, row in peaks.items():
            suite.add(
                contestant=f"{name}, {kind}", length=length, **row,
                share_of_dense=row["step_megabytes"] / dense["plain"]["step_megabytes"],
                share_of_dense_alike=row["step_megabytes"] / dense[kind]["step_megabytes"],
                goal=0.4 if name != "dense" and kind != "plain" else None,
            )  # fmt: skip
            assert row["losses"] == pytest.approx(peaks["plain"]["losses"], rel=1e-4)
    benchmark.pedantic(lambda: None, rounds=1)
