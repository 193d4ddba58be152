"""What a model costs: parameters, bytes, multiply-adds, milliseconds."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import _disable_current_modes

from filigree.computed_weights import copied
from filigree.config import one_line
from filigree.io.saving import description
from filigree.measure.timing import Timing, inference, time_interleaved
from filigree.modes import evaluating, takes_fused_sgd
from filigree.outputs import default_loss, tensors_in
from filigree.summary import macs_of, nonzeros_of, numbers_of, says
from filigree.text_table import Tabular
from filigree.untrained import warn_if_untrained
from filigree.wrappers import check_module, unwrapped


@dataclass(frozen=True)
class Cost(Tabular):
    """The costs that `measure` returns.

    Attributes:
        parameters: numbers that are trained and stored. nonzeros: those that are not zero.
        bytes_memory: parameters and buffers in memory (a sparse layer's values, indices and the transposed index).
        bytes_disk: the size of the file that `fg.save` writes (values and indices).
        macs_forward, macs_backward: multiply-adds of one sample's pass (None: it could not be counted, or nothing is
            trained).
        batch_ms, single_ms: latency of the given batch, and of its first sample alone, without gradients.
        train_step_ms: forward, backward and an SGD step with momentum on the batch, if targets were given.
        batch: samples in the batch.
    """

    parameters: int
    nonzeros: int
    bytes_memory: int
    bytes_disk: int
    macs_forward: int | None = None
    macs_backward: int | None = None
    batch_ms: Timing | None = None
    single_ms: Timing | None = None
    train_step_ms: Timing | None = None
    batch: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    has_header = False

    def table_rows(self) -> list[Sequence[str]]:
        rows = [
            ("parameters", f"{self.parameters:,}"),
            ("nonzeros", f"{self.nonzeros:,}"),
            ("bytes in memory", f"{self.bytes_memory:,}"),
            ("bytes on disk", f"{self.bytes_disk:,}"),
            ("MACs forward", None if self.macs_forward is None else f"{self.macs_forward:,} a sample"),
            ("MACs backward", None if self.macs_backward is None else f"{self.macs_backward:,} a sample"),
            (f"batch of {self.batch}", self.batch_ms),
            ("single sample", self.single_ms),
            ("training step", self.train_step_ms),
        ]
        return [(name, str(value)) for name, value in rows if value is not None]


def measure(
    model: nn.Module, example: Tensor | None = None, target: Tensor | None = None, seconds: float = 0.5
) -> Cost:
    """Parameters, bytes, multiply-adds and latency of a model; the model is left as it was.

    Args:
        model: any torch module; it is measured in eval mode. A compiled one is measured as it is without the compiler.
        example: an input batch; without it, only what is stored is counted.
        target: class labels for `example`; with them a training step is timed too, on a copy.
        seconds: how long each latency is measured; 0: latencies are left out, the rest is counted.

    Of layers that are divided over processes (`fg.shard_`) it counts the rows of this process.

    Returns:
        A printable `Cost`.

    Raises:
        TypeError, ValueError: no module or tensor; the model does not run on the example, or train on the labels.
    """
    check_module(model, "measure")
    if seconds and example is not None and any(map(_runs_together, model.modules())):
        raise ValueError(
            "measure: a model that is divided over processes cannot be timed, as each would make another number of "
            "calls. Give seconds=0."
        )
    if example is not None and not isinstance(example, Tensor):
        raise TypeError(f"measure: example must be a tensor. Got a {type(example).__name__}.")
    model = unwrapped(model)
    warn_if_untrained(model, "measure")
    cost = stored(model)
    if example is None:
        return cost
    timings: dict[str, Timing] = {}
    try:
        forward, backward = macs(model, example[:1])
        works: dict[str, Callable[[], Any]] = {
            "batch_ms": inference(model, example),
            "single_ms": inference(model, example[:1]),
        }
        if target is not None:
            works["train_step_ms"] = training_step(model, example, target)
        with evaluating(model):
            if seconds:
                timings = dict(zip(works, time_interleaved(list(works.values()), seconds), strict=True))
            elif forward is None:
                works["single_ms"]()
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        shape = tuple(example.shape)
        raise ValueError(f"measure: the model does not run on samples {shape}: {one_line(error)}") from error
    return Cost(
        **(asdict(cost) | {"macs_forward": forward, "macs_backward": backward, "batch": len(example)} | timings)
    )


def _runs_together(module: Any) -> bool:
    return says(module) and bool(module.runs_together)


def stored(model: nn.Module) -> Cost:
    """What is stored, without running the model."""
    return Cost(
        parameters=numbers_of(model),
        nonzeros=nonzeros_of(model),
        bytes_memory=sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()]),
        bytes_disk=_bytes_on_disk(model),
    )


def macs(model: nn.Module, sample: Tensor) -> tuple[int | None, int | None]:
    """Multiply-adds of forward and backward on one sample, by torch's counter and `_FORMULAS`.

    A layer whose arithmetic the counter does not see (it is `uncounted`, or a recurrent network of torch) counts its
    own `macs` for each position of its input, and twice that backward.
    """
    duplicate = copied(model).eval()
    own = [0]
    for module in duplicate.modules():
        if isinstance(module, nn.RNNBase) or (says(module) and module.uncounted):
            _count_itself(module, own)
    flop_counter = importlib.import_module("torch.utils.flop_counter")  # which loads Triton: 0.2 s
    try:
        with flop_counter.FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
            outputs = [out for out in tensors_in(duplicate(sample)) if out.requires_grad]
            forward = counter.get_total_flops()
            if not outputs:  # nothing is trained
                return forward // 2 + own[0], None
            sum((out.sum() for out in outputs), torch.zeros(())).backward()
    except RuntimeError:  # an operation that cannot be counted
        return None, None
    return forward // 2 + own[0], (counter.get_total_flops() - forward) // 2 + 2 * own[0]


def _count_itself(module: Any, total: list[int]) -> None:
    """Let a module add its own count of multiply-adds, unseen by torch's counter; gradients pass, but are none."""
    run, each = module.forward, macs_of(module)

    def forward(x: Any, *others: Any, **named: Any) -> Any:
        data = x.data if isinstance(x, PackedSequence) else x
        total[0] += data.numel() // data.shape[-1] * each
        with torch.no_grad(), _disable_current_modes():
            outputs = run(x, *others, **named)
        y, *rest = outputs if type(outputs) is tuple else (outputs,)
        nothing = 0 * data.sum() + 0 * sum(p.abs().sum() for p in module.parameters())
        if isinstance(y, PackedSequence):
            y = PackedSequence(y.data + nothing, y.batch_sizes, y.sorted_indices, y.unsorted_indices)
        else:
            y = y + nothing
        return (y, *rest) if type(outputs) is tuple else y

    module.forward = forward


