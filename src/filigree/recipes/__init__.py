"""Experiments: one YAML file each, and what runs them."""

from filigree.recipes.forecast import duration, forecast, forecast_line, gains
from filigree.recipes.recipe import Recipe, RecipeError, compression, compressions, load, names
from filigree.recipes.run import MODEL, checksum, data_of, finished, on, refuse_earlier, run
from filigree.recipes.run_ray import run_ray
from filigree.recipes.sweep import COSTS, Sweep, cost_text, refuse_other_search, sweep
from filigree.recipes.sweep_ray import sweep_ray

__all__ = [
    "COSTS",
    "MODEL",
    "Recipe",
    "RecipeError",
    "Sweep",
    "checksum",
    "compression",
    "compressions",
    "cost_text",
    "data_of",
    "duration",
    "finished",
    "forecast",
    "forecast_line",
    "gains",
    "load",
    "names",
    "on",
    "refuse_earlier",
    "refuse_other_search",
    "run",
    "run_ray",
    "sweep",
    "sweep_ray",
]
