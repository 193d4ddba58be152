"""All reproductions by their names, in the order of the documents."""

from filigree_papers.reproduce import (
    chouliaras_evolution,
    john_networks,
    john_pruning,
    john_retraining,
    john_subclustering,
    keller_monte_carlo,
    keller_paths,
    moczulski_mollification,
    moczulski_noise,
    moczulski_sequences,
    moczulski_structured,
    moczulski_translation,
    srivastava_asymmetric,
    srivastava_costs,
)
from filigree_papers.reproduce.reproduction import Computation, Reproduction

PARTS = (
    srivastava_asymmetric, srivastava_costs, chouliaras_evolution, keller_monte_carlo, keller_paths, john_networks,
    john_pruning, john_subclustering, john_retraining, moczulski_structured, moczulski_noise, moczulski_sequences,
    moczulski_mollification, moczulski_translation,
)  # fmt: skip

ALL: dict[str, Reproduction | Computation] = {
    reproduction.name: reproduction for part in PARTS for reproduction in part.REPRODUCTIONS
}
