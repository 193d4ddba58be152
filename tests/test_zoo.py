"""Every method on every network of the corpus: the right result, or one line that says why not and nothing changed."""

import dataclasses
import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import every_method
import filigree as fg
from filigree.computed_weights import fold_
from filigree.convert import replace_module
from filigree.modes import evaluating
from filigree.nn import LayeredAttention
from filigree.nn.capabilities import Capabilities
from picture import Picture
from zoo import NETWORKS, Network, Wired

TOLD = {"FuseLinears"}  # which layers stand in a row, so that it cannot take all
MORE = {
    "Sparse, all": fg.Sparse(fg.ErdosRenyi(density=1.0), init="keep"),
    "not refitted": fg.MagnitudePruning(keep=0.5, compensate=None),
}
METHODS = {  # without measuring latencies, which takes long
    name: dataclasses.replace(config, measure=False) if hasattr(config, "measure") else config
    for name, config in (every_method.METHODS | MORE).items()
    if name not in TOLD
}
DROPOUT = {"Dropout", "GaussianDropout", "GuidedDropout", "PartitionDropout", "DropConnect"}
GUESSED = {"GuidedDropout", "Noisy", "PartitionDropout"}  # what precedes them, or reads them, is known when they run
EXACT = DROPOUT | {"Sparse, all", "top-k", "partial", "complete", "StochasticDepth"}  # compute in evaluation what was
UNITS = {name for name, config in METHODS.items() if isinstance(config, fg.compress.pruning.unit_pruning.UnitPruning)}
UNITS -= {"connections", "budget"}  # a budget may be out of reach
SOURCE = str(Path(fg.__file__).parent)
SECONDS = 60

CLOSE = {"rtol": 1e-3, "atol": 1e-5}


class TookTooLongError(BaseException):
    """Nothing catches it on its way."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Stop what takes more than these seconds of the processor, or ten times as many by the clock."""

    def stop(*_):
        raise TookTooLongError(f"not done after {seconds} s")

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, seconds), signal.SIGALRM: (signal.ITIMER_REAL, 10 * seconds)}
    before = {number: signal.signal(number, stop) for number in timers}
    try:
        for timer, after in timers.values():
            signal.setitimer(timer, after)
        yield
    finally:
        for timer, _ in timers.values():
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


# -- what is right -----------------------------------------------------------------------------------------------------


def tensors(outputs: object) -> list[Tensor]:
    """The numbers in what a model returns, in their order."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, dict):
        outputs = vars(outputs)
    values = outputs.values() if isinstance(outputs, dict) else outputs if isinstance(outputs, list | tuple) else []
    return [tensor for value in values for tensor in tensors(value)]


def run(model: nn.Module, inputs) -> list[Tensor]:
    """The outputs in evaluation mode."""
    args, kwargs = inputs
    torch.manual_seed(0)
    with evaluating(model), torch.no_grad():
        return tensors(model(*args, **kwargs))


def gradients(model: nn.Module, inputs) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The outputs in evaluation mode and the gradients of inputs; by name those of parameters."""
    args, kwargs = inputs
    given = [x.clone().requires_grad_(x.is_floating_point()) for x in (*args, *kwargs.values())]
    torch.manual_seed(0)
    with evaluating(model):
        outputs = tensors(model(*given[: len(args)], **dict(zip(kwargs, given[len(args) :], strict=True))))
    loss = sum((output.sin().sum() for output in outputs), torch.zeros(()))
    loss.backward() if loss.requires_grad else None
    by_name = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return [output.detach() for output in outputs] + [x.grad for x in given if x.grad is not None], by_name


def same(actual: list[Tensor], expected: list[Tensor], what: str) -> None:
    for number, (a, b) in enumerate(zip(actual, expected, strict=True)):
        atol = CLOSE["atol"] + 1e-4 * float(b.abs().max() if b.numel() else 0)
        torch.testing.assert_close(
            a, b, rtol=CLOSE["rtol"], atol=atol, msg=lambda m, n=number: f"{what}, number {n}: {m}"
        )


