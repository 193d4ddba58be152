"""Dense weights that become sparse while they train: the largest stay, fewer and fewer of them (Gao et al. 2025)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from filigree.dynamics.data_parallel import follow_new_sizes
from filigree.dynamics.density import DensitySchedule, LinearDensity
from filigree.dynamics.evolution import Evolvable
from filigree.dynamics.horizon import horizon_of
from filigree.dynamics.optimizer_state import Kept, check_holds, find_state
from filigree.dynamics.rewire import largest
from filigree.dynamics.rewiring import Rewiring
from filigree.layer_selection import Where, matching


class AnnealedTopK:
    """After each step of the optimizer only the largest weights of each layer stay, fewer from step to step.

    Of each weight matrix the k largest by magnitude stay and all others become zero; k falls linearly from all of them,
    between 1% and 50% of the run, to the share `density`, the same for each layer (weight-sparse transformers; Gao et
    al. 2025, A.2, where the optimizer is AdamW and the share down to 0.1%). The gradient of a zero goes on, so that it
    may come back. The layers begin with every connection and are truly sparse, in values, gradients, the optimizer's
    state and files, from where k allows it:

        fg.convert_(model, fg.Sparse(fg.topology.Full(), init="keep"), where=["*.attention.*", "*.feed_forward.*"])
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        fg.fit(model, data, optimizer=optimizer, epochs=10, callbacks=[fg.AnnealedTopK(model, optimizer, 0.01)])

    From then on only connections that there are have a gradient: `spare` of them, the largest of the zeros, are kept
    beside the k and may come back; the others are gone (in the publication none ever is). With the last step the spare
    ones go too, which changes no output. Layers whose weights are frozen (`requires_grad` is False) stay as they are.

    Args:
        model: holds sparse layers with all their connections (or some). optimizer: holds their weights; or None.
        density: the share at the end, or a density schedule.
        steps: the horizon in steps of the optimizer; `fg.fit` and the callbacks for trainers fill it in.
        least: each output unit keeps so many weights, its largest, even if they are not among the k (the publication: 4
            a unit), so that there may be more than k.
        sparse_below: the share of weights from which on connections are taken out; 0: never, which is the publication.
        spare: zeros that stay connected, as a share of k.
        where: which sparse layers, as in `fg.Evolution`.

    Attributes:
        layers: by name. calls: steps so far.

    Raises:
        ValueError: no sparse layers, or all frozen; masked ones; an optimizer that does not hold their weights; at
            `step`, no horizon.
    """

    interval = "step"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        density: DensitySchedule | float = 0.001,
        steps: int | None = None,
        *,
        least: int = 4,
        sparse_below: float = 0.1,
        spare: float = 0.5,
        where: Where = None,
    ) -> None:
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Evolvable)}
        if not layers:
            raise ValueError(
                "AnnealedTopK: the model has no sparse layers. Call fg.convert_(model, fg.Sparse(fg.topology.Full(), "
                'init="keep")) first.'
            )
        self.layers = {name: layers[name] for name in matching(layers, where, "AnnealedTopK", "sparse layer")}
        masked = [name for name, layer in self.layers.items() if layer.connections.dim() > 1]
        if masked:
            raise ValueError(f"AnnealedTopK: layer {masked[0]!r} is masked. Convert with masked=False.")
        for label, number, low in (("least", least, 0), ("sparse_below", sparse_below, 0), ("spare", spare, 0)):
            if number < low:
                raise ValueError(f"AnnealedTopK: {label} must be at least {low}. Got {number}.")
        if not self._training():
            raise ValueError(
                "AnnealedTopK: at least one sparse layer must train. Frozen (requires_grad is False) are "
                f"{', '.join(self.layers)}."
            )
        check_holds(optimizer, self._training(), "AnnealedTopK")
        self.optimizer = optimizer
        self.schedule = density if isinstance(density, DensitySchedule) else LinearDensity(density, 0.01, 0.5)
        self.steps = self._given = steps
        self.least, self.sparse_below, self.spare, self.calls = least, sparse_below, spare, 0
        self._first = {name: len(layer.weights()) for name, layer in self.layers.items()}

    def set_horizon(self, calls: int) -> None:
        """A run begins, or goes on, in which `step` is called so many times. `ValueError`: `steps` contradicts it."""
        self.steps = horizon_of("AnnealedTopK", self._given, self.calls, calls)

    def _training(self) -> dict[str, Any]:
        return {name: layer for name, layer in self.layers.items() if layer.connections.requires_grad}

    @torch.no_grad()
    def step(self) -> None:
        """After a step of the optimizer: all but the largest weights become zero."""
        if self.steps is None:
            raise ValueError("AnnealedTopK: it needs the horizon. Give steps=.")
        self.calls += 1
        share, resized = self.calls / self.steps, list[nn.Parameter]()
        for name, layer in self._training().items():
            weights, possible = layer.connections, layer.out_features * layer.in_features
            density = self.schedule.density(self._first[name] / possible, share)
            k = max(1, round(density * possible))
            if k < len(weights):
                keep = self._largest(layer, weights, k)
                stays = self._connected(density, len(weights), k, share)
                if stays < len(weights):
                    self._take_out(name, layer, keep | largest(weights.cpu(), stays), keep)
                    resized.append(weights)
                else:
                    weights.mul_(keep.to(weights.device))
        if resized:
            follow_new_sizes(resized)

    def _largest(self, layer: Any, weights: Tensor, k: int) -> Tensor:
        """The k largest, and the `least` of each output unit, `(nnz,)` bool on the CPU."""
        size = weights.float().abs()
        keep = torch.zeros(len(size), dtype=torch.bool, device=size.device)
        keep[size.topk(k, sorted=False).indices] = True
        keep, size = keep.cpu(), size.cpu()
        starts = layer.indptr.cpu().long()
        before = torch.cat([torch.zeros(1, dtype=torch.int64), keep.cumsum(0)])
        lacking = (before[starts[1:]] - before[starts[:-1]] < self.least).nonzero().squeeze(1)
        lengths = starts.diff()[lacking]
        unit = torch.repeat_interleave(torch.arange(len(lacking)), lengths)
        rank = torch.arange(len(unit)) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        position = torch.repeat_interleave(starts[:-1][lacking], lengths) + rank
        order = size[position].sort(stable=True, descending=True).indices
        order = order[unit[order].sort(stable=True).indices]  # by units, in each the largest first
        keep[position[order[rank < self.least]]] = True
        return keep

    def _connected(self, density: float, now: int, k: int, share: float) -> int:
        """How many connections there are to be: as now, but for rare times at which many can go."""
        if share >= 1 and self.sparse_below:
            return k
        wanted = round((1 + self.spare) * k)
        return wanted if density <= self.sparse_below and 1.2 * wanted <= now else now

    def _take_out(self, name: str, layer: Any, stays: Tensor, keep: Tensor) -> None:
        """Have only these connections, of which those to `keep` have weights; the optimizer's state follows."""
        states, resets = find_state(self.optimizer, [layer.connections])
        before, weights, grad = layer.flat_indices(), layer.weights(), layer.connections.grad
        source = stays.nonzero().squeeze(1)
        layer.rewire_(before[source], torch.where(keep[source], weights[source], 0))
        rewiring = Rewiring(name, layer, before, before[source], source)
        for tensor, new in (*([] if grad is None else [Kept(grad, 0.0)]), *states[0]):
            rewiring.move_(tensor, new)
        layer.connections.grad = grad
        for reset in resets:
            reset.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, besides model and optimizer."""
        return {"calls": self.calls, "first": dict(self._first)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`. `ValueError` if it is of another model."""
        if set(state["first"]) != set(self.layers):
            raise ValueError(
                f"AnnealedTopK.load_state_dict: the state is of layers {sorted(state['first'])}, "
                f"this model's are {sorted(self.layers)}."
            )
        self.calls, self._first = state["calls"], dict(state["first"])
