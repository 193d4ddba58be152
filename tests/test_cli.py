"""The command line end to end on digits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import filigree as fg
from command_line import call
from filigree import recipes
from filigree.train import Record

RECIPES = Path(__file__).with_name("recipes")
SMALL = ["--set", "training.epochs=2", "--set", "model.hidden=[60]", "--set", "seeds=[0]"]


def filigree(*arguments):
    return subprocess.run([sys.executable, "-m", "filigree.cli", *arguments], capture_output=True, text=True)


def test_train_compare_report_resume(tmp_path, monkeypatch, capsys):
    runs = tmp_path / "runs"
    code, out, err = call(
        monkeypatch, capsys, "train", "demo", *SMALL, "--out", runs, "--method", "dense", "--method", "EXD"
    )
    assert code == 0, err
    assert "of training ahead, by trial steps: dense " in out
    assert "points above chance (10%) a minute" in out
    assert sorted(p.name for p in runs.iterdir()) == ["EXD-0", "comparison.json", "dense-0", "report.html"]
    record = Record.load(runs / "EXD-0")
    assert record.finished
    assert len(record.history) == 2
    assert record.history[0]["zeta"] == 0.3
    assert record.history[1]["zeta"] == 0.0
    assert record.cost["train_step_ms"]["median"] > 0
    assert {s["epoch"] for s in record.topology} == {0, 1}
    code, out, _ = call(monkeypatch, capsys, "compare", runs, "--json", tmp_path / "short.json")
    assert code == 0
    short = json.loads((tmp_path / "short.json").read_text())
    assert {run["method"] for run in short} == {"dense", "EXD"}
    assert "history" not in short[0]
    assert "EXD" in out
    code, out, _ = call(monkeypatch, capsys, "analyze", runs / "EXD-0", "--nulls", "3")
    assert (code, "clustering (null, z)" in out) == (0, True)
    page = tmp_path / "page.html"
    assert call(monkeypatch, capsys, "report", runs, "-o", page)[0] == 0
    assert page.stat().st_size > 1_000_000
    stamp = (runs / "EXD-0" / "model.safetensors").stat().st_mtime_ns
    code, _, err = call(monkeypatch, capsys, "train", "demo", *SMALL, "--out", runs, "--method", "EXD", "--resume")
    assert code == 0, err
    assert (runs / "EXD-0" / "model.safetensors").stat().st_mtime_ns == stamp  # finished: left alone


def test_own_data(tmp_path, monkeypatch, capsys):
    rows = [f"{i % 7},{(i * i) % 5},{i % 3}\n" for i in range(60)]
    (tmp_path / "own.csv").write_text("".join(rows))
    arguments = ("train", "demo", *SMALL, "--data", tmp_path / "own.csv", "--out", tmp_path / "r", "--method", "SET")
    code, _, err = call(monkeypatch, capsys, *arguments, "--set", "training.batch_size=8")
    assert code == 0, err
    record = Record.load(tmp_path / "r" / "SET-0")
    assert record.config["data"]["classes"] == 3
    assert record.config["about"].endswith(f"Here on {tmp_path / 'own.csv'} in place of digits.")


def test_a_table_says_what_was_read(tmp_path, monkeypatch, capsys):
    """Which column was learned, what was left out, where the model is, and nothing of methods that did not run."""
    rows = [f"{i},{'cat' if i % 3 else 'dog'},{i * i % 7},{i * 3 % 5 if i % 20 else 'NA'}\n" for i in range(60)]
    (tmp_path / "pets.csv").write_text(",kind,age,weight\n" + "".join(rows))
    runs = tmp_path / "r"
    arguments = (
        "train", "demo", *SMALL, "--data", tmp_path / "pets.csv", "--out", runs, "--method", "SET", "--set",
        "training.batch_size=8", "--target", "kind",
    )  # fmt: skip
    code, _, err = call(monkeypatch, capsys, *arguments)
    assert (code, "values are missing in 3 of 60 rows: weight 3 (NA)" in err) == (1, True)
    assert not runs.exists()
    code, out, err = call(monkeypatch, capsys, *arguments, "--missing", "drop")
    assert code == 0, err
    assert "pets.csv: 57 rows, 2 features, label 'kind': cat 38, dog 19\n" in out
    assert "column 1, without a name, only numbers the rows and is left out" in out
    assert "EXD's interest" not in out
    assert "filigree show" in out
    code, out, err = call(
        monkeypatch, capsys, "compress", runs / "SET-0", "MonteCarlo", "--data", tmp_path / "pets.csv", "-o",
        tmp_path / "small.safetensors",
    )  # fmt: skip
    assert (code, err) == (0, "")  # it reads the file as the run did


def test_finished_and_unfinished_work_is_kept(tmp_path, monkeypatch, capsys):
    runs = tmp_path / "r"
    arguments = ("train", "demo", *SMALL, "--out", runs, "--method", "SET")
    assert call(monkeypatch, capsys, *arguments)[0] == 0
    model, record = runs / "SET-0" / "model.safetensors", runs / "SET-0" / "record.json"
    before = model.stat().st_mtime_ns
    code, _, err = call(monkeypatch, capsys, *arguments, "--set", "training.epochs=1")
    assert (code, err.count("\n")) == (2, 1)
    assert f"{runs} holds earlier runs: SET-0 (finished). --resume goes on with them" in err
    assert model.stat().st_mtime_ns == before
    assert call(monkeypatch, capsys, *arguments, "--resume")[0] == 0
    assert model.stat().st_mtime_ns == before
    (runs / "SET-0" / "mine.txt").write_text("a note of the user's")
    assert call(monkeypatch, capsys, *arguments, "--overwrite", "--set", "training.epochs=1")[0] == 0
    assert model.stat().st_mtime_ns != before
    assert len(Record.load(record).history) == 1
    assert (runs / "SET-0" / "mine.txt").exists()
    unfinished = json.loads(record.read_text()) | {"finished": None}
    record.write_text(json.dumps(unfinished))
    code, _, err = call(monkeypatch, capsys, *arguments)
    assert (code, "SET-0 (unfinished)" in err) == (2, True)


def test_predict_and_show(tmp_path, monkeypatch, capsys):
    """A model of an own file is enough: it knows columns, their scaling and the classes' names."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{i % 7},{'dog' if i % 2 else 'cat'},{10 * (i % 2) + i % 3}" for i in range(60)]
    Path("pets.csv").write_text("\n".join(["age,kind,weight", *rows]) + "\n")
    train = "train", "demo", "--data", "pets.csv", "--target", "kind", "--method", "SET", "--out", "r", *SMALL
    code, out, err = call(monkeypatch, capsys, *train, "--set", "training.epochs=8")
    assert code == 0, err
    assert "filigree show r/SET-0" in out
    code, out, err = call(monkeypatch, capsys, "predict", "r/SET-0", "pets.csv", "-o", "out.csv")
    assert code == 0, err
    assert "accuracy 100.00%: 60 of 60 rows with a label" in out
    written = Path("out.csv").read_text().splitlines()
    assert written[0] == "row,kind,prediction,p(cat),p(dog)"
    assert written[1].startswith("1,cat,cat,")
    Path("new.csv").write_text("weight;age\n11,5;2\n0;3\n")
    code, out, err = call(monkeypatch, capsys, "predict", "r/SET-0/model.safetensors", "new.csv")
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [["1", "dog"], ["2", "cat"]], err
    assert "accuracy" not in out
    code, out, err = call(monkeypatch, capsys, "show", "r/SET-0")
    assert code == 0, err
    for said in (
        "method SET, seed 0, 8 epochs",
        "reads 2 features: age, weight",
        "says kind: cat, dog",
        "Linear(60, 2)",
    ):
        assert said in out
    assert "bytes on disk" in out


