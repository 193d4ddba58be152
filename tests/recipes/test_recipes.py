from pathlib import Path

import pytest
import torch

from filigree import data, models, recipes
from filigree.recipes import RecipeError
from filigree.recipes.run import build
from filigree.train import Record


def test_every_recipe_is_valid_and_says_what_it_shows():
    assert "demo" in recipes.names()
    for name in recipes.names():
        recipe = recipes.load(name)
        assert recipe.about
        assert recipe.runs()
        assert all(recipe.plain(method) for method in recipe.methods)


def test_search_takes_the_best_candidate(tmp_path):
    recipe = recipes.load(
        "demo", ["training.epochs=3", "model.hidden=[30]", "seeds=[0, 1]", "data.validation=0.2",
                 "search={lr: [0.000001, 0.05]}"],
    )  # fmt: skip
    folders = recipes.run(recipe, tmp_path, methods=["SET"], progress=False)
    assert [Record.load(folder).config["training"]["lr"] for folder in folders] == [0.05, 0.05]


def test_a_search_passes_over_what_diverges(tmp_path):
    settings = ["seeds=[0]", "training.epochs=1", "model.hidden=[10]", "data.validation=0.2"]
    recipe = recipes.load("demo", [*settings, "search={lr: [1.0e+30, 0.05]}"])
    method = next(iter(recipe.methods))
    folder = recipes.run(recipe, tmp_path / "a", methods=[method], progress=False)[0]
    record = Record.load(folder)
    assert record.config["training"]["lr"] == 0.05
    assert any(note.startswith("At lr 1e+30 training diverged (fit: the training loss became") for note in record.notes)
    recipe = recipes.load("demo", [*settings, "search={lr: [1.0e+30]}"])
    with pytest.raises(recipes.RecipeError, match="diverges at every candidate of the search"):
        recipes.run(recipe, tmp_path / "b", methods=[method], progress=False)


def test_times_are_left_out_and_added_later(tmp_path):
    recipe = recipes.load("demo", ["seeds=[0]", "training.epochs=1", "model.hidden=[10]"])
    method = next(iter(recipe.methods))
    folder = recipes.run(recipe, tmp_path, methods=[method], progress=False, timed=False)[0]
    record = Record.load(folder)
    assert not [key for key in record.cost if key.endswith("_ms")]
    assert record.cost["parameters"] > 0
    assert "train_seconds" not in record.metrics
    before = (folder / "model.safetensors").stat().st_mtime_ns
    recipes.run(recipe, tmp_path, methods=[method], progress=False, resume=True)
    assert Record.load(folder).cost["train_step_ms"]["median"] > 0
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.long("trains two networks of 3 x 1000 units")
@pytest.mark.parametrize("method", ["topk", "partial"])
def test_the_comparison_trains_sparsified_backpropagation(method, tmp_path):
    """Its arms have an optimizer with which they train, on the budget of all."""
    recipe = recipes.load("compare", ["seeds=[0]"])
    (folder,) = recipes.run(recipe, tmp_path, methods=[method], progress=False, timed=False)
    assert Record.load(folder).metrics["test_accuracy"] > 0.96


def test_rebuilding_every_epoch_trains_as_in_the_loop_without_momentum(tmp_path):
    folders = recipes.run(recipes.load(Path(__file__).with_name("masked.yaml")), tmp_path, progress=False)
    rebuilt, in_loop = (Record.load(folder) for folder in folders)
    assert rebuilt.history[0]["train_loss"] == pytest.approx(in_loop.history[0]["train_loss"])
    assert len(rebuilt.history) == 2
    assert rebuilt.history[1]["train_loss"] < rebuilt.history[0]["train_loss"]


def test_watching_a_run(tmp_path):
    settings = ["watch=true", "training.epochs=3", "model.hidden=[40, 40]", "seeds=[0]", "training.lr=0.05"]
    recipe = recipes.load("demo", settings)
    (folder,) = recipes.run(recipe, tmp_path, methods=["SET"], progress=False)
    record = Record.load(folder)
    assert 0 <= record.metrics["escape_epoch"] <= 3
    assert record.history[1]["gradient_norm.fc1"] > 0
    assert record.history[0]["age.fc1"] < 1 < record.history[2]["age.fc1"] + 1


def test_the_seed_reaches_topology_and_values():
    recipe = recipes.load("demo", ["model.hidden=[40]"])
    split = data.load("digits")
    one, two, other = (build(recipe, "SET", split, seed) for seed in (1, 1, 2))
    assert one.fc1.values.equal(two.fc1.values)
    assert not one.fc1.values.equal(other.fc1.values)


def test_files_of_your_own_are_checked(tmp_path):
    circle = tmp_path / "a.yaml"
    circle.write_text(f"extends: {circle}\n")
    for text, message in (
        ("[1, 2]", "expected a mapping"),
        ("a: [", "not YAML"),
        (f"extends: {circle}", "in a circle"),
        ("about: x\ndata: {name: digits}", "'methods' is missing"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
    ):
        circle.write_text(text)
        with pytest.raises(RecipeError, match=message) as caught:
            recipes.load(circle)
        assert "\n" not in str(caught.value)


def test_a_null_method_is_left_out_of_what_is_extended(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("extends: demo\nmethods: {dense: null}\n")
    assert [*recipes.load(file).methods] == [name for name in recipes.load("demo").methods if name != "dense"]
    file.write_text("extends: demo\nmethods: {dens: null}\n")  # no such method: not to be overlooked
    with pytest.raises(RecipeError, match=r"methods\.dens"):
        recipes.load(file)


def test_parameters_of_the_pruning_thesis():
    """John 2019, tables 5.5 and 5.7."""
    for name, printed in (("cnn_cifar", 4_604_426), ("vgg16_cifar", 14_980_000)):
        model = models.build(name, channels=3, classes=10)
        count = sum(p.numel() for p in model.parameters())
        assert abs(count / printed - 1) < (1e-9 if name == "cnn_cifar" else 2e-3)
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_a_tracker_gets_the_epochs(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra `track` is not installed")
    settings = ["training.epochs=2", "model.hidden=[20]", "seeds=[0]", "training.tracker=tensorboard"]
    recipes.run(recipes.load("demo", settings), tmp_path, methods=["dense"], progress=False)
    assert any(b"train_loss" in file.read_bytes() for file in (tmp_path / "track").rglob("events.out.*"))
