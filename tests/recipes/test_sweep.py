"""Searching a recipe's settings: `filigree sweep`."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from filigree import recipes
from filigree.recipes import RecipeError, Sweep, sweep
from filigree.recipes import refuse_other_search as refuse
from filigree.recipes.sweep import Domain, pareto
from filigree.report import figures, write_report
from filigree.train import Record

RECIPE = str(Path(__file__).with_name("asymmetric.yaml"))
SETTINGS = ("data.name=digits", "data.validation=0.2", "training.epochs=1", "seeds=[0]", "model.hidden=[24]")


def wanted(**options):
    return Sweep(**({"recipe": RECIPE, "over": {"k": "2:20:log"}, "method": "topk", "settings": SETTINGS} |
                    options))  # fmt: skip


@pytest.mark.long("trains a network a trial")
def test_a_search_goes_on_to_its_budget_and_shows_the_front(tmp_path):
    lines = []
    first = sweep(wanted(), tmp_path, trials=2, report=lines.append)
    assert len(first["trials"]) == len(lines) == 2
    again = sweep(wanted(), tmp_path, trials=3, jobs=2)
    assert len(again["trials"]) >= 3
    assert again["trials"][:2] == first["trials"]
    assert all(2 <= row["values"]["k"] <= 20 for row in again["trials"])
    assert json.loads((tmp_path / "sweep.json").read_text())["front"] == again["front"]
    page = write_report([tmp_path], tmp_path / "r.html").read_text()
    assert "Pareto front" in page
    for refusing in (lambda search: sweep(search, tmp_path, trials=4), lambda search: refuse(search, tmp_path)):
        with pytest.raises(RecipeError, match=r"study\.db holds another search"):
            refusing(wanted(over={"k": "2:30"}))
    refuse(wanted(), tmp_path)


def test_a_search_for_a_quantity_reports_r2(tmp_path, monkeypatch):
    monkeypatch.setattr(Sweep, "trial", lambda *_: {"accuracy": 0.5, "cost": 2.0, "spread": [2.0, 2.0]})
    lines = []
    for task in ("classification", "regression"):
        sweep(wanted(settings=(*SETTINGS, f"data.task={task}")), tmp_path / task, trials=1, report=lines.append)
    assert [line.split(": ")[2].split(",")[0] for line in lines] == ["50.00%", "R2 0.500"]


def test_one_disturbed_timing_does_not_decide(tmp_path, monkeypatch):
    """Three runs took 71.9, 14.6 and 0.56 ms: the cost of the trial is the one in the middle."""
    times = iter((71.9, 14.6, 0.56))

    def trained(*_, **__):
        for seed in range(3):
            record = Record.start("r", "topk", seed, {}, tmp_path / f"topk-{seed}")
            record.metrics, record.cost = (
                {"val_accuracy": 0.9 + seed / 100},
                {"backward_ms": dict.fromkeys(("median", "low", "high"), next(times))},
            )
            record.save()
            yield record.folder

    monkeypatch.setattr(importlib.import_module("filigree.recipes.sweep"), "run", trained)
    result = wanted().trial({"k": 3}, tmp_path)
    assert result == {"accuracy": pytest.approx(0.91), "cost": 14.6, "spread": [0.56, 71.9]}
    assert recipes.cost_text(14.6, [0.56, 71.9]) == "14.6 (0.56 to 71.9)"
    assert recipes.cost_text(14.6, None) == recipes.cost_text(14.6, [14.6, 14.6]) == "14.6"
    shown = figures.pareto([Record.load(tmp_path / f"topk-{seed}").model_dump() | {
        "config": {"sweep": {"minimize": "backward_ms"}}} for seed in range(3)])  # fmt: skip
    assert shown.data[0].x == (14.6,)


def test_all_settings_with_the_same_end_are_set_together():
    asked = wanted(method="complete", over={"k": "5,6"})
    made = recipes.load(RECIPE, asked._overrides({"k": 6}))
    config = made.methods["complete"].convert[0].config
    assert (config.sensitivity.k, config.inputs.k, config.weights.k) == (6, 6, 6)
    asked = wanted(recipe="demo", method="EXD", over={"epsilon": "5,6"}, settings=("data.validation=0.1",))
    assert recipes.load("demo", asked._overrides({"epsilon": 6})).convert[0].config.topology.epsilon == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "nothing"}, "--method nothing: the methods of"),
        ({"minimize": "speed"}, "--minimize speed: expected one of"),
        ({"over": {"q": "1:2"}}, "--over q: no setting"),
        ({"over": {"k": "0:5"}}, "k must be an integer of at least 1"),
        ({"over": {"k": "9:5"}}, "expected low:high"),
        ({"over": {"k": "1:5:lin"}}, "expected low:high"),
        ({"over": {"k": "true:5"}}, "expected low:high"),
        ({"over": {"training.lr": "1:nan"}}, "expected low:high"),
        ({"over": {"training.lr": "1:inf"}}, "expected low:high"),
        ({"over": {"training.lr": "0:5:log"}}, "must begin above 0"),
        ({"settings": (*SETTINGS, "data.validation=0")}, "has no validation part"),
    ],
)
def test_what_cannot_be_searched_is_named(tmp_path, change, message):
    with pytest.raises(RecipeError, match=message):
        sweep(wanted(**change), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_commands_load_where_files_cannot_be_locked(tmp_path, monkeypatch):
    """As on Windows, which has no module `fcntl`."""
    code = "import sys; sys.modules['fcntl'] = None; sys.argv = ['', 'doctr']; from filigree.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    module = importlib.import_module("filigree.recipes.sweep")
    monkeypatch.setattr(module, "fcntl", None)
    with module._alone(tmp_path), module._among_others(tmp_path):
        pass


def test_domains():
    assert Domain.parse("0.1,relu,3").choices == (0.1, "relu", 3)
    assert Domain.parse("1:9") == Domain((), 1, 9)
    assert Domain.parse("1e-4:1e-1:log") == Domain((), 1e-4, 0.1, True)
    assert Domain.parse("1e-4,relu,1e2").choices == (1e-4, "relu", 100.0)
    for k in (1e-5, 1.0):  # as numbers, not as text
        recipe = recipes.load(RECIPE, wanted()._overrides({"k": k}))
        assert recipe.methods["topk"].convert[0].config.sensitivity.k == k
    rows = [{"cost": c, "accuracy": a} for c, a in ((1, 0.5), (2, 0.4), (2, 0.7), (3, 0.7), (4, 0.9))]
    assert [row["cost"] for row in pareto(rows)] == [1, 2, 4]


def test_ray_is_another_engine(tmp_path):
    pytest.importorskip("ray", reason="Ray Tune is not installed (the extra `ray`)")
    found = recipes.sweep_ray(wanted(), tmp_path, trials=2)
    assert len(found["trials"]) == 2