def test_predict_needs_a_model_that_knows_its_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fg.save(fg.models.mlp([3, 4, 2]), "m.safetensors")
    Path("new.csv").write_text("1,2,3\n")
    code, _, err = call(monkeypatch, capsys, "predict", "m.safetensors", "new.csv")
    assert (code, err.count("\n")) == (2, 1)
    assert "the model does not know its data" in err
    code, _, err = call(monkeypatch, capsys, "predict", "m.safetensors", "digits")
    assert code == 2
    assert call(monkeypatch, capsys, "show", "m.safetensors")[0] == 0


def test_a_language_model_generates(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("own.txt").write_text("to be or not to be\n" * 60)
    small = [f"model.arguments.{key}={value}" for key, value in (("width", 8), ("blocks", 1), ("heads", 1))]
    settings = [part for each in (*small, "data.length=16", "training.epochs=1") for part in ("--set", each)]
    train = "train", "gpt-shakespeare", "--data", "own.txt", *settings, "--method", "SET", "--method", "dense"
    code, out, err = call(monkeypatch, capsys, *train, "--out", "r")
    assert code == 0, err
    assert "own: characters, 8 different ones" in out
    assert "perplexity" in out
    assert Record.load(Path("r/SET-0")).metrics["test_perplexity"] > 1
    code, out, err = call(monkeypatch, capsys, "generate", "r/SET-0", "to be", "--tokens", "9", "--seed", "3")
    assert (code, out[:5], len(out)) == (0, "to be", 5 + 9 + 1), err
    for wrong, message in (("to bé", "it lacks 'é'"), ("", "must hold one token at least")):
        code, _, err = call(monkeypatch, capsys, "generate", "r/SET-0", wrong)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
    fg.save(fg.models.mlp([3, 4, 2]), "m.safetensors")
    assert call(monkeypatch, capsys, "generate", "m.safetensors", "a")[0] == 2
    code, _, err = call(monkeypatch, capsys, *train[:14], "--set", "model.arguments.wdth=3", "--out", "r2")
    assert (code, "wdth" in err, err.count("\n")) == (2, True, 1)


def test_out_is_a_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        code, _, err = call(monkeypatch, capsys, "train", "demo", *SMALL, "--out", out)
        assert (code, err.count("\n")) == (2, 1)
        assert f"{tmp_path / 'file'} is a file; a folder is needed" in err


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    """Also the one that is taken where none is named; whoever runs the tests may write anywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("filigree.cli.options.os.access", lambda path, mode: Path(path).absolute() != tmp_path)
    monkeypatch.setattr("filigree.recipes.forecast", None)
    over = "--method", "SET", "--over", "epsilon=5,6", "--set", "data.validation=0.1"
    for words in (
        ("train", "demo"), ("train", "demo", "--out", tmp_path / "runs"), ("demo", "--out", "runs"),
        ("compare", "digits"), ("sweep", "demo", *over), ("compare", "runs", "--json", "all.json"),
    ):  # fmt: skip
        code, _, err = call(monkeypatch, capsys, *words)
        assert (code, err.count("\n")) == (2, 1)
        assert "cannot be written to" in err


def test_a_folder_of_another_search_is_refused_before_trial_steps(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("filigree.recipes.forecast", None)
    words = "sweep", RECIPES / "noisy.yaml", "--method", "annealed", "--over", "anneal.start=1:50:log"
    for content, message in (
        ('{"sweep": {"recipe": "demo"}}', "sweep.json holds another search (recipe: demo, now"),
        ("{", "holds trials that cannot be read"),
    ):
        (tmp_path / "sweep.json").write_text(content)
        code, _, err = call(monkeypatch, capsys, *words, "--out", tmp_path)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err


def test_list(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call(monkeypatch, capsys, "list")
    assert code == 0
    assert "compare-glioma" in out
    assert "orl" in out
    rows = [line for line in out.partition("data set")[0].splitlines() if line.startswith("│")]
    assert rows[0].startswith("│ demo ")
    assert len(rows) == len(recipes.names())
    code, out, _ = call(monkeypatch, capsys, "list", "demo")
    assert code == 0
    assert "All within a few points of one another" in out
    assert "data digits, methods dense, Static, SET, LDV, OSV, EXD, 3 runs each\nfiligree train demo\n" in out
    assert "there is no recipe 'demmo'" in call(monkeypatch, capsys, "list", "demmo")[2]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "demmo"], 2, "there is no recipe 'demmo'. Did you mean demo?"),
        (["train", "demo", "--set", "training.epoch=3"], 2, "unknown key 'training.epoch'. Did you mean epochs?"),
        (["train", "demo", "--set", "trainning.epochs=3"], 2, "unknown key 'trainning'. Did you mean training?"),
        (["train", "demo", "--set", "methods.SET.training.epoch=3"], 2, "unknown key 'epoch'. Did you mean epochs?"),
        (["train", "demo", "--set", "methods.SET.evolution.zet=3"], 2, "There are: schedule, stop_before_end, grow"),
        (["train", "demo", "--resume", "--overwrite"], 2, "--resume and --overwrite: give one of them"),
        (["train", "demo", "--target", "kind"], 1, "are for files of your own. Got target='kind'"),
        (
            ["train", "demo", "--set", "training.epochs=0"],
            2,
            "training.epochs: input should be greater than or equal to 1",
        ),
        (["train", "demo", "--set", "convert.0.config.topology.epsilon=0"], 2, "epsilon must be greater than 0. Got 0"),
        (
            ["train", "demo", "--set", "methods.SET.evolution.schedule.zeta=1.5"],
            2,
            "zeta must be less than or equal to 1",
        ),
        (["train", "demo", "--set", "nonsense"], 2, "expected key=value"),
        (["train", "demo", "--method", "RigL"], 2, "the methods of demo are dense, Static, SET, LDV, OSV, EXD"),
        (["train"], 2, "Missing argument"),
        (["trian"], 2, "No such command 'trian'"),
        (["train", "demo", "--data", "absent.csv"], 1, "there is no file absent.csv"),
        (["train", "absent.yaml"], 2, "No such file or directory"),
        (["compare", "nowhere"], 2, "compare nowhere: no data set and no folder of runs has this name"),
        (["compare", "digit"], 2, "Did you mean digits?"),
        (["report", "nowhere"], 1, "there is no such run"),
        (["train", "demo", "--data", "https://example.org/a.csv"], 1, "is an address. Download the file"),
        (["train", "pets.csv"], 2, "For data: `filigree train demo --data pets.csv`"),
        (["train", "digits"], 2, "For data: `filigree train demo --data digits`"),
        (["train", "demo", "--seed", "-1"], 1, "seed must be a whole number of at least 0"),
        (["train", "demo", "--task", "regresion"], 2, "data.task: input should be 'classification' or 'regression'"),
        (["show", "."], 2, "a folder without model.safetensors. `filigree train` leaves one in its folder"),
        (["predict", "pets.csv", "runs"], 2, "a model is needed (.safetensors, or the folder of a run)"),
        (["predict", "runs"], 2, "Missing argument 'DATA'. `filigree predict --help`"),
    ],
)
def test_mistakes_get_one_line(arguments, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    got, _, err = call(monkeypatch, capsys, *arguments)
    assert got == code
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []  # nothing half-written left behind


def test_ctrl_c_while_a_command_is_imported(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("filigree.cli.application.library", interrupted)
    code, _, err = call(monkeypatch, capsys, "show", "m")
    assert (code, err) == (130, "filigree: interrupted; files are as they were.\n")


def test_nan_in_the_data(tmp_path, monkeypatch, capsys):
    (tmp_path / "own.csv").write_text("".join(f"{i},inf,{i % 2}\n" for i in range(30)))
    got, _, err = call(monkeypatch, capsys, "train", "demo", "--data", tmp_path / "own.csv", "--out", tmp_path / "r")
    assert got == 1
    assert "x must be finite" in err
    assert not (tmp_path / "r").exists()


def test_a_recipe_of_your_own(tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: demo\nabout: mine\nseeds: [4]\ntraining: {epochs: 1}\nmodel: {hidden: [20]}\n")
    code, _, err = call(monkeypatch, capsys, "train", recipe, "--out", tmp_path / "r", "--method", "SET")
    assert code == 0, err
    assert (tmp_path / "r" / "SET-4" / "record.json").is_file()
    recipe.write_text("extends: demo\nmethods: {SET: {evolutoin: 3}}\n")
    code, _, err = call(monkeypatch, capsys, "train", recipe)
    assert code == 2
    assert "unknown key 'methods.SET.evolutoin'" in err


def test_narrow_networks_stay_dense_and_say_so(tmp_path, monkeypatch, capsys):
    arguments = ("train", "demo", *SMALL, "--set", "model.hidden=[5]", "--method", "SET", "--out", tmp_path)
    code, out, _ = call(monkeypatch, capsys, *arguments)
    assert code == 0
    assert "all layers stay dense" in " ".join(out.split())


def test_version(monkeypatch, capsys):
    assert call(monkeypatch, capsys, "--version") == (0, "0.1.0\n", "")
    code, out, _ = call(monkeypatch, capsys)
    assert code == 2
    assert "filigree demo" in out


def test_debug_shows_the_traceback():
    done = filigree("--debug", "report", "nowhere")
    assert "Traceback" in done.stderr


def test_help_teaches():
    done = filigree("--help")
    assert done.returncode == 0
    assert "filigree demo" in done.stdout
    for command in ("train", "compare", "report", "list", "demo", "counts"):
        assert command in done.stdout


@pytest.mark.long("starts and interrupts three processes")
def test_interrupted_run_resumes(tmp_path):
    """Ctrl-C in mid-run: exit code 130, one line, the checkpoint is there, and --resume ends as if never stopped."""
    arguments = ["train", "demo", "--set", "training.epochs=40", "--set", "model.hidden=[60]", "--set", "seeds=[0]",
                 "--method", "SET", "--out", str(tmp_path / "a")]  # fmt: skip
    run = subprocess.Popen([sys.executable, "-m", "filigree.cli", *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "a" / "SET-0" / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    if run.returncode != 0:  # it may have been faster than the signal
        assert run.returncode == 130
        assert (
            "interrupted; the last checkpoint is intact. Go on with: filigree train demo --set training.epochs=40"
            in err
        )
        assert not [f for f in os.listdir(tmp_path / "a" / "SET-0") if f.endswith(".tmp")]
    assert filigree(*arguments, "--resume").returncode == 0
    whole = [a if a != str(tmp_path / "a") else str(tmp_path / "b") for a in arguments]
    assert filigree(*whole).returncode == 0
    accuracy = [Record.load(tmp_path / x / "SET-0").metrics["test_loss"] for x in "ab"]
    assert accuracy[0] == accuracy[1]


def test_compress(tmp_path, monkeypatch, capsys):
    model = fg.models.mlp([64, 60, 10])
    split = fg.data.load("digits", seed=0)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    fg.fit(model, split.train, optimizer=optimizer, epochs=15, batch_size=32, progress=False)
    source, small = tmp_path / "model.safetensors", tmp_path / "small.safetensors"
    fg.save(model, source)
    arguments = ["compress", source, "MonteCarlo", "--set", "samples=0.25", "--data", "digits", "-o", small]
    code, out, err = call(monkeypatch, capsys, *arguments)
    assert (code, err) == (0, "")
    assert "of the weights kept" in out
    assert "test accuracy" in out
    assert small.stat().st_size < source.stat().st_size / 4
    made = fg.load(small)
    assert fg.evaluate(made, split.test)["accuracy"] > 0.9
    cost = fg.measure(made)
    assert cost.nonzeros <= 0.26 * 4440 + 70
    for wrong, message in (
        (["compress", source, "MonteCarl", "--data", "digits", "-o", small], "Did you mean MonteCarlo?"),
        (["compress", source, "MonteCarlo", "--set", "samples=0", "--data", "digits", "-o", small], "greater than 0"),
        (["compress", source, "MonteCarlo", "--data", "digits", "--where", "fc9", "-o", small], "fc9"),
        (["compress", tmp_path / "none", "MonteCarlo", "--data", "digits", "-o", small], "no such file"),
    ):
        before = small.read_bytes()
        code, _, err = call(monkeypatch, capsys, *wrong)
        assert code in (1, 2)
        assert message in err
        assert len(err.strip().splitlines()) == 1
        assert small.read_bytes() == before


@pytest.mark.parametrize("folds", [[], ["--set", "data.folds=3"]])
def test_compress_judges_by_what_the_run_did_not_train_on(folds, tmp_path, monkeypatch, capsys):
    arguments = ["train", "demo", "--method", "dense", "--seed", "1", "--set", "training.epochs=4", *folds]
    assert call(monkeypatch, capsys, *arguments, "--set", "model.hidden=[40]", "--out", tmp_path)[0] == 0
    run = tmp_path / "dense-1"
    expected = f"test accuracy {100 * json.loads((run / 'record.json').read_text())['metrics']['test_accuracy']:.2f}%"
    rest = ["RoundToNearest", "--data", "digits", "-o", tmp_path / "small.safetensors"]
    for model in (run, run / "model.safetensors"):
        assert expected in call(monkeypatch, capsys, "compress", model, *rest)[1]
    assert expected not in call(monkeypatch, capsys, "compress", run, *rest, "--seed", "2")[1]


def test_a_recipe_that_compresses(tmp_path, monkeypatch, capsys):
    steps = "methods.dense.compress=[{config: {kind: MonteCarlo, samples: 0.2}, samples: 500}]"
    arguments = ["train", "demo", "--method", "dense", "--seed", "0", "--set", steps, "--set", "training.epochs=8",
                 "--set", "model.hidden=[60]", "--out", tmp_path]  # fmt: skip
    code, _, err = call(monkeypatch, capsys, *arguments)
    assert (code, err) == (0, "")
    record = json.loads((tmp_path / "dense-0" / "record.json").read_text())
    assert record["config"]["compress"][0]["config"]["kind"] == "MonteCarlo"
    assert record["metrics"]["trained_test_accuracy"] > 0.9
    assert record["metrics"]["test_accuracy"] > 0.85
    assert record["cost"]["nonzeros"] < 0.25 * 4440
    code, _, err = call(
        monkeypatch, capsys, "train", "demo", "--set", "methods.dense.compress=[{config: {kind: Sparse}}]"
    )
    assert code == 2
    assert len(err.strip().splitlines()) == 1


def test_a_recipe_that_prunes_and_fine_tunes(tmp_path, monkeypatch, capsys):
    steps = (
        "methods.dense={compress: [{config: {kind: MagnitudePruning, keep: 0.3, compensate: null}, samples: 400}], "
        "finetune: {epochs: 6, lr: 0.05}}"
    )
    arguments = ["train", "demo", "--method", "dense", "--seed", "0", "--set", steps, "--set", "training.epochs=8",
                 "--set", "model.hidden=[60]", "--set", "data.validation=0.2", "--out", tmp_path]  # fmt: skip
    code, _, err = call(monkeypatch, capsys, *arguments)
    assert (code, err) == (0, "")
    metrics = json.loads((tmp_path / "dense-0" / "record.json").read_text())["metrics"]
    assert 1 <= metrics["finetune_epochs"] <= 6
    assert metrics["test_accuracy"] > metrics["compressed_test_accuracy"] - 0.01
    assert fg.load(tmp_path / "dense-0" / "model.safetensors").fc1.out_features == 18


def test_a_method_takes_up_what_another_left(tmp_path, monkeypatch, capsys):
    arguments = ["train", "demo", "--method", "small", "--seed", "0", "--set", "training.epochs=2",
                 "--set", "methods.small={after: dense, compress: [{config: {kind: MagnitudePruning, keep: 0.3}}]}",
                 "--set", "model.hidden=[40]", "--out", tmp_path]  # fmt: skip
    code, _, err = call(monkeypatch, capsys, *arguments)
    assert (code, err) == (0, "")
    dense, small = (json.loads((tmp_path / f"{name}-0" / "record.json").read_text()) for name in ("dense", "small"))
    assert small["history"] == dense["history"]
    assert small["metrics"]["trained_test_accuracy"] == dense["metrics"]["test_accuracy"]
    assert fg.load(tmp_path / "small-0" / "model.safetensors").fc1.out_features == 12
    arguments[9] = "methods.small={after: nobody}"
    code, _, err = call(monkeypatch, capsys, *arguments)
    assert code == 2
    assert "methods.small.after" in err


@pytest.mark.long("trains eight networks")
def test_recipes_anneal_noise_and_mollify(tmp_path, monkeypatch, capsys):
    code, _, err = call(monkeypatch, capsys, "train", RECIPES / "noisy.yaml", "--out", tmp_path)
    assert (code, err) == (0, "")
    annealed, mollified = (fg.load(tmp_path / f"{name}-0" / "model.safetensors") for name in ("annealed", "mollified"))
    assert abs(annealed.tanh1.c - 0.5) < 0.1  # at the end of its schedule
    assert mollified.fc2.p < 1
    record = json.loads((tmp_path / "annealed-0" / "record.json").read_text())
    assert record["config"]["anneal"] == {"start": 30.0, "end": 0.5, "every": None}
    out = tmp_path / "sweep"
    code, _, err = call(
        monkeypatch, capsys, "sweep", RECIPES / "noisy.yaml", "--method", "annealed", "--over",
        "anneal.start=1:50:log", "--trials", "2", "--set", "training.epochs=1", "--out", out,
    )  # fmt: skip
    assert (code, err) == (0, "")
    found = json.loads((out / "sweep.json").read_text())["trials"]
    assert len({trial["values"]["anneal.start"] for trial in found}) == 2


def rows_of(rows):
    return "".join(",".join(f"{v:.4f}" for v in row) + "\n" for row in rows.tolist())


@pytest.mark.long("trains 17 methods")
def test_compare_every_method_on_data(tmp_path, monkeypatch, capsys):
    file = tmp_path / "own.csv"
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, 40, generator=generator)
    rows = torch.cat([x, (x[:, :1] > 0).float()], 1)
    file.write_text(rows_of(rows))
    runs = tmp_path / "runs"
    small = ["--set", "training.epochs=1", "--set", "model.hidden=[160, 160]", "--set", "seeds=[0]", "--out", runs]
    code, out, err = call(monkeypatch, capsys, "compare", file, *small)
    assert code == 0, err
    found = json.loads((runs / "comparison.json").read_text())
    methods = {row["method"] for row in found["rows"]}
    asked = "dense dropout SET LDV OSV EXD paths topk partial complete ACDC Fastfood sub-clustered quantised EXD-topk"
    assert methods == {*asked.split(), "EXD-quantised", "sub-clustered-quantised"}
    by = {row["method"]: row for row in found["rows"]}
    assert all(row["accuracy"] > 0 and row["ratios"]["single_ms"] > 0 for row in found["rows"])
    assert by["SET"]["ratios"]["bytes_disk"] < 1
    assert by["quantised"]["costs"]["train_seconds"] > by["dense"]["costs"]["train_seconds"]
    assert "EXD-topk" in out
    assert "Error against training time" in (runs / "report.html").read_text()
    finished = Record.load(runs / "SET-0").finished
    assert call(monkeypatch, capsys, "compare", file, *small, "--method", "SET")[0] == 0
    assert Record.load(runs / "SET-0").finished == finished  # nothing was run again
    assert json.loads((runs / "comparison.json").read_text())["rows"][1]["ratios"]["single_ms"] > 0
    assert {row["method"] for row in json.loads((runs / "comparison.json").read_text())["rows"]} == methods
    assert Record.load(runs / "SET-0").config["data"]["name"] == str(file)
    other = [*small[:1], "training.epochs=2", *small[2:]]
    code, _, err = call(monkeypatch, capsys, "compare", file, *other)
    assert (code, "a finished run of other settings: training.epochs is 1 there, 2 is asked for" in err) == (2, True)
    file.write_text(file.read_text() + rows_of(rows[:1]))
    code, _, err = call(monkeypatch, capsys, "compare", file, *small)
    assert (code, "other settings: data.sha256" in err) == (2, True)
    code, _, err = call(monkeypatch, capsys, "compare", runs, "--seed", "1")
    assert (code, "are for data sets, not for runs" in err) == (2, True)
    code, _, err = call(monkeypatch, capsys, "compare", "digits", "--method", "none")
    assert (code, "--method none" in err) == (2, True)


def test_export(tmp_path, monkeypatch, capsys):
    model = fg.models.mlp([64, 30, 10])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.2)))
    fg.save(model, tmp_path / "m.safetensors")
    code, out, err = call(
        monkeypatch, capsys, "export", tmp_path / "m.safetensors", "-o", tmp_path / "m.c", "--training"
    )
    assert (code, err) == (0, "")
    assert "RAM" in out
    assert "m_rewire" in (tmp_path / "m.h").read_text()
    code, _, err = call(monkeypatch, capsys, "export", tmp_path / "m.safetensors", "-o", tmp_path / "m.txt")
    assert (code, "must end in .onnx or .c" in err) == (1, True)
    fg.save(model.double(), tmp_path / "d.safetensors")
    code, _, err = call(monkeypatch, capsys, "export", tmp_path / "d.safetensors", "-o", tmp_path / "d.c")
    assert (code, err) == (0, "")
    fg.save(fg.models.lenet5(), tmp_path / "l.safetensors")
    code, _, err = call(monkeypatch, capsys, "export", tmp_path / "l.safetensors", "-o", tmp_path / "l.c")
    assert (code, "--data is needed as an example. The model begins with a Conv2d." in err) == (2, True)


def test_export_what_a_function_returns(tmp_path, monkeypatch, capsys):
    """Networks of a class of one's own, whose file does not say how they are built."""
    (tmp_path / "own_series.py").write_text(
        "import torch\n"
        "class Series(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.lstm, self.fc = torch.nn.LSTM(3, 5, batch_first=True), torch.nn.Linear(5, 2)\n"
        "    def forward(self, x):\n"
        "        return self.fc(self.lstm(x)[0][:, -1])\n"
        "def data():\n"
        "    return torch.randn(40, 6, 3), torch.zeros(40)\n"
        "def nothing():\n"
        "    return 'nothing'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "own_series", None)  # forget it in the end
    del sys.modules["own_series"]
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(40, 6, 3)))
    command = "export", "python:own_series:Series", "-o", "m.c"
    code, _, err = call(monkeypatch, capsys, *command)
    assert (code, "--data is needed as an example. The model begins with a LSTM." in err) == (2, True)
    for source in ("python:own_series:data", "x.npz"):
        code, out, err = call(monkeypatch, capsys, *command, "--data", source, "--activations", "int8")
        assert (code, err) == (0, "")
        assert "lstm 3 -> 5" in out
        assert "M_MOMENTS 6" in (tmp_path / "m.h").read_text()
    code, _, err = call(monkeypatch, capsys, *command, "--data", "python:own_series:nothing")
    assert (code, "inputs, or (inputs, targets), are needed. Got a str." in err) == (2, True)


