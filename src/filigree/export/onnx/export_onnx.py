"""Write ONNX files: a model in the forms that ONNX Runtime runs fast, compared with torch before it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from filigree.computed_weights import copied
from filigree.config import one_line
from filigree.convert import replace_module
from filigree.export.answers import answers
from filigree.export.onnx.candidates import Choice, chosen_forms, offered_forms
from filigree.export.onnx.int8 import INT8, Int8, Int8Layer, calibration_batches, int8_form, quantized
from filigree.export.onnx.int8 import TOLERANCE as INT8_TOLERANCE
from filigree.export.onnx.operators import operators
from filigree.export.onnx.program import OPSET, PRECISE, Session, onnx_module, translate
from filigree.export.onnx.stand_in import StandIn, standing_for
from filigree.io.storage import replacing
from filigree.laid_out import restore_
from filigree.measure.timing import Timing, time_interleaved
from filigree.nn.dense_weight import DenseWeight
from filigree.nn.onnx_operators import DOMAIN
from filigree.nn.sparse.sparse_linear import SparseLinear
from filigree.nn.structured.structured_rnn import StructuredRNN
from filigree.nn.torch_attributes import ReadsAttributes
from filigree.protocols import CarriesState
from filigree.rounding import is_rounding
from filigree.text_table import aligned

Runtime = Literal["ort"]

_TOLERANCE = {torch.float64: 1e-8}  # of others 1e-4
_LARGEST = 2**31  # bytes of one protobuf message


_HOW = "Give layers integers by fg.compress_(model, fg.RoundToNearest(bits=8)), or int8='all'."


@dataclass(frozen=True)
class Forms:
    """How the layers stand in the file: options of `export_onnx`, and the file of filigree's operators."""

    sparse: Choice
    seconds: float
    library: str | None
    int8: Int8 | None


@dataclass(frozen=True)
class OnnxLayer:
    """It says what one module is in the file."""

    name: str
    kind: str
    form: str
    note: str = ""


@dataclass(frozen=True)
class OnnxReport:
    """It says what `export` wrote to an ONNX file, and prints as a table.

    Attributes:
        bytes: of the file. opset: of ONNX's operators.
        layers: those that are something else in the file than they are in torch.
        library: the file of filigree's operators, written beside it, with its folder, which the loader needs; None:
            they are not used.
        difference: the largest between torch's and ONNX Runtime's outputs, on the example and on a larger batch.
        relative: the same over the largest number among the outputs.
        onnx_ms, torch_ms: latency of the example's batch in ONNX Runtime and in torch, timed in turns.
        batch: samples in the example.
    """

    path: str
    bytes: int
    opset: int
    layers: list[OnnxLayer] = field(default_factory=list)
    library: str | None = None
    difference: float = 0.0
    relative: float = 0.0
    onnx_ms: Timing | None = None
    torch_ms: Timing | None = None
    batch: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        entry = "options.add_session_config_entry({!r}, {!r})  # x86 without VNNI gives other numbers without it"
        in_8_bits = any(layer.form == Int8Layer.form for layer in self.layers)
        rows = [("layer", "module", "in the file", "")]
        rows += [(each.name, each.kind, each.form, each.note) for each in self.layers]
        return "\n".join(
            [
                f"{self.path}: {self.bytes:,} bytes, opset {self.opset}",
                *([f"options.register_custom_ops_library({self.library!r})"] if self.library else []),
                *([entry.format(*PRECISE)] if in_8_bits else []),
                *(aligned(rows) if self.layers else []),
                f"largest difference   {self.difference:.3g} ({self.relative:.3g} of the largest output)",
                f"batch of {self.batch}: ONNX Runtime {self.onnx_ms}, torch {self.torch_ms}",
            ]
        )


