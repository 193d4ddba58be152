"""Which connections exist: sizes in, patterns out."""

from filigree.topology.constant_fan_in import ConstantFanIn
from filigree.topology.empty import Empty
from filigree.topology.erdos_renyi import ErdosRenyi, ErdosRenyiKernel
from filigree.topology.full import Full
from filigree.topology.paths import Paths
from filigree.topology.topology import Drawn, Size, Topology

__all__ = ["ConstantFanIn", "Drawn", "Empty", "ErdosRenyi", "ErdosRenyiKernel", "Full", "Paths", "Size", "Topology"]
