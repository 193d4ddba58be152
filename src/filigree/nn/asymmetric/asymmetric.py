"""The config `Asymmetric`, which makes layers whose backward pass uses a part of their parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pydantic
import torch
from torch import nn

from filigree.config import config
from filigree.convert import Change, Conversion, replace_module
from filigree.measure.timing import time_interleaved
from filigree.nn.asymmetric.asymmetric_linear import Asymmetrical, AsymmetricLinear, Rule
from filigree.nn.asymmetric.sparsification import Sparsification, TopK, as_sparsification
from filigree.nn.drop_in import dense_linear
from filigree.nn.fuse import fuse_relu
from filigree.nn.sparse.feature_major_linear import FeatureMajorLinear

Function = Annotated[Sparsification | None, pydantic.PlainValidator(as_sparsification)]


@config
class Asymmetric(Conversion):
    """Sparsified backpropagation (Srivastava 2022, chapters 6-8).

    The forward pass is exact; gradients are computed from a part of the parameters.

    With delta = dL/d(pre-activation), per sample:

        dL/dW = S(delta) I(x)^T    dL/dx = A(W)^T S(delta)    dL/db = S(delta)

    Args:
        forward: sparsifies the layer's output in training, and so what is differentiated: with it alone the training is
            symmetric (dropout as Srivastava 2022 defines it).
        sensitivity: S, on delta: the choice of neurons.
        inputs: I, on the layer's input (the weight adjoint), in the gradient of W only. Only what is kept of the input
            is stored for the backward pass.
        weights: A, on each input's column of W (the perceptron adjoint), in the gradient of x only; chosen once a
            pass, of the present W.
        neurons: with `weights`, a weight takes part in dL/dx if its neuron is chosen by S and by A ("intersection",
            eq. 7.5), or by one of the two ("union", eq. 8.3; then dL/dW is of the same weights, as in eq. 8.5).
        unified: one choice for the whole batch, by the sums of magnitudes over it: products become small dense ones.
        per: for convolutions: what is chosen, "channels" (by the norm of each one's map) or "positions".
        fuse: fold a plain ReLU that follows in an `nn.Sequential` into a linear layer, so that an input of which only a
            part is kept need not be stored for it.
        feedback: a seed: direct feedback alignment, where the error reaches each layer by a fixed random matrix in
            place of W^T.

    Each function is a `fg.TopK`, `RandomK`, `UnscaledDropout`, `Threshold`, or any callable of class S. The presets are
    `topk`, `complete` and `partial`; `auto` chooses one for each layer by measurement. Converts `nn.Linear`,
    `SparseLinear`, `nn.Conv2d`, `nn.LSTM` and `nn.GRU`; the output layer too. Sparsified gradients are not the Jacobian
    of the forward pass: finite differences do not find them. Second derivatives are refused.
    """

    keeps_ties = True

    forward: Function = None
    sensitivity: Function = None
    inputs: Function = None
    weights: Function = None
    neurons: Literal["intersection", "union"] = "intersection"
    unified: bool = False
    per: Literal["channels", "positions"] = "channels"
    fuse: bool = True
    feedback: int | None = None

    @classmethod
    def examples(cls) -> dict[str, Asymmetric]:
        return {"top-k": cls.topk(4), "partial": cls.partial(4, 8), "complete": cls.complete(8)}

    @classmethod
    def topk(cls, k: Any = 40, *, ties: Literal["index", "random"] = "index", **options: Any) -> Asymmetric:
        """The k largest of each sensitivity (Srivastava 2022, eqs. 7.1-7.3)."""
        return cls(sensitivity=TopK(k, ties), **options)

    @classmethod
    def complete(
        cls, k: Any = 170, neurons: Literal["intersection", "union"] = "intersection", *,
        ties: Literal["index", "random"] = "index", **options: Any,
    ) -> Asymmetric:  # fmt: skip
        """The k largest of sensitivity, input and each input's column of W (Srivastava 2022, eqs. 7.4, 7.5; 8.3)."""
        chosen = TopK(k, ties)
        return cls(sensitivity=chosen, inputs=chosen, weights=chosen, neurons=neurons, **options)

    @classmethod
    def partial(
        cls, k1: Any = 40, k2: Any = 200, *, ties: Literal["index", "random"] = "index", **options: Any
    ) -> Asymmetric:
        """The k1 largest of each sensitivity, the k2 largest of each input (Srivastava 2022, eq. 7.6)."""
        if k1 is None or k2 is None:
            raise ValueError(f"Asymmetric.partial: both k1 and k2 are needed. Got k1={k1}, k2={k2}.")
        return cls(sensitivity=TopK(k1, ties), inputs=TopK(k2, ties), **options)

    @staticmethod
    def auto(
        k: Any = 40, k2: Any = 200, batch: int | None = None, candidates: dict[str, Asymmetric] | None = None
    ) -> AsymmetricAuto:
        """For each layer what makes its backward pass fastest here: see `AsymmetricAuto`."""
        given = {} if candidates is None else {"candidates": candidates}
        return AsymmetricAuto(k, k2, 128 if batch is None else batch, **given)

    @functools.cached_property
    def rule(self) -> Rule:
        return Rule(
            self.forward, self.sensitivity, self.inputs, self.weights, self.neurons, self.unified, self.feedback
        )

    def label(self) -> str:
        """A few words, for reports and `repr`."""
        parts = [f"{name}={getattr(self, name)}" for name in ("forward", "sensitivity", "inputs", "weights")
                 if getattr(self, name) is not None]  # fmt: skip
        flags = ["union"] * (self.neurons == "union") + ["unified"] * self.unified
        flags += [] if self.feedback is None else [f"feedback={self.feedback}"]
        return ", ".join([*parts, *flags]) or "exact"

    def accepts(self, module: nn.Module) -> bool:
        return type(module) in Asymmetrical.forms

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        shared: dict[str, Any] = {"order": {}}
        changes = []
        for number, name in enumerate(names):
            layer = model.get_submodule(name)
            new = Asymmetrical.forms[type(layer)].like(layer)
            if self.feedback is not None and type(new) is not AsymmetricLinear:
                raise ValueError(f"Asymmetric: feedback is for linear layers. {name!r} is a {type(layer).__name__}.")
            if type(new) is AsymmetricLinear:
                new.relu = self.fuse and fuse_relu(model, layer)
            new.set_rule(self, name, shared)
            replace_module(model, name, new)
            shared["order"][new], shared["last"] = number, new
            changes.append(Change.of(name, layer, new))
        return changes


@config
class AsymmetricAuto(Conversion):
    """Give each linear layer the way of differentiating that is measured to be fastest on this machine.

    Args:
        k, k2: of the neurons and of the inputs that the candidates keep.
        batch: samples in the batch that is timed.
        candidates: name -> `Asymmetric`; by default top-k, partial and unified top-k. The dense backward pass is always
            among them.

    `fg.convert_` records what was chosen, so that a saved model is rebuilt without measuring again.
    """

    keeps_ties = True

    k: Any = 40
    k2: Any = 200
    batch: Annotated[int, pydantic.Field(ge=1)] = 128
    candidates: dict[str, Asymmetric] | None = None

    @classmethod
    def examples(cls) -> dict[str, AsymmetricAuto]:
        return {}  # it becomes `Asymmetric`

    def accepts(self, module: nn.Module) -> bool:
        return type(module) in (nn.Linear, FeatureMajorLinear)

    def choose(self, model: nn.Module, names: list[str]) -> list[tuple[Conversion, list[str], str]]:
        """The configs and the layers that each is for, with a note of the times."""
        options = self.candidates or {
            "top-k": Asymmetric.topk(self.k),
            "partial": Asymmetric.partial(self.k, self.k2),
            "unified top-k": Asymmetric.topk(self.k, unified=True),
        }
        choices: list[tuple[Conversion, list[str], str]] = []
        for name in names:
            times = backward_times(model.get_submodule(name), options, self.batch, name)
            best = min(times, key=lambda label: times[label])
            note = ", ".join(f"{label} {ms:.3g} ms" for label, ms in times.items())
            choices.append((options.get(best, Asymmetric()), [name], note))
        return choices


def backward_times(
    layer: nn.Module, options: dict[str, Asymmetric], batch: int = 128, name: str = "", seconds: float = 0.1
) -> dict[str, float]:
    """Milliseconds of a linear layer's backward pass, dense and by each option, on random numbers."""
    weight: Any = layer.weight
    if weight.is_meta:
        raise ValueError("Asymmetric.auto: measuring needs real weights. Got a model on the meta device.")
    x = torch.randn(batch, weight.shape[1]).to(weight)
    dy = torch.randn(batch, weight.shape[0]).to(weight)

    def work(module: nn.Module) -> Callable[[], Any]:
        inputs = x.clone().requires_grad_()
        y = module(inputs)
        wanted = [inputs, *module.parameters()]
        return lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True)

    bias: Any = layer.bias
    plain = dense_linear(weight, bias)
    works = {"dense": work(plain)}
    for label, option in options.items():
        works[label] = work(AsymmetricLinear.like(plain).set_rule(option, name))
    timings = time_interleaved(list(works.values()), seconds)
    return {label: timing.median for label, timing in zip(works, timings, strict=True)}
