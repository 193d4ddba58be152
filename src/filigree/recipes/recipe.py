"""What a recipe is: an experiment as a YAML file that spells the library's own configs."""

from __future__ import annotations

import difflib
import functools
import re
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from filigree.compress.compression import Compression
from filigree.compress.pruning.unit_pruning import UnitPruning
from filigree.config import Config, clipped
from filigree.convert import Conversion
from filigree.data import names as data_names
from filigree.data.readers import is_file_name
from filigree.dynamics import DensitySchedule, Schedule
from filigree.extensions import extensions
from filigree.nn.structured.low_rank import LowRank
from filigree.recipes.plain_yaml import LARGEST, plain_yaml


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names the key, what was expected and what came."""


def _folder(name: str) -> str:
    """Check that a name stands for a folder below the output folder, and for nothing outside it."""
    if not re.fullmatch(r"[^/\\\x00-\x1f\x7f]{1,100}", name) or name.startswith("."):
        raise ValueError(
            f"a name must be up to 100 characters without slashes, not begin with a dot: it names a folder. "
            f"Got {clipped(name)}"
        )
    return name


def searched_folder(key: str, candidate: Any) -> str:
    """The part of a folder's name that says which value of a setting was tried there."""
    return _folder(f"{key}-{candidate}")


FolderName = Annotated[str, pydantic.AfterValidator(_folder)]
Candidates = Annotated[list[Any], pydantic.Field(max_length=200)]


def _as(kind: type[Config]) -> Any:
    return pydantic.BeforeValidator(lambda given: given if isinstance(given, kind) else kind.from_dict(given))


def _compression(given: Any) -> Any:
    config = given if isinstance(given, Config) else Config.from_dict(given)
    if not isinstance(config, Compression | LowRank):
        raise ValueError(f"{type(config).__name__} does not compress. Those that do: {', '.join(compressions())}.")
    return config


class _Settings(
    pydantic.BaseModel, extra="forbid", arbitrary_types_allowed=True, frozen=True, allow_inf_nan=False
):  # fmt: skip
    pass


class DataSettings(_Settings):
    """Which data, and how they are split; the other keys are arguments of `fg.data.load`.

    With `unit` they are a text, read by `fg.data.load_text` in pieces of `length` tokens. With `folds`, the runs are
    the folds of a repeated stratified cross-validation instead of seeds.
    """

    name: str
    validation: float | int = 0
    test_size: float = pydantic.Field(1 / 3, gt=0, lt=1)
    stratify: bool = True
    standardize: Literal["default", "feature", "global"] | None = "default"
    augment: bool = False
    images: bool = False
    target: str | None = None
    missing: Literal["refuse", "drop", "mean"] = "refuse"
    index_column: Literal["drop", "keep"] = "drop"
    drop: list[str] = []
    task: Literal["classification", "regression"] | None = None
    transpose: bool = False
    unit: Literal["characters", "words"] | None = None
    length: int = pydantic.Field(128, ge=1)
    folds: int | None = pydantic.Field(None, ge=2, le=1000)
    repeats: int = pydantic.Field(1, ge=1, le=1000)


class ModelSettings(_Settings):
    """The network: an `mlp` of `hidden` widths (input and output follow from the data), or another of `fg.models`.

    `dropout` and `activation` are of the mlp, `blocks` and `width` of the resnet. `init: xavier` draws the weights of
    dense layers from Glorot's uniform distribution and sets biases to 0; "torch" leaves them as torch makes them.
    `arguments` are those of `gpt`, but for `tokens` and `context`, which follow from the data.
    """

    name: Literal[
        "mlp",
        "lenet_300_100",
        "lenet5",
        "lenet_caffe",
        "alexnet_cifar",
        "cnn_cifar",
        "vgg16_cifar",
        "caffenet",
        "resnet",
        "gpt",
    ] = "mlp"
    hidden: list[Annotated[int, pydantic.Field(ge=1)]] = [1000, 1000, 1000]
    dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    activation: Literal["relu", "tanh", "sigmoid", "hardtanh", "hardsigmoid"] = "relu"
    blocks: list[Annotated[int, pydantic.Field(ge=1)]] = [1, 1, 1]
    width: int = pydantic.Field(64, ge=1)
    init: Literal["torch", "xavier"] = "torch"
    arguments: dict[str, Any] = {}


class TrainingSettings(_Settings):
    """Arguments of optimizer and `fg.fit`. `early_stopping` is a patience in epochs of the validation loss.

    `tracker`: "tensorboard", "mlflow" or another of Accelerate's, which then gets the epochs' figures as they come.
    """

    epochs: int = pydantic.Field(30, ge=1)
    batch_size: int = pydantic.Field(128, ge=1)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = pydantic.Field(0.01, gt=0)
    momentum: float = pydantic.Field(0.9, ge=0, lt=1)
    weight_decay: float = pydantic.Field(0.0, ge=0)
    early_stopping: int | None = pydantic.Field(None, ge=1)
    rebuild_every_epoch: bool = False
    tracker: str | None = None