@contextmanager
def dense_references(model: nn.Module) -> Iterator[set[int]]:
    """The model with torch's modules in place of ours; gives the identities of the parameters that are away."""
    dense: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        inside = any(module in part.modules() for part in dense)
        if isinstance(module, LayeredAttention) and not module.has_one_width:
            continue  # torch's has no fewer heads
        if isinstance(module, Capabilities) and type(module).dense is not Capabilities.dense and not inside:
            dense[module] = module.dense().train(module.training)
            for hooks in ("_forward_hooks", "_forward_pre_hooks"):
                vars(dense[module])[hooks] = vars(module)[hooks]
    homes = [(parent, key, child) for parent in model.modules() for key, child in parent._modules.items()]
    changed = [(parent, key, child) for parent, key, child in homes if child in dense]
    for parent, key, child in changed:
        parent._modules[key] = dense[child]
    torch.backends.mha.set_fastpath_enabled(False)  # nn.TransformerEncoderLayer's fails where linear layers lack a bias
    yield {id(parameter) for module in dense for parameter in module.parameters()}
    torch.backends.mha.set_fastpath_enabled(True)
    for parent, key, child in changed:
        parent._modules[key] = child


def check_against_dense(model: nn.Module, inputs) -> None:
    """Outputs and gradients, of the inputs and of all parameters outside the layers that are compared."""
    actual, own = gradients(model, inputs)
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    with dense_references(model) as away:
        expected, others = gradients(model, inputs)
    same(actual, expected, "against the dense reference")
    for name, gradient in own.items():
        if parameters[name] not in away:
            same([gradient], [others[name]], f"the gradient of {name}")


class OnKept(nn.Module):
    """A norm of those units only that were kept; the others become zero."""

    def __init__(self, norm: nn.Module, kept: Tensor, dim: int) -> None:
        super().__init__()
        self.norm, self.kept, self.dim = norm, kept, dim

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x).index_copy(self.dim, self.kept, self.norm(x.index_select(self.dim, self.kept)))


def mask_(model: nn.Module, pruned: nn.Module) -> nn.Module:
    """Let the original's layers read nothing of the units that were taken out, and its norms leave them out."""
    for name, module in pruned.named_modules():
        layer = model.get_submodule(name)
        fold_(layer)  # else its weight is computed anew
        if isinstance(module, LayeredAttention) and isinstance(layer, nn.MultiheadAttention):
            replace_module(model, name, LayeredAttention(layer))
        elif isinstance(module, nn.RNNBase) and "kept_inputs" in vars(module):
            for key, weight in layer.named_parameters():
                if key.startswith("weight"):
                    kept = module.kept_inputs if "ih_l0" in key else module.kept_outputs
                    sides = weight.shape[1] // layer.hidden_size if "ih_l0" not in key else 1
                    kept = torch.cat([kept + side * layer.hidden_size for side in range(sides)])
                    weight.data = torch.zeros_like(weight).index_copy(1, kept, weight.detach()[:, kept])
        elif "kept_inputs" in vars(module):
            dim = 0 if "Transpose" in type(layer).__name__ or type(layer).__name__ == "Conv1D" else 1
            gone = torch.ones(layer.weight.shape[dim], dtype=torch.bool)
            gone[module.kept_inputs] = False
            weight = layer.weight.detach().index_fill(dim, gone.nonzero().squeeze(1), 0)
            layer.weight = nn.Parameter(weight)  # not that of a layer that shares it
        elif _is_norm(module) and module.weight.shape != layer.weight.shape:
            kept = torch.isin(layer.weight, module.weight).nonzero().squeeze(1)  # no two are alike
            replace_module(model, name, OnKept(module, kept, 1 if isinstance(module, nn.GroupNorm) else -1))
    return model


def _is_norm(module: nn.Module) -> bool:
    """Whether it computes over all units that it is given."""
    return isinstance(module, nn.LayerNorm | nn.GroupNorm) or "RMSNorm" in type(module).__name__


def check_flags(model: nn.Module, before: nn.Module) -> None:
    """What was frozen is frozen, what was in evaluation mode is."""
    own = dict(model.named_modules())
    for name, module in before.named_modules():
        if name in own:
            assert own[name].training == module.training, f"the mode of {name}"
            flags = {p.requires_grad for p in module.parameters()}
            now = {p.requires_grad for p in own[name].parameters()}
            if len(flags) == 1:
                assert now <= flags, f"what trains in {name}"


def check_training(model: nn.Module, inputs) -> None:
    args, kwargs = inputs
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = sum((output.square().mean() for output in tensors(model.train()(*args, **kwargs))), torch.zeros(()))
    assert bool(loss.isfinite())
    if parameters and loss.requires_grad:
        optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)
        loss.backward()
        optimizer.step()
    assert all(bool(output.isfinite().all()) for output in run(model, inputs))


