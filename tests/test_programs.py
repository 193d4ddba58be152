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