def training_step(
    model: nn.Module, x: Tensor, y: Tensor, lr: float = 1e-4,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
) -> Callable[[], Any]:  # fmt: skip
    """A call that takes one step (cross-entropy) on a copy of the model, by SGD with momentum 0.9 or the optimizer that
    a function of the copy returns."""
    duplicate = copied(model).train()
    fused = x.device.type == "cpu" and takes_fused_sgd(duplicate)
    if optimizer is None:
        stepper: torch.optim.Optimizer = torch.optim.SGD(duplicate.parameters(), lr, momentum=0.9, fused=fused)
    else:
        stepper = optimizer(duplicate)

    def run() -> None:
        stepper.zero_grad()
        logits = duplicate(x)
        if not isinstance(logits, Tensor):
            raise ValueError(f"measure: with target=, the model must return logits. Got a {type(logits).__name__}.")
        default_loss(logits, y).backward()
        stepper.step()

    return run


def backward(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Any]:
    """A call that takes the gradients of the default loss by all parameters of a copy of the model, in training."""
    duplicate = copied(model).train()
    loss = default_loss(duplicate(x), y)
    parameters = [p for p in duplicate.parameters() if p.requires_grad]
    return lambda: torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)


def _bytes_on_disk(model: nn.Module) -> int:
    """As `fg.save` would write: tensors, a header line for each, and the description."""
    whole = description(model)
    values = [*whole["state_dict"].values(), *(whole["preprocessing"] or {}).values()]
    tensors = {t.data_ptr() or id(t): t for t in values if isinstance(t, Tensor)}.values()
    plain = len(str(whole["model"])) + len(str(whole["conversions"]))
    names = sum(2 * len(name) + 130 for name in whole["state_dict"])
    return sum(t.numel() * t.element_size() for t in tensors) + names + plain + 200


def _linear_forward_flops(values: Any, bias: Any, x: Any, *_: Any, **__: Any) -> int:
    return 2 * values[0] * x[0]


def _linear_backward_flops(values: Any, x: Any, y: Any, dy: Any, *rest: Any, **__: Any) -> int:
    need_input = rest[6]
    return 2 * values[0] * dy[0] * (2 if need_input else 1)


def _integer_linear_flops(x: Any, scale: Any, bias: Any, relu: Any, indptr: Any, *rest: Any, **__: Any) -> int:
    return 2 * rest[0][0] * x[0]


def _spmm_flops(values: Any, x: Any, *_: Any, **__: Any) -> int:
    return 2 * values[0] * x[1]


def _sddmm_flops(dy: Any, x: Any, indptr: Any, indices: Any, *_: Any, **__: Any) -> int:
    return 2 * indices[0] * x[1]


def _conv2d_forward_flops(values: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return 2 * values[0] * out_shape[0] * out_shape[2] * out_shape[3]


def _conv2d_backward_flops(values: Any, x: Any, dy: Any, *rest: Any, **__: Any) -> int:
    need_input = rest[3]
    return 2 * values[0] * dy[0] * dy[2] * dy[3] * (2 if need_input else 1)


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(query[:3]) * key[2] * (query[3] + value[3])


def _attention_backward_flops(dy: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(query[:3]) * key[2] * (3 * query[3] + 2 * value[3])  # the scores are computed again


# floating-point operations of what torch's counter lacks, from the shapes of their arguments: attention on the CPU, and
# the operators of filigree
_FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    torch.ops.filigree.linear_forward: _linear_forward_flops,
    torch.ops.filigree.linear_backward: _linear_backward_flops,
    torch.ops.filigree.integer_linear: _integer_linear_flops,
    torch.ops.filigree.spmm: _spmm_flops,
    torch.ops.filigree.spmm_t: _spmm_flops,
    torch.ops.filigree.sddmm: _sddmm_flops,
    torch.ops.filigree.conv2d_forward: _conv2d_forward_flops,
    torch.ops.filigree.conv2d_backward: _conv2d_backward_flops,
}