class ConvertSettings(_Settings):
    """One `fg.convert_`: a config, and on which modules (glob patterns; by default all that it can convert)."""

    config: Annotated[Any, _as(Conversion)]
    where: list[str] | None = None


class CompressSettings(_Settings):
    """One `fg.compress_` after training, calibrated by `samples` of the training part (0: no data)."""

    config: Annotated[Any, pydantic.BeforeValidator(_compression)]
    where: list[str] | None = None
    samples: int = pydantic.Field(2000, ge=0)


class FinetuneSettings(_Settings):
    """Training after compression: until the validation accuracy is what it was before, at most `epochs`."""

    epochs: int = pydantic.Field(10, ge=1)
    lr: float = pydantic.Field(0.001, gt=0)


class EvolutionSettings(_Settings):
    """Arguments of `fg.Evolution`; `epochs` is the run's."""

    schedule: Annotated[Any, _as(Schedule)]
    stop_before_end: int = pydantic.Field(1, ge=1)
    grow: Literal["random", "gradient", "cht3", "cht2"] = "random"
    regrow: Literal["zero", "initial"] | float = "zero"
    soft: tuple[float, float] | None = None
    density: Annotated[Any, _as(DensitySchedule)] = None
    allocate: Literal["layer", "global", "erk"] = "layer"

    def plain(self) -> dict[str, Any]:
        return self.model_dump() | {
            name: None if config is None else config.to_dict()
            for name, config in (("schedule", self.schedule), ("density", self.density))
        }


class NoiseSettings(_Settings):
    """Arguments of `fg.NoiseAnnealing`; without `every` the end is reached with the run's last step."""

    start: float = pydantic.Field(30.0, gt=0)
    end: float = pydantic.Field(0.5, gt=0)
    every: float | None = pydantic.Field(None, gt=0)


class MollificationSettings(_Settings):
    """Arguments of `fg.MollificationAnnealing`."""

    k: float = pydantic.Field(1000.0, ge=0)
    stop: float = pydantic.Field(0.01, ge=0)
    loss: Literal["training", "validation"] = "training"
    average: float = pydantic.Field(0.99, ge=0, lt=1)


class MethodSettings(_Settings):
    """One arm of the experiment. What it leaves out is as in the recipe: `convert` by default the recipe's own.

    `training` and `model` hold single settings that differ from the recipe's; `anneal` is of noisy activations,
    `mollify` of mollifying networks. `compress` comes after training, `finetune` after that. With `after`, another
    method's name, the network that this method left with the same seed is taken in place of training one. `notes` are
    for readers of its figures.
    """

    after: str | None = None
    convert: list[ConvertSettings] | None = None
    evolution: EvolutionSettings | None = None
    anneal: NoiseSettings | None = None
    mollify: MollificationSettings | None = None
    compress: list[CompressSettings] = []
    finetune: FinetuneSettings | None = None
    training: dict[str, Any] = {}
    model: dict[str, Any] = {}
    notes: list[str] = []


