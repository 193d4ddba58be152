"""Experiments: one YAML file each, and what runs them."""

from filigree.recipes.recipe import Recipe, RecipeError, compression, compressions, load, names
from filigree.recipes.run import MODEL, data_of, finished, run
from filigree.recipes.sweep import COSTS, Sweep, sweep
from filigree.recipes.sweep_ray import sweep_ray

__all__ = [
    "COSTS",
    "MODEL",
    "Recipe",
    "RecipeError",
    "Sweep",
    "compression",
    "compressions",
    "data_of",
    "finished",
    "load",
    "names",
    "run",
    "sweep",
    "sweep_ray",
]
