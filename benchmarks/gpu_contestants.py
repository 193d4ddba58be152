"""What benchmarks/gpu.py measures: sparse, dense and structured layers as calls, checked in float64, then timed."""

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from networks import CsrLinear
from torch import Tensor, nn

import filigree as fg
from filigree.ops import gpu, gpu_sell, reference
from filigree.topology.flat_indices import distinct

TOLERANCES = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 2e-2}  # of the error's norm over the result's
CALLS, GRAPH_BELOW = 10, 1.0  # of a CUDA graph; milliseconds below which a call is timed as one too


@dataclass
class Contestant:
    """A call, and what its outputs should be; its precision is what it is held to."""

    name: str
    precision: str
    call: Callable[[], tuple[Tensor, ...]]
    expected: tuple[Tensor, ...]
    in_graph: bool = True

    def run(self) -> tuple[Tensor, ...]:
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
        return self.call()

    def error(self) -> float:
        """The largest relative error of the outputs, by norms; at most the tolerance of a sound contestant."""
        actual = [output.detach().double() for output in self.run()]
        pairs = zip(actual, self.expected, strict=True)
        return max(float((a - e).norm() / e.norm()) for a, e in pairs)


# -- the contestants of a cell ----------------------------------------------------------------------------------------


class SparseCell:
    """A matrix `(width, width)` of one sparsity, in all forms: ours, torch's CSR (cuSPARSE on CUDA), and dense."""

    def __init__(self, width: int, sparsity: float, device: str) -> None:
        nonzeros = round(width * width * (1 - sparsity))
        flat_indices = distinct(width * width, nonzeros, torch.Generator().manual_seed(0))
        self.width, self.device = width, device
        self.layer = fg.nn.SparseLinear(width, width, bias=False, flat_indices=flat_indices, device=device)
        p, values = self.layer.pattern, self.layer.values.detach()
        self.row, self.column = reference.rows(p.indptr, p.nnz), p.indices.long()
        self.exact = reference.dense(p.indptr, p.indices, values.double(), width)
        self.dense = nn.Linear(width, width, bias=False, device=device)
        self.dense.weight.data.copy_(self.exact)
        shape = (width, width)
        self.csr = torch.sparse_csr_tensor(p.indptr, p.indices, values, shape)
        self.csr_t = torch.sparse_csr_tensor(p.t_indptr, p.t_indices, values[p.t_perm.long()], shape)

    def contestants(self, batch: int) -> dict[str, list[Contestant]]:
        """By product; x and the gradient of y are feature-major for sparse layers, `(samples, features)` for others."""
        x, dy = (torch.randn(self.width, batch, device=self.device) for _ in range(2))
        wide = x.double(), dy.double()
        y, dx, dw = self.exact @ wide[0], self.exact.t() @ wide[1], wide[1] @ wide[0].t()
        sampled = dw[self.row, self.column]
        products: dict[str, list[Contestant]] = {name: [] for name in ("forward", "input gradient", "weight gradient")}

        def add(name: str, precision: str, outputs: list[tuple[Callable[..., Tensor], Tensor]], graph: bool) -> None:
            for product, (call, expected) in zip(products, outputs, strict=True):
                tuple_of = lambda call=call: (call(),)  # noqa: E731
                products[product].append(Contestant(name, precision, tuple_of, (expected,), graph))

        p = self.layer.pattern
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            v, a, g = (t.detach().to(dtype) for t in (self.layer.values, x, dy))
            ours = [
                (lambda v=v, a=a: gpu.spmm(p, v, a), y), (lambda v=v, g=g: gpu.spmm_t(p, v, g), dx),
                (lambda a=a, g=g: gpu.sddmm(p, g, a), sampled),
            ]  # fmt: skip
            add(f"sparse {precision}", precision, ours, True)
        nothing = torch.sparse_csr_tensor(p.indptr, p.indices, torch.zeros_like(self.csr.values()), self.csr.shape)
        theirs = [
            (lambda: self.csr @ x, y), (lambda: self.csr_t @ dy, dx),
            (lambda: torch.sparse.sampled_addmm(nothing, dy, x.t(), beta=0.0).values(), sampled),
        ]  # fmt: skip
        add("cuSPARSE", "fp32", theirs, False)  # it synchronises, which no graph may
        a, g, weight = x.t().contiguous(), dy.t().contiguous(), self.dense.weight.detach()
        for precision in TOLERANCES:
            b, c, w = (t.bfloat16() if precision == "bf16" else t for t in (a, g, weight))
            dense = [
                (lambda b=b, w=w: b @ w.t(), y.t()), (lambda c=c, w=w: c @ w, dx.t()),
                (lambda b=b, c=c: c.t() @ b, dw),
            ]  # fmt: skip
            add(f"dense {precision}", precision, dense, True)
        steps = [
            step("sparse fp32", "fp32", self.layer, x.t(), dy.t(), y.t(), dx.t()),
            step("sparse bf16", "bf16", self.layer, x.t(), dy.t(), y.t(), dx.t()),
            step("cuSPARSE", "fp32", CsrLinear(_with_bias(self.layer)), a, g, y.t(), dx.t(), in_graph=False),
            *(step(f"dense {name}", name, self.dense, a, g, y.t(), dx.t()) for name in TOLERANCES),
        ]
        return products | {"training step": steps}


