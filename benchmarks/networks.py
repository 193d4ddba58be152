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


def torch_csr(model):
    return _rebuilt(model, CsrLinear)


def sparseprop(model):
    import sparseprop.modules as theirs

    return _rebuilt(model, lambda layer: theirs.SparseLinear.from_dense(_plain(layer)))


def sparselab(model):
    import sparselab as theirs

    def build(layer):
        layer_of_peer = theirs.SparseLinear(layer.in_features, layer.out_features, sparsity=1 - layer.density)
        weight = _plain(layer).weight.detach()
        layer_of_peer._csr = theirs.PaddedCSR.from_dense(weight, padding_ratio=0.0)
        layer_of_peer._values = nn.Parameter(torch.from_numpy(layer_of_peer._csr.values))
        layer_of_peer.bias.data.copy_(layer.bias.detach())
        return layer_of_peer

    return _rebuilt(model, build)


def _plain(layer):
    dense = layer.dense()
    return dense[0] if isinstance(dense, nn.Sequential) else dense


def _rebuilt(model, build):
    layers = []
    for layer in model:
        if isinstance(layer, fg.nn.SparseLinear):
            layers += [build(layer), nn.ReLU()]
        elif isinstance(layer, nn.Linear):
            layers.append(layer.dense())
    return nn.Sequential(*layers)


PEERS = {"torch CSR": torch_csr, "SparseProp": sparseprop, "sparselab": sparselab}


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
