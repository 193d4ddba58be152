"""Configs: one name, one class."""

import importlib
import sys

import pytest

import filigree as fg
from filigree import config
from filigree.convert import Conversion

SOURCE = """
from filigree.config import config
from filigree.convert import Conversion


@config
class Doubled(Conversion):
    factor: int = {factor}
"""


@pytest.fixture(autouse=True)
def kinds(monkeypatch):
    monkeypatch.setattr(config, "_KINDS", dict(config._KINDS))


def define(module, source=SOURCE, **values):
    names = {"__name__": module}
    exec(source.format(**values), names)
    return names["Doubled"]


def test_a_second_config_of_one_name_is_refused():
    first = define("mine", factor=2)
    with pytest.raises(ValueError, match=r"There is a Doubled already, mine\.Doubled\. Got theirs\.Doubled\.") as error:
        define("theirs", factor=3)
    assert "\n" not in str(error.value)
    assert Conversion.from_dict({"kind": "Doubled"}) == first(2)


def test_it_cannot_take_over_what_files_name():
    with pytest.raises(ValueError, match="There is a Sparse already"):
        define("theirs", SOURCE.replace("Doubled", "Sparse"), factor=3)
    assert Conversion.by_kind()["Sparse"] is fg.Sparse


@pytest.mark.parametrize("module", ["mine", "__main__"])
def test_the_same_definition_again_takes_the_first_ones_place(module):
    define(module, factor=2)
    again = define(module, factor=3)
    assert Conversion.from_dict({"kind": "Doubled"}) == again(3)
    assert Conversion.by_kind()["Doubled"] is again


def test_a_reloaded_module(tmp_path, monkeypatch):
    (tmp_path / "reloaded_config.py").write_text(SOURCE.format(factor=2))
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("reloaded_config")
    first = module.Doubled
    assert importlib.reload(module).Doubled is not first
    assert Conversion.by_kind()["Doubled"] is module.Doubled
    sys.modules.pop("reloaded_config")


def test_examples_are_of_their_class_and_can_be_written():
    for kind in config.Config.by_kind().values():
        if issubclass(kind, Conversion):
            for label, example in kind.examples().items():
                assert isinstance(example, kind), label
                assert config.Config.from_dict(example.to_dict()) == example


def test_too_many_arguments_by_position_are_one_line():
    with pytest.raises(ValueError, match=r"^Constant: takes at most 1 by position \(zeta\). Got 0.2 beyond them.$"):
        fg.Constant(0.1, 0.2)
    with pytest.raises(ValueError, match=r"^Static: takes no arguments. Got 1 beyond them.$"):
        fg.Static(1)
