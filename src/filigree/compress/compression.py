"""The verb `compress_`: change the layers of a trained model in place, and report what changed."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from filigree.config import Config
from filigree.convert import Change, Conversion, Report, Where, convert_, record, select


class Compression(Config):
    """Base of the configs that `compress_` takes where a trained model and data are needed.

    Subclasses implement `accepts` and `compress`.
    """

    def accepts(self, module: nn.Module) -> bool:
        raise NotImplementedError

    def compress(
        self, model: nn.Module, names: list[str], data: Tensor | None
    ) -> tuple[list[Change], list[tuple[Conversion, list[str]]]]:
        """Change the modules; the report's lines, and the conversions that rebuild their shapes on loading."""
        raise NotImplementedError


def compress_(model: nn.Module, config: Compression | Conversion, data: Any = None, where: Where = None) -> Report:
    """Change the layers of a trained model in place, for instance `fg.compress_(model, fg.LowRank(0.5))`.

    Args:
        model: any torch module. config: what to do.
        data: an input batch `(samples, ...)`, a pair of it and labels, or an object with tensors `.x` and `.y`, for the
            configs that need one. where: which modules, as in `convert_`.

    Returns:
        A printable report: per layer, what changed, parameters and MACs before and after.

    Raises:
        ValueError: no module was selected, no or unusable data; the model is unchanged then.
    """
    if isinstance(config, Conversion):
        return convert_(model, config, where)
    if not isinstance(config, Compression):
        raise TypeError(f"compress_: config must be a compression such as fg.LowRank(0.5). Got {config!r}.")
    names = select(model, config.accepts, where, f"compress_({type(config).__name__})")
    changes, steps = config.compress(model, names, _samples(data))
    for conversion, its in steps:
        record(model, conversion, its)
    return Report(f"{type(config).__name__}: {len(names)} layer(s)", changes)


def _samples(data: Any) -> Tensor | None:
    x = getattr(data, "x", data[0] if isinstance(data, tuple | list) and data else data)
    if x is not None and not isinstance(x, Tensor):
        raise TypeError(
            f"compress_: data must be a tensor, a pair (x, y) or have .x and .y. Got {type(data).__name__}."
        )
    if x is not None and (len(x) == 0 or (x.is_floating_point() and not bool(x.isfinite().all()))):
        raise ValueError(f"compress_: data must be finite, at least one sample. Got {tuple(x.shape)}.")
    return x
