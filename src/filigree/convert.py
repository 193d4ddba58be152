"""The verb `convert_`: change a model's layers in place, and report what changed."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from filigree.config import Config
from filigree.measure.summary import Summary
from filigree.modes import evaluating
from filigree.text_table import aligned

Where = Callable[[str, nn.Module], bool] | Sequence[str] | str | None


@dataclass(frozen=True)
class Change:
    """What happened to one module. Parameters count weights and biases; MACs are per sample (or per position)."""

    name: str
    before: str
    after: str
    parameters: tuple[int, int]
    macs: tuple[int, int]
    note: str = ""

    @classmethod
    def of(
        cls, name: str, before: nn.Module | Summary | None, after: nn.Module | Summary | None, note: str = ""
    ) -> Change:
        """What became of the module called `name`: labels, parameters and multiply-adds are read from the modules.

        Of a module that is changed in place, `before` is the `Summary.of` it that was taken then.
        """
        old, new = Summary.of(before), Summary.of(after)
        return cls(name, old.label, new.label, (old.parameters, new.parameters), (old.macs, new.macs), note)


@dataclass(frozen=True)
class Report:
    """What `convert_` or `compress_` did, layer by layer; prints as a table."""

    title: str
    changes: list[Change] = field(default_factory=list)

    @property
    def parameters(self) -> tuple[int, int]:
        return sum(c.parameters[0] for c in self.changes), sum(c.parameters[1] for c in self.changes)

    @property
    def macs(self) -> tuple[int, int]:
        return sum(c.macs[0] for c in self.changes), sum(c.macs[1] for c in self.changes)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        rows = [("layer", "before", "after", "parameters", "MACs", "")]
        rows += [(c.name, c.before, c.after, _arrow(c.parameters), _arrow(c.macs), c.note) for c in self.changes]
        rows += [("total", "", "", _arrow(self.parameters), _arrow(self.macs), "")]
        return "\n".join([self.title, *aligned(rows)])


class Conversion(Config):
    """Base of the configs that `convert_` takes. A new method declares what it converts and how; nothing else changes.

    Subclasses implement `accepts` (may this module be converted?) and `apply` (convert all selected ones together).
    """

    def accepts(self, module: nn.Module) -> bool:
        raise NotImplementedError

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        raise NotImplementedError

    def gains(self, module: nn.Module) -> bool:
        """Whether converting this module is worth it; those where it is not are converted only when asked for."""
        return True

    def choose(self, model: nn.Module, names: list[str]) -> list[tuple[Conversion, list[str], str]]:
        """What is applied to which modules, and a note on each: itself, unless it stands for a choice by measurement.

        It is what was chosen that is recorded on the model, and applied again when that is loaded.
        """
        return [(self, names, "")]

    def apply_if_faster(
        self, model: nn.Module, names: list[str], inputs: dict[str, Tensor]
    ) -> tuple[list[Change], list[tuple[Conversion, list[str]]]]:
        """As `apply`, but a layer that would not be faster on its input (by name) stays as it is; and the conversions
        that rebuild what was made on loading."""
        raise NotImplementedError


@contextmanager
def inference_context(model: nn.Module, hooks: Sequence[Any] = ()) -> Iterator[None]:
    """Run a model as it is used, in eval mode without gradients; then all modes are back and the hooks are gone."""
    try:
        with evaluating(model), torch.no_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def layer_inputs(model: nn.Module, names: Sequence[str], x: Tensor) -> dict[str, Tensor]:
    """What each of these modules reads when the model runs on `x`, in eval mode."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            found[name] = args[0].detach()

        return hook

    with inference_context(model, [model.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]):
        model(x)
    if missed := set(names) - set(found):
        raise ValueError(f"the data do not reach {sorted(missed)[0]!r}.")
    return found


def convert_(model: nn.Module, config: Conversion, where: Where = None, measure: bool | int | Tensor = False) -> Report:
    """Change the layers of `model` in place, before training.

    Args:
        model: any torch module.
        config: what to do, for instance `fg.Sparse(fg.ErdosRenyi(epsilon=20))`.
        where: which modules: a predicate `(name, module) -> bool`, or glob patterns on module names
            (`["layers.*", "head"]`); by default all that the config can convert.
        measure: a layer is converted only where a forward and backward pass is faster on this machine than the dense
            one's, and the report gives both times. A batch size (True: 128) for linear layers; an example batch for
            the model, which is run once, where a layer's input has more sides than that.

    Returns:
        A printable report: per layer, what changed, parameters and MACs before and after.

    Raises:
        ValueError: no module was selected, or a pattern matched nothing that can be converted; the model is
            unchanged then.

    An optimizer made before holds parameters that the model no longer has: make it afterwards. Hooks on modules that
    are replaced go with them: register them afterwards.
    """
    if not isinstance(config, Conversion):
        raise TypeError(f"convert_: config must be a conversion such as fg.Sparse(...). Got {config!r}.")
    names = select(model, config.accepts, where, f"convert_({type(config).__name__})")
    if where is None:
        names = [name for name in names if config.gains(model.get_submodule(name))]
        if not names:
            raise ValueError(f"convert_: no layer would gain by {type(config).__name__}. Name them with where=.")
    with _all_or_nothing(model):
        if measure is False:
            changes = []
            for chosen, its, note in config.choose(model, names):
                changes += [replace(change, note=note or change.note) for change in chosen.apply(model, its)]
                record(model, chosen, its)
        else:
            if type(config).apply_if_faster is Conversion.apply_if_faster:
                raise ValueError(f"convert_: {type(config).__name__} cannot choose by measurement. Leave out measure=.")
            before = {name: model.get_submodule(name) for name in names}
            changes, steps = config.apply_if_faster(model, names, _inputs(model, before, measure))
            for conversion, its in steps:
                record(model, conversion, its)
    return Report(f"{type(config).__name__}: {len(names)} layer(s)", changes)


