"""What changes after training."""

from filigree.compress.fit import Fit
from filigree.compress.monte_carlo import MonteCarlo
from filigree.compress.path_sampling import PathSampling
from filigree.compress.rounded import Rounded

__all__ = ["Fit", "MonteCarlo", "PathSampling", "Rounded"]
