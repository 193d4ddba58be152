"""The verb `convert_`, which changes a model's layers in place and reports what changed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from filigree.calibration import Calibration
from filigree.config import Config, one_line
from filigree.laid_out import restore_
from filigree.layer_selection import ChangesLayers, Where, select
from filigree.modes import evaluating, without_shortcuts
from filigree.preserved import Preserved
from filigree.rollback import AllOrNothing
from filigree.summary import Summary
from filigree.text_table import Tabular
from filigree.wrappers import check_module, names_in, unwrapped


@dataclass(frozen=True)
class Change:
    """What happened to one module.

    `parameters` and `macs` are numbers before and after: of weights and biases, and of multiply-adds for one sample (or
    one position).
    """

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

    def counts(self) -> tuple[str, str]:
        """Parameters and multiply-adds as text, before and after; nothing of a line that is about no module."""
        return (_arrow(self.parameters), _arrow(self.macs)) if self.before or self.after else ("", "")


@dataclass(frozen=True)
class Report(Tabular):
    """What `convert_` or `compress_` did, layer by layer. It prints as a table.

    `notes` are lines about what stands in no row: layers that were left as they are and why, hooks and tied weights
    that could not be kept.
    """

    title: str
    changes: list[Change] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> tuple[int, int]:
        return sums(self.changes)

    @property
    def macs(self) -> tuple[int, int]:
        return sum(c.macs[0] for c in self.changes), sum(c.macs[1] for c in self.changes)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def heading(self) -> str:  # type: ignore[override]
        return self.title

    def table_rows(self) -> list[Sequence[str]]:
        rows: list[Sequence[str]] = [("layer", "before", "after", "parameters", "MACs", "")]
        rows += [(c.name, c.before, c.after, *c.counts(), c.note) for c in self.changes]
        return [*rows, ("total", "", "", _arrow(self.parameters), _arrow(self.macs), "")]

    def table_notes(self) -> list[str]:
        return self.notes


class Conversion(ChangesLayers):
    """Base of the configs that `convert_` takes. A new method declares what it converts and how.

    Subclasses implement `accepts` (may this module be converted?) and `apply` (convert all selected ones together).

    `convert_` puts the model back as it was where a method fails. Tensors are not copied for that: a method gives the
    model new modules and new parameters, and does not write into the tensors that the model holds.

    What the new modules are to keep of the old ones, `convert_` gives them: which parameters train, modes, hooks
    (`filigree.preserved`).
    """

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        raise NotImplementedError

    def gains(self, module: nn.Module) -> bool:
        """Whether converting this module is worth it; those where it is not are converted only when asked for."""
        return True

    def stored(self) -> Conversion:
        """The config that files note: it makes the same layers in a single process that reads the file."""
        return self

    def choose(self, model: nn.Module, names: list[str]) -> list[tuple[Conversion, list[str], str]]:
        """Return which config is applied to which modules, with a note for the report.

        That is the config itself, unless it stands for a choice by measurement. The configs that were chosen are
        recorded on the model, and applied again when it is loaded.
        """
        return [(self, names, "")]

    def apply_if_faster(
        self, model: nn.Module, names: list[str], inputs: dict[str, Tensor]
    ) -> tuple[list[Change], list[tuple[Conversion, list[str]]]]:
        """Do as `apply` does, but leave a layer as it is if it would not be faster on its input (by name).

        The conversions that rebuild the new layers on loading are returned as well.
        """
        raise NotImplementedError


@contextmanager
def inference_context(model: nn.Module, hooks: Iterable[Any] = ()) -> Iterator[None]:
    """Run a model in eval mode without gradients; afterwards restore all modes and remove the hooks.

    Args:
        hooks: the handles of hooks. A generator that registers them is best: those registered before one fails are
            removed as well.
    """
    handles: list[Any] = []
    try:
        for handle in hooks:
            handles.append(handle)  # noqa: PERF402 - one by one, so that none is forgotten when the next one fails
        with evaluating(model), torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


def run_on(model: nn.Module, x: Tensor | Calibration, who: str) -> Any:
    """Return the model's outputs for `x`; of data in several chunks, those of the last.

    Raises:
        ValueError: the model's own code fails, whatever its error is; by the name of `who` runs it.
    """
    try:
        return deque(x.outputs(model), maxlen=1).pop() if isinstance(x, Calibration) else model(x)
    except Exception as error:
        raise ValueError(f"{who}: the model does not run on the data: {one_line(error)}") from error


def layer_inputs(
    model: nn.Module, names: Sequence[str], x: Tensor | Calibration, who: str = "filigree"
) -> dict[str, Tensor]:
    """Return what each of these modules reads when the model runs on `x` in eval mode, in all its calls.

    Raises:
        ValueError: the model does not run on the data, or they do not reach a module; by the name of `who` asks.
    """
    inputs: dict[str, list[Tensor]] = {}
    unread: dict[str, str] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            x = next(iter((*args, *kwargs.values())), None)
            if not isinstance(x, Tensor):
                unread.setdefault(name, type(x).__name__)
            else:
                inputs.setdefault(name, []).append(x.detach().clone())  # what comes after may change it in place

        return hook

    handles = (model.get_submodule(name).register_forward_pre_hook(keep(name), with_kwargs=True) for name in names)
    with inference_context(model, handles), without_shortcuts():
        run_on(model, x, who)
    if unread:
        name, kind = next(iter(unread.items()))
        raise ValueError(f"{who}: {name!r} must read a tensor. Got a {kind}.")
    if missed := set(names) - set(inputs):
        raise ValueError(f"{who}: the data do not reach {sorted(missed)[0]!r}.")
    return {name: _together(name, calls, who) for name, calls in inputs.items()}


def _together(name: str, calls: list[Tensor], who: str) -> Tensor:
    """The inputs of several calls one after the other; of different sizes as rows, where there are no other sides."""
    if len(calls) == 1:
        return calls[0]
    if len({call.shape[1:] for call in calls}) == 1 and calls[0].dim() > 1:
        return torch.cat(calls)
    if len({call.shape[-1] for call in calls}) == 1 and all(call.dim() < 4 for call in calls):
        return torch.cat([call.reshape(-1, call.shape[-1]) for call in calls])
    raise ValueError(f"{who}: {name!r} is called with inputs of several sizes.")


def convert_(model: nn.Module, config: Conversion, where: Where = None, measure: bool | int | Tensor = False) -> Report:
    """Change the layers of `model` in place, before training.

    Args:
        model: any torch module.
        config: what to do, for instance `fg.Sparse(fg.ErdosRenyi(epsilon=20))`.
        where: which modules: a predicate `(name, module) -> bool`, or glob patterns on module names
            (`["layers.*", "head"]`); by default all that the config can convert.
        measure: a layer is converted only where a forward and backward pass is faster on this machine than the dense
            one's, and the report gives both times. A batch size (True: 128) for linear layers; an example batch for
            the model, which is run once, where a layer's input has more sides than that. Both layers read the input in
            the memory order that it has in the model as it is (a batch size makes it batch-major), and what that costs
            the sparse one is counted; a layer between sparse ones gets their order and is rather faster than measured.
            All leading sides count as rows. Give the rows that training brings: wide batches move the density from
            which dense layers are faster (docs/performance.md).

    Returns:
        A printable report: per layer, what changed, parameters and MACs before and after.

    Raises:
        ValueError: no module was selected, or a pattern matched nothing that can be converted.

    After any exception, and after Ctrl-C, the model is as it was before: modules, parameters, buffers, attributes and
    hooks, and the global random generators as well (`filigree.rollback`). An example given as `measure` costs a copy of
    the model's tensors meanwhile, since the model is run on it.

    An optimizer made before holds parameters that the model no longer has: make it afterwards. Which parameters train,
    the modes of modules, tied weights and hooks on modules are kept (`filigree.preserved`); layers whose weights are
    tied, or computed by a parametrisation or a hook, are left as they are by methods that could not keep that. The
    report says in a line what was left and what could not be kept.
    """
    check_module(model, "convert_")
    if not isinstance(config, Conversion):
        raise TypeError(f"convert_: config must be a conversion such as fg.Sparse(...). Got {config!r}.")
    with AllOrNothing(model, values=isinstance(measure, Tensor)):
        restore_(model)
        names, left = select(model, config, where, f"convert_({type(config).__name__})")
        before = Preserved(model)
        if where is None:
            names = [name for name in names if config.gains(model.get_submodule(name))]
            if not names:
                raise ValueError(f"convert_: no layer would gain by {type(config).__name__}. Name them with where=.")
        if measure is False:
            changes = []
            for chosen, chosen_names, note in config.choose(model, names):
                changes += [replace(change, note=note or change.note) for change in chosen.apply(model, chosen_names)]
                record(model, chosen, chosen_names)
        else:
            if type(config).apply_if_faster is Conversion.apply_if_faster:
                raise ValueError(f"convert_: {type(config).__name__} cannot choose by measurement. Leave out measure=.")
            layers = {name: model.get_submodule(name) for name in names}
            changes, steps = config.apply_if_faster(model, names, _inputs(model, layers, measure))
            for conversion, converted_names in steps:
                record(model, conversion, converted_names)
        return report_of(config, names, changes, [*left, *before.restore_(model, sums(changes))])


def _inputs(model: nn.Module, layers: dict[str, nn.Module], measure: int | Tensor) -> dict[str, Tensor]:
    """Return what each layer is timed on: random numbers of a batch size, or what it reads of an example batch."""
    if not isinstance(measure, Tensor):
        batch = 128 if measure is True else measure
        if batch < 1:
            raise ValueError(f"convert_: measure must be a batch size of at least 1, or an example. Got {batch}.")
        widths = {name: getattr(layer, "in_features", None) for name, layer in layers.items()}
        if unknown := [name for name, width in widths.items() if width is None]:
            raise ValueError(f"convert_: {unknown[0]!r} has no width: give an example batch as measure=.")
        return {name: torch.randn(batch, width) for name, width in widths.items() if width}
    return layer_inputs(model, list(layers), measure, "convert_")


def sums(changes: Iterable[Change]) -> tuple[int, int]:
    """The numbers of parameters before and after, over all changes."""
    pairs = [change.parameters for change in changes]
    return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)


def report_of(config: Config, names: list[str], changes: list[Change], notes: list[str]) -> Report:
    """The report of a config that was applied to these layers."""
    return Report(f"{type(config).__name__}: {len(names)} layer(s)", changes, list(dict.fromkeys(notes)))


def record(model: nn.Module, config: Config, names: list[str]) -> None:
    """Note on the model what was done to it, so that `fg.load(path, into=fresh)` can do it again."""
    model, within = unwrapped(model), names_in(model)
    model.__dict__.setdefault("_filigree_conversions", []).append((config, tuple(map(within, names))))


def conversions(model: nn.Module) -> list[tuple[Config, tuple[str, ...]]]:
    """Return the configs applied to the model so far, with the names of the modules, in order."""
    return list(unwrapped(model).__dict__.get("_filigree_conversions", []))


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` wherever the module called `name` is used (a module may stand in several places)."""
    old = model.get_submodule(name)
    new.train(old.training)
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new


