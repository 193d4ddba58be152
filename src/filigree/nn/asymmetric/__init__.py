"""Sparsified backpropagation: layers whose backward pass computes only chosen gradients."""
