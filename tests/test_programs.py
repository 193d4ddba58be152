"""Programs of `torch.export` become modules with layers again."""

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.io.programs import module_of


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch copies graphs by what it has deprecated
def test_layers_of_a_program():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(),
        nn.Conv2d(8, 8, 3, stride=2, groups=2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8, 16), nn.ReLU(),
        nn.Linear(16, 4),
    ).eval()  # fmt: skip
    model[1].running_mean.normal_()
    x = torch.randn(12, 1, 8, 8)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    again = module_of(program)
    assert {name: type(module) for name, module in again.named_children()} == {
        "0": nn.Conv2d, "1": nn.BatchNorm2d, "5": nn.Conv2d, "8": nn.Linear, "10": nn.Linear,
    }  # fmt: skip
    with torch.no_grad():
        for batch in (12, 3):
            assert torch.equal(again(x[:batch]), model(x[:batch]))
    assert again.state_dict().keys() == model.state_dict().keys()
    fg.compress_(again, fg.MagnitudePruning(keep=0.5, measure=False), x)
    assert again.get_submodule("0").out_channels == 4
    assert again.get_submodule("10").in_features == 8
    assert again(x).shape == (12, 4)


class Tied(nn.Module):
    """A weight that is computed stays a number in the graph, and a tied one is one layer."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = nn.Linear(6, 6), nn.Parameter(torch.rand(6))

    def forward(self, x):
        y = self.inner(self.inner(x).tanh()) * self.scale
        return {"y": y, "z": nn.functional.linear(y, self.inner.weight * 2)}


def test_what_is_no_layer_stays_a_function():
    torch.manual_seed(0)
    model, x = Tied().eval(), torch.randn(5, 6)
    again = module_of(torch.export.export(model, (x,)))
    assert type(again.inner) is nn.Linear
    with torch.no_grad():
        for key, value in model(x).items():
            torch.testing.assert_close(again(x)[key], value)


class Several(nn.Module):
    """Weights that lie side by side, in the program itself too, one with two biases and one with two strides."""

    def __init__(self):
        super().__init__()
        self.layer, self.conv = nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Conv1d(1, 2, 3)
        self.weights, self.bias = nn.ParameterList([*torch.randn(3, 6, 6)]), nn.Parameter(torch.randn(6))
        self.weight, self.home = nn.Parameter(torch.randn(6, 6)), Home()

    def forward(self, x):
        y = self.home(self.layer(x))
        for weight in self.weights:
            y = nn.functional.linear(y, weight).tanh()
        y = nn.functional.linear(nn.functional.linear(y, self.weight), self.weight, self.bias)
        z = y.unsqueeze(1)
        return y, self.conv(z), nn.functional.conv1d(z, self.conv.weight, self.conv.bias, stride=2)


class Home(nn.Module):
    """A module with a weight of its own, which is read after those of a layer in it."""

    def __init__(self):
        super().__init__()
        self.child, self.weight = nn.Linear(6, 6), nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        return nn.functional.linear(self.child(x), self.weight)


class Functions(nn.Module):
    """A sum of which a part is scaled, and a rectifier that writes into a part of what is read again."""

    def forward(self, x):
        y = torch.add(x, x.sin(), alpha=2)
        y[:, :3].relu_()
        return y


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.parametrize("model", [Several(), Functions()], ids=lambda model: type(model).__name__)
def test_calls_that_look_alike_are_told_apart(model):
    x = torch.randn(5, 6)
    again = module_of(torch.export.export(model.eval(), (x,)))
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x))
