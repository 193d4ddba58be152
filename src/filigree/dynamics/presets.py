"""`fg.Evolution` by the names of the literature. Each takes the other arguments of `Evolution` as well."""

from __future__ import annotations

from typing import Any

from torch import nn

from filigree.dynamics.evolution import Evolution
from filigree.dynamics.schedules import Constant, CosineDecay, ExponentialDecay, LinearDecrease, Oscillation

Optimizer = Any  # one or a list of several, or what holds one; None


def SET(
    model: nn.Module, optimizer: Optimizer, zeta: float = 0.3, epochs: int | None = None, **options: Any
) -> Evolution:
    """Sparse evolutionary training (Mocanu et al. 2018; Chouliaras 2021, 3.5.1): zeta_i = zeta after every epoch.

    The fraction zeta of the smallest positive and of the largest negative weights of each layer goes; as many
    connections grow between random pairs of units that have none, at zero. The publications use zeta = 0.3.
    """
    return Evolution(model, optimizer, Constant(zeta), epochs, **options)


def LDV(
    model: nn.Module, optimizer: Optimizer, zeta_max: float = 0.3, zeta_min: float = 0.01, epochs: int | None = None,
    **options: Any,
) -> Evolution:  # fmt: skip
    """SET with a linearly decreasing rate (Chouliaras 2021, eq. 4.3):
    zeta_i = zeta_min + (zeta_max - zeta_min) (E - i) / E after epoch i of E."""
    return Evolution(model, optimizer, LinearDecrease(zeta_max, zeta_min), epochs, **options)


def OSV(
    model: nn.Module, optimizer: Optimizer, zeta_max: float = 0.3, zeta_min: float = 0.01, k: int = 1,
    epochs: int | None = None, **options: Any,
) -> Evolution:  # fmt: skip
    """SET with an oscillating rate (Chouliaras 2021, eq. 4.4): zeta_i = (zeta_max + zeta_min) / 2
    + (zeta_max - zeta_min) / 2 cos(2 pi i / T) after epoch i of E, with the period T = 2 E / (3 + 2 k)."""
    return Evolution(model, optimizer, Oscillation(zeta_max, zeta_min, k), epochs, **options)


def EXD(
    model: nn.Module, optimizer: Optimizer, zeta: float = 0.3, interest: float = 0.01, horizon: int | None = None,
    epochs: int | None = None, **options: Any,
) -> Evolution:  # fmt: skip
    """SET with an exponentially decaying rate (Chouliaras 2021, eq. 4.5): zeta_i = zeta (1 - interest)^i after epoch i.

    With `horizon` (the thesis' runs have 500 epochs) a run of any length decays as far as one of so many epochs.
    """
    return Evolution(model, optimizer, ExponentialDecay(zeta, interest, horizon), epochs, **options)


def RigL(
    model: nn.Module, optimizer: Optimizer, alpha: float = 0.3, delta_t: int = 100, t_end: float = 0.75,
    steps: int | None = None, **options: Any,
) -> Evolution:  # fmt: skip
    """Rigging the lottery (Evci et al. 2020): growth by gradient, by step, at a rate that falls along a cosine.

    After every `delta_t`-th step of the optimizer each layer loses the fraction alpha / 2 (1 + cos(pi t / T_end)) of
    its weakest connections and grows as many, at zero, where the dense gradient of the step is largest. After T_end,
    the share `t_end` of the run, nothing moves. alpha = 0.3 and delta_t = 100 are the publication's; it gives T_end in
    steps for each task, about three quarters of the run, as the default here. Two things differ: the weakest are chosen
    among the positive and among the negative weights, as in SET, and the step of the optimizer is taken as well, not
    replaced by the rewiring.

    Args:
        steps: of the run, in steps of the optimizer; `fg.fit` and the callbacks for trainers fill it in. In a loop of
            your own call `step()` after each step of the optimizer.
    """
    options = {"grow": "gradient"} | options
    return Evolution(model, optimizer, CosineDecay(alpha, t_end), steps, every=delta_t, interval="step", **options)


def CHT(
    model: nn.Module, optimizer: Optimizer, zeta: float = 0.3, epochs: int | None = None, **options: Any
) -> Evolution:
    """Cannistraci-Hebb training (Zhang et al. 2024): SET with growth where CH3-L3 predicts a link, by topology alone.

    After every epoch the fraction zeta of each layer's weakest connections goes; as many grow, at zero, where the sum
    over the remaining paths of length 3 of 1 / sqrt((1 + e_1) (1 + e_2)) is largest, e being the links by which the
    path's two inner units leave its local community. Meant for densities of about 1%: the time is that of all such
    paths. Three things differ from the publication: the weakest are chosen among the positive and among the negative
    weights, units that lose all connections stay, and the topology at the start is that of `fg.Sparse`.
    """
    return Evolution(model, optimizer, Constant(zeta), epochs, **({"grow": "cht3"} | options))


def CHTs(
    model: nn.Module, optimizer: Optimizer, zeta: float = 0.3, epochs: int | None = None, **options: Any
) -> Evolution:
    """The soft rule of Cannistraci-Hebb training (Zhang et al. 2025): what stays and what grows is drawn.

    After epoch i of E the fraction zeta / 2 (1 + cos(pi i / E)) of each layer's connections goes. Those that stay are
    drawn with probabilities proportional to |w|^T, T going from 1 to 3 (delta = 0.5 to 0.75, T = delta / (1 - delta));
    those that grow, to CH2-L3n: the sum over the units of the local community of (1 + i) / (1 + e), with i links inside
    of it and e out of it. `soft=(1, 9)` is what the authors' language models use; `grow="cht3"` scores by paths;
    `density=fg.SigmoidDensity(0.1)` makes it CHTss. What differs from the publication is named in `CHT`.
    """
    options = {"grow": "cht2", "soft": (1.0, 3.0)} | options
    return Evolution(model, optimizer, CosineDecay(zeta, 1.0), epochs, **options)
