"""Layers in 8-bit integers: weights and activations, as pairs of QuantizeLinear and DequantizeLinear.

ONNX Runtime, and other runtimes, recognise these pairs around a product and run it in integers. Weights stand in the
file as int8, or in 4 bits where none is above 7, with a scale for each output; activations become uint8, by the least
and the largest number of each tensor on calibration data: `x ~ scale (q - zero_point)`, `scale = (most - least) / 255`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from filigree.export.answers import answers
from filigree.export.onnx.program import Session, onnx_module
from filigree.nn.integer.integer_onnx import IntegerWeight

Int8 = Literal["integers", "all"]
INT8 = get_args(Int8)
TOLERANCE = 0.1  # of the largest output: what rounding to 8 bits may change

_TORCH = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SAME = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity")  # write what they read
_INT32 = 2.0**31


def int8_form(module: nn.Module, which: Int8) -> nn.Module | None:
    """The layer with a weight of int8; None where it has no such form: with "integers" those of other layers."""
    layer: Any = module
    weight: IntegerWeight | None = None
    like: Any = module
    if answers(module, "integer_weight"):
        weight = layer.integer_weight()
        like = layer.dense()
        like = like[0] if isinstance(like, nn.Sequential) else like
    elif type(module) in _TORCH and which == "all":
        weight = _rounded(layer.weight.detach())
    if weight is None or weight.scale.dtype is not torch.float32 or weight.integers.abs().amax() > 127:
        return None
    return Int8Layer(like, weight, relu=bool(getattr(module, "relu", False)))


def _rounded(weight: Tensor) -> IntegerWeight | None:
    rows = weight.flatten(1)
    if not rows.numel():
        return None
    scale = (rows.abs().amax(1) / 127).clamp(min=torch.finfo(rows.dtype).tiny)
    return IntegerWeight((rows / scale[:, None]).round().to(torch.int32), scale, None)


class Int8Layer(nn.Module):
    """A linear layer or a convolution with the settings of `like` whose weight is DequantizeLinear's."""

    form = "int8"

    def __init__(self, like: Any, weight: IntegerWeight, relu: bool) -> None:
        super().__init__()
        self.bias, self.relu, self.is_linear = like.bias, relu, isinstance(like, nn.Linear)
        integers = weight.integers.to(torch.int8).reshape(like.weight.shape)
        self.register_buffer("integers", integers.t().contiguous() if self.is_linear else integers)
        self.register_buffer("scale", weight.scale.expand(len(like.weight)).contiguous())
        self.register_buffer("zero", torch.zeros(len(like.weight), dtype=torch.int8))  # QGemm asks for it
        self.input_scale: Tensor | None
        sides = like.weight.dim() - 2  # of an image; 0 of a linear layer
        shaped = None if weight.input_scale is None else weight.input_scale.reshape(-1, *[1] * sides)
        self.register_buffer("input_scale", shaped)
        self.like = [like]  # in a list, so that it is no submodule

    def forward(self, x: Tensor) -> Tensor:
        integers, scale = self.get_buffer("integers"), self.get_buffer("scale")
        if self.input_scale is not None:
            x = x * self.input_scale
        weight = torch.onnx.ops.symbolic(
            "DequantizeLinear", [integers, scale, self.get_buffer("zero")], {"axis": int(self.is_linear)},
            dtype=torch.float32, shape=integers.shape,
        )  # fmt: skip
        if not self.is_linear:
            y = self.like[0]._conv_forward(x, weight, self.bias)
        elif x.dim() == 2:
            inputs = [x, weight, *([] if self.bias is None else [self.bias])]
            sides = [x.shape[0], integers.shape[1]]
            y = torch.onnx.ops.symbolic("Gemm", inputs, {}, dtype=torch.float32, shape=sides)
        else:
            y = x @ weight
            y = y if self.bias is None else y + self.bias
        return y.relu() if self.relu else y


