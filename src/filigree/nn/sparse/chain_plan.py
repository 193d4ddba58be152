"""What a sequence with sparse layers calls, kept for as long as its modules are as they were."""

from __future__ import annotations

from collections.abc import Iterable
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from filigree.nn.dropout.dropout import FastDropout
from filigree.nn.sparse.copies import version
from filigree.nn.sparse.feature_major_linear import FeatureMajorLinear
from filigree.nn.sparse.sparse_linear import SHORT_TYPES, SparseLinear
from filigree.ops import kernels
from filigree.ops.chain import Chain, Link
from filigree.ops.curves import smooth_curve
from filigree.ops.dropout import new_seed
from filigree.ops.linear_chain import linear_chain
from filigree.ops.memory import FLOATS, SHORT, in_memory
from filigree.ops.pattern import Pattern
from filigree.preserved import has_hooks

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_plain(x: Any) -> bool:
    """Whether the kernels may read x, and nothing is to see the layers one by one."""
    strided = isinstance(x, Tensor) and x.layout is torch.strided
    return strided and x.dtype in (*FLOATS, *SHORT) and in_memory(x)


class ChainPlan:
    """The modules of a sequence, those that can be run together as one call each.

    A plan reads what it must know of the modules once. `holds` asks whether that is still so: the same objects at the
    same names, no hooks, indices that nothing has written to. Attributes of a module are found ten times slower than
    entries of its dict, so these are what is compared.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = list(modules)
        self._types = list(map(type, self._modules))
        self._seen: list[tuple[dict[str, Any], str, Any]] = []  # what a dict holds at a key
        self._hooks: list[dict[int, Any]] = []
        self._index: list[Tensor] = []
        self._calls: list[Any] = []
        self._ends: list[int] = []  # where in the modules those go on that follow a call which may change them; else 0
        self._is_lasting = True
        run = _Run()
        for number, module in enumerate(self._modules, 1):
            is_plain = not has_hooks(module) and "forward" not in vars(module)
            if is_plain:
                self._watch(module)
            self._is_lasting &= is_plain
            if is_plain and run.takes(module):
                continue
            self._add(run)
            run = _Run()
            if not (is_plain and run.takes(module)):
                self._calls.append(module)
                self._ends.append(0 if is_plain and type(module).__module__.startswith("torch.nn.") else number)
        self._add(run)
        self._dicts = list(map(vars, self._modules))
        self._lengths = list(map(len, self._dicts))
        self._versions = list(map(version, self._index))
        self._entries = tuple(self._seen)

    def _add(self, run: _Run) -> None:
        self._calls += (calls := run.calls())
        self._ends += [0] * len(calls)

    def _watch(self, module: nn.Module) -> None:
        own = vars(module)
        self._hooks += [own[name] for name in _HOOKS]
        names: tuple[str, ...] = ()
        if type(module) is SparseLinear:
            pattern = module.pattern  # derived anew, where that is due
            names = ("relu", "activations", "_pattern", "_seen", "_copies")
            self._seen += [(own["_buffers"], name, getattr(pattern, name)) for name in module.index_names]
            self._seen.append((vars(module._copies), "waiting", False))
            self._index += pattern[:2]
        elif isinstance(module, nn.Dropout):
            names = ("training", "p")
        elif type(module) is nn.GELU:
            names = ("approximate",)
        if type(module) in (SparseLinear, FeatureMajorLinear):
            parameters = own["_parameters"]
            held = {name: parameters.get(name) for name in ("values", "weight", "bias")}
            self._seen += [(parameters, name, parameter) for name, parameter in held.items()]
            # what is no parameter may hold on to a whole graph, which a plan must not
            self._is_lasting &= all(type(each) in (nn.Parameter, type(None)) for each in held.values())
        self._seen += [(own, name, own[name]) for name in names]

    def holds(self, modules: Iterable[nn.Module]) -> bool:
        """Whether it is the plan of these modules, as they are now."""
        return self._is_lasting and self._is_current(list(modules))

    def _is_current(self, modules: list[nn.Module]) -> bool:
        if len(modules) != len(self._modules) or not all(map(is_, modules, self._modules)):
            return False
        if any(self._hooks) or list(map(type, modules)) != self._types or list(map(len, self._dicts)) != self._lengths:
            return False
        return kernels.all_hold(self._entries) and list(map(version, self._index)) == self._versions

    def run(self, modules: Iterable[nn.Module], x: Any) -> Any:
        """The output of these modules, whose plan this is, for an input that `is_plain`."""
        if len(self._calls) == 1 and type(call := self._calls[0]) is _Call:
            return call.run(x)
        for call, end in zip(self._calls, self._ends, strict=True):
            x = call(x)
            if end and not self._is_current(now := list(modules)):
                for module in now[end:]:
                    x = module(x)
                break
        return x


class _Run:
    """Modules that can be run together, as they come."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.modules: list[Any] = []
        self.activations: str | None = None
        self._before_curve = 0  # how many modules came before the last link's curve, if it has one

    def takes(self, module: Any) -> bool:
        """Whether the module, which has no hooks, goes with those before it; if so it is one of them from now on."""
        kind, links, own = type(module), self.links, module._parameters
        if kind is SparseLinear:
            pattern = module.pattern
            follows = not links or (
                _follows(links[-1].pattern, pattern, module.in_features) and self.activations == module.activations
            )
            if module.is_full or not follows:
                return False
            self.activations = module.activations
            links.append(Link(pattern, own["values"], own.get("bias"), module.relu))
        elif kind is FeatureMajorLinear and links and module.is_narrow():
            pattern = module.full_pattern()
            if not _follows(links[-1].pattern, pattern, module.in_features):
                return False
            links.append(Link(pattern, own["weight"], own.get("bias")))
        elif kind is nn.ReLU and links and not links[-1].drop and not links[-1].curve:
            links[-1] = links[-1]._replace(relu=True)
        elif (curve := smooth_curve(module)) and links and not links[-1].is_activated:
            self._before_curve = len(self.modules)
            links[-1] = links[-1]._replace(curve=curve)
        elif kind in (nn.Dropout, FastDropout):
            if module.training and module.p:
                # torch's own draws its numbers otherwise; and the backward pass tells by the output what was dropped
                if kind is nn.Dropout or not links or not links[-1].is_activated or links[-1].drop or module.p >= 1:
                    return False
                links[-1] = links[-1]._replace(drop=float(module.p))
        elif kind is not nn.Identity:
            return False
        self.modules.append(module)
        return True

    def calls(self) -> list[Any]:
        links, modules, after = self.links, self.modules, []
        if links and links[-1].curve:  # what goes into a curve is kept between layers only, and none follows here
            links = [*links[:-1], links[-1]._replace(curve="", drop=0.0)]
            modules, after = modules[: self._before_curve], modules[self._before_curve :]
        if len(modules) < 2 or not links:
            return self.modules
        return [_Call(modules, Chain(links), self.activations), *after]