def export_onnx(
    model: nn.Module, path: str | Path, example: Tensor | tuple[Tensor, ...] | None = None, *,
    training: bool = False, sparse: Choice = "measure", dynamic: bool = True, tolerance: float | None = None,
    seconds: float = 0.1, metadata: Mapping[str, str] | None = None, runtime: Runtime | None = None,
    int8: Int8 | None = None, calibration: Any = None,
) -> OnnxReport:  # fmt: skip
    """Write a model, as it is in eval mode, to an ONNX file; the model is left as it was.

    Structured, pruned and low-rank layers are in the file as they are, quantised weights as integers, sparse ones dense
    or gathered. The outputs in ONNX Runtime are compared with torch's on the example, and on a batch one larger.

    Args:
        model: any torch module, converted or not. path: the file; it is replaced only once all is well.
        example: an input batch, or a tuple of the model's inputs.
        training: ONNX files are for inference: True is refused.
        sparse: the form of sparse layers: "measure" (each in the form that ONNX Runtime runs fastest on what the
            example brings it), "dense", "gather" or, with `runtime="ort"`, "operator".
        dynamic: the first side of all inputs is the batch and may be of any size; otherwise only the example's.
        tolerance: of the outputs' differences, relative to the largest output. By default 1e-4, of float64 1e-8, and
            outputs that cancel may differ by as much as a change of all weights by a tenth of that changes them.
        seconds: how long each form of a sparse layer, and the whole, is timed.
        metadata: text by name that the file holds too, such as the names of classes.
        runtime: "ort": for ONNX Runtime with filigree's operators. Layers whose weights are mostly zero, and those of
            integers, may be nodes of the domain `filigree`, and the library of these is compiled and written beside the
            file (`m.onnx`, `m.so`); it is loaded by `options.register_custom_ops_library("./m.so")`.
        int8: "integers": layers of integers (`RoundToNearest`, `MonteCarlo`) compute with weights and activations in 8
            bits; "all": other linear layers and convolutions too, whose weights are rounded to 8 bits. Outputs may then
            differ by 0.1 of the largest, unless a `tolerance` is given.
        calibration: with `int8`, what the ranges of activations are read from: a tensor, a tuple of the model's inputs,
            or batches of these, or of (inputs, labels); default: the example.

    Returns:
        A printable report: file, forms, differences, latencies.

    Raises:
        ImportError: the extra `onnx` is not installed.
        RuntimeError: filigree's operators are wanted, and there is no C++ compiler, or it fails.
        TypeError, ValueError: no example, one that is no tensors or that the model does not run on; a module that
            cannot be exported, by name; outputs that differ by more than the tolerance. There is no new file then.
    """
    inputs = _inputs(example, dynamic)
    if training:
        raise ValueError("export: ONNX files are for inference. Got training=True.")
    if sparse not in get_args(Choice):
        raise ValueError(f"export: sparse must be one of {', '.join(get_args(Choice))}. Got {sparse!r}.")
    if runtime not in (None, *get_args(Runtime)):
        raise ValueError(f"export: runtime must be None or {', '.join(get_args(Runtime))}. Got {runtime!r}.")
    if int8 not in (None, *INT8):
        raise ValueError(f"export: int8 must be None, {' or '.join(map(repr, INT8))}. Got {int8!r}.")
    if int8 is None and calibration is not None:
        raise ValueError("export: calibration is for int8='integers' or int8='all'.")
    if tolerance is not None and not (isinstance(tolerance, int | float) and tolerance >= 0):  # NaN is not
        raise ValueError(f"export: tolerance must be None or a number of at least 0. Got {tolerance!r}.")
    texts = metadata if metadata is not None else {}
    if not (isinstance(texts, Mapping) and all(isinstance(text, str) for pair in texts.items() for text in pair)):
        raise TypeError(f"export: metadata must be a dict of text by text. Got {metadata!r}.")
    batches = calibration_batches(calibration, inputs)
    if sparse == "operator" and runtime is None:
        raise ValueError("export: sparse='operator' needs runtime='ort'.")
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_meta or tensor.dtype in (torch.float16, torch.bfloat16):
            what = "no weights" if tensor.is_meta else str(tensor.dtype)
            raise ValueError(f"export: the model must have weights in float32 or float64. Got {what}.")
    if diverged := [name for name, parameter in model.named_parameters() if bool(parameter.isnan().any())]:
        raise ValueError(f"export: {diverged[0]} holds NaN: has training diverged?")
    onnx_module("onnx"), onnx_module("onnxscript"), onnx_module("onnxruntime")
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values() if isinstance(t, Tensor))
    if size >= _LARGEST:
        raise ValueError(f"export: an ONNX file holds less than {_LARGEST:,} bytes. Got a model of {size:,}.")
    with replacing(path) as file, torch.no_grad(), operators(runtime is not None) as library:
        reference = _alone(model)
        try:
            outputs = reference(*inputs)
        except Exception as error:  # a forward can fail in any way
            reason = one_line(error)
            raise ValueError(f"export: the model does not run on the example: {reason}") from error
        expected = _tensors(outputs)
        if not expected:
            raise ValueError("export: the model must return at least one tensor. It returns none.")
        plain, layers = _plain(_alone(model), inputs, Forms(sparse, seconds, library, int8))
        names = ["output"] if len(expected) == 1 else [f"output{i}" for i in range(len(expected))]
        # torch's exporter takes a side of 1 for one that is always 1
        traced = tuple(torch.cat([x, x]) for x in inputs) if dynamic and len(inputs[0]) == 1 else inputs
        program = translate(plain, traced, dynamic, None, names)
        if int8 is not None:
            if not any(layer.form == Int8Layer.form for layer in layers):
                how = "It is for linear layers and convolutions in float32." if int8 == "all" else _HOW
                raise ValueError(f"export: int8={int8!r}: the model has no such layer of float32 scales. {how}")
            program = quantized(program, batches)
            tolerance = INT8_TOLERANCE if tolerance is None else tolerance
        uses_library = any(node.domain == DOMAIN for node in program.graph.node)
        session = Session(program, library)
        differences = [_compared(session, inputs, model, tolerance)]
        if dynamic:
            more = tuple(torch.cat([x, x[:1]]) for x in inputs)
            differences.append(_compared(session, more, model, tolerance))
        onnx_ms, torch_ms = time_interleaved([lambda: session.run(inputs), lambda: reference(*inputs)], seconds)
        for key, text in texts.items():
            program.metadata_props.add(key=key, value=text)
        contents = program.SerializeToString()
        file.write(contents)
        beside = Path(path).with_suffix(".so") if library and uses_library else None
        if library and beside is not None:
            with replacing(beside) as to:
                to.write(Path(library).read_bytes())
    library_file = None if beside is None else f"{beside.parent}/{beside.name}"
    largest, relative = (max(each) for each in zip(*differences, strict=True))
    return OnnxReport(
        str(path), len(contents), OPSET, layers, library_file, largest, relative, onnx_ms, torch_ms,
        len(inputs[0]),
    )  # fmt: skip


