"""Models in a notebook: `fg.show`, and `%load_ext filigree`, by which they show themselves."""

from __future__ import annotations

import base64
import html
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from filigree.analyze import patterns
from filigree.summary import label_of, macs_of, nonzeros_of, numbers_of, says
from filigree.text_table import Tabular
from filigree.topology import science

_CELLS = 128  # of a picture's longer side
_SIDE, _DEGREES = 128, (200, 100)  # pixels of a picture, and of a plot of degrees
_BARS = 100  # of a plot of degrees, at most
_MOST = 32  # sparse layers that are drawn
_COLOUR = "#00897b"


class ModelView(Tabular):
    """What `fg.show` returns: a model's layers as a table and, in a notebook, pictures of those that are sparse."""

    def __init__(self, model: nn.Module, shape: Sequence[int] | None = None) -> None:
        self.model, self.patterns = model, patterns(model)
        self._strength = None if shape is None else self._input_strength(shape)
        numbers, nonzeros = numbers_of(model), nonzeros_of(model)
        self.heading = f"{type(model).__name__}: {numbers:,} numbers, {nonzeros:,} of them not zero"

    def __repr__(self) -> str:
        return str(self)

    def _input_strength(self, shape: Sequence[int]) -> np.ndarray:
        first = next(iter(self.patterns.values()), None)
        if first is None:
            raise ValueError("show: shape is of the inputs of a sparse layer. The model has none.")
        strength = science.input_strength(first)
        if len(shape) not in (2, 3) or int(np.prod(shape)) != len(strength):
            raise ValueError(f"show: shape must be of {len(strength)} inputs. Got {tuple(shape)}.")
        return np.asarray(strength.reshape(-1, *shape[-2:]).sum(0))

    def table_rows(self) -> list[Sequence[str]]:
        return [("layer", "what it is", "numbers", "nonzeros", "density", "multiply-adds"), *layer_rows(self.model)]

    def _repr_html_(self) -> str:
        parts = [super()._repr_html_()]
        if self._strength is not None:
            picture = _picture(self._strength / (self._strength.max() or 1))
            parts.append(f"<p>strength of the inputs, the sum of |w| of their connections<br>{picture}</p>")
        for name, pattern in list(self.patterns.items())[:_MOST]:
            title = f"{name}: {pattern.shape[1]:,} inputs, {pattern.shape[0]:,} outputs, {pattern.nnz:,} connections"
            shares = science.coarse(pattern, (_CELLS, _CELLS))
            outputs, inputs = science.degrees(pattern)
            plots = [_degrees(inputs, "connections of an input"), _degrees(outputs, "connections of an output")]
            picture = _picture(shares / (shares.max() or 1))
            parts.append(f"<p>{html.escape(title)}<br>{picture} {' '.join(plots)}</p>")
        if len(self.patterns) > _MOST:
            parts.append(f"<p>and {len(self.patterns) - _MOST} more sparse layers</p>")
        return "\n".join(parts)


def show(model: nn.Module, shape: Sequence[int] | None = None) -> ModelView:
    """A model as a notebook shows it: layers, sparsity, and of each sparse layer its pattern and degrees.

    In a pattern inputs go from left to right and outputs from top to bottom; a cell of a large layer stands for several
    and is the darker, the larger the share of them that are connected. Beside it: how many inputs have how many
    connections, and how many outputs. Printed, it is the table alone. After `%load_ext filigree` a notebook shows every
    model that way.

    Args:
        model: any torch module. shape: of a sample, `(height, width)` or `(channels, height, width)`: the strength of
            the inputs of the first sparse layer is then shown as an image (Atashgahi et al. 2022).

    Raises:
        TypeError: it is no module. ValueError: a shape that the first sparse layer does not read.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"show: model must be a torch module. Got a {type(model).__name__}.")
    return ModelView(model, shape)


def layer_rows(model: nn.Module) -> list[Sequence[str]]:
    """Of each module that holds numbers: name, label, numbers, nonzeros, density, multiply-adds of a sample; of one
    with modules inside its own numbers, without theirs."""
    rows: list[Sequence[str]] = []
    for name, layer in model.named_modules():
        if says(layer) or not [*layer.children()]:
            numbers, nonzeros, macs = numbers_of(layer), nonzeros_of(layer), macs_of(layer)
        else:
            own = [*layer.parameters(recurse=False)]
            numbers, nonzeros = sum(p.numel() for p in own), sum(int(p.count_nonzero()) for p in own)
            macs = sum(p.numel() for p in own if p.dim() > 1)
        if numbers:
            density = f"{100 * getattr(layer, 'density', nonzeros / numbers):.1f}%"
            rows.append((name, label_of(layer), f"{numbers:,}", f"{nonzeros:,}", density, f"{macs:,}"))
    return rows


def load_ipython_extension(ipython: Any) -> None:
    """`%load_ext filigree`: from here on the notebook shows torch modules as `fg.show` does."""
    formatter = ipython.display_formatter.formatters["text/html"]
    formatter.for_type(nn.Module, lambda model: show(model)._repr_html_())


def unload_ipython_extension(ipython: Any) -> None:
    """`%unload_ext filigree`: modules are text again."""
    ipython.display_formatter.formatters["text/html"].pop(nn.Module, None)


def _picture(darkness: np.ndarray) -> str:
    """An image of numbers from 0, white, to 1, black."""
    grey = (255 * (1 - np.clip(darkness, 0, 1))).astype(np.uint8)
    height, width = grey.shape
    lines = b"".join(b"\0" + line.tobytes() for line in grey)  # each line is preceded by its filter, none
    chunks = (
        (b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(lines)), (b"IEND", b""),
    )  # fmt: skip
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    scale = _SIDE / max(height, width)
    style = "image-rendering: pixelated; border: 1px solid #999; vertical-align: top"
    return (
        f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" width="{max(4, width * scale):.0f}" '
        f'height="{max(4, height * scale):.0f}" style="{style}">'
    )


def _degrees(degrees: np.ndarray, title: str) -> str:
    """A histogram of degrees, as an SVG."""
    last = max(1, int(degrees.max(initial=1)))
    counts, _ = np.histogram(degrees, min(_BARS, last + 1), (-0.5, last + 0.5))
    (width, height), most = _DEGREES, max(1, int(counts.max()))
    bar = width / len(counts)
    bars = "".join(
        f'<rect x="{number * bar:.1f}" y="{height - height * count / most:.1f}" width="{max(0.8, 0.8 * bar):.1f}" '
        f'height="{height * count / most:.1f}" fill="{_COLOUR}"/>'
        for number, count in enumerate(counts)
        if count
    )
    text = f'<text x="0" y="{height + 14}" font-size="11" fill="currentColor">{html.escape(title)}: 0 to {last}</text>'
    return f'<svg width="{width}" height="{height + 18}" style="vertical-align: top">{bars}{text}</svg>'
