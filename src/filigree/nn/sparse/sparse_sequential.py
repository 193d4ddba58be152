"""A sequence that runs the sparse layers in it, with what lies between them, in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from filigree.nn.dropout.dropout import FastDropout
from filigree.nn.sparse.feature_major_linear import FeatureMajorLinear
from filigree.nn.sparse.sparse_linear import SHORT_TYPES, SparseLinear
from filigree.ops.chain import Link
from filigree.ops.dropout import new_seed
from filigree.ops.linear_chain import linear_chain
from filigree.ops.memory import FLOATS, SHORT, in_memory
from filigree.ops.pattern import Pattern
from filigree.preserved import has_hooks

_has_global_hooks = torch.nn.modules.module._has_any_global_hook


class SparseSequential(nn.Sequential):
    """An `nn.Sequential` in which consecutive sparse layers cost one call forward and one backward.

    Sparse layers, narrow `FeatureMajorLinear`s, and the ReLU and `FastDropout` after them are run by one team of
    threads, each on its own samples, as one node of autograd. The modules stay what they are: parameters, `state_dict`,
    rewiring, slices. Wherever a module has hooks or is of another kind (as `nn.Dropout`, which `fg.Dropout()`
    converts), it is called as in an `nn.Sequential`, and so are all of them under `torch.compile`, transforms of
    `torch.func`, on tensors of other devices and where the input does not fit.

    Under autocast, and where all sparse layers have the same `activations`, what lies between them is kept in 16 bits,
    and a `FeatureMajorLinear` among them, whose weights stay float32, writes 16 bits as they do.

    `convert_` with `Sparse` makes this of every plain `nn.Sequential` that holds a sparse layer. Dense equivalent:
    `nn.Sequential`, to whose results these are equal up to the rounding of sums.
    """

    def forward(self, x: Tensor) -> Tensor:
        if _has_global_hooks() or not _is_plain(x):
            return super().forward(x)
        chain = _Chain()
        for module in self._modules.values():
            if not chain.takes(module):
                x = module(chain.run(x))
                chain = _Chain()
        return chain.run(x)


class _Chain:
    """Modules that can be run together, as they come."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.modules: list[Any] = []
        self.activations: str | None = None

    def takes(self, module: Any) -> bool:
        """Whether the module goes with those before it; if so it is one of them from now on."""
        kind, links = type(module), self.links
        if has_hooks(module):
            return False
        if kind is SparseLinear:
            pattern = module.pattern
            follows = not links or (
                _follows(links[-1].pattern, pattern, module.in_features) and self.activations == module.activations
            )
            if not follows:
                return False
            self.activations = module.activations
            own = module._parameters  # attributes of a module are found ten times slower
            links.append(Link(pattern, own["values"], own.get("bias"), module.relu))
        elif kind is FeatureMajorLinear and links and module.is_narrow():
            pattern = module.full_pattern()
            if not _follows(links[-1].pattern, pattern, module.in_features):
                return False
            own = module._parameters
            links.append(Link(pattern, own["weight"].view(-1), own["bias"]))
        elif kind is nn.ReLU and links and not links[-1].drop:
            links[-1] = links[-1]._replace(relu=True)
        elif kind in (nn.Dropout, FastDropout):
            if module.training and module.p:
                # torch's own draws its numbers otherwise; and the backward pass tells by the output what was dropped
                if kind is nn.Dropout or not links or not links[-1].relu or links[-1].drop or module.p >= 1:
                    return False
                links[-1] = links[-1]._replace(drop=float(module.p))
        elif kind is not nn.Identity:
            return False
        self.modules.append(module)
        return True

    def run(self, x: Tensor) -> Tensor:
        short = self._short_type()
        if len(self.modules) < 2 or not self._fits(x, short):
            for module in self.modules:
                x = module(x)
            return x
        links = [link._replace(seed=new_seed()) if link.drop else link for link in self.links]
        given, x = x.dtype, x if short is None else x.to(short)
        if x.dim() == 2:
            y = linear_chain(links, x)
        else:
            y = linear_chain(links, x.reshape(-1, x.shape[-1]), by_feature=False).unflatten(0, x.shape[:-1])
        return y if short is None or torch.is_autocast_enabled("cpu") else y.to(given)

    def _short_type(self) -> torch.dtype | None:
        """The 16 bits in which the layers read and write, as `SparseLinear.short_type` has it."""
        if torch.is_autocast_enabled("cpu"):
            return torch.get_autocast_dtype("cpu")
        return SHORT_TYPES[self.activations] if self.activations else None

    def _fits(self, x: Tensor, short: torch.dtype | None) -> bool:
        links = self.links
        values_type = x.dtype if short is None else torch.float32
        return (
            bool(links)
            and _is_plain(x)
            and values_type in FLOATS
            and x.dtype in (values_type, short)
            and (x.dim() == 2 or (x.dim() > 2 and not any(link.drop for link in links)))
            and x.shape[-1] == links[0].pattern.cols
            and all(link.values.dtype is values_type and link.values.is_cpu for link in links)
        )


def _follows(before: Pattern, pattern: Pattern, in_features: int) -> bool:
    """Whether sizes meet, and indices are of one type: a model that was loaded may mix int32 and int64."""
    return before.rows == in_features and before.indices.dtype is pattern.indices.dtype


def _is_plain(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype in (*FLOATS, *SHORT) and in_memory(x)


SEQUENCES = (nn.Sequential, SparseSequential)
"""The classes that call their modules one after another and do nothing else."""
