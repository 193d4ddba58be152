"""Which connections exist: sizes in, patterns out."""

from filigree.topology.erdos_renyi import ErdosRenyi, ErdosRenyiKernel
from filigree.topology.topology import Size, Topology

__all__ = ["ErdosRenyi", "ErdosRenyiKernel", "Size", "Topology"]