def width_before(model: nn.Module, name: str, who: str) -> tuple[int, int, nn.Module]:
    """Return how many units a module without weights reads, along which dimension, and the layer that makes them.

    Raises:
        ValueError: by `who`: no layer with a width stands before it, in the order in which modules are registered, or
            several that differ.
    """
    width: tuple[int, int, nn.Module] | None = None
    whole = None  # a layer with a width stands for the modules that it consists of, too
    for other, module in model.named_modules():
        if other == name and width is not None:
            _refuse_several_widths(model, name, who)
            return width
        if whole is not None and other.startswith(whole) and not name.startswith(whole):
            continue
        if (units := _width(module)) is not None:
            width, whole = (*units, module), f"{other}." if other else None
        elif isinstance(module, nn.Flatten):
            width = None  # how many numbers it makes of an image is not known here
    raise ValueError(f"{who}: no layer stands before {name!r}, so how many units it has is not known.")


def _width(module: nn.Module) -> tuple[int, int] | None:
    """How many units a layer makes, and along which dimension; None of a module that is no such layer."""
    layer: Any = module
    kernel = getattr(layer, "kernel_size", None)
    if isinstance(units := getattr(layer, "out_channels", None), int) and isinstance(kernel, tuple):
        return units, -1 - len(kernel)  # sparse convolutions have out_features too
    if isinstance(units := getattr(layer, "out_features", None), int):
        return units, -1
    if isinstance(units := getattr(layer, "hidden_size", None), int) and hasattr(layer, "bidirectional"):
        return (getattr(layer, "proj_size", 0) or units) * (2 if layer.bidirectional else 1), -1
    if isinstance(units := getattr(layer, "embedding_dim", None), int):
        return units, -1
    return None


def _refuse_several_widths(model: nn.Module, name: str, who: str) -> None:
    """In a sequence the layer before a module is known; elsewhere several may have been registered before it."""
    owner_name, _, key = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    if isinstance(owner, nn.Sequential):
        return
    candidates: dict[str, tuple[int, int]] = {}
    for other, module in owner.named_children():
        if other == key:
            break
        if type(module) is type(owner.get_submodule(key)):
            candidates = {}
        elif (units := _width(module)) is not None:
            candidates[other] = units
    if len(set(candidates.values())) > 1:
        raise ValueError(
            f"{who}: whether {name!r} reads {' or '.join(map(repr, candidates))} is not known, and these differ "
            "in their numbers of units. Name others with where=."
        )


def _arrow(pair: tuple[int, int]) -> str:
    before, after = pair
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"
