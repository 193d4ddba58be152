"""What `import filigree` loads; what an absent package is told as; and that our own imports point one way."""

import ast
import importlib
import importlib.metadata
import shlex
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
import pytest
import torch

import filigree as fg
from filigree import recipes
from filigree.cli import main
from filigree.compress.pruning.clusters import cluster
from filigree.optional import needed
from filigree.report import write_computed

SOURCE, ROOT = Path(fg.__file__).parent, Path(__file__).parent.parent

# Beyond what `import torch` loads. pydantic is accepted: configs are pydantic dataclasses, made where they are
# declared. safetensors is a small extension module. Names with an underscore are parts of compiled modules.
ACCEPTED = {"filigree", "scipy", "safetensors", "pydantic", "pydantic_core", "annotated_types", "typing_inspection"}

# Each line may import those above it, and itself; so may TYPE_CHECKING imports. The rest of a package follows where its
# own name stands: `measure` is all of it but `measure.timing`.
LAYERS = [
    "torch_version",
    "config",
    "optional",
    "extensions",
    "protocols",
    "text_table",
    "wrappers",
    "modes",
    "fused_steps",
    "outputs",
    "calibration",
    "summary",
    "untrained",
    "ties",
    "computed_weights",
    "rounding",
    "layer_selection",
    "preserved",
    "laid_out",
    "rollback",
    "convert",
    "ops",
    "topology",
    "measure.timing",
    "nn",
    "models",
    "data",
    "dynamics",
    "compress",
    "io",
    "measure",
    "optimize",
    "shrink",
    "advise",
    "export",
    "analyze",
    "notebook",
    "train",
    "report",
    "plot",
    "recipes",
    "integrations",
    "sklearn",
    "",  # the front door, `filigree` itself
    "cli",
]

# (module, what it imports): why it may, against the order
AGAINST_THE_ORDER: dict[tuple[str, str], str] = {}

# modules that import filigree's own inside a function: why
INSIDE_FUNCTIONS = {
    "": "the front door loads `plot`, `report` and `sklearn` when they are used: they bring rich and scikit-learn",
    "cli.application": "a command is loaded when it is called for: `filigree train` needs no exporters",
    "ops.gpu": "its kernels are declared in Triton's language, and Triton takes 0.2 s to load",
    "ops.gpu_sell": "likewise",
}


def loaded(code):
    """The names of the modules that a fresh interpreter has loaded after `code`."""
    code += "; import sys; print(*sys.modules)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_import_filigree_loads_torch_and_little_else():
    before, after = loaded("import torch"), loaded("import filigree")
    added = {name.partition(".")[0] for name in set(after) - set(before)}
    third_party = {
        name for name in added - set(sys.stdlib_module_names) if not name.startswith(("_", "cython_runtime"))
    }
    assert "filigree" in third_party
    assert third_party - {"torch", "numpy"} <= ACCEPTED
    slow = ("torch._dynamo", "torch.distributed.fsdp", "scipy.stats", "scipy.sparse", "sympy")
    assert [name for name in slow if name in after and name not in before] == []


def test_what_is_loaded_when_it_is_used_is_there():
    assert {"write_report", "report", "sklearn", "data", "fit"} <= set(dir(fg))
    assert callable(fg.write_report)
    assert fg.write_report is fg.report.write_report
    assert fg.sklearn.SparseMLPClassifier.__name__ == "SparseMLPClassifier"
    with pytest.raises(AttributeError, match="module 'filigree' has no attribute 'nonsense'"):
        _ = fg.nonsense
    assert [name for name in fg.__all__ if not hasattr(fg, name)] == []


# -- absent packages -------------------------------------------------------------------------------------------------


def hide(monkeypatch, package):
    """Make `import package` fail, whether or not it was loaded before."""
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)


def _lightning(_):
    importlib.import_module("filigree.integrations.lightning")


def _transformers(_):
    importlib.import_module("filigree.integrations.transformers")


def _search(engine, folder):
    engine(recipes.Sweep("demo", {"training.lr": "0.1,0.2"}, "SET"), folder)


EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.fixture(autouse=True)
def _as_installed(monkeypatch):
    """What the built package says of its extras: an environment may hold an older one."""
    lines = [f"{requirement}; extra == {name!r}" for name, each in EXTRAS.items() for requirement in each]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)


WORK = {
    "accelerate": (lambda _: fg.train.Tracking("tensorboard"), "Tracking: accelerate", "track"),
    "lightning": (_lightning, "filigree.integrations.lightning: lightning", "lightning"),
    "onnx": (
        lambda folder: fg.export(torch.nn.Linear(2, 2), folder / "m.onnx", torch.ones(1, 2)),
        "export: onnx",
        "onnx",
    ),
    "optuna": (lambda folder: _search(recipes.sweep, folder), "sweep: optuna", "sweep"),
    "plotly": (lambda folder: write_computed(folder / "r.html", "r", "", [{"x": 1}]), "write_report: plotly", "report"),
    "pooch": (lambda _: fg.data.load("orl"), "data: downloading asu/ORL.mat: pooch", "data"),
    "ray": (lambda folder: _search(recipes.sweep_ray, folder), "--engine ray: ray", "ray"),
    "sklearn": (lambda _: fg.data.load("digits"), "data digits: scikit-learn", "data"),
    "transformers": (_transformers, "filigree.integrations.transformers: transformers", "transformers"),
}


