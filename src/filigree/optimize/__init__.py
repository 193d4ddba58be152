"""`optimize_`: a model is laid out for inference on this machine, by measurement."""

from filigree.laid_out import restore_

__all__ = ["restore_"]