def test_export_for_a_device(tmp_path, monkeypatch, capsys):
    fg.save(fg.models.mlp([64, 30, 10]), tmp_path / "m.safetensors")
    command = "export", tmp_path / "m.safetensors", "-o", tmp_path / "m.c", "--target", "cortex-m4"
    code, _, err = call(monkeypatch, capsys, *command, "--activations", "int8")
    assert (code, "--data is needed, as the data from which the scales" in err) == (2, True)
    code, _, err = call(monkeypatch, capsys, *command, "--ram", "100")
    assert (code, "bytes of RAM of 100" in err) == (1, True)
    code, _, err = call(monkeypatch, capsys, *command, "--flash", "lots")
    assert (code, "flash must be a number of bytes, as 65536, 64k or 1M. Got 'lots'." in err) == (1, True)
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]
    code, out, err = call(monkeypatch, capsys, *command, "--activations", "int8", "--data", "digits", "--ram", "64k")
    assert (code, err) == (0, "")
    assert "cortex-m4: RAM" in out
    assert "of 65,536 bytes" in out
    assert (tmp_path / "zephyr" / "module.yml").is_file()


@pytest.mark.long("trains residual networks")
def test_blocks_that_are_skipped_train_by_momentum(tmp_path, monkeypatch, capsys, data_root):
    """Their parameters have no gradient, and no momentum, for some steps."""
    out = tmp_path / "runs"
    code, _, err = call(monkeypatch, capsys, "train", RECIPES / "residual.yaml", "--out", out)
    assert (code, err) == (0, "")
    assert len(list(out.glob("*/record.json"))) == 2