def _follows(before: Pattern, pattern: Pattern, in_features: int) -> bool:
    """Whether sizes meet, and indices are of one type: a model that was loaded may mix int32 and int64."""
    return before.rows == in_features and before.indices.dtype is pattern.indices.dtype


class _Call:
    """Modules as one call, or one by one where the input does not fit."""

    def __init__(self, modules: list[nn.Module], chain: Chain, activations: str | None) -> None:
        self._modules, self._chain, self._width = modules, chain, chain[0].pattern.cols
        self._short = None if activations is None else SHORT_TYPES[activations]

    def __call__(self, x: Any) -> Any:
        return self.run(x) if is_plain(x) else self._one_by_one(x)

    def run(self, x: Tensor) -> Any:
        chain, dims, given = self._chain, x.dim(), x.dtype
        autocast = torch.is_autocast_enabled("cpu")
        short = torch.get_autocast_dtype("cpu") if autocast else self._short  # as `SparseLinear.short_type`
        summed = given if short is None else torch.float32
        if (
            dims < 2
            or (dims > 2 and chain.has_dropout)
            or x.shape[-1] != self._width
            or summed not in FLOATS
            or given not in (summed, short)
            or not chain.fits(summed)
        ):
            return self._one_by_one(x)
        if short is not None:
            x = x.to(short)
        if chain.has_dropout:
            chain = chain.with_seeds(new_seed() if link.drop else 0 for link in chain)
        if dims == 2:
            y = linear_chain(chain, x)
        else:
            y = linear_chain(chain, x.reshape(-1, x.shape[-1]), by_feature=False).unflatten(0, x.shape[:-1])
        return y if autocast or short is None else y.to(given)

    def _one_by_one(self, x: Any) -> Any:
        for module in self._modules:
            x = module(x)
        return x