def check_files(model: nn.Module, fresh: nn.Module, inputs, folder: Path) -> None:
    fg.save(model, folder / "m.safetensors")
    again = fg.load(folder / "m.safetensors", into=fresh)
    stored, other = model.state_dict(), again.state_dict()
    assert [*stored] == [*other]
    assert all(torch.equal(value, other[key]) for key, value in stored.items() if isinstance(value, Tensor))
    for a, b in zip(run(again, inputs), run(model, inputs), strict=True):
        assert torch.equal(a, b), f"after loading outputs differ by {float((a - b).abs().max()):.2g}"


# -- what is refused ---------------------------------------------------------------------------------------------------


def check_refusal(error: Exception) -> None:
    """One line of filigree's own, without the traceback of another."""
    message = str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    assert isinstance(error, ValueError | TypeError | AttributeError), f"{type(error).__name__}: {message}"
    assert frame.filename.startswith(SOURCE), f"raised in {frame.filename}:{frame.lineno}: {message}"
    assert "\n" not in message, f"more than one line: {message}"
    assert 20 <= len(message) <= 300, f"{len(message)} characters: {message}"
    assert error.__context__ is None or error.__suppress_context__, f"another exception shows: {error.__context__!r}"


def apply(method: str, model: nn.Module, inputs) -> None:
    config, (args, kwargs) = METHODS[method], inputs
    if isinstance(config, fg.compress.Compression):
        fg.compress_(model, config, None if method in every_method.WITHOUT_DATA else kwargs or args[0])
    else:
        fg.convert_(model, config, lambda _, module: True)


def check(method: str, network: str, folder: Path, export: bool) -> str:
    """What became of it: "works", or the line by which it is refused."""
    entry = NETWORKS[network]
    model, inputs = entry.build(), entry.example()
    before = Picture(model)
    guessed = False
    try:
        apply(method, model, inputs)
        guessed = method in GUESSED  # the first call says whether it is right
        run(model, inputs)
    except Exception as error:
        refusal = error
    else:
        check_result(method, entry, model, inputs)
        check_files(model, entry.build(), inputs, folder)
        fg.measure(model, *(inputs[0] if len(inputs[0]) == 1 else ()), seconds=0)
        if export:
            check_export(model, inputs, folder)
        check_training(model, inputs)
        return "works"
    check_refusal(refusal)
    assert guessed or before.differences(Picture(model)) == []
    assert not (entry.prunes and method in UNITS), f"refused: {refusal}"
    return str(refusal)


def check_result(method: str, entry: Network, model: nn.Module, inputs) -> None:
    original, result = entry.build(), run(model, inputs)
    assert all(bool(value.isfinite().all()) for value in result)
    if method in EXACT:
        same(result, run(original, inputs), "against the original")
    if method == "Sparse, all":
        same(gradients(model, inputs)[0], gradients(original, inputs)[0], "against the original, with gradients")
    if method == "not refitted" and not entry.means:  # tests/compress/test_pruning_proof.py has these
        same(result, run(mask_(entry.build(), model), inputs), "against the masked original")
    check_against_dense(model, inputs)
    check_flags(model, original)


def check_export(model: nn.Module, inputs, folder: Path) -> None:
    """Exporting compares outputs itself."""
    args, kwargs = inputs
    if kwargs:
        model = Wired(lambda s, *values: s.inner(**dict(zip(kwargs, values, strict=True))), inner=model)
    try:
        fg.export(model, folder / "m.onnx", args or tuple(kwargs.values()), seconds=0.01)
    except Exception as error:
        refusal = error
    else:
        return
    check_refusal(refusal)


def exported(method: int, network: int) -> bool:
    """Exporting takes seconds: one cell in 120, or with FILIGREE_EVERY_EXPORT=1 each."""
    return os.environ.get("FILIGREE_EVERY_EXPORT") == "1" or (method + 7 * network) % 120 == 3


def cell(i: int, network: str, j: int, method: str):
    quick = (i + 3 * j) % 10 == 0
    marks = () if quick else pytest.mark.long("some 2,400 cells of a fifth of a second")
    return pytest.param(method, network, not quick and exported(j, i), id=f"{network}-{method}", marks=marks)


CELLS = [cell(i, net, j, method) for i, net in enumerate(NETWORKS) for j, method in enumerate(METHODS)]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated", "ignore:.*makes the outputs worse")
@pytest.mark.parametrize(("method", "network", "export"), CELLS)
def test_every_method_on_every_network(method, network, export, tmp_path):
    with limited(SECONDS):
        check(method, network, tmp_path, export)
