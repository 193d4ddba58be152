"""Layers in place of torch's with the same parameters, and torch's in place of ours."""

import pytest
import torch
from torch import nn

from filigree.nn.asymmetric.asymmetric_conv2d import AsymmetricConv2d
from filigree.nn.asymmetric.asymmetric_rnn import AsymmetricGRU, AsymmetricLSTM
from filigree.nn.drop_in import dense_conv2d, dense_linear, recast, share_parameters
from filigree.nn.noisy.noisy_rnn import NoisyGRUCell, NoisyLSTMCell
from filigree.nn.sparse.channel_major_batch_norm import ChannelMajorBatchNorm2d
from filigree.nn.sparse.channel_major_conv2d import ChannelMajorConv2d
from filigree.nn.sparse.feature_major_linear import FeatureMajorLinear

CONV = nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, dilation=2, groups=2, bias=False, padding_mode="reflect")
CASES = [
    (FeatureMajorLinear, nn.Linear(3, 5)), (FeatureMajorLinear, nn.Linear(3, 5, bias=False, dtype=torch.float64)),
    (ChannelMajorConv2d, CONV), (AsymmetricConv2d, nn.Conv2d(2, 3, 3, padding="same")),
    (ChannelMajorBatchNorm2d, nn.BatchNorm2d(4, eps=0.1, momentum=None)),
    (ChannelMajorBatchNorm2d, nn.BatchNorm2d(4, affine=False, track_running_stats=False)),
    (AsymmetricLSTM, nn.LSTM(3, 5, 2, bidirectional=True, dropout=0.3, batch_first=True)),
    (AsymmetricGRU, nn.GRU(3, 5, bias=False)), (NoisyLSTMCell, nn.LSTMCell(3, 5)),
    (NoisyGRUCell, nn.GRUCell(3, 5, bias=False)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "module"), CASES, ids=lambda part: str(part))
@pytest.mark.parametrize("training", [True, False])
def test_settings_mode_and_tensors_are_shared_both_ways(kind, module, training):
    module.train(training)
    ours = share_parameters(kind, module)
    back = share_parameters(type(module), ours)
    assert type(ours) is kind
    for made in (ours, back):
        assert made.training is training
        held, given = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (made, module))
        assert held.keys() == given.keys()
        assert all(held[name] is given[name] for name in given)
    assert repr(back) == repr(module)
    if isinstance(module, nn.RNNBase):
        assert all(a is b for a, b in zip(ours._flat_weights, module._flat_weights, strict=True))


@pytest.mark.parametrize(("kind", "module"), CASES[:6], ids=lambda part: str(part))
def test_dense_is_the_torch_layer_with_a_copy(kind, module):
    module.train()
    seed = torch.get_rng_state()
    dense = kind.like(module).dense()
    assert torch.equal(torch.get_rng_state(), seed)  # nothing is drawn
    assert type(dense) is type(module)
    assert repr(dense) == repr(module)
    for name, tensor in module.state_dict().items():
        assert torch.equal(dense.state_dict()[name], tensor)
        assert dense.state_dict()[name].data_ptr() != tensor.data_ptr()


def test_dense_layers_hold_copies_of_numbers():
    weight, bias = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64)
    linear = dense_linear(weight, bias)
    torch.testing.assert_close(linear(x), x @ weight.t() + bias)
    assert dense_linear(weight, None).bias is None
    weight.zero_()
    assert linear.weight.requires_grad
    assert bool((linear.weight != 0).all())
    conv = dense_conv2d(CONV, CONV.weight.flatten(1), None)
    x = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(conv(x), CONV(x))


def test_recast_has_lists_of_its_own():
    class Other(nn.Linear):
        pass

    linear = nn.Linear(3, 5)
    linear.register_forward_hook(lambda *_: None)
    other = recast(Other, linear)
    other.child = nn.ReLU()
    other.register_buffer("more", torch.ones(1))
    assert other.weight is linear.weight
    assert len(other._forward_hooks) == 1
    assert not hasattr(linear, "child")
    assert not hasattr(linear, "more")
