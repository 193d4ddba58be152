"""`DistributedDataParallel` around layers whose number of connections changed."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


def follow_new_sizes(parameters: Iterable[nn.Parameter]) -> None:
    """Have each `DistributedDataParallel` around these parameters, whose sizes changed, reduce the new gradients.

    Its reducer has buckets for the gradients of the sizes that there were when it was made. Whoever rewires layers
    often has the model inside only, so the wrappers are looked for among all objects. They are made anew by their own
    pickling, in a millisecond; every process must do so after the same step. One process has nothing to do.

    Raises:
        ValueError: a wrapper of another process group than the default one, which its pickling does not allow.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return
    changed = {id(parameter) for parameter in parameters}
    for wrapper in [each for each in gc.get_objects() if issubclass(type(each), DistributedDataParallel)]:
        if not any(id(parameter) in changed for parameter in wrapper.module.parameters()):
            continue
        if wrapper.process_group is not distributed.group.WORLD:
            raise ValueError(
                "a DistributedDataParallel around layers whose number of connections changes must be of the default "
                "process group."
            )
        own: Any = wrapper
        hooks, own._comm_hooks = getattr(own, "_comm_hooks", []), []
        own.__setstate__(own.__getstate__())
        for hook, state in hooks:
            own.register_comm_hook(state, hook)
