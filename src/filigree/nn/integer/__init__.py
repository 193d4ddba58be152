"""Layers of small integers, as sampling makes them."""
