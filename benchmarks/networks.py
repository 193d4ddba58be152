"""The same sparse multilayer perceptron in every library, at its best fair configuration.

All have Erdos-Renyi layers of epsilon 20 (the output layer stays dense), ReLU, and SGD with momentum 0.9.
"""

import torch
from torch import nn

import filigree as fg

SIZES = {
    "3 x 1000": [784, 1000, 1000, 1000, 10],
    "4000-1000-4000": [784, 4000, 1000, 4000, 10],
    "4 x 4000": [784, 4000, 4000, 4000, 4000, 10],
}


def ours(sizes):
    model = fg.models.mlp(sizes)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(epsilon=20)))
    return model


def densified(model):
    """The plain dense network with the same weights as one of ours."""
    layers = []
    for layer in model:
        dense = layer.dense() if hasattr(layer, "dense") else layer
        layers += list(dense) if isinstance(dense, nn.Sequential) else [dense]
    return nn.Sequential(*(layer for layer in layers if not isinstance(layer, nn.Identity)))


class CsrLinear(nn.Module):
    """A sparse layer on torch's own CSR product, as one would write it: W (CSR) @ x^T, torch's autograd."""

    def __init__(self, layer):
        super().__init__()
        self.crow, self.col = layer.indptr.long(), layer.indices.long()
        self.values = nn.Parameter(layer.values.detach().clone())
        self.bias = nn.Parameter(layer.bias.detach().clone())
        self.shape = (layer.out_features, layer.in_features)

    def forward(self, x):
        weight = torch.sparse_csr_tensor(self.crow, self.col, self.values, self.shape)
        return (weight @ x.t()).t() + self.bias


def sparseprop_linear(layer):
    import sparseprop.modules as theirs

    return theirs.SparseLinear.from_dense(_plain(layer))


def sparselab_linear(layer):
    import sparselab as theirs

    bias = layer.bias is not None
    layer_of_peer = theirs.SparseLinear(layer.in_features, layer.out_features, bias, sparsity=1 - layer.density)
    layer_of_peer._csr = theirs.PaddedCSR.from_dense(_plain(layer).weight.detach(), padding_ratio=0.0)
    layer_of_peer._values = nn.Parameter(torch.from_numpy(layer_of_peer._csr.values))
    if bias:
        layer_of_peer.bias.data.copy_(layer.bias.detach())
    return layer_of_peer


PEERS = {"torch CSR": CsrLinear, "SparseProp": sparseprop_linear, "sparselab": sparselab_linear}  # a layer from ours


def of_peer(model, build):
    """The plain network with the same weights as one of ours, a multilayer perceptron, on a peer's layers."""
    layers = []
    for layer in model:
        if isinstance(layer, fg.nn.SparseLinear):
            layers += [build(layer), *([nn.ReLU()] if layer.relu else [])]
        elif isinstance(layer, nn.Linear):
            layers.append(layer.dense())
    return nn.Sequential(*layers)


def peers(model):
    """The networks of the peers that are installed, by their names."""
    networks = {}
    for name, build in PEERS.items():
        try:
            networks[name] = of_peer(model, build)
        except ImportError as error:
            print(f"  {name}: left out ({error})")
    return networks


def best_peer(timings):
    """The time of the best library of those that are installed; None where none is."""
    return min((t.median for label, t in timings.items() if label in ("SparseProp", "sparselab")), default=None)


def _plain(layer):
    dense = layer.dense()
    return dense[0] if isinstance(dense, nn.Sequential) else dense


def step_of(network, x, y, autocast=False):
    """One training step of a network, as a call; the same loop for all."""
    optimizer = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.9, fused=True)

    def run():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()

    return run