class Recipe(_Settings):
    """An experiment: data, network, training, and the methods that are compared in it.

    `about` says what it shows and where it comes from; `expect` what it costs and gives; `watch` adds gradient
    norms and ages of connections to the record. `search` names one training setting and its candidates: each method
    takes the one with the best validation accuracy in the first run.
    """

    name: FolderName
    about: str
    expect: str = ""
    data: DataSettings
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    convert: list[ConvertSettings] = []
    methods: Annotated[dict[FolderName, MethodSettings], pydantic.Field(max_length=200)]
    seeds: Annotated[list[Annotated[int, pydantic.Field(ge=0, lt=2**63)]], pydantic.Field(min_length=1)] = [0]
    published: dict[str, float] = {}
    watch: bool = False
    search: Annotated[dict[str, Candidates], pydantic.Field(max_length=20)] = {}
    notes: list[str] = []

    @pydantic.model_validator(mode="after")
    def _searched_values_name_folders(self) -> Recipe:
        for key, candidates in self.search.items():
            for candidate in candidates:
                try:
                    searched_folder(key, candidate)
                except ValueError as error:
                    raise ValueError(f"search.{key[:50]}: {error}") from None
        return self

    @pydantic.model_validator(mode="after")
    def _after_exists(self) -> Recipe:
        for name, arm in self.methods.items():
            trained = [other_name for other_name, other in self.methods.items() if other.after is None]
            if arm.after is not None and arm.after not in trained:
                raise ValueError(f"methods.{name}.after: expected a method that trains. Got {arm.after!r}.")
            if arm.after is not None and (
                arm.convert or arm.evolution or arm.training or arm.model or arm.anneal or arm.mollify
            ):
                raise ValueError(f"methods.{name}.after: a network that is taken up is not built or trained again.")
            training = self.training.model_dump() | (arm.training or {})
            if training["rebuild_every_epoch"]:
                without = {"anneal": arm.anneal, "mollify": arm.mollify, "watch": self.watch,
                           "early_stopping": training["early_stopping"], "tracker": training["tracker"]}  # fmt: skip
                if unsupported := [key for key, value in without.items() if value]:
                    raise ValueError(f"methods.{name}: rebuild_every_epoch goes without {', '.join(unsupported)}.")
            if arm.after is not None and self.search:
                raise ValueError(f"methods.{name}.after: a recipe with `search` trains every method.")
        return self

    def training_of(self, method: str, **chosen: Any) -> TrainingSettings:
        """The recipe's training settings with the method's own on top, and then those `chosen`."""
        return TrainingSettings(**(self.training.model_dump() | self.methods[method].training | chosen))

    def model_of(self, method: str) -> ModelSettings:
        """The recipe's network with the method's own settings on top."""
        return ModelSettings(**(self.model.model_dump() | self.methods[method].model))

    def convert_of(self, method: str) -> list[ConvertSettings]:
        own = self.methods[method].convert
        return self.convert if own is None else own

    def runs(self) -> list[int]:
        """The numbers of the runs: the seeds, or the folds of all repeats."""
        return self.seeds if self.data.folds is None else list(range(self.data.folds * self.data.repeats))

    def plain(self, method: str, **chosen: Any) -> dict[str, Any]:
        """One arm with everything resolved, as plain data for a record."""
        arm = self.methods[method]
        return {
            "about": self.about,
            "data": self.data.model_dump(),
            "model": self.model_of(method).model_dump(),
            "training": self.training_of(method, **chosen).model_dump(),
            "convert": [{"config": c.config.to_dict(), "where": c.where} for c in self.convert_of(method)],
            "after": arm.after,
            "evolution": None if arm.evolution is None else arm.evolution.plain(),
            "anneal": None if arm.anneal is None else arm.anneal.model_dump(),
            "mollify": None if arm.mollify is None else arm.mollify.model_dump(),
            "finetune": None if arm.finetune is None else arm.finetune.model_dump(),
            "compress": [c.model_dump() | {"config": c.config.to_dict()} for c in arm.compress],
            "published": self.published,
        }


def compressions() -> list[str]:
    """The names of the configs that `fg.compress_` takes after training."""
    return sorted({*Compression.kinds(), LowRank.__name__} - {UnitPruning.__name__})  # that one is a base


