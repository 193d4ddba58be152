"""What pruning does to the output, measured and bounded, and how long retraining takes (003, chapter 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Deviation:
    """Error and bound of a pruned network; `value` is dev of 3.12, error minus bound.

    Attributes:
        error: `|Y - Y'|`, the mean over the samples of the L2 norm. bounds: epsilon_l of each layer (3.9), by name.
    """

    error: float
    bounds: dict[str, float]

    @property
    def bound(self) -> float:
        return sum(self.bounds.values())

    @property
    def value(self) -> float:
        return self.error - self.bound

    def __str__(self) -> str:
        layers = ", ".join(f"{name} {value:.3g}" for name, value in self.bounds.items())
        return f"error {self.error:.4g}, bound {self.bound:.4g} ({layers}), deviation {self.value:.4g}"


def net_deviation(model: nn.Module, pruned: nn.Module, data: Tensor, probes: int = 16, seed: int = 0) -> Deviation:
    """The error of a pruned network's output, and Theorem 2's bound on it, layer by layer.

    `epsilon_l = prod_{i > l} |dY_i / dY_{i-1}| |dY_l / dW_l| |delta W_l|`, first order, norms of Frobenius; Y_i is what
    layer i + 1 reads. A removed unit counts as weights set to zero; changes of biases are not in the bound. Jacobian
    norms by random probes, `|J|^2 = E |J^T v|^2`, v normal: any size of network, if its linear layers and convolutions
    are a chain.

    Raises:
        ValueError: `pruned` has other layers, or sizes that nobody recorded (`compress_` records them on the model).
    """
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    changes = {name: _weight_change(model, pruned, name) for name in names}
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def before(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            inputs[name] = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
            return (inputs[name],)

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(before(name)) for name in names]
    hooks += [
        model.get_submodule(name).register_forward_hook(lambda _m, _a, y, name=name: outputs.__setitem__(name, y))
        for name in names
    ]
    training = model.training, pruned.training
    model.eval(), pruned.eval()
    try:
        with torch.enable_grad():
            y = model(data)
        with torch.no_grad():
            its = pruned(data)
    finally:
        for handle in hooks:
            handle.remove()
        model.train(training[0]), pruned.train(training[1])
    order = list(inputs)  # as they ran
    ends = [inputs[name] for name in order[1:]] + [y]
    generator = torch.Generator().manual_seed(seed)
    step, own = {}, {}
    for name, end in zip(order, ends, strict=True):
        jacobian, weights = torch.zeros(len(data)), torch.zeros(len(data))
        for _ in range(probes):
            v = torch.randn(end.shape, generator=generator)
            try:
                dx, dz = torch.autograd.grad(end, [inputs[name], outputs[name]], v, retain_graph=True)
            except RuntimeError:
                raise ValueError(
                    f"net_deviation: the layers are no chain: what follows {name!r} does not read it."
                ) from None
            jacobian += dx.flatten(1).square().sum(1) / probes
            weights += _weight_gradient(model.get_submodule(name), inputs[name].detach(), dz) / probes
        step[name], own[name] = jacobian.sqrt(), weights.sqrt()
    bounds, carried = {}, torch.ones(len(data))
    for name in reversed(order):
        bounds[name] = float((carried * own[name]).mean() * changes[name])
        carried = carried * step[name]
    error = float((y.detach() - its).flatten(1).norm(dim=1).mean())
    return Deviation(error, {name: bounds[name] for name in order})


def normalised(deviations: Sequence[float]) -> list[float]:
    """D of 3.13 over a curve, or over all curves that are compared: `dev / |dev|`."""
    norm = math.sqrt(sum(value**2 for value in deviations))
    return [value / norm if norm else 0.0 for value in deviations]


def _weight_gradient(layer: Any, x: Tensor, dz: Tensor) -> Tensor:
    """|d(v . y) / dW|^2 for each sample."""
    if isinstance(layer, nn.Linear):
        if x.dim() == 2:
            return x.square().sum(1) * dz.square().sum(1)
        return torch.einsum("nti,nto->noi", x, dz).flatten(1).square().sum(1)
    x = F.pad(x, tuple(layer._reversed_padding_repeated_twice))
    patches = F.unfold(x, layer.kernel_size, layer.dilation, 0, layer.stride)
    groups = layer.groups
    patches = patches.view(len(x), groups, -1, patches.shape[-1])
    dz = dz.flatten(2).view(len(x), groups, -1, patches.shape[-1])
    return torch.einsum("ngip,ngop->ngoi", patches, dz).flatten(1).square().sum(1)


def _weight_change(model: nn.Module, pruned: nn.Module, name: str) -> float:
    """|delta W|, removed units' weights as zeros."""
    layer: Any = model.get_submodule(name)
    try:
        its: Any = pruned.get_submodule(name)
    except AttributeError:
        raise ValueError(f"net_deviation: the pruned network has no layer {name!r}.") from None
    old, new = layer.weight.detach(), its.weight.detach() if hasattr(its, "weight") else its.dense().weight.detach()
    if old.shape != new.shape:
        rows, columns = getattr(its, "kept_outputs", None), getattr(its, "kept_inputs", None)
        if rows is None or columns is None:
            raise ValueError(f"net_deviation: {name!r} has other sizes, and no record of which units it kept.")
        whole = torch.zeros_like(old)
        whole[rows[:, None], columns] = new
        new = whole
    return float((old - new).norm())


