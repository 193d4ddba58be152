"""What a recipe trains: its network, converted, and what steps with it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import nn

from filigree import models
from filigree.config import one_line
from filigree.convert import convert_
from filigree.data import DataSet
from filigree.dynamics import Evolution
from filigree.dynamics.evolution import Evolvable
from filigree.modes import takes_fused, takes_fused_sgd
from filigree.recipes.recipe import MethodSettings, Recipe, RecipeError, TrainingSettings
from filigree.train import seed_everything


def build(recipe: Recipe, method: str, split: DataSet, seed: int) -> nn.Module:
    """The method's network for these data, converted, with initial values by `seed`."""
    seed_everything(seed)
    inputs, settings = math.prod(split.train.x.shape[1:]), recipe.model_of(method)
    if settings.name == "mlp":
        model = models.mlp([inputs, *settings.hidden, split.classes], settings.dropout, settings.activation)
    elif settings.name == "lenet_300_100":
        model = models.lenet_300_100(inputs, split.classes)
    elif settings.name == "gpt":
        try:
            model = models.build("gpt", tokens=split.classes, context=inputs, **settings.arguments)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"model.arguments: {one_line(error)}") from None
    elif settings.name != "resnet":
        model = models.build(settings.name, channels=split.train.x.shape[1], classes=split.classes)
    else:
        model = models.resnet(settings.blocks, settings.width, split.train.x.shape[1], split.classes)
    if settings.init == "xavier":
        _xavier(model)
    for step in recipe.convert_of(method):
        config = step.config
        if hasattr(config, "seed"):
            config = dataclasses.replace(config, seed=seed)
        try:
            convert_(model, config, step.where)
        except ValueError as error:
            raise RecipeError(f"methods.{method}: {one_line(error)}") from error
    return model


def _xavier(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def optimizer_of(model: nn.Module, training: TrainingSettings) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": training.lr, "weight_decay": training.weight_decay}
    if training.optimizer == "sgd":
        options["fused"] = takes_fused_sgd(model)
        return torch.optim.SGD(model.parameters(), momentum=training.momentum, **options)
    options["fused"] = takes_fused(model)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimizer](model.parameters(), **options)


def evolution_of(
    arm: MethodSettings,
    training: TrainingSettings,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    seed: int,
) -> Evolution | None:
    if arm.evolution is None or not any(isinstance(layer, Evolvable) for layer in model.modules()):
        return None  # a narrow network may stay dense throughout
    settings = {name: getattr(arm.evolution, name) for name in type(arm.evolution).model_fields}
    return Evolution(model, optimizer, settings.pop("schedule"), training.epochs, seed=seed, **settings)