def compression(name: str, settings: Sequence[str] = ()) -> Any:
    """The compression of this name with arguments `key=value`, values as in YAML."""
    if name not in compressions():
        close = difflib.get_close_matches(name, compressions(), n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise RecipeError(f"there is no method {name!r}.{hint} There are: {', '.join(compressions())}.")
    tree: dict[str, Any] = {"kind": name}
    for setting in settings:
        _override(tree, setting)
    try:
        return _compression(tree)
    except ValueError as error:
        raise RecipeError(str(error)) from None


def names() -> list[str]:
    """The recipes that come with the library and with installed extensions."""
    return sorted(name for name in {**_own(), **_of_extensions()} if not name.startswith("_"))


@functools.cache
def _own() -> dict[str, Traversable]:
    """The library's recipes by name; those with an underscore are only extended."""
    return _by_name(resources.files(__package__))


def _of_extensions() -> dict[str, Traversable]:
    folders = [extension.RECIPES for extension in extensions() if hasattr(extension, "RECIPES")]
    return {name: file for folder in folders for name, file in _by_name(folder).items()}


def _by_name(folder: Traversable) -> dict[str, Traversable]:
    return {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}


def _find(name: str) -> Traversable | None:
    """The recipe of this name; only a name that the library does not know loads the extensions."""
    return _own().get(name) or _of_extensions().get(name)


def load(name: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """A recipe by its name, or from a YAML file, with overrides `key.sub=value` on top.

    A file may say `extends: NAME`; its mappings are merged into that recipe's, its notes are added, the rest replaces.
    A method that is null (`methods: {dense: null}`) is left out.

    Raises:
        RecipeError: unknown recipe, key or value, in one line that names it.
    """
    tree = tree_of(name, settings)
    try:
        recipe = Recipe(**tree)
        for method in recipe.methods:
            for key, candidates in recipe.search.items():
                [recipe.training_of(method, **{key: candidate}) for candidate in candidates]
            recipe.training_of(method), recipe.model_of(method)
    except pydantic.ValidationError as error:
        raise RecipeError(f"recipe {Path(name).stem}: {_one_line(error)}") from None
    return recipe


def tree_of(name: str | Path, settings: Sequence[str] = ()) -> dict[str, Any]:
    """A recipe as the plain mapping that its file and the overrides make; `regression` holds what differs in it where
    the task is one."""
    tree = _read(name)
    own = tree.pop("regression", None)
    tasks = [setting.partition("=")[2].strip(" \"'") for setting in settings if setting.startswith("data.task=")]
    if isinstance(own, Mapping) and (tasks or [_task_of(tree)])[-1] == "regression":
        tree = _merge(tree, own)
    for setting in settings:
        _override(tree, setting)
    return tree


def _task_of(tree: Mapping[str, Any]) -> Any:
    data = tree.get("data")
    return data.get("task") if isinstance(data, Mapping) else None


def _read(name: str | Path, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    path = Path(name)
    is_file = path.suffix in (".yaml", ".yml")
    inside = None if is_file or (str(name).startswith("_") and not seen) else _find(str(name))
    if not inside and not is_file:
        close = difflib.get_close_matches(str(name), names(), n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        if is_file_name(name) or str(name) in data_names():
            hint = f" For data: `filigree train demo --data {name}`."
        raise RecipeError(
            f"there is no recipe {str(name)!r}.{hint} `filigree list` shows them; a .yaml file will do too."
        )
    if not inside and path.exists() and not path.is_file():
        raise RecipeError(f"recipe {name}: not a file.")
    try:
        with (inside or path).open(encoding="utf-8") as file:
            tree = plain_yaml(file.read(LARGEST + 1))
    except OSError as error:
        raise RecipeError(f"recipe {name}: {error.strerror or error}.") from None
    except ValueError as error:
        raise RecipeError(f"recipe {name}: {error}.") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"recipe {name}: expected a mapping of keys. Got {type(tree).__name__}.")
    base = tree.pop("extends", None)
    tree.setdefault("name", path.stem)
    if base is None:
        return tree
    if not isinstance(base, str) or not base.isprintable():
        raise RecipeError(f"recipe {name}: extends must be a recipe's name. Got {clipped(base)}.")
    if base in (*seen, str(name)):
        raise RecipeError(f"recipe {name}: extends {base!r} in a circle.")
    extended = _read(base, (*seen, str(name)))
    own, methods = tree.get("methods"), extended.get("methods")
    if isinstance(own, dict) and isinstance(methods, dict):
        for method in [method for method, settings in own.items() if settings is None and method in methods]:
            del own[method], methods[method]
    return _merge(extended, tree)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), dict) and "kind" not in value
        lists = key == "notes" and isinstance(value, list) and isinstance(base.get(key, []), list)
        base[key] = _merge(base[key], value) if both else [*base.get(key, []), *value] if lists else value
    return base


def _override(tree: Any, setting: str) -> None:
    path, equals, text = setting.partition("=")
    if not equals or not path:
        raise RecipeError(f"--set {setting}: expected key=value, for instance training.epochs=5.")
    *parents, last = path.split(".")
    node = tree
    for i, key in enumerate(parents):
        if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, dict):
            node = node.setdefault(key, {})
            if node is None:
                raise RecipeError(f"--set {setting}: {'.'.join(parents[: i + 1])} has no keys.")
        else:
            raise RecipeError(f"--set {setting}: {'.'.join(parents[: i + 1])} is not in the recipe.")
    try:
        value = plain_yaml(text)
    except ValueError as error:
        raise RecipeError(f"--set {setting}: {error}.") from None
    if isinstance(node, list) and last.isdecimal() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise RecipeError(f"--set {setting}: {path} is not in the recipe.")


def _one_line(error: pydantic.ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        known = _keys_beside(error.title, first["loc"])
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(known)}."
        return f"unknown key {where!r}. {hint}"
    if first["type"] == "missing":
        return f"the key {where!r} is missing."
    if first["type"] == "value_error":
        return f"{where}: {first['ctx']['error']}"
    return f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}. Got {clipped(first['input'])}."


def _keys_beside(settings: str, loc: Sequence[int | str]) -> list[str]:
    """The keys that are known where a key is not: fields of the settings that the path leads to."""
    model = next(kind for kind in _Settings.__subclasses__() if kind.__name__ == settings)
    for part in loc[:-1]:
        if part in model.model_fields:
            model = _settings_in(model.model_fields[str(part)].annotation) or model
    return list(model.model_fields)


def _settings_in(annotation: Any) -> type[_Settings] | None:
    """The settings in a type such as `dict[str, MethodSettings]`."""
    if isinstance(annotation, type) and issubclass(annotation, _Settings):
        return annotation
    return next(filter(None, map(_settings_in, typing.get_args(annotation))), None)
