"""What changes after training."""

from filigree.compress.fit import Fit

__all__ = ["Fit"]
