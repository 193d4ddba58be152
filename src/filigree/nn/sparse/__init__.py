"""Sparse layers: they store and compute only their connections."""
