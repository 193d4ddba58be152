"""How long runs will take, by trial steps: counted are the epochs that are ahead; and what each method gave."""

import sys

import pytest

from filigree import recipes
from filigree.measure.timing import Timing
from filigree.train import Record


@pytest.fixture
def _a_step_takes_10_ms(monkeypatch):
    module = sys.modules["filigree.recipes.forecast"]
    monkeypatch.setattr(module, "time_interleaved", lambda works, *_: [Timing(20.0, 10.0, 30.0) for _ in works])


SMALL = ["training.epochs=3", "model.hidden=[20]", "data.validation=0.25", "data.test_size=0.25"]


@pytest.mark.usefixtures("_a_step_takes_10_ms")
def test_epochs_that_are_ahead(tmp_path):
    recipe = recipes.load("demo", [*SMALL, "training.batch_size=100", "seeds=[0, 1]"])
    seconds = recipes.forecast(recipe, ["dense", "SET"])
    samples = 1797
    test = round(samples * 0.25)
    judged = test + round((samples - test) * 0.25)
    steps = -(-(samples - judged) // 100) + judged / 100 / 3
    assert seconds == pytest.approx({"dense": 2 * 3 * steps * 0.01, "SET": 2 * 3 * steps * 0.01}, rel=0.1)
    assert recipes.forecast(recipe, ["dense", "SET"], done=[tmp_path / "dense-0", tmp_path / "dense-1"]) == {
        "SET": seconds["SET"]
    }
    assert recipes.forecast(recipe, ["SET"], [1])["SET"] == pytest.approx(seconds["SET"] / 2)
    line = recipes.forecast_line({"dense": 90.0, "SET": 6.0}, "4 trials")
    assert line == "about 1.6 min of training ahead for 4 trials, by trial steps: dense 1.5 min, SET 6.0 s"
    assert recipes.forecast_line({}) == ""


def test_what_methods_gave():
    def record(method, accuracy, seconds):
        return Record(recipe="r", method=method, seed=0, config={}, metrics={
            "test_accuracy": accuracy, "train_seconds": seconds})  # fmt: skip

    lines = recipes.gains(
        [record("dense", 0.9, 60.0), record("SET", 0.8, 10.0), record("SET", 1.0, 20.0), record("late", 0.9, None)], 10
    )
    assert "points above chance (10%) a minute" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["dense", "SET"]
    assert lines[1].split() == ["dense", "90.00%", "in", "60", "s", "80"]
    assert lines[2].split()[-1] == "320"
    assert recipes.gains([], 10) == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.21, "3.2 s"), (80, "80 s"), (100, "1.7 min"), (6000, "1.7 h"), (4e5, "4.6 days")]
)
def test_durations(seconds, text):
    assert recipes.duration(seconds) == text