@pytest.mark.parametrize("package", WORK)
def test_an_absent_package_is_one_line_with_the_install_that_brings_it(package, monkeypatch, tmp_path):
    work, subject, extra = WORK[package]
    hide(monkeypatch, package)
    monkeypatch.delitem(sys.modules, f"filigree.integrations.{package}", raising=False)
    monkeypatch.delenv("FILIGREE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ModuleNotFoundError) as caught:
        work(tmp_path)
    assert str(caught.value) == f"{subject} is needed. pip install {shlex.join(EXTRAS[extra])}"
    distribution = subject.rpartition(" ")[2].replace("sklearn", "scikit-learn")
    assert any(requirement.startswith(distribution) for requirement in EXTRAS[extra])


def test_the_same_of_launched_processes_of_clusters_and_of_estimators(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    hide(monkeypatch, "accelerate")
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ModuleNotFoundError, match=r"^fit: accelerate is needed\. pip install accelerate$"):
        fg.fit(
            model, (torch.ones(4, 2), torch.zeros(4).long()), optimizer=torch.optim.SGD(model.parameters()), epochs=1
        )
    hide(monkeypatch, "sklearn")
    with pytest.raises(ModuleNotFoundError, match=r"^pruning: scikit-learn is needed\. pip install scikit-learn$"):
        cluster(torch.arange(24.0).reshape(4, 6), 2, "kmeans", 0)
    for name in [name for name in sys.modules if name.startswith("filigree.sklearn")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        ModuleNotFoundError, match=r"^filigree.sklearn: scikit-learn is needed\. pip install scikit-learn$"
    ):
        importlib.import_module("filigree.sklearn")


def test_plain_training_needs_none_of_them(monkeypatch):
    for package in (*WORK, "rich", "typer", "yaml"):
        hide(monkeypatch, package)
    model = fg.models.mlp([2, 40, 2])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    history = fg.fit(
        model, (torch.randn(8, 2), torch.zeros(8).long()), optimizer=optimizer, epochs=2, progress=False,
        callbacks=fg.Evolution(model, optimizer, fg.Constant(0.3), epochs=2),
    )  # fmt: skip
    assert len(history) == 2
    assert np.isfinite(history[-1]["train_loss"])


def test_a_package_that_is_there_but_broken_says_why(monkeypatch, tmp_path):
    (tmp_path / "broken_here.py").write_text("raise ImportError('libodd.so.3:\\ncannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    line = r"^export: broken_here could not be loaded \(libodd\.so\.3: cannot open\)\. pip install 'onnx>=1\.17' .*$"
    with pytest.raises(ImportError, match=line):
        needed("broken_here", "export", "onnx")


@pytest.mark.parametrize(
    ("package", "arguments", "line"),
    [
        ("plotly", ["demo"], "filigree: write_report: plotly is needed. pip install 'plotly>=5.20'"),
        ("sklearn", ["train", "demo", "--no-report"],
         "filigree: data digits: scikit-learn is needed. pip install pooch scikit-learn"),
        ("optuna", ["sweep", "demo", "--over", "training.lr=0.1,0.2", "--method", "SET"],
         "filigree: sweep: optuna is needed. pip install 'optuna>=4'"),
    ],
)  # fmt: skip
def test_on_the_command_line_it_is_the_same_line(package, arguments, line, monkeypatch, tmp_path, capsys):
    hide(monkeypatch, package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["filigree", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert capsys.readouterr().err.strip() == line


# -- our own imports -------------------------------------------------------------------------------------------------


def names_of(node):
    """What an import statement names: of `from a import b`, a.b, which may be a module or something in one."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0, "imports in filigree are absolute"
    return [f"{node.module}.{alias.name}" for alias in node.names]


def modules():
    """The library's modules by their name without `filigree.`, and their syntax trees."""
    files = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in SOURCE.rglob("*.py")}
    return {
        name.removesuffix("__init__").rstrip("."): ast.parse(path.read_text(), str(path))
        for name, path in files.items()
    }


TREES = modules()


def statements(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def own(node):
    """The modules of filigree that a statement imports."""
    found = set()
    for name in names_of(node):
        root, _, rest = name.partition(".")
        if root == "filigree" and rest != "ops._kernels":  # the compiled kernels
            while rest not in TREES:
                rest = rest.rpartition(".")[0]
            found.add(rest)
    return found


def layer(module):
    """Where a module stands in `LAYERS`: by the longest of its prefixes that is there."""
    while module not in LAYERS:
        assert "." in module, f"{module}: a new part of filigree: give it a line in LAYERS"
        module = module.rpartition(".")[0]
    return LAYERS.index(module)


IMPORTS = {name: set().union(*(own(node) for node in statements(tree))) for name, tree in TREES.items()}


def test_the_reading_of_imports_finds_them():
    tree = ast.parse(
        "from filigree.nn import Sparse\nimport filigree.ops.conv\nfrom filigree import data\nimport torch"
    )
    assert [own(node) for node in tree.body] == [{"nn"}, {"ops.conv"}, {"data"}, set()]
    assert len(TREES) > 100
    assert "train.engine" in IMPORTS["train.fit_run"]
    assert layer("measure.timing") < layer("nn.sparse.sparse") < layer("measure.cost")


def test_imports_point_one_way():
    wrong = {
        (name, other) for name, others in IMPORTS.items() for other in others if layer(other) > layer(name)
    } - AGAINST_THE_ORDER.keys()
    assert not wrong, f"imports against the order of LAYERS: {sorted(wrong)}"
    gone = [(name, other) for name, other in AGAINST_THE_ORDER if other not in IMPORTS.get(name, ())]
    assert not gone, f"no longer imported, so no exception: {gone}"


def test_no_module_imports_one_that_imports_it():
    graph = {name: {other for other in others if (name, other) not in AGAINST_THE_ORDER} - {name}
             for name, others in IMPORTS.items()}  # fmt: skip
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle of imports: {' <- '.join(error.args[1])}")


def test_no_import_of_our_own_inside_a_function():
    inside = set()
    for name, tree in TREES.items():
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)]
        for node in [node for function in functions for node in ast.walk(function)]:
            if isinstance(node, ast.Import | ast.ImportFrom) and own(node):
                inside.add(name)
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "needed")):
                inside |= {name} if "filigree" in ast.unparse(node) else set()
    assert inside == set(INSIDE_FUNCTIONS)


def test_the_library_does_not_know_the_papers_package():
    roots = {each.partition(".")[0] for tree in TREES.values() for node in statements(tree) for each in names_of(node)}
    assert "filigree" in roots
    assert "filigree_papers" not in roots
