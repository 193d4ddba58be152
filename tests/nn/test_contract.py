"""Every layer that a method makes agrees with its dense reference: methods and layers are found, not listed."""

import copy

import pytest
import torch
from torch import nn

import filigree as fg
from contract import check_attributes, check_contract, check_statements, convert_or_skip
from filigree.compress.compression import Compression
from filigree.convert import Conversion, inference_context, layer_inputs
from filigree.nn.capabilities import Capabilities


def networks():
    torch.manual_seed(0)
    flat = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8))
    images = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2, bias=False),
        nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(2 * 9, 4),
    )  # fmt: skip
    recurrent = nn.Sequential(nn.LSTM(8, 4, batch_first=True))
    return {"flat": (flat, torch.randn(6, 8)), "images": (images, torch.randn(6, 2, 8, 8)),
            "recurrent": (recurrent, torch.randn(3, 5, 8))}  # fmt: skip


def examples():
    for base in (Conversion, Compression):
        for kind in base.by_kind().values():
            yield from kind.examples().items()


def capable(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, Capabilities)}


@pytest.mark.parametrize("network", ["flat", "images", "recurrent"])
@pytest.mark.parametrize(("label", "config"), [pytest.param(*pair, id=pair[0]) for pair in examples()])
def test_layers_agree_with_their_dense_references(label, config, network):
    model, x = networks()[network]
    replaced = {name: copy.deepcopy(module) for name, module in model.named_modules()}
    convert_or_skip(model, config, x)
    model.eval()
    layers = capable(model)
    for layer in layers.values():
        check_statements(layer)
    for name, layer in layers.items():
        if name in replaced and type(replaced[name]).__module__.startswith("torch.nn"):
            check_attributes(layer, replaced[name])
    compared = [name for name, layer in layers.items() if type(layer).dense is not Capabilities.dense]
    for name, value in layer_inputs(model, called(model, compared, x), x).items():
        check_contract(layers[name], value)


def called(model, names, x):
    """The modules that are called: some hold others whose arithmetic they do themselves."""
    found = []
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: found.append(name)) for name in names
    ]
    with inference_context(model, hooks):
        model(x)
    return list(dict.fromkeys(found))


def test_layers_that_are_not_linear_say_that_they_have_no_weight():
    layer = fg.nn.ACDCLinear(8, 8, order=2, relu=True)
    with pytest.raises(
        AttributeError, match=r"^ACDCLinear has no weight: it is not linear; read its parameters\(\)\.$"
    ):
        layer.weight  # noqa: B018
    with pytest.raises(AttributeError, match=r"^'ACDCLinear' object has no attribute 'wait'$"):
        layer.wait  # noqa: B018


def test_every_layer_has_capabilities():
    """Each module of `fg.nn` that computes something is a layer with capabilities."""
    modules = [value for name in fg.nn.__all__ if isinstance(value := getattr(fg.nn, name), type)]
    layers = [value for value in modules if issubclass(value, nn.Module) and not issubclass(value, nn.Sequential)]
    assert layers  # a sequence leaves it to the modules in it
    assert [layer.__name__ for layer in layers if not issubclass(layer, Capabilities)] == []
