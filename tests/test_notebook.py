"""What a notebook shows of a model; and the notebooks of the documentation run."""

import base64
import json
import re
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import filigree as fg

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = fg.models.mlp([12, 300, 20, 3])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.2)))
    return model


def pictures(page):
    """The grey values of the images of a page, by a reader of their own."""
    for text in re.findall(r"data:image/png;base64,([^\"]+)", page):
        data, chunks, at = base64.b64decode(text), {}, 8
        while at < len(data):
            size, kind = struct.unpack(">I4s", data[at : at + 8])
            chunks[kind] = data[at + 8 : at + 8 + size]
            assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + chunks[kind])
            at += 12 + size
        width, height = struct.unpack(">2I", chunks[b"IHDR"][:8])
        yield np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)[:, 1:]


def test_layers_patterns_and_degrees(model):
    view = fg.show(model, shape=(3, 4))
    page = view._repr_html_()
    assert repr(view) == str(view)
    assert "fc1" in str(view)
    assert "20.0%" in str(view)
    strength, first, second, third = pictures(page)
    assert (strength.shape, first.shape, third.shape) == ((3, 4), (128, 12), (3, 20))
    assert int(strength.argmin()) == fg.feature_ranking(model)[0]  # the strongest input is the darkest
    assert np.array_equal(third < 255, model.fc3.dense().weight.detach().numpy() != 0)
    assert second.shape == (20, 128)
    assert page.count("<svg") == 6
    fan_out = np.bincount(np.bincount(model.fc1.flat_indices().numpy() % 12))
    assert page.split("<svg")[1].count("<rect") == np.count_nonzero(fan_out)
    plain = fg.show(nn.Sequential(nn.Linear(3, 2)))
    assert "data:image" not in plain._repr_html_()
    assert "Linear(3, 2)" in str(plain)
    with pytest.raises(ValueError, match=r"show: shape must be of 12 inputs. Got \(5, 5\)"):
        fg.show(model, (5, 5))
    with pytest.raises(ValueError, match=r"shape is of the inputs of a sparse layer. The model has none"):
        fg.show(nn.Linear(4, 3), (2, 2))
    with pytest.raises(TypeError, match=r"show: model must be a torch module. Got a int"):
        fg.show(3)


def test_numbers_of_modules_with_modules_inside_are_shown():
    attention = nn.MultiheadAttention(8, 2)
    rows = {row[0]: row[2:] for row in fg.show(nn.Sequential(attention, nn.Linear(8, 2))).table_rows()[1:]}
    assert rows["0"] == ("216", "192", "88.9%", "192")  # the products that make queries, keys and values
    assert rows["0.out_proj"][0] == "72"
    assert set(rows) == {"0", "0.out_proj", "1"}


class Formatter(dict):
    """As IPython's: classes to functions."""

    def for_type(self, kind, function):
        self[kind] = function


def test_the_extension(model):
    formatter = Formatter()
    shell = SimpleNamespace(display_formatter=SimpleNamespace(formatters={"text/html": formatter}))
    fg.load_ipython_extension(shell)
    assert formatter[nn.Module](model) == fg.show(model)._repr_html_()
    fg.unload_ipython_extension(shell)
    assert not formatter


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_notebooks_are_committed_without_outputs(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
    assert cells[0]["cell_type"] == "markdown"


@pytest.mark.long("trains, searches and exports")
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_notebooks_run(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            lines = [line for line in cell["source"] if not line.startswith("%")]
            exec(compile("".join(lines), notebook.name, "exec"), names)
    assert len(NOTEBOOKS) == 3
