"""`export_c` writes a model as one C99 file and its header, without dependencies, for small devices."""

from __future__ import annotations

import math
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from filigree.computed_weights import copied
from filigree.export.c.compiler import Compiled, compiled, compiler
from filigree.export.c.inference import inference_program
from filigree.export.c.int8_program import int8_program
from filigree.export.c.source import CLayer, Program, prefix_of
from filigree.export.c.training import training_program
from filigree.export.c.training_options import Training
from filigree.export.device.footprint import Footprint, footprint
from filigree.export.device.project import project_files
from filigree.export.device.targets import bytes_of, target_of
from filigree.io.storage import replacing
from filigree.laid_out import restore_, runtimes_of
from filigree.text_table import aligned

_SAMPLES = 32
_ON_DEVICE = 8  # of them in the emulator


@dataclass(frozen=True)
class CReport:
    """It says what was written, and prints as a table.

    Attributes:
        path, header: the two files. prefix: what every name in them begins with.
        layers: of each step its module's name, what it does, the form of its weights, and their bytes.
        data_bytes: of weights and tables. flash_bytes: of these and code, as this machine's compiler makes them for
            size (None: no compiler or no `size`). ram_bytes: static memory.
        difference: the largest |torch - C| on what was tried. relative: the same over the largest number there.
        verified: what was tried, or why nothing was.
        device: what it needs on the target, where one was given. project: the files that were written around it.
    """

    path: str
    header: str
    prefix: str
    layers: list[CLayer]
    data_bytes: int
    flash_bytes: int | None
    ram_bytes: int
    difference: float | None
    relative: float | None
    verified: str
    device: Footprint | None = None
    project: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"device": self.device and self.device.to_dict()}

    def __str__(self) -> str:
        rows = [("layer", "step", "weights", "bytes")]
        rows += [(layer.name, layer.what, layer.form, f"{layer.bytes:,}" * bool(layer.bytes)) for layer in self.layers]
        code = "code not weighed" if self.flash_bytes is None else f"{self.flash_bytes:,} bytes with code"
        memory = f"flash: {self.data_bytes:,} bytes of data, {code}; RAM: {self.ram_bytes:,} bytes"
        own = [memory] if self.device is None else [str(self.device)]
        written = [f"project: {', '.join(self.project)}"] if self.project else []
        return "\n".join([f"{self.path}, {self.header}", *aligned(rows), *own, self.verified, *written])


def export_c(
    model: nn.Module, path: str | Path, example: Tensor | None = None, *, training: bool = False,
    activations: Literal["float", "int8"] = "float",
    target: str | None = None, flash: str | int | None = None, ram: str | int | None = None, **options: Any,
) -> CReport:  # fmt: skip
    """Write a model as `path` (`m.c`) and `m.h`: C99, static memory, no library but C's own.

    For inference: `void m_predict(const float *input, float *output)`, of one sample, as the model in eval mode. The
    weights are constants, each layer's in the smallest of several lossless forms. With `training`: the same, and
    `m_train_step` and `m_rewire`, on weights in memory; see `filigree.export.c.training_options`.

    Where there is a C compiler, the program is compiled and compared with torch on the example and on random inputs;
    the report says so if there is none.

    Args:
        model: a chain of layers: linear, sparse, masked, quantised, of low rank; convolutions, pooling, batch norms,
            activations. float32, or float64, which becomes float32.
        path: a `.c` file; its stem becomes the prefix of all names. The header is written beside it.
        example: a batch of inputs, of which the shape is read; not needed where a linear layer comes first.
        training: write a program that trains: linear and sparse layers, convolutions, pooling, activations. options: of
            `Training`.
        activations: "int8": a program of 8-bit integers, `void m_predict(const int8_t *input, int8_t *output)`, without
            floats, equal bit for bit to `filigree.export.c.int8_network.Int8Network`. The example is the calibration
            data, from which the scales of the activations are taken.
        target: a processor, as "cortex-m4" (`filigree.export.device.targets`): the report says what flash, RAM and time
            the program needs there: by the cross compiler arm-none-eabi-gcc and by a run in qemu-system-arm, compared
            with torch too, where they are installed, else by arithmetic. Files for CMake, Zephyr, Arduino and
            MicroPython and an example for the emulator are written around the program.
        flash, ram: what the target has, in bytes or as "256k"; a program that needs more is refused.

    Raises:
        ValueError: another suffix; a module that has no form in C, by its name; shapes that do not fit.
        TypeError: a model of another dtype; an example that is not a tensor.
        RuntimeError: the program does not compile, or its numbers are not torch's.
        OSError: the files cannot be written. Nothing is left behind in any of these cases.
    """
    path = Path(path)
    _check(model, path, example)
    if options and not training:
        raise ValueError(f"export: {', '.join(options)} is for programs that train. Give training=True.")
    if (flash is not None or ram is not None) and target is None:
        raise ValueError("export: flash and ram are of a target. Give target='cortex-m4' or another.")
    device = None if target is None else target_of(target)
    limits = bytes_of(flash, "flash"), bytes_of(ram, "ram")
    if activations not in ("float", "int8"):
        raise ValueError(f"export: activations must be 'float' or 'int8'. Got {activations!r}.")
    if activations == "int8" and training:
        raise ValueError("export: activations='int8' is for inference. Give training=False.")
    prefix = prefix_of(path.stem)
    if runtimes_of(model):  # it is written as it was before `fg.optimize_`
        model = copied(model)
        restore_(model)
    if training:
        program = training_program(model, example, path.stem, prefix, Training(**options))
    else:
        write = int8_program if activations == "int8" else inference_program
        program = write(model, example, path.stem, prefix)
    if not all(program.sides):
        raise ValueError("export: a sample must have inputs and outputs. Got {} and {}.".format(*program.sides))
    if example is not None and example[0].numel() != math.prod(program.shape):
        raise ValueError(f"export: the model reads {program.shape} a sample. Got an example {tuple(example.shape)}.")
    difference, relative, verified = None, None, "not verified: no C compiler"
    flash_bytes, memory = None, program.ram_bytes
    if (command := compiler()) is not None:
        with compiled(program.source, program.header, path.stem, command) as runnable:
            difference, relative, verified = _compare(program, runnable, example)
            if sizes := runnable.weigh():
                text, data, zeroed = sizes
                flash_bytes, memory = text + data, data + zeroed
    header = path.with_suffix(".h")
    files = {path: program.source, header: program.header}
    needed = None
    if device is not None:
        trial = program.trial(_inputs(program, example)[:_ON_DEVICE])
        needed, also = footprint(program, trial, path.stem, device, *limits)
        needed.check(str(path))
        verified = f"{verified}\n{also}"
        files |= project_files(path, prefix, device, program.sides, program.types, program.functions)
    verified = "\n".join(filter(None, (program.note, verified)))
    _write(files, path.parent)
    return CReport(
        str(path), str(header), prefix, program.layers, program.constant_bytes, flash_bytes, memory, difference,
        relative, verified, needed, tuple(str(file.relative_to(path.parent)) for file in list(files)[2:]),
    )  # fmt: skip