@contextmanager
def _all_or_nothing(model: nn.Module) -> Iterator[None]:
    """Put every module back where it was if what is done in here fails midway."""
    children, done = [(module, dict(module._modules)) for module in model.modules()], conversions(model)
    try:
        yield
    except BaseException:
        for module, its in children:
            module._modules.clear()
            module._modules.update(its)
        if done or "_filigree_conversions" in model.__dict__:
            model.__dict__["_filigree_conversions"] = done
        raise


def _inputs(model: nn.Module, layers: dict[str, nn.Module], measure: int | Tensor) -> dict[str, Tensor]:
    """What each layer reads: random numbers of a batch size, or what an example batch brings it."""
    if not isinstance(measure, Tensor):
        batch = 128 if measure is True else measure
        if batch < 1:
            raise ValueError(f"convert_: measure must be a batch size of at least 1, or an example. Got {batch}.")
        sides = {name: getattr(layer, "in_features", None) for name, layer in layers.items()}
        if unknown := [name for name, side in sides.items() if side is None]:
            raise ValueError(f"convert_: {unknown[0]!r} has no width: give an example batch as measure=.")
        return {name: torch.randn(batch, side) for name, side in sides.items() if side}
    return layer_inputs(model, list(layers), measure)


def select(model: nn.Module, accepts: Callable[[nn.Module], bool], where: Where, caller: str) -> list[str]:
    """The names of the modules that `accepts` and `where` both want, in the model's order; never none."""
    able = {name: module for name, module in model.named_modules() if accepts(module)}
    if not able:
        kinds = dict.fromkeys(type(m).__name__ for m in model.modules() if not any(m.children()))
        raise ValueError(f"{caller}: no module was selected: none can be. There are {', '.join(kinds)}.")
    if isinstance(where, str):
        where = [where]
    if where is None:
        chosen = list(able)
    elif callable(where):
        chosen = [name for name, module in able.items() if where(name, module)]
    else:
        for glob in where:
            if not fnmatch.filter(able, glob):
                raise ValueError(
                    f"{caller}: where={glob!r} matches no module that can be converted. Those are: {', '.join(able)}."
                )
        chosen = [name for name in able if any(fnmatch.fnmatchcase(name, glob) for glob in where)]
    if not chosen:
        raise ValueError(f"{caller}: no module was selected. Those that can be are: {', '.join(able)}.")
    if "" in chosen:
        raise ValueError(
            f"{caller}: the model is itself a {type(model).__name__} and cannot be replaced in place. "
            "Put it into an nn.Sequential."
        )
    return chosen


def record(model: nn.Module, config: Config, names: list[str]) -> None:
    """Remember on the model what was done to it, so that `fg.load(path, into=fresh)` can do it again."""
    model.__dict__.setdefault("_filigree_conversions", []).append((config, tuple(names)))


def conversions(model: nn.Module) -> list[tuple[Config, tuple[str, ...]]]:
    """The configs applied to the model so far, with the names of the modules, in order."""
    return list(model.__dict__.get("_filigree_conversions", []))


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` wherever the module called `name` is used (a module may stand in several places)."""
    old = model.get_submodule(name)
    new.train(old.training)
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new


def width_before(model: nn.Module, name: str, who: str) -> tuple[int, int]:
    """How many units a module without weights reads, and along which dimension: those of the layer before it.

    Raises:
        ValueError: no layer with a width stands before it, in the order in which modules are registered; by `who`.
    """
    width, whole = None, None  # a layer that said its width speaks for the modules that it is made of
    for other, module in model.named_modules():
        if other == name and width is not None:
            return width
        if whole is not None and other.startswith(whole) and not name.startswith(whole):
            continue
        found = None
        if isinstance(side := getattr(module, "out_features", None), int):
            found = side, -1
        elif isinstance(side := getattr(module, "out_channels", None), int):
            found = side, -1 - len(module.kernel_size)
        elif isinstance(side := getattr(module, "hidden_size", None), int) and hasattr(module, "bidirectional"):
            found = (getattr(module, "proj_size", 0) or side) * (2 if module.bidirectional else 1), -1
        elif isinstance(side := getattr(module, "embedding_dim", None), int):
            found = side, -1
        elif isinstance(module, nn.Flatten):
            width = None  # how many numbers it makes of an image is not known here
        if found is not None:
            width, whole = found, f"{other}." if other else None
    raise ValueError(f"{who}: no layer stands before {name!r}, so how many units it has is not known.")


def _arrow(pair: tuple[int, int]) -> str:
    before, after = pair
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"