class StructuredCell:
    """ACDC and Fastfood layers of one width, against dense ones."""

    def __init__(self, width: int, device: str) -> None:
        self.width, self.device = width, device
        self.layers = {
            "ACDC": fg.nn.ACDCLinear(width, width).to(device), "Fastfood": fg.nn.FastfoodLinear(width, width).to(device)
        }  # fmt: skip
        self.dense = nn.Linear(width, width, bias=False, device=device)

    def contestants(self, batch: int) -> dict[str, list[Contestant]]:
        x, dy = (torch.randn(batch, self.width, device=self.device) for _ in range(2))
        forward, steps = [], []
        named = [(name, "fp32", layer) for name, layer in self.layers.items()]
        named += [(f"dense {precision}", precision, self.dense) for precision in TOLERANCES]
        for name, precision, layer in named:
            wide, inputs = copy.deepcopy(layer).double(), x.double().requires_grad_()
            with PlainTorch():
                y = wide(inputs)
            y.backward(dy.double())
            forward.append(Contestant(name, precision, product(layer, x, precision), (y.detach(),)))
            steps.append(step(name, precision, layer, x, dy, y.detach(), inputs.grad))
        return {"forward": forward, "training step": steps}


class PlainTorch:
    """A context without the Triton kernels of structured layers."""

    def __enter__(self) -> None:
        self.available, gpu_sell.available = gpu_sell.available, False

    def __exit__(self, *_: object) -> None:
        gpu_sell.available = self.available


def product(layer: nn.Module, x: Tensor, precision: str) -> Callable[[], tuple[Tensor, ...]]:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    own, inputs = copy.deepcopy(layer).to(dtype), x.to(dtype)

    def call() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (own(inputs),)

    return call


def step(
    name: str, precision: str, layer: nn.Module, x: Tensor, dy: Tensor, y: Tensor, dx: Tensor, in_graph: bool = True
) -> Contestant:
    """Forward, both gradients and SGD with momentum, of one layer in the middle of a network."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    own = copy.deepcopy(layer).to(dtype)
    inputs, gradient = x.detach().to(dtype).requires_grad_(), dy.to(dtype)
    optimizer = torch.optim.SGD(own.parameters(), 1e-6, momentum=0.9)

    def call() -> tuple[Tensor, ...]:
        optimizer.zero_grad()
        inputs.grad = None
        output = own(inputs)
        output.backward(gradient)
        optimizer.step()
        return output, inputs.grad

    return Contestant(name, precision, call, (y, dx), in_graph)


def _with_bias(layer: nn.Module) -> nn.Module:
    """The layer with a bias of zeros, which `CsrLinear` wants."""
    own = copy.deepcopy(layer)
    own.bias = nn.Parameter(own.values.new_zeros(own.out_features))
    return own


# -- timing -----------------------------------------------------------------------------------------------------------


def milliseconds(call: Callable[[], object], repeats: int, device: str) -> float:
    """Of one of `repeats` calls, by CUDA's events."""
    if device == "cpu":
        began = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - began) / repeats * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats


def in_turns(calls: dict[str, Callable[[], object]], seconds: float, device: str) -> dict[str, dict[str, float]]:
    """Median and tenths of each call's milliseconds: warmed up, then blocks of about 2 ms in turns."""
    repeats = {}
    for name, call in calls.items():
        milliseconds(call, 1, device)
        repeats[name] = max(1, min(100, round(2 / max(milliseconds(call, 2, device), 1e-3)))) if seconds else 1
    times: dict[str, list[float]] = {name: [] for name in calls}
    ends, rounds = time.perf_counter() + seconds * len(calls), 0
    while rounds < (5 if seconds else 2) or time.perf_counter() < ends:
        rounds += 1
        for name, call in calls.items():
            times[name].append(milliseconds(call, repeats[name], device))
    tenths = {name: statistics.quantiles(of_call, n=10, method="inclusive") for name, of_call in times.items()}
    return {
        name: {"ms": statistics.median(times[name]), "low": tenths[name][0], "high": tenths[name][-1]} for name in calls
    }


def captured(contestant: Contestant) -> Callable[[], object]:
    """Ten calls as a CUDA graph, which leaves out what Python costs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        contestant.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            contestant.run()
    return graph.replay


def measured(contestants: list[Contestant], seconds: float, device: str) -> list[dict]:
    """A row for each contestant: its error, its times call by call, and (`graph_ms`) as a CUDA graph; or why not."""
    rows: dict[str, dict] = {contestant.name: {"contestant": contestant.name} for contestant in contestants}
    sound, graphs = {}, {}
    for contestant in contestants:
        with _reason_in(rows[contestant.name], "failed"):
            error = rows[contestant.name]["error"] = contestant.error()
            if not error <= TOLERANCES[contestant.precision]:
                raise ArithmeticError(f"error above {TOLERANCES[contestant.precision]}")
            sound[contestant.name] = contestant
    for name, times in in_turns({name: one.run for name, one in sound.items()}, seconds, device).items():
        rows[name] |= times
        if device == "cuda" and sound[name].in_graph and times["ms"] < GRAPH_BELOW:
            with _reason_in(rows[name], "no_graph"):
                graphs[name] = captured(sound[name])
    for name, times in in_turns(graphs, seconds, device).items():
        rows[name] |= {f"graph_{key}": value / CALLS for key, value in times.items()}
    return list(rows.values())


@contextlib.contextmanager
def _reason_in(row: dict, key: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, NotImplementedError, TypeError, ArithmeticError) as problem:
        row[key] = (str(problem).strip() or type(problem).__name__).splitlines()[0][:200]
