import pytest
import torch
from torch import nn

import filigree as fg
from filigree.nn import FastDropout
from filigree.ops.dropout import dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.3, 0.9, 1.0])
def test_distribution(dtype, p):
    n = 400_000
    y = dropout(torch.ones(n + 3, dtype=dtype), p)
    share = float((y == 0).double().mean())
    assert abs(share - p) < 5 * (p * (1 - p) / n) ** 0.5 + 1e-9
    assert set(y.unique().tolist()) <= {0.0, torch.tensor(1 / (1 - p) if p < 1 else 0.0, dtype=dtype).item()}


def test_numbers_look_independent():
    """Between neighbours, lags, rows of a feature-major batch, and calls with neighbouring seeds."""
    n = 1_000_000

    def drops(seed):
        return (dropout(torch.ones(n), 0.5, seed) == 0).double() * 2 - 1

    base = drops(7)
    for lag in (1, 2, 4, 16, 100, 128, 1000, 65536):
        assert abs(float((base[lag:] * base[:-lag]).mean())) < 5 / n**0.5
    for seed in (8, 9, 7 + 2**32, 2**40, -1):
        assert abs(float((base * drops(seed)).mean())) < 5 / n**0.5
    counts = (base.view(-1, 1000).sum(1) / 1000**0.5).square().mean()  # variance of block sums
    assert abs(float(counts) - 1) < 5 * (2 / 1000) ** 0.5
    bytes_ = (base.view(-1, 8) > 0).double() @ (2.0 ** torch.arange(8, dtype=torch.float64))
    observed = bytes_.long().bincount(minlength=256).double()
    expected = n / 8 / 256
    assert float(((observed - expected) ** 2 / expected).sum()) < 255 + 5 * (2 * 255) ** 0.5


def test_backward_uses_the_same_mask_in_any_order():
    for x in (torch.randn(30, 17), torch.randn(17, 30).t(), torch.randn(30, 34)[:, ::2]):
        x = x.detach().requires_grad_()
        y = dropout(x, 0.4)
        assert torch.equal(y, x / 0.6 * (y != 0)) or torch.allclose(y, x / 0.6 * (y != 0))
        for dy in (torch.ones(30, 17), torch.ones(17, 30).t(), torch.ones(1, 1).expand(30, 17)):
            (dx,) = torch.autograd.grad(y, x, dy, retain_graph=True)
            assert torch.equal(dx != 0, y != 0)


def test_gradcheck_at_a_fixed_seed():
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dropout(x, 0.3, 5), x)
    assert torch.autograd.gradgradcheck(lambda x: dropout(x, 0.3, 5), x)


def test_reproducible_by_seed_and_threads():
    x = torch.randn(128, 1000)
    torch.manual_seed(3)
    one = dropout(x, 0.3)
    two = dropout(x, 0.3)
    torch.manual_seed(3)
    torch.set_num_threads(3 - min(2, torch.get_num_threads()))  # another number of them
    again = dropout(x, 0.3)
    assert torch.equal(one, again)
    assert not torch.equal(one, two)


def test_module_and_conversion():
    model = fg.models.mlp([9, 8, 7, 3], dropout=0.3)
    fg.convert_(model, fg.Dropout())
    assert type(model.dropout1) is FastDropout
    assert isinstance(model.dropout1, nn.Dropout)
    x = torch.randn(4, 8)
    assert model.dropout1.eval()(x) is x
    assert model.dropout1.train()(x).shape == x.shape
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\]. Got 1.5"):
        dropout(x, 1.5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_compiles():
    layer, x = FastDropout(0.5), torch.ones(100, 100, requires_grad=True)
    y = torch.compile(layer, backend="aot_eager")(x)
    y.sum().backward()
    assert torch.equal(x.grad != 0, y != 0)
    assert 0.45 < float((y == 0).float().mean()) < 0.55


# -- which dropout layers can be replaced ------------------------------------------------------------------------------


class Attention(nn.Module):
    """It hands the probability of its dropout to a function, as models of other libraries do."""

    def __init__(self):
        super().__init__()
        self.q, self.dropout, self.out, self.last = nn.Linear(6, 6), nn.Dropout(0.2), nn.Linear(6, 6), nn.Dropout(0.1)

    def forward(self, x):
        q = self.q(x)
        y = nn.functional.scaled_dot_product_attention(q, q, x, dropout_p=self.dropout.p if self.training else 0.0)
        return self.last(self.out(y))


@pytest.mark.parametrize("config", [fg.PartitionDropout(2), fg.GaussianDropout(), fg.GuidedDropout()])
def test_dropout_whose_probability_is_only_read_stays(config):
    model = nn.Sequential(nn.Linear(6, 6), Attention(), Attention())
    report = fg.convert_(model, config)
    assert type(model[1].dropout) is nn.Dropout
    assert type(model[1].last) is not nn.Dropout
    assert "stays: Attention (1) hands its p to a function" in str(report)
    assert model(torch.randn(2, 3, 6)).shape == (2, 3, 6)
    fresh = nn.Sequential(nn.Linear(6, 6), Attention(), Attention())
    with pytest.raises(
        ValueError, match=r": '1.dropout' stays nn.Dropout, since Attention \(1\) hands its p to a functi"
    ):
        fg.convert_(fresh, config, where="*.dropout")
    assert type(fresh[1].dropout) is nn.Dropout


def test_partitions_have_no_probability():
    with pytest.raises(AttributeError, match=r"^PartitionedDropout has no p: .*; read its parts\.$"):
        fg.nn.PartitionedDropout(3).p  # noqa: B018


def test_guided_dropout_refuses_where_the_width_is_not_known():
    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow, self.dropout = nn.Linear(4, 9), nn.Linear(9, 4), nn.Dropout(0.2)

        def forward(self, x):
            return self.narrow(self.dropout(self.wide(x)))

    model = nn.Sequential(Between())
    with pytest.raises(ValueError, match=r"whether '0\.dropout' reads 'wide' or 'narrow' is not known"):
        fg.convert_(model, fg.GuidedDropout())
    assert type(model[0].dropout) is nn.Dropout
    layer = fg.nn.StrengthDropout(4)
    with pytest.raises(
        ValueError, match=r"^StrengthDropout: the input's last side must be its 4 units\. Got \(2, 9\)\. "
    ):
        layer(torch.randn(2, 9))


def test_guided_dropout_has_the_type_of_the_layer_before_it():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 2)).bfloat16()
    fg.convert_(model, fg.GuidedDropout())
    assert model[1].strength.dtype is torch.bfloat16
    assert model(torch.randn(2, 8).bfloat16()).dtype is torch.bfloat16
    for training in (True, False):
        assert fg.nn.StrengthDropout(4).train(training)(torch.ones(2, 4).half()).dtype is torch.float16
