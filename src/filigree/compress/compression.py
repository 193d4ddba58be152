"""The verb `compress_`, which changes the layers of a trained model in place and reports what changed."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from filigree.compress.resized import SizesBefore
from filigree.computed_weights import copyable
from filigree.convert import Change, Conversion, Report, convert_, record, report_of, sums
from filigree.layer_selection import ChangesLayers, Where, select
from filigree.preserved import Preserved
from filigree.rollback import AllOrNothing


class Compression(ChangesLayers):
    """Base of the configs that `compress_` takes where a trained model and data are needed.

    Subclasses implement `accepts` and `compress`.

    `compress_` puts the model back as it was where a method fails. A method without data does not write into the
    tensors that the model holds, but gives it new ones: only where there are data are tensors copied before.

    What the new layers are to keep of the old ones is given to them, as of a `Conversion`.
    """

    def compress(
        self, model: nn.Module, names: list[str], data: Tensor | None
    ) -> tuple[list[Change], list[tuple[Conversion, list[str]]]]:
        """Change the modules; return the report's lines, and the conversions that replace the same ones on loading.

        Modules that stay, but of another size, are found by comparison (`filigree.compress.resized`).
        """
        raise NotImplementedError


def compress_(model: nn.Module, config: Compression | Conversion, data: Any = None, where: Where = None) -> Report:
    """Change the layers of a trained model in place, for instance `fg.compress_(model, fg.LowRank(0.5))`.

    Args:
        model: any torch module.
        config: what to do.
        data: an input batch `(samples, ...)`, a pair of it and labels, or an object with tensors `.x` and `.y`, for the
            configs that need one.
        where: which modules, as in `convert_`.

    Returns:
        A printable report: per layer, what changed, parameters and MACs before and after.

    Raises:
        ValueError: no module was selected, the model is on the meta device, or the config cannot do without data, or
            cannot use these.
        TypeError: the config is no compression, or the data hold no tensor.

    What the model keeps and what the report says of the rest is as in `convert_`.

    After any exception, and after Ctrl-C, the model is as it was before: modules, parameters, buffers, attributes and
    hooks, and the global random generators as well (`filigree.rollback`). With data that costs a copy of the model's
    tensors meanwhile, since the model is run on them.
    """
    if isinstance(config, Conversion):
        return convert_(model, config, where)
    if not isinstance(config, Compression):
        raise TypeError(f"compress_: config must be a compression such as fg.LowRank(0.5). Got {config!r}.")
    if empty := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise ValueError(f"compress_: the model must have weights. {empty[0]!r} is on the meta device.")
    samples = _samples(data)
    with AllOrNothing(model, values=samples is not None):
        names, left = select(model, config, where, f"compress_({type(config).__name__})")
        before, sizes = Preserved(model), SizesBefore(model)
        with copyable(model):
            changes, steps = config.compress(model, names, samples)
        for conversion, compressed_names in [*steps, *sizes.changes(model)]:
            record(model, conversion, compressed_names)
        return report_of(config, names, changes, [*left, *before.restore_(model, sums(changes))])


def _samples(data: Any) -> Tensor | None:
    """Return the inputs in the data, checked."""
    x = getattr(data, "x", data[0] if isinstance(data, tuple | list) and data else data)
    if x is not None and not isinstance(x, Tensor):
        raise TypeError(
            f"compress_: data must be a tensor, a pair (x, y) or have .x and .y. Got {type(data).__name__}."
        )
    if x is not None and (len(x) == 0 or (x.is_floating_point() and not bool(x.isfinite().all()))):
        raise ValueError(f"compress_: data must be finite, at least one sample. Got {tuple(x.shape)}.")
    return x
