"""Experiments: one YAML file each, and what runs them."""

from filigree.recipes.counts import Count, counts
from filigree.recipes.recipe import Recipe, RecipeError, load, names
from filigree.recipes.run import MODEL, run

__all__ = ["MODEL", "Count", "Recipe", "RecipeError", "counts", "load", "names", "run"]
