"""`optimize_`: a model is laid out for inference on this machine, by measurement."""

from filigree.optimize.runtime import restore_

__all__ = ["restore_"]