def _write(files: dict[Path, str], folder: Path) -> None:
    """Write all of the files, and folders within `folder` for them, or none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{next(iter(files))}: there is no folder {folder}.")
    created = [
        part for file in files for part in reversed(file.parents) if folder in part.parents and not part.exists()
    ]
    try:
        with ExitStack() as stack:
            for part in dict.fromkeys(created):
                part.mkdir()
            for file, text in files.items():
                stack.enter_context(replacing(file)).write(text.encode())
    except BaseException:
        for part in reversed(dict.fromkeys(created)):
            with suppress(OSError):
                part.rmdir()
        raise


def _check(model: nn.Module, path: Path, example: Tensor | None) -> None:
    if path.suffix != ".c":
        raise ValueError(f"export: path must end in .c. Got {path}.")
    if example is not None and not isinstance(example, Tensor):
        raise TypeError(f"export: example must be a tensor, a batch of inputs. Got {type(example).__name__}.")
    if example is not None and (example.dim() < 2 or not example.is_floating_point() or not len(example)):
        raise ValueError(f"export: example must be a batch of floats. Got {tuple(example.shape)} of {example.dtype}.")
    if example is not None and not bool(example.isfinite().all()):
        raise ValueError("export: example must be finite. Got NaN or infinite numbers.")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"export: the model must be float32 or float64. {name!r} is {tensor.dtype}.")
        if tensor.is_meta:
            raise ValueError(f"export: the model must have weights. {name!r} is on the meta device.")


def _inputs(program: Program, example: Tensor | None) -> Tensor:
    """Return samples to try the program on: the example's, and random ones like it."""
    x = torch.randn(_SAMPLES, *program.shape, generator=torch.Generator().manual_seed(0))
    if example is None:
        return x
    own = example[:_SAMPLES].detach().cpu().float().reshape(-1, *program.shape)
    mean, spread = own.mean(0), own.std(0, correction=0)
    spread = torch.where(spread > 1e-6 * mean.abs(), spread, 1.0)  # also of a constant example
    return torch.cat([own, mean + spread * x])


def _compare(program: Program, runnable: Compiled, example: Tensor | None) -> tuple[float, float, str]:
    """Compute the largest difference between torch and the compiled program, relative too, and say on what."""
    trial = program.trial(_inputs(program, example))
    outputs = np.frombuffer(runnable.run(trial.main, trial.data), trial.expected.dtype)
    difference, largest = trial.difference(outputs)
    if not trial.allows(difference, largest):
        raise RuntimeError(
            f"export: the compiled program differs from torch by {difference:.3g}, where the largest number is "
            f"{largest:.3g}. Nothing was written."
        )
    verified = f"compared with torch on {trial.what}: largest difference {difference:.2g} of {largest:.3g}"
    return difference, difference / largest if largest else difference, verified