def calibration_batches(given: Any, example: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """List the batches of calibration data: a tensor, a tuple of a model's inputs, or several of these."""
    if given is None:
        return [example]
    if isinstance(given, Tensor) or (isinstance(given, tuple) and all(isinstance(x, Tensor) for x in given)):
        given = [given]
    if not isinstance(given, Iterable):
        raise TypeError(f"export: calibration must be a tensor or batches of inputs. Got {type(given).__name__}.")
    batches = []
    for batch in given:
        inputs = (batch if isinstance(batch, tuple | list) else (batch,))[: len(example)]  # of (inputs, labels) these
        if wrong := [x for x in inputs if not isinstance(x, Tensor)]:
            raise TypeError(
                f"export: calibration must be a tensor or batches of inputs. Got one of {type(wrong[0]).__name__}."
            )
        batches.append(tuple(x.detach().cpu().contiguous() for x in inputs))
    for batch in batches:
        shapes = [tuple(x.shape[1:]) for x in batch]
        if shapes != [tuple(x.shape[1:]) for x in example]:
            raise ValueError(f"export: calibration must be like the example. Got samples of {shapes}.")
    if not any(x.numel() for batch in batches for x in batch[:1]):
        raise ValueError("export: calibration must hold at least one sample. Got none.")
    return batches


def quantized(model: Any, batches: Sequence[tuple[Tensor, ...]]) -> Any:
    """Put the activations around each product with an int8 weight into 8 bits."""
    return _Quantizer(model).run(batches)


class _Quantizer:
    """It changes one ONNX model. What is quantised: what the products read and, of convolutions, what they write, after
    an activation that ends at 0; ONNX Runtime has no convolution of integers with an output of floats."""

    def __init__(self, model: Any) -> None:
        self.onnx = onnx_module("onnx")
        self.model = model
        graph = model.graph
        self.producer = {name: node for node in graph.node for name in node.output}
        self.consumers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.initializers = {each.name: each for each in graph.initializer}
        values = (*graph.input, *graph.output, *graph.initializer)
        self.taken = {each.name for each in values} | {name for node in graph.node for name in node.output}
        self.products = [
            node for node in graph.node
            if node.op_type in ("Conv", "Gemm", "MatMul")
            and getattr(self.producer.get(node.input[1]), "op_type", "") == "DequantizeLinear"
        ]  # fmt: skip

    def run(self, batches: Sequence[tuple[Tensor, ...]]) -> Any:
        self._own_weights()
        names = list(dict.fromkeys(name for node in self.products for name in self._around(node)))
        scales = self._scales(names, batches)
        for node in self.products:
            self._quantize_bias(node, scales)
        self._insert(scales)
        self._narrow()
        self.onnx.checker.check_model(self.model, full_check=True)
        return self.model

    def _new(self, name: str) -> str:
        """Return this name, or one like it that the model does not use yet: inputs may be called `x` and `x_scale`."""
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def _own_weights(self) -> None:
        """Give each product its own weight and zero point: under `PRECISE` ONNX Runtime replaces each, only once."""
        graph, taken = self.model.graph, set[str]()
        for node in self.products:
            source, name = self.producer[node.input[1]], self._new(f"{node.output[0]}_weight")
            if source.output[0] in taken:
                at = list(graph.node).index(node)
                graph.node.insert(at, source)  # a copy
                source = self.producer[name] = graph.node[at]
                source.name, source.output[0], node.input[1] = f"{name}_dequantize", name, name
            for i, each in enumerate(source.input):
                if each in taken and each in self.initializers:
                    own = graph.initializer.add()
                    own.CopyFrom(self.initializers[each])
                    own.name = source.input[i] = self._new(f"{name}_{i}")
                    self.initializers[own.name] = own
            taken.update([source.output[0], *source.input])

    def _around(self, node: Any) -> list[str]:
        if node.op_type != "Conv":
            return [node.input[0]]
        output = node.output[0]
        readers = self.consumers.get(output, [])
        if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
            output = readers[0].output[0]
        return [node.input[0], output]

    def _scales(self, names: list[str], batches: Sequence[tuple[Tensor, ...]]) -> dict[str, tuple[np.float32, int]]:
        """Scale and zero point of each of these tensors."""
        least, most = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        watched = type(self.model)()
        watched.CopyFrom(self.model)
        del watched.graph.output[:]
        inputs = {each.name for each in self.model.graph.input}
        watched.graph.output.extend(self.onnx.helper.make_empty_tensor_value_info(n) for n in names if n not in inputs)
        computed = [name for name in names if name not in inputs]
        session = Session(watched) if computed else None
        for batch in batches:
            values = dict(zip([each.name for each in self.model.graph.input], batch, strict=True))
            if session is not None:
                values |= dict(zip(computed, session.run(batch), strict=True))
            for name in names:
                if not bool(values[name].isfinite().all()):
                    raise ValueError("export: what int8 layers read and write on the calibration data must be finite.")
                if values[name].numel():  # a batch may be empty
                    least[name] = min(least[name], float(values[name].min()))
                    most[name] = max(most[name], float(values[name].max()))
        scales: dict[str, tuple[np.float32, int]] = {}
        for name in names:  # in the order of the graph: what only moves numbers has the scale of its input
            source = self.producer.get(name)
            if source is not None and source.op_type in _SAME and source.input[0] in scales:
                scales[name] = scales[source.input[0]]
            else:
                scale = np.float32(max(most[name] - least[name], 1e-30) / 255)
                scales[name] = scale, round(min(255.0, max(0.0, -least[name] / float(scale))))
        return scales

    def _quantize_bias(self, node: Any, scales: dict[str, tuple[np.float32, int]]) -> None:
        """Store the bias of a product as int32 multiples of the scale of its sums."""
        if node.op_type == "MatMul" or len(node.input) < 3 or node.input[2] not in self.initializers:
            return
        to_array, from_array = self.onnx.numpy_helper.to_array, self.onnx.numpy_helper.from_array
        bias = to_array(self.initializers[node.input[2]]).astype(np.float64)
        of_input = scales[node.input[0]][0]
        scale = self._scale_for(node, np.abs(bias) / (_INT32 / 2) / of_input) * of_input
        integers = np.clip(np.round(bias / scale), -_INT32, _INT32 - 1).astype(np.int32)
        name = self._new(f"{node.output[0]}_bias")
        by, end = self._new(f"{name}_scale"), self._new(f"{name}_dequantized")
        self.model.graph.initializer.extend([from_array(integers, name), from_array(scale, by)])
        new = self.onnx.helper.make_node("DequantizeLinear", [name, by], [end], name=f"{name}_dequantize", axis=0)
        old, node.input[2] = node.input[2], new.output[0]
        self.model.graph.node.insert(list(self.model.graph.node).index(node), new)
        if not any(old in each.input for each in self.model.graph.node):
            self.model.graph.initializer.remove(self.initializers[old])

    def _scale_for(self, node: Any, least: Any) -> Any:
        """The scales of a product's weight, at least these: in multiples of that of a row of zeros, or of inputs that
        were all zero, a bias would not fit into 32 bits."""
        to_array, from_array = self.onnx.numpy_helper.to_array, self.onnx.numpy_helper.from_array
        weight = self.producer[node.input[1]]
        integers, scale = (to_array(self.initializers[name]) for name in weight.input[:2])
        if bool((least <= scale).all()):
            return scale
        larger = np.maximum(scale, least).astype(np.float32)
        axis = next(attribute.i for attribute in weight.attribute if attribute.name == "axis")
        ratio = (scale / larger).reshape([-1 if side == axis else 1 for side in range(integers.ndim)])
        for name, array in zip(weight.input, (np.round(integers * ratio).astype(np.int8), larger), strict=False):
            self.initializers[name].CopyFrom(from_array(array, name))
        return larger

    def _narrow(self) -> None:
        """Store weights of at most 7 in 4 bits; they are cast to int8 once, when the file is loaded."""
        graph, to_array, int4 = self.model.graph, self.onnx.numpy_helper.to_array, onnx_module("onnx_ir").DataType.INT4
        for name in dict.fromkeys(self.producer[node.input[1]].input[0] for node in self.products):
            stored = self.initializers[name]
            integers = to_array(stored)
            if abs(integers).max(initial=0) > 7:
                continue
            narrow = self.onnx.numpy_helper.from_array(integers.astype(int4.numpy()), self._new(f"{name}_4_bits"))
            graph.initializer.remove(stored)
            graph.initializer.append(narrow)
            cast = self.onnx.helper.make_node("Cast", [narrow.name], [name], name=f"{name}_cast", to=stored.data_type)
            graph.node.insert(0, cast)

    def _insert(self, scales: dict[str, tuple[np.float32, int]]) -> None:
        """Have all that reads one of these tensors read it after it went through 8 bits."""
        graph, helper, from_array = self.model.graph, self.onnx.helper, self.onnx.numpy_helper.from_array
        outputs = {each.name for each in graph.output}
        nodes = list(graph.node)
        del graph.node[:]
        pairs: dict[str, list[Any]] = {}
        for name, (scale, zero) in scales.items():
            if name in outputs:  # the graph's output keeps its name
                source, end = self._new(f"{name}_float"), name
                self.producer[name].output[:] = [
                    source if each == name else each for each in self.producer[name].output
                ]
            else:
                source, end = name, self._new(f"{name}_dequantized")
                for node in nodes:
                    node.input[:] = [end if each == name else each for each in node.input]
            by = [self._new(f"{name}_scale"), self._new(f"{name}_zero")]
            numbers = np.asarray(scale), np.asarray(zero, np.uint8)
            graph.initializer.extend(from_array(number, each) for number, each in zip(numbers, by, strict=True))
            quantized = self._new(f"{name}_quantized")
            pairs[source] = [
                helper.make_node("QuantizeLinear", [source, *by], [quantized], name=f"{name}_quantize"),
                helper.make_node("DequantizeLinear", [quantized, *by], [end], name=f"{name}_dequantize"),
            ]
        for each in graph.input:
            graph.node.extend(pairs.pop(each.name, []))
        for node in nodes:
            graph.node.append(node)
            for name in node.output:
                graph.node.extend(pairs.pop(name, []))
