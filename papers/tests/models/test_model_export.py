"""The papers' networks in ONNX: cells, several inputs, and what cannot be exported."""

import pytest
import torch

import filigree as fg
from filigree_papers import models

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")

FAST = {"seconds": 0.001}


def check(model, example, path, *fresh):
    """The exported file gives what torch gives, on other inputs too."""
    import onnxruntime

    fg.export(model, path, example, **FAST)
    session = onnxruntime.InferenceSession(path)
    for inputs in (example, *fresh):
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        with torch.no_grad():
            expected = model.eval()(*inputs)
        names = [entry.name for entry in session.get_inputs()]
        (output,) = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
        torch.testing.assert_close(torch.from_numpy(output), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.long("exports an unrolled network")
def test_captions_with_noisy_activations(tmp_path):
    model = models.captioner(9, 5, 4, 6)
    fg.convert_(model, fg.Noisy("NAN"))
    inputs = torch.randn(2, 3, 5), torch.randint(0, 9, (2, 3))
    check(model, inputs, tmp_path / "m.onnx", (torch.randn(4, 3, 5), torch.randint(0, 9, (4, 3))))


@pytest.mark.long("exports an unrolled network")
def test_a_neural_turing_machine(tmp_path):
    """It asks for the length of a batch: its code is analysed."""
    check(models.ntm(3, 2, 5, 4, 3), torch.randn(3, 1, 3), tmp_path / "m.onnx", torch.randn(2, 1, 3))


def test_packed_sequences_are_refused(tmp_path):
    model = models.character_encoder(9, 4, 5, 3, layers=1)
    with pytest.raises(ValueError, match=r"'the model' \(CharacterEncoder\) cannot be exported"):
        fg.export(model, tmp_path / "m.onnx", torch.randint(1, 9, (3, 4)), **FAST)
