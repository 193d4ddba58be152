"""A layer may offer several forms for an ONNX file: each is timed, and the one that runs fastest is taken."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from filigree.export.answers import answers
from filigree.export.onnx.program import Session, part, translate
from filigree.measure.timing import time_interleaved
from filigree.nn.onnx_operators import (
    OperatorConv1d,
    OperatorConv2d,
    OperatorLinear,
    encoded,
    product_operator,
    recurrent_operator,
)  # fmt: skip
from filigree.nn.rnn import is_lstm
from filigree.nn.sparse.sparse_conv2d import conv_geometry
from filigree.nn.structured.structured_rnn import StructuredRNN

Choice = Literal["measure", "dense", "gather", "operator"]
Forms = dict[str, nn.Module]


def offered_forms(model: nn.Module, operators: bool = False) -> dict[str, Forms]:
    """Get the candidates of each layer of a model that offers some, by the layer's name.

    Args:
        operators: filigree's own operators for ONNX Runtime are among them; of torch's linear, convolutional and
            recurrent layers too, where most of a weight is zero.
    """
    forms: dict[str, Forms] = {}
    whole: list[str] = []  # what modules inside those that are offered as a whole begin with
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in whole):
            continue
        layer: Any = module
        candidates: Forms = layer.onnx_candidates() if answers(module, "onnx_candidates") else {}
        if operators and (operator := _operator(module)) is not None:
            if isinstance(module, StructuredRNN):
                plain: nn.Module = _dense_rnn(module)
                whole.append(f"{name}." if name else "")
            else:
                plain = layer.onnx_form() if answers(module, "onnx_form") else module
            candidates = (candidates or {getattr(plain, "form", "dense"): plain}) | {"operator": operator}
        if candidates:
            forms[name] = candidates
    return forms


@torch.no_grad()
def _dense_rnn(rnn: StructuredRNN) -> nn.Module:
    """The `nn.LSTM` or `nn.GRU` with the same weights, of a network whose products are all with a matrix."""
    me: Any = rnn
    dense: Any = (nn.LSTM if is_lstm(rnn) else nn.GRU)(
        me.input_size, me.hidden_size, me.num_layers, me.bias, me.batch_first, me.dropout, me.bidirectional
    )
    for name, product in me.products.items():
        matrix = product.weight if isinstance(product, nn.Linear) else product.weight_matrix()
        getattr(dense, f"weight_{name}").copy_(matrix)
        if me.bias:
            getattr(dense, f"bias_{name}").copy_(getattr(me, f"bias_{name}"))
    return dense


def _operator(module: nn.Module) -> nn.Module | None:
    layer: Any = module
    if answers(module, "onnx_operator"):
        operator: nn.Module | None = layer.onnx_operator()
        return operator
    if type(module) in (nn.LSTM, nn.GRU) and not layer.proj_size:
        parameters = dict(module.named_parameters())
        matrices = {name.removeprefix("weight_"): p for name, p in parameters.items() if name.startswith("weight_")}
        if 2 * sum(int(w.count_nonzero()) for w in matrices.values()) > sum(w.numel() for w in matrices.values()):
            return None
        products = {name: product_operator(_linear(weight)) for name, weight in matrices.items()}
        biases = {name: parameters.get(f"bias_{name}") for name in matrices}
        return recurrent_operator(module, products, biases, is_lstm(module))
    if (
        type(module) not in (nn.Linear, nn.Conv1d, nn.Conv2d)
        or 2 * int(layer.weight.count_nonzero()) > layer.weight.numel()
    ):
        return None
    code = encoded(layer.weight.flatten(1))
    if code is None or type(module) is nn.Linear:
        return None if code is None else OperatorLinear(layer, code)
    flat = _with_a_height(module) if isinstance(module, nn.Conv1d) else layer
    operator2d = OperatorConv2d(flat, conv_geometry(flat), code)
    return OperatorConv1d(operator2d) if isinstance(module, nn.Conv1d) else operator2d


def _linear(weight: nn.Parameter) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = weight
    return linear


def _with_a_height(conv: Any) -> nn.Conv2d:
    """The convolution of images of height 1 that computes the same as an `nn.Conv1d`; it has no weight."""
    padding = conv.padding if isinstance(conv.padding, str) else (0, *conv.padding)
    with torch.device("meta"):
        flat = nn.Conv2d(
            conv.in_channels, conv.out_channels, (1, *conv.kernel_size), (1, *conv.stride), padding,
            (1, *conv.dilation), conv.groups, False, conv.padding_mode,
        )  # fmt: skip
    flat.bias = conv.bias
    return flat


def chosen_forms(
    offered: dict[str, Forms], inputs: dict[str, Tensor], choice: Choice, seconds: float, library: str | None = None
) -> dict[str, tuple[nn.Module, str, str]]:
    """Choose a module for each of these layers; return it, the name of its form and a note of the times.

    Args:
        offered: candidates by name. inputs: what each layer reads. choice: "measure", the fastest of all; else the
            fastest of those whose name begins with it, and of all where none does. seconds: how long each is timed.
        library: the file of filigree's operators, where they are offered.
    """
    wanted: dict[str, Forms] = {}
    for name, forms in offered.items():
        wanted[name] = {form: module for form, module in forms.items() if form.startswith(choice)} or forms
    times = _times({name: forms for name, forms in wanted.items() if len(forms) > 1}, inputs, seconds, library)
    chosen = {}
    for name, forms in wanted.items():
        best = min(forms, key=lambda form: times.get((name, form), 0.0))
        note = ", ".join(f"{form} {times[name, form]:.3g} ms" for form in forms if (name, form) in times)
        chosen[name] = forms[best], best, note
    return chosen


class _SideBySide(nn.Module):
    """Run every form of every layer on the layer's own input; of those that return several things the first counts."""

    def __init__(self, forms: dict[str, Forms]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList(modules.values()) for modules in forms.values())

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        outputs = [form(x) for forms, x in zip(self.layers, inputs, strict=True) for form in forms]  # type: ignore[attr-defined]
        return [output[0] if isinstance(output, tuple) else output for output in outputs]


def _times(
    forms: dict[str, Forms], inputs: dict[str, Tensor], seconds: float, library: str | None
) -> dict[tuple[str, str], float]:
    """Time each form in ONNX Runtime, in milliseconds: all are translated in one go, and each then runs by itself."""
    if not forms:
        return {}
    given = tuple(inputs[name].clone() for name in forms)  # two layers that read one tensor are two inputs
    names = [f"input{i}" for i in range(len(given))]
    keys = [(name, form) for name, modules in forms.items() for form in modules]
    model = translate(_SideBySide(forms), given, False, names, [f"output{i}" for i in range(len(keys))])
    times: dict[tuple[str, str], float] = {}
    number = 0
    for name, modules, x, source in zip(forms, forms.values(), given, names, strict=False):
        works = []
        for _ in modules:
            session = Session(part(model, [source], [f"output{number}"]), library)
            works.append(lambda session=session, x=x: session.run([x]))
            number += 1
        for form, timing in zip(modules, time_interleaved(works, seconds), strict=True):
            times[name, form] = timing.median
    return times
