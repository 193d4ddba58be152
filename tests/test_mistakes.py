"""What a newcomer gets wrong in Python: each mistake is one line that names the argument and says what to do."""

import numpy as np
import pytest
import torch
from torch import nn

import filigree as fg
from filigree.sklearn import SparseMLPClassifier

X, Y = torch.randn(20, 4), torch.arange(20) % 3


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def fit(data, **options):
    model = network()
    given = {"optimizer": torch.optim.SGD(model.parameters(), 0.1), "epochs": 1} | options
    return fg.fit(options.pop("model", model), data, **{name: given[name] for name in given if name != "model"})


def table():
    with open("pets.csv", "w") as file:
        file.write("age,weight,kind\n" + "".join(f"{i % 7}.5,{i % 3},{'ab'[i % 2]}\n" for i in range(60)))
    return "pets.csv"


SGD = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
MISTAKES = {
    "an array is no data set": (lambda: fg.data.load(np.zeros((3, 2))), "name must be that of a data set or a file"),
    "a pair is no data set": (lambda: fg.data.load((X, Y)), "Got a tuple; fg.fit takes arrays as tensors"),
    "nothing is no data set": (lambda: fg.data.load(None), "Got a NoneType"),
    "an address": (lambda: fg.data.load("https://example.org/pets.csv"), "is an address. Download the file"),
    "a misspelt file": (lambda: (table(), fg.data.load("pet.csv")), "there is no file pet.csv. Did you mean pets.csv?"),
    "a column's number": (
        lambda: fg.data.load(table(), target=3),
        "target must be a column's name, or its number",
    ),
    "a seed below 0": (lambda: fg.data.load(table(), seed=-1), "seed must be a whole number of at least 0"),
    "a seed of text": (lambda: fg.data.load(table(), seed="a"), "seed must be a whole number"),
    "a share of text": (lambda: fg.data.load(table(), validation="a"), "validation must be a share or a number"),
    "another scaling": (lambda: fg.data.load(table(), standardize="minmax"), "standardize must be one of 'feature'"),
    "rows of no model": (lambda: fg.data.read_rows(table(), None), "preprocessing must be model.preprocessing"),
    "converting nothing": (lambda: fg.convert_(None, fg.RoundToNearest()), "convert_: model must be a torch module"),
    "compressing a class": (lambda: fg.compress_(nn.Linear, fg.RoundToNearest()), "Got the class Linear: call it"),
    "saving an estimator": (lambda: fg.save(SparseMLPClassifier(), "m"), "Its network is estimator.network_"),
    "model and file swapped": (lambda: fg.save("m", network()), "save: model must be a torch module. Got a str"),
    "loading into a class": (lambda: (fg.save(network(), "m"), fg.load("m", into=nn.Linear)), "load: into: model must"),
    "measuring an array": (lambda: fg.measure(network(), X.numpy()), "example must be a tensor. Got a ndarray"),
    "measuring on other samples": (lambda: fg.measure(network(), torch.randn(2, 9)), "does not run on samples (2, 9)"),
    "loading a folder": (lambda: fg.load("."), ".: a folder, and no file."),
    "a folder's name for a report": (lambda: fg.write_report("runs", "r.html"), "runs: there is no such run"),
    "a seed for everything of text": (lambda: fg.seed_everything("a"), "seed must be a whole number. Got 'a'"),
    "measuring nothing": (lambda: fg.measure(None, X), "measure: model must be a torch module"),
    "model and optimizer swapped": (
        lambda: fg.SET(SGD, network()),
        "Evolution: model must be a torch module",
    ),
    "evaluating nothing": (lambda: fg.evaluate(None, (X, Y)), "evaluate: model must be a torch module"),
    "training nothing": (lambda: fit((X, Y), model=None), "fit: model must be a torch module"),
    "training on arrays": (lambda: fit((X.numpy(), Y.numpy())), "Got ndarray. torch.as_tensor(x) is one"),
    "training on a data set": (lambda: fit(fg.data.load(table())), "Its parts are .train, .validation and .test"),
    "labels as floats": (lambda: fit((X, Y.float())), "labels must be whole numbers: y.long()"),
    "labels as a column": (lambda: fit((X, Y[:, None])), "labels must be one a sample, (20,): y.squeeze(1)"),
    "labels as one-hot": (lambda: fit((X, nn.functional.one_hot(Y, 3))), "y.argmax(1)"),
    "an optimizer's name": (lambda: fit((X, Y), optimizer="adam"), "optimizer must be one of torch.optim"),
    "an optimizer's class": (
        lambda: fit((X, Y), optimizer=torch.optim.SGD),
        "such as torch.optim.Adam(model",
    ),
    "a loss's name": (lambda: fit((X, Y), loss="mse"), "loss must be a function"),
    "a loss's class": (lambda: fit((X, Y), loss=nn.MSELoss), "loss must be a function, such as nn.MSELoss()"),
    "epochs as text": (lambda: fit((X, Y), epochs="3"), "epochs must be a whole number. Got '3'"),
    "half a batch": (lambda: fit((X, Y), batch_size=0.5), "batch_size must be a whole number"),
    "a file as checkpoint": (
        lambda: fit((X, Y), checkpoint=table()),
        "checkpoint must be a folder",
    ),
    "widths as text": (lambda: fg.models.mlp("784,10"), "sizes must be whole numbers"),
    "a width of 4.5": (lambda: fg.nn.SparseLinear(4.5, 3), "in_features must be a whole number"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_to_do(mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, message = MISTAKES[mistake]
    with pytest.raises((TypeError, ValueError, FileNotFoundError)) as raised:
        make()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
