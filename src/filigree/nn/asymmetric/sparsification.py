"""Sparsification functions: every entry is kept as it is or becomes zero (Srivastava 2022, definition 6)."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

import pydantic
import torch
from torch import Tensor

from filigree.config import Config, config
from filigree.ops import selection
from filigree.ops.selection import Columns, Kept

_KINDS = (
    "an integer of at least 1, a fraction in (0, 1], a schedule of fractions, a list with one of these an epoch, "
    "a callable epoch -> one of these, or a mapping of layer names (glob patterns) to them"
)


def _checked(k: Any) -> Any:
    if isinstance(k, Mapping):
        return {pattern: _checked(part) for pattern, part in k.items()}
    if isinstance(k, list | tuple) and k:
        return [_checked(part) for part in k]
    if callable(k) or hasattr(k, "rate"):
        return k
    whole = isinstance(k, int) and not isinstance(k, bool) and k >= 1
    if not whole and not (isinstance(k, float) and 0 < k <= 1):
        raise ValueError(f"k must be {_KINDS}. Got {k!r}.")
    return k


Count = Annotated[Any, pydantic.PlainValidator(_checked)]


class HorizonError(ValueError):
    """A schedule of k needs to know how many epochs the run has."""


class Sparsification(Config):
    """Base: a function of class S (Srivastava 2022, 6.1) on the last side of a tensor, with S(x)_i either 0 or x_i.

    Subclasses implement `mask`; a call applies it. Random ones draw from torch's global generator, as dropout does.
    """

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers."""
        return False

    def mask(self, x: Tensor) -> Tensor:
        """True where an entry of `x` `(..., width)` is kept."""
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(self.mask(x), x, 0)

    def kept(self, x: Tensor, transposed: bool = True) -> Kept:
        """`self(x)` for a matrix `(rows, width)`, in the form with which products are fastest."""
        return selection.nonzeros(self(x), transposed)

    def at(self, layer: str, epoch: int, epochs: int | None) -> Self:
        """The function for this layer in this epoch (counted from 0)."""
        if not hasattr(self, "k"):
            return self
        k = _resolve(self.k, type(self).__name__, layer, epoch, epochs)
        return dataclasses.replace(self, k=k)  # type: ignore[type-var]

    @property
    def changes(self) -> bool:
        """Whether it changes from epoch to epoch."""
        return _changes(getattr(self, "k", 1))


def count(k: int | float, width: int) -> int:
    """How many of `width` entries `k` (a number, or a fraction) is: at least one, at most all."""
    return min(width, k if isinstance(k, int) else max(1, round(k * width)))


