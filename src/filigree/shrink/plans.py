"""What may be done to each layer, and the network in which some of it is done."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from torch import nn

from filigree.calibration import Calibration
from filigree.compress import FitStructured, OneShot, RoundToNearest, SubsetPruning, compress_
from filigree.computed_weights import copied
from filigree.nn.structured.low_rank import LowRank

ROUND_TO = 4  # units of a layer, to which their numbers are rounded


@dataclass(frozen=True)
class Form:
    """How a layer's weights are stored: factors of a rank (a share of the smaller side), fewer of them, small integers.

    `sparsity` is the share of the weights that is gone.
    """

    rank: float | None = None
    sparsity: float = 0.0
    bits: int | None = None

    def __str__(self) -> str:
        parts = [f"rank {self.rank:.3g}"] if self.rank is not None else []
        parts += [f"{self.sparsity:.0%} gone"] if self.sparsity else []
        parts += [f"{self.bits} bits"] if self.bits is not None else []
        return ", ".join(parts)


class Slot(NamedTuple):
    """Where something can be done: to the units that a layer makes, or to its weights."""

    kind: Literal["units", "weights"]
    layer: str


Setting = float | Form  # the share of the units that stays; the form of the weights
Plan = Mapping[Slot, Setting]

UNITS: tuple[float, ...] = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
FORMS: dict[str, tuple[Form, ...]] = {  # by method, those that save most in front: where they do not, none does
    "bits": (Form(bits=8),),
    "ranks": (Form(rank=0.125), Form(rank=0.25), Form(rank=0.5)),
    "connections": (Form(sparsity=0.9), Form(sparsity=0.8), Form(sparsity=0.7), Form(sparsity=0.5)),
}
SMALLER = (Form(bits=4), Form(sparsity=0.5, bits=4))  # of "bits", where bytes count
METHODS = ("units", *FORMS)


def method_of(setting: Setting) -> str:
    """The method that a setting belongs to."""
    if not isinstance(setting, Form):
        return "units"
    return "ranks" if setting.rank is not None else "bits" if setting.bits is not None else "connections"


def between(before: Setting | None, after: Setting) -> Setting | None:
    """The setting half-way between two of one method; None where there is none. Before may be the layer as it was."""
    if not isinstance(after, Form):
        return ((before if isinstance(before, float) else 1.0) + after) / 2
    start = before if isinstance(before, Form) else Form()
    if after.bits is not None or start.bits is not None:
        return None
    if after.rank is not None:
        return Form(rank=((start.rank or 1.0) + after.rank) / 2)
    return Form(sparsity=(start.sparsity + after.sparsity) / 2) if start.rank is None else None


def rounded(share: float, units: int) -> float:
    """The share of the units that really stays."""
    return min(units, -(-max(1, round(share * units)) // ROUND_TO) * ROUND_TO) / units


def described(plan: Plan) -> str:
    """A plan in words, layer by layer."""
    parts = []
    for slot, setting in plan.items():
        what = str(setting) if isinstance(setting, Form) else f"{setting:.3g} of the units"
        parts.append(f"{slot.layer or 'the model'}: {what}")
    return "; ".join(parts) or "as it was"


def frozen(plan: Plan) -> frozenset[tuple[Slot, Setting]]:
    return frozenset(plan.items())


def fitted(model: nn.Module, plan: Plan, data: Calibration) -> nn.Module:
    """A copy of the model in which a plan is carried out, fitted to the data: units first, weights after them.

    Raises:
        ValueError: something in it cannot be done.
    """
    network = copied(model)
    units = {glob.escape(slot.layer): float(share) for slot, share in plan.items() if not isinstance(share, Form)}
    if units:
        _apply(network, replace(pruning(), keep=units), data, list(units))
    forms = {slot.layer: form for slot, form in plan.items() if isinstance(form, Form)}
    for rank in dict.fromkeys(form.rank for form in forms.values() if form.rank is not None):
        names = [glob.escape(name) for name, form in forms.items() if form.rank == rank]
        _apply(network, FitStructured(LowRank(rank=float(rank))), data, names)
    if names := [glob.escape(name) for name, form in forms.items() if form == Form(bits=8)]:
        _apply(network, RoundToNearest(bits=8), None, names)
    sparse = {glob.escape(name): form for name, form in forms.items() if form.rank is None and form != Form(bits=8)}
    for bits in dict.fromkeys(form.bits for form in sparse.values()):
        shares = {name: form.sparsity for name, form in sparse.items() if form.bits == bits}
        inside = {f"{name}.*": share for name, share in shares.items()}  # the products of a recurrent layer
        _apply(network, OneShot(shares | inside, bits=bits), data, list(shares))
    return network


def stand_in(model: nn.Module, name: str, form: Form) -> nn.Module:
    """A copy with a layer in a form that takes as long, fitted to nothing."""
    network, where = copied(model), [glob.escape(name)]
    if form.rank is not None:
        _apply(network, LowRank(rank=float(form.rank)), None, where)
    elif form.bits is not None:
        _apply(network, RoundToNearest(bits=form.bits), None, where)
    else:
        _apply(network, OneShot(form.sparsity, method="magnitude", compensate=None), None, where)
    return network


def pruning() -> SubsetPruning:
    return SubsetPruning(round_to=ROUND_TO, measure=False)


def _apply(network: nn.Module, config: Any, data: Calibration | None, where: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a refit that is left out: the network is judged as a whole
        compress_(network, config, data, where, progress=False)