def test_what_cannot_end_well_is_said_at_the_start(tmp_path, monkeypatch, capsys):
    nowhere = tmp_path / "none" / "a.json"
    for command in (("compare", "digits", "--json"), ("export", "m.safetensors", "-o"),
                    ("compress", "m.safetensors", "LowRank", "--data", "digits", "-o")):  # fmt: skip
        code, _, err = call(monkeypatch, capsys, *command, nowhere)
        assert (code, err) == (2, f"filigree: {nowhere}: there is no folder {nowhere.parent} to write to.\n")
    model, other = tmp_path / "m.safetensors", tmp_path / "[red]other.csv"
    fg.save(fg.models.mlp([64, 8, 10]), model)
    other.write_text("".join(f"{i * i},{i % 7},{i % 2}\n" for i in range(40)))
    commands = (
        ("export", model, "-o", tmp_path / "m.onnx"),
        ("compress", model, "LowRank", "--set", "rank=2", "-o", tmp_path / "n"),
    )
    for command in commands:
        code, _, err = call(monkeypatch, capsys, *command, "--data", other)
        assert code == 2
        assert f"the model cannot read samples of {other}, of shape (2,)" in err
    code, _, err = call(monkeypatch, capsys, "train", "demo", "--set", "seeds=[]", "--out", tmp_path / "runs")
    assert code == 2
    assert "seeds" in err


