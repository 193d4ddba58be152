"""Translate a plain torch module to an ONNX program, and run ONNX programs in ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from filigree.config import one_line
from filigree.optional import needed

PRECISE = "session.x64quantprecision", "1"  # x86 without VNNI adds pairs of 8-bit products in 16 bits otherwise
OPSET = 21  # the first with integers of 4 bits
_FOLDED = 64  # numbers: what is computed from larger constants stays computed, so that a file keeps its small integers


def onnx_module(name: str) -> Any:
    """A module of one of the packages of the extra `onnx`."""
    return needed(name, "export", "onnx")


def translate(
    module: nn.Module, inputs: tuple[Tensor, ...], dynamic: bool, input_names: Sequence[str] | None,
    output_names: Sequence[str],
) -> Any:  # fmt: skip
    """Translate a module to an ONNX model, which ONNX's own checker has passed.

    Args:
        dynamic: the first side of all inputs is one size that may be any, at least 2 in `inputs`.

    Raises:
        ValueError: what cannot be exported, in one line that names the module.
    """
    onnx, ir, optimizer = onnx_module("onnx"), onnx_module("onnx_ir"), onnx_module("onnxscript.optimizer")
    program = _captured(module, inputs, dynamic)
    with _quiet():
        try:
            translated = torch.onnx.export(
                program, (), dynamo=True, opset_version=OPSET, optimize=False, verbose=False,
                input_names=input_names, output_names=output_names,
            )  # fmt: skip
        except torch.onnx.errors.OnnxExporterError as error:
            raise ValueError(f"export: {_untranslated(program, error)}") from None
        assert translated is not None
        try:
            optimizer.optimize(translated.model, input_size_limit=_FOLDED, output_size_limit=_FOLDED)
            _narrow(translated.model, ir)
            ir.passes.common.ClearMetadataAndDocStringPass()(translated.model)
            model = translated.model_proto
            onnx.checker.check_model(model, full_check=True)
        except Exception as error:  # of many kinds, as operators of ONNX are narrower than torch's in many ways
            raise ValueError(f"export: {_culprit(program, error)} cannot be exported: {one_line(error)}") from None
    return model


def part(model: Any, inputs: list[str], outputs: list[str]) -> Any:
    """The ONNX model of what leads from these inputs to these outputs."""
    return onnx_module("onnx").utils.Extractor(model).extract_model(inputs, outputs)


class Session:
    """It runs an ONNX model in ONNX Runtime on the CPU, with as many threads as torch has.

    Args:
        library: the file of the operators that the model needs beside ONNX's own.
    """

    def __init__(self, model: Any, library: str | None = None) -> None:
        runtime = onnx_module("onnxruntime")
        options = runtime.SessionOptions()
        if library is not None:
            options.register_custom_ops_library(library)
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        if any(node.op_type == "QuantizeLinear" for node in model.graph.node):  # others compute in floats
            options.add_session_config_entry(*PRECISE)
        try:
            self.session = runtime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no base class of their own
            raise ValueError(f"export: ONNX Runtime cannot load the model: {first_line(error)}") from None
        self.names = [each.name for each in self.session.get_inputs()]

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        feeds = {name: x.numpy() for name, x in zip(self.names, inputs, strict=True)}
        try:
            return [torch.as_tensor(y) for y in self.session.run(None, feeds)]
        except Exception as error:
            raise ValueError(f"export: ONNX Runtime cannot run the model: {first_line(error)}") from None


def first_line(error: BaseException | str) -> str:
    """Return the first line of a message that has text in it."""
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text.strip()[:300]


def _captured(module: nn.Module, inputs: tuple[Tensor, ...], dynamic: bool) -> torch.export.ExportedProgram:
    """Capture the module's graph. Its Python runs on stand-ins of tensors; where it asks for more than those know (the
    `len` of a batch) its code is analysed instead, which takes longer."""
    sizes: Any = None
    if dynamic:
        sizes, batch = torch.export.ShapesCollection(), torch.export.Dim("batch", min=1)
        for x in inputs:
            sizes[x] = {0: batch}
    with _quiet(), torch.no_grad():
        try:
            with _entered_modules(module) as entered:
                program = torch.export.export(module, inputs, dynamic_shapes=sizes, strict=False)
        except Exception as first:  # of many kinds; the reader needs one
            try:
                program = torch.export.export(module, inputs, dynamic_shapes=sizes, strict=True)
            except Exception:
                raise ValueError(f"export: {_uncaptured(module, entered, first)}") from None
    for node in program.graph.nodes:
        if getattr(node.target, "namespace", "") == "filigree":
            raise ValueError(f"export: {_owner(node)} calls {node.target}, which ONNX does not have.")
    return program


@contextlib.contextmanager
def _entered_modules(module: nn.Module) -> Iterator[list[str]]:
    """Keep the names of the modules whose forward has begun and not ended."""
    entered: list[str] = []

    def left(*_: Any) -> None:
        entered.pop()

    hooks = []
    for name, inner in module.named_modules():
        hooks.append(inner.register_forward_pre_hook(lambda *_, name=name: entered.append(name)))
        hooks.append(inner.register_forward_hook(left))
    try:
        yield entered
    finally:
        for hook in hooks:
            hook.remove()


def _uncaptured(module: nn.Module, entered: list[str], error: Exception) -> str:
    if "Constraints violated" in str(error):
        return (
            "the model's code fixes the size of the batch. With dynamic=False the file is for batches of the example's "
            "size alone."
        )
    name = entered[-1] if entered else ""
    return (
        f"{name or 'the model'!r} ({type(module.get_submodule(name)).__name__}) cannot be exported: {first_line(error)}"
    )


def _untranslated(program: torch.export.ExportedProgram, error: Exception) -> str:
    match = re.search(r"OpOverload\(op='([^']+)'", str(error))
    if not match:
        return f"the model cannot be exported: {first_line(str(error).rpartition('summary')[2])}"
    for graph in (program.graph, program.run_decompositions().graph):
        for node in graph.nodes:
            if str(node.target).startswith(match[1]):
                return f"{_owner(node)} calls {match[1]}, which ONNX does not have."
    return f"the model calls {match[1]}, which ONNX does not have."


def _culprit(program: torch.export.ExportedProgram, error: Exception) -> str:
    """Name the module of the node that an error of ONNX names."""
    named = {f"node_{node.name}": node for node in program.graph.nodes}
    nodes = [named[name] for name in re.findall(r"node_\w+", str(error)) if name in named]
    return _owner(nodes[0]) if nodes else "the model"


def _owner(node: Any) -> str:
    """Name the module whose forward a node of the graph stands in."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    name, kind = stack[-1] if stack else ("", "")
    kind = kind if isinstance(kind, str) else kind.__name__
    return f"{name or 'the model'!r} ({kind.rpartition('.')[2]})"


def _narrow(model: Any, ir: Any) -> None:
    """Store integers of at most 7 that are only ever cast in 4 bits."""
    for value in model.graph.initializers.values():
        if value.dtype != ir.DataType.INT8 or any(use.node.op_type != "Cast" for use in value.uses()):
            continue
        numbers = value.const_value.numpy()
        if abs(numbers).max(initial=0) <= 7:
            value.const_value = ir.Tensor(numbers.astype(ir.DataType.INT4.numpy()), name=value.name)
            value.dtype = ir.DataType.INT4


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch's exporter prints, logs and warns of, in its own files: graphs of failed attempts, packages
    that it would use if they were there."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