@config
class TopK(Sparsification):
    """The k entries of largest magnitude (Srivastava 2022, 6.1.2); zeros are not kept, so there may be fewer.

    Args:
        k: an integer, clamped to the width; or a fraction of the width. Also a schedule of fractions (`fg.Constant`,
            `fg.LinearDecrease`, ...), a list with an entry an epoch (the last stays), a callable epoch -> k: call
            `fg.SelectionSchedule.step()` after each epoch (`fg.fit` of a recipe does). Or a mapping of glob patterns on
            layer names to any of these: `{"layers.0": 40, "*": 0.1}`.
        ties: "index": the lower index is kept; "random": any of them (images have many equal pixels: by index, the top
            of the image is kept).
    """

    k: Count
    ties: Literal["index", "random"] = "index"

    @property
    def draws(self) -> bool:
        return self.ties == "random"

    def mask(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        return (selection.dense(self.kept(flat)) != 0).view_as(x)

    def kept(self, x: Tensor, transposed: bool = True) -> Kept:
        k = count(self.k, x.shape[-1])
        if self.ties == "index" or k >= x.shape[-1]:
            return selection.top(x, k, transposed)
        order = _uniform_like(x).argsort(1)  # each row in an order of its own
        shuffled = selection.dense(selection.top(x.gather(1, order), k))
        return selection.nonzeros(torch.empty_like(shuffled).scatter_(1, order, shuffled), transposed)


def _uniform_like(x: Tensor) -> Tensor:
    """Random numbers of [0, 1), in float32 at least: those of 16 bits have 256 values, 0 among them."""
    return torch.rand_like(x, dtype=torch.promote_types(x.dtype, torch.float32))


@config
class RandomK(Sparsification):
    """k entries of each row, uniformly at random; `k` as in `TopK`."""

    k: Count
    draws = True

    def mask(self, x: Tensor) -> Tensor:
        chosen = _uniform_like(x).topk(count(self.k, x.shape[-1]), sorted=False).indices
        return torch.zeros_like(x, dtype=torch.bool).scatter_(-1, chosen, True)


@config
class UnscaledDropout(Sparsification):
    """Each entry is dropped with probability `p` (Srivastava 2022, eq. 6.2), the others are not rescaled."""

    p: Annotated[float, pydantic.Field(ge=0, le=1)]
    draws = True

    def mask(self, x: Tensor) -> Tensor:
        return _uniform_like(x) >= self.p


@config
class Threshold(Sparsification):
    """The entries of magnitude at least `least`."""

    least: Annotated[float, pydantic.Field(gt=0)]

    def mask(self, x: Tensor) -> Tensor:
        return x.abs() >= self.least


@config
class ColumnRowSampling(Sparsification):
    """Unbiased column-row sampling (Adelman et al. 2021, Bernoulli): one choice for the batch, rescaled.

    As `sensitivity`, neuron j is kept with probability p_j = min(1, k |delta_j| |W_j| / sum) and its delta divided by
    p_j: the gradients' expectations are the dense ones. It rescales, so it is not of class S; about k are kept.
    """

    k: Count
    draws = True

    def columns(self, x: Tensor, weight: Tensor) -> Columns:
        """The kept columns of `x` `(batch, out)`, rescaled; `weight` `(out, in)`."""
        exact = torch.promote_types(x.dtype, torch.float32)
        size = x.to(exact).norm(dim=0) * weight.to(exact).norm(dim=1)
        chance = (count(self.k, x.shape[1]) * size / size.sum().clamp(min=1e-30)).clamp(max=1)
        index = (torch.rand_like(chance) < chance).nonzero().squeeze(1)
        return Columns(x.shape[1], (x.index_select(1, index) / chance[index]).to(x.dtype), index)

    def mask(self, x: Tensor) -> Tensor:
        raise ValueError("ColumnRowSampling: it is for sensitivity= of linear layers only.")


@config
class CustomSparsification(Sparsification):
    """Any callable from a tensor to one of the same shape that is of class S: that is checked at each call."""

    function: Callable[[Tensor], Tensor]
    draws = True  # it may

    def mask(self, x: Tensor) -> Tensor:
        return self(x) != 0

    def __call__(self, x: Tensor) -> Tensor:
        y = self.function(x)
        if y.shape != x.shape or not bool(((y == 0) | (y == x)).all()):
            raise ValueError(
                f"{self.function!r} is not a sparsification function: each entry must be kept as it is or become 0."
            )
        return y


def as_sparsification(given: Any) -> Sparsification | None:
    """A `Sparsification` from one, from its plain form, or from a callable; None stays None."""
    if given is None or isinstance(given, Sparsification):
        return given
    if isinstance(given, Mapping):
        return Sparsification.from_dict(given)
    if callable(given):
        return CustomSparsification(given)
    raise ValueError(f"expected a sparsification function such as fg.TopK(40), or a callable. Got {given!r}.")


def _changes(k: Any) -> bool:
    if isinstance(k, Mapping):
        return any(map(_changes, k.values()))
    return isinstance(k, list) or callable(k) or hasattr(k, "rate")


def _resolve(k: Any, owner: str, layer: str, epoch: int, epochs: int | None) -> int | float:
    if isinstance(k, Mapping):
        matching = [part for pattern, part in k.items() if fnmatch.fnmatchcase(layer, pattern)]
        if not matching:
            raise ValueError(f"{owner}: k has no pattern for the layer {layer!r}. Got {', '.join(map(repr, k))}.")
        k = matching[0]
    if isinstance(k, list):
        k = k[min(epoch, len(k) - 1)]
    if hasattr(k, "rate"):
        if k.needs_horizon and epochs is None:
            raise HorizonError(f"{owner}: the schedule {type(k).__name__} needs to know the number of epochs.")
        k = float(min(1.0, max(1e-9, k.rate(epoch, epochs))))
    elif callable(k):
        k = k(epoch)
    return _checked(k)
