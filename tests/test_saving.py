import os

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.convert import conversions
from filigree.measure.cost import stored
from picture import Picture

pytestmark = pytest.mark.filterwarnings("ignore:.* were never trained")  # models are rewired and saved at once


class Own(nn.Module):
    """A user's own class."""

    def __init__(self, width=8):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.BatchNorm1d(width))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.body(x))


def rewired(model, density=0.4, masked=False):
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=density), masked=masked))
    evolution = fg.Evolution(model, None, 0.5, regrow="initial")
    [evolution.step() for _ in range(3)]
    return model


@pytest.mark.parametrize("masked", [False, True])
def test_a_rewired_model_comes_back_bit_for_bit(tmp_path, masked):
    model = rewired(fg.models.mlp([12, 20, 15, 3], dropout=0.1), masked=masked).eval()
    fg.save(model, tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors").eval()
    x = torch.randn(5, 12)
    assert torch.equal(again(x), model(x))
    assert repr(again) == repr(model)
    again(x).sum().backward()  # and can be trained on, evolved, saved again
    fg.Evolution(again, torch.optim.SGD(again.parameters(), 0.1), 0.3).step()
    fg.save(again, tmp_path / "m.safetensors")


def test_into_a_fresh_instance_of_your_own_class(tmp_path):
    model = rewired(Own()).eval()
    fg.save(model, tmp_path / "m.safetensors")
    fresh = Own()
    again = fg.load(tmp_path / "m.safetensors", into=fresh).eval()
    assert again is fresh
    x = torch.randn(5, 12)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("replace", [False, True])
def test_another_number_of_connections_than_the_config_would_draw(tmp_path, replace):
    model = fg.models.mlp([12, 20, 3])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(epsilon=3, replace=replace)))
    fg.save(model, tmp_path / "m.safetensors")
    x = torch.randn(5, 12)
    assert torch.equal(fg.load(tmp_path / "m.safetensors")(x), model(x))


def test_the_file_is_as_large_as_values_and_indices(tmp_path):
    model = rewired(fg.models.mlp([784, 300, 300, 10]), density=0.05)
    path = tmp_path / "m.safetensors"
    fg.save(model, path)
    numbers = sum(p.numel() for p in model.parameters()) + sum(
        m.nnz + m.out_features + 1 for m in [model.fc1, model.fc2]
    )
    assert os.path.getsize(path) < 4 * (numbers + model.fc3.nnz + 11) + 4000
    assert stored(model).bytes_disk == pytest.approx(os.path.getsize(path), rel=0.03)


def test_lenet5_and_models_without_conversions(tmp_path):
    model = fg.models.lenet5().eval()
    fg.save(model, tmp_path / "m.safetensors")
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(fg.load(tmp_path / "m.safetensors").eval()(x), model(x))


def test_networks_are_built_without_their_dense_weights():
    with torch.device("meta"):
        model = fg.models.mlp([100_000, 100_000, 10])  # 40 GB dense
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=1e-7)), where="fc1")
    assert model.fc1.nnz == 1000
    assert not model.fc1.values.is_meta


def test_bad_input_is_named(tmp_path):
    path = tmp_path / "m.safetensors"
    fg.save(rewired(Own()), path)
    with pytest.raises(ValueError, match="Give a fresh instance"):
        fg.load(path)
    with pytest.raises(ValueError, match="does not fit Own"):
        fg.load(path, into=Own(width=9))
    with pytest.raises(ValueError, match="does not fit Sequential"):
        fg.load(path, into=nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(ValueError, match="fresh, unconverted"):
        fg.load(path, into=rewired(Own()))
    with pytest.raises(FileNotFoundError, match="no such file"):
        fg.load(tmp_path / "absent")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="not a filigree file, or a damaged one"):
        fg.load(path, into=Own())
    path.write_bytes(b"junk")
    with pytest.raises(ValueError, match="not a filigree file"):
        fg.load(path)


def test_a_model_that_a_file_does_not_fit_is_left_as_it_was(tmp_path):
    path = tmp_path / "m.safetensors"
    for saved, fresh in ((rewired(Own()), Own(width=9)), (Own(), Own(width=9)), (rewired(Own()).double(), Own())):
        fg.save(saved, path)
        wrapped = nn.DataParallel(fresh)
        before = Picture(wrapped)
        with pytest.raises(ValueError, match="does not fit DataParallel"):
            fg.load(path, into=wrapped)
        assert not before.differences(Picture(wrapped))


def test_a_network_changed_by_hand_is_one_of_your_own(tmp_path):
    appended, exchanged, set_anew = (
        fg.models.mlp([4, 8, 3]),
        fg.models.mlp([4, 8, 3]),
        fg.models.resnet([1, 1, 1], width=4),
    )
    appended.append(nn.Softmax(1))
    exchanged.relu1 = nn.Tanh()
    for module in set_anew.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.1
    for model in (appended, exchanged, set_anew):
        fg.save(model, tmp_path / "m")
        with pytest.raises(ValueError, match="a model of your own class"):
            fg.load(tmp_path / "m")


def test_digits_are_not_lost_on_loading(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2)).double()
    fg.save(model, tmp_path / "m")
    with pytest.raises(ValueError, match=r"is torch.float64 in the file. Make `into` so first, its is torch.float32"):
        fg.load(tmp_path / "m", into=nn.Sequential(nn.Linear(3, 2)))
    assert torch.equal(fg.load(tmp_path / "m", into=nn.Sequential(nn.Linear(3, 2)).double())[0].weight, model[0].weight)


@pytest.mark.parametrize("kind", ["pruned", "measured", "masked"])
def test_connections_that_no_topology_draws_come_from_the_file(tmp_path, kind, monkeypatch):
    model, x = Own().eval(), torch.randn(20, 12)
    if kind == "pruned":
        fg.compress_(model, fg.MagnitudePruning(of="connections", keep=0.3), x)
    else:
        monkeypatch.setattr("filigree.nn.sparse.sparse._is_faster", lambda *_: (True, ""))
        fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3), masked=kind == "masked"), measure=8)
    fg.save(model, tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors", into=Own()).eval()
    assert torch.equal(again(x), model(x))
    assert "Empty" in str([config.topology for config, _ in conversions(again)])


def test_a_topology_without_connections():
    model = nn.Sequential(nn.Linear(6, 4), nn.Conv2d(2, 3, 3))
    fg.convert_(model, fg.Sparse(fg.topology.Empty()))
    assert [layer.nnz for layer in model] == [0, 0]
    x = torch.randn(5, 6)
    assert torch.equal(model[0](x), model[0].bias.expand(5, 4))
