"""What FILIGREE_DEBUG=1 checks after a rewiring."""

from __future__ import annotations

import pytest
import torch

import filigree as fg
from filigree.dynamics import consistency
from filigree.dynamics.consistency import check_rewired, gathered, is_transpose
from filigree.nn import SparseLinear
from filigree.topology import ErdosRenyi


def layer() -> SparseLinear:
    return SparseLinear(30, 20, ErdosRenyi(density=0.2))


def test_an_index_and_its_transpose_belong_together() -> None:
    whole = layer().pattern
    assert is_transpose(whole)
    for part in ("t_indices", "t_perm", "t_place", "indices"):
        broken = getattr(whole, part).clone()
        broken[:2] = broken[:2].flip(0) if broken[0] != broken[1] else broken[:2] + 1
        assert not is_transpose(whole._replace(**{part: broken})), part
    other = SparseLinear(30, 20, ErdosRenyi(density=0.2), seed=1, flat_indices=whole_places_shifted(whole))
    assert not is_transpose(whole._replace(indptr=other.indptr, indices=other.indices))


def whole_places_shifted(pattern: consistency.Pattern) -> torch.Tensor:
    """As many places, other ones."""
    rows = torch.repeat_interleave(torch.arange(pattern.rows), pattern.indptr.diff().long())
    return ((rows * pattern.cols + pattern.indices + 1) % (pattern.rows * pattern.cols)).sort().values


def test_a_rewiring_is_checked_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fg.models.mlp([30, 20, 4])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)), where=["fc1"])
    rewire = SparseLinear.rewire_

    def forgetful(self: SparseLinear, flat_indices: torch.Tensor, weights: torch.Tensor) -> None:
        before = self.pattern
        rewire(self, flat_indices, weights)
        self._set_pattern(before._replace(indptr=self.indptr, indices=self.indices))

    monkeypatch.setattr(SparseLinear, "rewire_", forgetful)
    fg.Evolution(model, None, 0.3).step()  # without the flag nothing is looked at
    monkeypatch.setenv("FILIGREE_DEBUG", "1")
    with pytest.raises(AssertionError, match="layer 'fc1': the index of its transpose is of another topology"):
        fg.Evolution(model, None, 0.3).step()


def test_the_number_of_connections_and_the_other_processes_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    one = layer()
    check_rewired("fc1", one, one.nnz)
    with pytest.raises(AssertionError, match=f"has {one.nnz} connections, 3 before"):
        check_rewired("fc1", one, 3)
    monkeypatch.setattr(consistency, "over_processes", lambda value: [value, "another"])
    with pytest.raises(AssertionError, match="other connections in process 1 than in process 0"):
        check_rewired("fc1", one, one.nnz)


def test_one_process_gathers_nothing() -> None:
    x = torch.ones(3)
    assert gathered(x) is x
