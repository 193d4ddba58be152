"""Structured layers: O(n log n) products, low rank, and what is built of them."""