def _inputs(example: Any, dynamic: bool) -> tuple[Tensor, ...]:
    if example is None:
        raise ValueError("export: an ONNX file needs an example: fg.export(model, path, example_batch).")
    given = tuple(example) if isinstance(example, tuple | list) else (example,)
    if not given or not all(isinstance(x, Tensor) for x in given):
        kinds = ", ".join(type(x).__name__ for x in given) or "nothing"
        raise TypeError(f"export: example must be a tensor, or a tuple of the model's inputs. Got {kinds}.")
    if dynamic and (any(x.dim() == 0 for x in given) or len({len(x) for x in given}) > 1 or not len(given[0])):
        shapes = ", ".join(str(tuple(x.shape)) for x in given)
        raise ValueError(f"export: the first sides of all inputs must be one batch, at least one sample. Got {shapes}.")
    return tuple(x.detach().cpu().contiguous() for x in given)


def _alone(model: nn.Module) -> nn.Module:
    """Copy the model as it is used: in eval mode, on the CPU, each call for itself."""
    duplicate = copied(model).cpu().eval()
    restore_(duplicate)
    for module in duplicate.modules():
        if isinstance(module, CarriesState):  # a file keeps no state from call to call
            module.reset()
            module.carry = False
        if isinstance(module, SparseLinear):
            module.activations = None  # a file computes in float32
    return duplicate


