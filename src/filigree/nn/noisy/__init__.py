"""Noisy activations and gates."""
