"""What is split off to judge by, and what runs at once."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import filigree as fg
from filigree.calibration import Calibration
from filigree.compress import passes


class Graph(nn.Module):
    """Each row of its outputs depends on all rows of its inputs, where `adj` says so."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x, adj):
        return adj @ self.b(F.relu(adj @ self.a(x)))


class Masked(Graph):
    def __init__(self, *sides):
        super().__init__()
        self.sides = sides

    def forward(self, x, mask):
        return self.b(F.relu(self.a(x)) * mask.view(-1, *self.sides))


@pytest.mark.parametrize(
    ("model", "data", "are_samples"),
    [
        (Graph(), {"x": torch.ones(80, 6), "adj": torch.eye(80)}, False),
        (Masked(1), {"x": torch.ones(64, 64, 6), "mask": torch.ones(64)}, False),
        (Masked(1, 1), {"x": torch.ones(64, 5, 6), "mask": torch.ones(64)}, True),
        (Masked(1), {"x": torch.ones(64, 5, 6), "mask": torch.ones(5)}, True),
    ],
)
def test_rows_of_a_mapping_are_split_where_the_model_takes_them_as_samples(model, data, are_samples):
    torch.manual_seed(0)
    data = data | {"x": torch.randn_like(data["x"])}
    pruned = fg.compress_(copy.deepcopy(model), fg.MagnitudePruning(keep=0.5, measure=False), data)
    assert ("on 8 samples that nothing was fitted to" if are_samples else "on the fitted samples") in str(pruned)
    sparse = fg.compress_(copy.deepcopy(model), fg.OneShot(0.5), data)
    assert ("on 8 samples not fitted to" if are_samples else f"on {len(data['x'])} samples fitted to") in str(sparse)


def test_an_eighth_of_batches_is_held_out_and_no_more():
    torch.manual_seed(0)
    model, x = Masked(1), torch.randn(8, 40, 5, 6)
    mappings = [{"x": part, "mask": torch.ones(5)} for part in x]
    uneven = [torch.randn(40, 5 + i % 2, 6) for i in range(3)]
    assert [len(part) for part in Calibration(mappings).split(1000, 0, model, 8)] == [280, 40]
    assert [len(part) for part in Calibration(mappings[:2]).split(1000, 0, model, 8)] == [70, 10]
    assert [len(part) for part in Calibration(uneven).split(1000, 0, model.a, 8)] == [105, 15]
    by_hand = Calibration(mappings[:3], lambda network, batch: network(**batch))
    fitted, held = by_hand.split(1000, 0, model, 8)
    assert (len(fitted), held) == (120, None)
    assert [len(part) for part in by_hand.split(1000, 0, model, 4, least=1)] == [80, 40]  # a search needs some


class Attention(Graph):
    """What is computed between its modules takes most."""

    def __init__(self):
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.a)  # a weight that is computed does not grow with the samples

    def forward(self, x):
        h = F.relu(self.a(x))
        return ((h @ h.transpose(1, 2)).softmax(-1) @ self.b(h)).mean(1)


def test_chunks_are_as_large_as_what_is_computed_between_modules_allows():
    x = torch.randn(700, 1, 6).expand(-1, 512, -1)
    assert passes.in_chunks(Attention(), Calibration(x)).chunk == passes.CHUNK_BYTES // (512 * 512 * 4)
    for length in (2, 20):  # 64 x 16 x 20 x 4 bytes a sample at most: all in one
        x = torch.randn(3000, length, 6)
        assert passes.in_chunks(Attention(), Calibration(x)).chunk == 3000
    few = [passes.in_chunks(Attention(), Calibration(torch.randn(count, 4, 6))).chunk for count in (2, 3)]
    assert few == [2, 3]


def test_a_row_is_held_out_of_two():
    assert [passes.Chunk(0, 1.0, None).held(rows) for rows in (1, 2, 4, 16, 64)] == [0, 1, 1, 2, 8]
    one_each = passes.chunks_of(Calibration([torch.ones(1, 3), torch.ones(1, 3)]))
    assert [chunk.held(1) for chunk in one_each] == [0, 1]
    tens = passes.chunks_of(Calibration([torch.ones(10, 3)] * 10))
    assert [chunk.held(10) for chunk in tens] == [0] * 8 + [2, 10]


def test_sixteen_samples_are_enough_for_a_refit():
    """Or the layers stay as they are, which is no worse."""
    ratios = []
    for seed in range(3):
        torch.manual_seed(seed)
        model, x, other = fg.models.mlp([32, 64, 10]), torch.randn(16, 32), torch.randn(300, 32)
        errors = []
        for compensate in ("least_squares", None):
            small = copy.deepcopy(model)
            fg.compress_(small, fg.MagnitudePruning(keep=0.5, compensate=compensate, measure=False), x)
            with torch.no_grad():
                errors.append(float((small(other) - model(other)).norm()))
        ratios.append(errors[0] / errors[1])
    assert max(ratios) <= 1
    assert min(ratios) < 0.9