def _plain(model: nn.Module, inputs: tuple[Tensor, ...], forms: Forms) -> tuple[nn.Module, list[OnnxLayer]]:
    """Give every module of the model a form that ONNX has; return the model, and what became of each module."""
    in_bytes = {}
    if forms.int8 is not None:
        candidates = ((name, int8_form(module, forms.int8)) for name, module in model.named_modules())
        in_bytes = {name: form for name, form in candidates if form is not None}
    offered = {
        name: each for name, each in offered_forms(model, forms.library is not None).items() if name not in in_bytes
    }
    read = _layer_inputs(copied(model), list(offered), inputs)
    chosen = chosen_forms(offered, read, forms.sparse, forms.seconds, forms.library)
    chosen |= {name: (form, Int8Layer.form, "") for name, form in in_bytes.items()}
    layers = []
    whole = [f"{name}." if name else "" for name in chosen if isinstance(model.get_submodule(name), StructuredRNN)]
    for name, module in reversed(list(model.named_modules())):  # submodules before what holds them
        layer: Any = module
        if name not in chosen and any(name.startswith(prefix) for prefix in whole):
            continue
        if name in chosen:
            plain, form, note = chosen[name]
        else:
            plain, note = layer.onnx_form() if answers(module, "onnx_form") else module, ""
            form = getattr(plain, "form", type(plain).__name__)
        if plain is not module:
            layers.append(OnnxLayer(name, type(module).__name__, form, note))
        if plain is not module or isinstance(module, DenseWeight):
            model = _put(model, name, standing_for(module, plain.eval()))
    if any(isinstance(module, StandIn) for module in model.modules()):
        model(*inputs)  # what the code around the layers reads of them is computed now, on numbers
    return model, layers[::-1]


class _Recording(ReadsAttributes, nn.Module):
    """It keeps the last input of a layer, its first one. Hooks would not do: some layers share theirs with others."""

    input: Tensor | None = None

    def __init__(self, layer: nn.Module, name: str) -> None:
        super().__init__()
        self.layer, self.name = layer, name

    def attributes_from(self, name: str) -> nn.Module | None:
        return self._modules.get("layer")

    def forward(self, *args: Any, **named: Any) -> Any:
        x = [*args, *named.values()][0]
        if not isinstance(x, Tensor):
            raise ValueError(f"export: {self.name!r} reads a {type(x).__name__}, which cannot be exported.")
        self.input = x.contiguous()
        return self.layer(*args, **named)


def _layer_inputs(model: nn.Module, names: list[str], inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Record what each of these modules reads when the model runs, in its last call. The model is used up."""
    recording = {name: _Recording(model.get_submodule(name), name) for name in names}
    for name, module in recording.items():
        model = _put(model, name, module)
    model.eval()(*inputs)
    inputs_by_name = {name: module.input for name, module in recording.items() if module.input is not None}
    if missed := sorted(set(names) - set(inputs_by_name)):
        raise ValueError(f"export: the example does not reach {missed[0]!r}.")
    return inputs_by_name


def _put(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Replace the module called `name`, which may be the model itself, and return the model."""
    if not name:
        return new
    replace_module(model, name, new)
    return model


def _tensors(outputs: Any) -> list[Tensor]:
    """List the tensors in what a model returned, in their order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    if not isinstance(outputs, tuple | list):
        raise TypeError(
            f"export: the model must return tensors, in tuples, lists or dicts. Got {type(outputs).__name__}."
        )
    return [tensor for each in outputs if each is not None for tensor in _tensors(each)]


def _compared(
    session: Session, inputs: tuple[Tensor, ...], model: nn.Module, tolerance: float | None
) -> tuple[float, float]:
    """Compute the largest difference from the model's outputs, and the same relative to the largest of those."""
    outputs, expected, worst = session.run(inputs), _tensors(_alone(model)(*inputs)), (0.0, 0.0)
    for number, (output, reference) in enumerate(zip(outputs, expected, strict=True)):
        where = f"output {number} of a batch of {len(inputs[0])}"
        if output.shape != reference.shape:
            raise ValueError(
                f"export: ONNX Runtime gives {tuple(output.shape)} as {where}, torch {tuple(reference.shape)}."
            )
        a, b = output.double(), reference.double()
        same = (a == b) | (a.isnan() & b.isnan())  # infinities too
        difference = torch.where(same, 0.0, (a - b).abs()).nan_to_num(torch.inf)
        absolute = float(difference.max()) if difference.numel() else 0.0
        largest = float(torch.where(b.isfinite(), b.abs(), 0.0).max()) if b.numel() else 0.0
        relative = absolute / largest if largest else absolute
        allowed = _TOLERANCE.get(reference.dtype, 1e-4) if tolerance is None else tolerance
        if relative > allowed and (
            tolerance is not None or not is_rounding(outputs, expected, lambda: _alone(model), inputs, allowed)
        ):
            raise ValueError(
                f"export: ONNX Runtime differs from torch by {relative:.3g} of the largest number in {where}; "
                f"at most {allowed:g} was expected. No file was written."
            )
        worst = max(worst[0], absolute), max(worst[1], relative)
    return worst
