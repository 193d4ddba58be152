"""Dropout and its variants."""
