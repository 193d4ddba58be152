"""A sequence that runs the sparse layers in it, with what lies between them, in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from filigree.nn.sparse.chain_plan import ChainPlan, is_plain

_has_global_hooks = torch.nn.modules.module._has_any_global_hook


class SparseSequential(nn.Sequential):
    """An `nn.Sequential` in which consecutive sparse layers cost one call forward and one backward.

    Sparse layers, narrow `FeatureMajorLinear`s, the ReLU and `FastDropout` after them, and GELU, SiLU, tanh and sigmoid
    between them are run by one team of threads, each on its own samples, as one node of autograd. The modules stay what
    they are: parameters, `state_dict`, rewiring, slices. Wherever a module has hooks or is of another kind (as
    `nn.Dropout`, which `fg.Dropout()` converts), it is called as in an `nn.Sequential`, and so are all of them under
    `torch.compile`, transforms of `torch.func`, on tensors of other devices and where the input does not fit.

    Under autocast, and where all sparse layers have the same `activations`, what lies between them is kept in 16 bits,
    and a `FeatureMajorLinear` among them, whose weights stay float32, writes 16 bits as they do.

    `convert_` with `Sparse` makes this of every plain `nn.Sequential` that holds a sparse layer. Dense equivalent:
    `nn.Sequential`, to whose results these are equal up to the rounding of sums.
    """

    _plan: ChainPlan | None = None

    def forward(self, x: Tensor) -> Tensor:
        if _has_global_hooks() or not is_plain(x) or not self._modules:
            return super().forward(x)
        plan, modules = self._plan, self._modules.values()
        if plan is None or not plan.holds(modules):
            plan = self.__dict__["_plan"] = ChainPlan(modules)
        return plan.run(modules, x)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_plan"}  # copies make their own


SEQUENCES = (nn.Sequential, SparseSequential)
"""The classes that call their modules one after another and do nothing else."""
