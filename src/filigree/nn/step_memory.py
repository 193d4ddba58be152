"""Steps that modules take of their own accord, remembered so that gradient checkpointing finds them again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from filigree.modes import outside_graphs
from filigree.ops.transforms import is_batched, outside_transforms, transforming

T = TypeVar("T")


class StepMemory:
    """What a module's calls in training chose, for modules whose choice depends on the calls before.

    Gradient checkpointing (`torch.utils.checkpoint`) computes a forward pass again during the backward pass, with
    torch's generator as it was the first time. Each call draws one number from that generator. It is the call's name: a
    call during a backward pass finds under it what the first one chose, and changes nothing. What may be computed again
    is remembered until it was, at most the last `limit` calls.

    Args:
        owner: the name that errors begin with.
    """

    limit = 256

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self._chosen: dict[int, Any] = {}
        self._replayed: set[int] = set()
        with torch.inference_mode(False):  # room for random numbers, which makes them cheaper
            self._number = torch.zeros((), dtype=torch.int64, device="cpu")

    @outside_graphs
    def of_call(self, choose: Callable[[int], T]) -> T:
        """`choose(seed)`, which may change the module's state; in a recomputed call what it returned the first time.

        Args:
            choose: takes its random numbers from a generator of its own with this seed. Transforms of `torch.func` do
                not see what it does: every sample of `vmap` has the same choice.

        Raises:
            RuntimeError: a recomputed call whose first one is not known.
            ValueError: under `vmap(randomness="different")`.
        """
        if not transforming():
            return self._of_call(int(self._number.random_()), choose)
        number = torch.randint(2**63 - 1, ())
        if is_batched(number):
            raise ValueError(
                f"{self.owner}: all samples of a step share what is dropped or sampled, so vmap's randomness must be "
                "'same'. Got 'different'."
            )
        seed = int(number)
        with outside_transforms():
            return self._of_call(seed, choose)

    def _of_call(self, seed: int, choose: Callable[[int], T]) -> T:
        if torch._C._current_graph_task_id() != -1:  # a backward pass is running
            if seed not in self._chosen:
                raise RuntimeError(
                    f"{self.owner}: a call during a backward pass must repeat one of its last {self.limit} calls with "
                    "the same random numbers, as checkpoint(preserve_rng_state=True) does. Got a new one."
                )
            self._replayed.add(seed)
            return self._chosen[seed]
        chosen = choose(seed)
        if _may_be_recomputed():
            for old in self._replayed:
                self._chosen.pop(old, None)
            self._replayed.clear()
            self._chosen[seed] = chosen
            if len(self._chosen) > self.limit:
                del self._chosen[next(iter(self._chosen))]
        return chosen

    def __reduce__(self) -> tuple[Any, ...]:
        return StepMemory, (self.owner,)  # copies and files have calls of their own


def _may_be_recomputed() -> bool:
    """Whether this may be a checkpoint's first pass: without gradients, or with hooks on what is saved for them."""
    return not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
