"""Which connections exist: sizes in, patterns out."""

from filigree.topology.constant_fan_in import ConstantFanIn
from filigree.topology.erdos_renyi import ErdosRenyi, ErdosRenyiKernel
from filigree.topology.topology import Size, Topology

__all__ = ["ConstantFanIn", "ErdosRenyi", "ErdosRenyiKernel", "Size", "Topology"]