def test_compare_counts_each_run_once_and_refuses_other_data(tmp_path, monkeypatch, capsys):
    for name, of in (("a", "digits"), ("b", "digits"), ("c", "other.csv")):
        made = Record(recipe="demo", method="dense", seed=int(name != "a"), config={"data": {"name": of}},
                      metrics={"test_accuracy": 0.5})  # fmt: skip
        made.save(tmp_path / name)
    file = tmp_path / "all.json"
    code, _, err = call(monkeypatch, capsys, "compare", tmp_path / "a", tmp_path / "b", tmp_path / "a", "--json", file)
    assert (code, err) == (0, "")
    assert len(json.loads(file.read_text())) == 2
    code, _, err = call(monkeypatch, capsys, "compare", tmp_path)
    assert code == 1
    assert "runs of 'demo' are of different data, digits and other.csv" in err


@pytest.mark.long("a search, by time measured")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch copies graphs by what it has deprecated
def test_shrink_reads_python_and_programs_of_torch(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_nets.py").write_text(
        "import torch\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))\n"
        "def data():\n"
        "    return torch.randn(60, 8)\n"
        "def closeness(outputs, targets):\n"
        "    return 1 - float((outputs - targets).norm() / targets.norm())\n"
    )
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "small.safetensors"
    common = ("--method", "bits", "--seconds", "5", "-o", output)
    code, out, err = call(
        monkeypatch, capsys, "shrink", "python:own_nets:build", "--data", "python:own_nets:data",
        "--metric", "python:own_nets:closeness", "--keep", "0.9", *common,
    )  # fmt: skip
    assert code == 0, err
    assert "closeness" in out
    assert output.is_file()
    sys.path.insert(0, str(tmp_path))
    try:
        model = __import__("own_nets").build().eval()
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("own_nets")
    assert fg.load(output, into=model) is model
    sizes = ({0: torch.export.Dim("batch", min=1)},)
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3)).eval()
    torch.export.save(torch.export.export(plain, (torch.randn(4, 8),), dynamic_shapes=sizes), tmp_path / "net.pt2")
    torch.save(torch.randn(60, 8), tmp_path / "x.pt")
    picture = tmp_path / "pareto.html"
    code, out, err = call(
        monkeypatch, capsys, "shrink", "net.pt2", "--data", "x.pt", *common, "--plot", picture
    )  # fmt: skip
    assert code == 0, err
    assert picture.is_file()
    for wrong, message in (
        ("python:own_nets", "write python:MODULE:NAME"),
        ("python:own_nets:missing", "AttributeError"),
        ("python:own_nets:data", "a torch module is needed. Got a Tensor"),
        ("nothing.pt2", "there is no such file"),
        ("x.pt", "not a program of torch.jit"),
    ):
        code, _, err = call(monkeypatch, capsys, "shrink", wrong, "--data", "x.pt", *common)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