# -- Theorem 1 -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Landscape:
    """Loss and gradient norm of a network on data; what Theorem 1 compares."""

    loss: float
    gradient: Tensor

    @classmethod
    def of(cls, model: nn.Module, x: Tensor, y: Tensor) -> Landscape:
        was_training = model.training
        model.eval()
        loss = F.cross_entropy(model(x), y)
        gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
        model.train(was_training)
        return cls(float(loss.detach()), torch.cat([g.flatten() for g in gradients]))


def retraining_bound(
    initial: nn.Module, trained: nn.Module, pruned: nn.Module, x: Tensor, y: Tensor, epochs: float, *,
    gamma: float = 1.0, form: Literal["printed", "derived"] = "derived",
) -> float:  # fmt: skip
    """Theorem 1: the epochs that a pruned network needs to be as good again.

    With g the gradients and L the cross-entropy on (x, y), t the epochs of the first training:

    - "printed" (3.1): `gamma mu1 / mu2 |g_initial|^2 / |g_pruned|^2 t`.
    - "derived": from t proportional to the loss to be lost, and 3.4, 3.5: `gamma mu1 / mu2 |g_pruned|^2 / |g_initial|^2
      t`, which with the mu of units is `gamma (L_pruned - L*) / (L_initial - L*) t`.

    mu by 3.2, 3.3 (`|g - g*| / |W - W*|`) where all three have the same shapes (connections), else by 3.4, 3.5 (`|g|^2
    / |L - L*|`). The inequality of Polyak and Lojasiewicz gives upper bounds only: neither form is proved to bound from
    below, and gamma is free.
    """
    at_first, best, now = (Landscape.of(model, x, y) for model in (initial, trained, pruned))
    weights = [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (initial, trained, pruned)]
    squares = [float(place.gradient.square().sum()) for place in (at_first, now)]
    if len(weights[1]) == len(weights[2]):
        mu = [
            float((place.gradient - best.gradient).norm() / (w - weights[1]).norm().clamp(min=1e-30))
            for place, w in ((at_first, weights[0]), (now, weights[2]))
        ]
    else:
        mu = [
            square / max(abs(place.loss - best.loss), 1e-30)
            for place, square in zip((at_first, now), squares, strict=True)
        ]
    ratio = squares[0] / max(squares[1], 1e-30)
    return gamma * mu[0] / max(mu[1], 1e-30) * (ratio if form == "printed" else 1 / ratio) * epochs
