"""Linear layers whose backward pass uses a part of their parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from filigree.modes import is_autocast, outside_graphs
from filigree.nn.asymmetric.sparsification import ColumnRowSampling, HorizonError, Sparsification, TopK, count
from filigree.nn.capabilities import Capabilities
from filigree.nn.drop_in import DropIn
from filigree.nn.sparse.feature_major_linear import FeatureMajorLinear
from filigree.ops import selection
from filigree.ops.c_steps import refuse, relu, trained_linear
from filigree.ops.once_differentiable import once_differentiable
from filigree.ops.selection import Columns, Kept, Rows
from filigree.ops.sparse_rows import refuse_sparse_rows
from filigree.ops.transforms import opaque, transforming

NOTHING: Any = None


@dataclass(frozen=True)
class Rule:
    """What is kept in a layer's passes: the fields of `fg.Asymmetric`, resolved for a layer and an epoch."""

    forward: Sparsification | None = None
    sensitivity: Sparsification | None = None
    inputs: Sparsification | None = None
    weights: Sparsification | None = None
    neurons: Literal["intersection", "union"] = "intersection"
    unified: bool = False
    feedback: int | None = None

    @property
    def is_exact(self) -> bool:
        return not any((self.forward, self.sensitivity, self.inputs, self.weights)) and self.feedback is None

    @property
    def changes_forward(self) -> bool:
        """Whether the forward pass has other outputs than the exact one, or draws random numbers."""
        return self.forward is not None or (self.inputs is not None and self.inputs.draws)

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers, in either pass."""
        return any(f is not None and f.draws for f in (self.forward, self.sensitivity, self.inputs, self.weights))

    def is_plain_topk(self, width: int) -> bool:
        """Whether the fused kernel computes it: few neurons, chosen by top-k, and no other function."""
        function = self.sensitivity
        if not isinstance(function, TopK) or function.ties != "index" or self.feedback is not None:
            return False
        return count(function.k, width) <= selection.DENSE * width and (self.neurons != "union" or not self.weights)

    def at(self, layer: str, epoch: int, epochs: int | None) -> Rule:
        fields = ("forward", "sensitivity", "inputs", "weights")
        functions = {name: getattr(self, name) for name in fields}
        return replace(self, **{n: f.at(layer, epoch, epochs) for n, f in functions.items() if f is not None})


class Asymmetrical(Capabilities):
    """Base of layers with a sparsified backward pass: it holds the rule of each epoch.

    Attributes:
        config: the `fg.Asymmetric` that the layer was made by. rule: its fields resolved for this epoch.
        watched: the `LayerUsage` that the layer's passes are recorded in by `fg.track_usage`, or None.
    """

    forms: ClassVar[dict[type[nn.Module], type[Any]]] = {}
    """What a layer becomes by `fg.Asymmetric`: filled by `class AsymmetricX(Asymmetrical, X, replaces=(X,))`."""

    has_integer_form = False

    def __init_subclass__(cls, replaces: tuple[type[nn.Module], ...] = (), **options: Any) -> None:
        super().__init_subclass__(**options)
        Asymmetrical.forms.update(dict.fromkeys(replaces, cls))

    def tracked(self: Any) -> tuple[Tensor, tuple[Tensor, Tensor] | None] | None:
        """The parameter that `fg.track_usage` watches, with rows and columns of its numbers where it is a sparse
        matrix's; None: the layer cannot be watched."""
        weight = self._parameters.get("weight")
        return None if weight is None else (weight, None)

    def label(self) -> str:
        relu = " + ReLU" if getattr(self, "relu", False) else ""
        return f"{type(self).__name__}({self.config.label()}){relu}"

    def set_rule(self, config: Any, name: str, shared: dict[str, Any] | None = None) -> Self:
        self.config, self._name = config, name
        self.watched: Any = None
        self.shared: dict[str, Any] = {} if shared is None else shared  # by all layers of a network
        self._cache: dict[int, Tensor] = {}  # of this pass, by weight
        return self.set_epoch(0, None)

    def set_epoch(self, epoch: int, epochs: int | None) -> Self:
        """The rule of this epoch (counted from 0), of a run of so many."""
        try:
            self.rule: Rule = self.config.rule.at(self._name, epoch, epochs)
        except HorizonError:
            self.rule = NOTHING  # until fg.SelectionSchedule tells the number of epochs
        return self

    def c_top(self: Any, name: str) -> int | None:
        """How many of a sample's gradients a C program that trains keeps. `ValueError`: it has another rule."""
        config = self.config.rule
        only = replace(config, sensitivity=None).is_exact and not config.unified
        k = config.sensitivity.k if isinstance(config.sensitivity, TopK) else None
        if config.is_exact:
            return None
        if not only or not isinstance(k, int | float) or config.sensitivity.ties != "index":
            expected = "a program that trains keeps the k largest of each sensitivity, fg.Asymmetric.topk(k), alone"
            raise refuse(name, f"has the rule {self.config.label()}: {expected}")
        return count(k, self.out_features)

    def adjoint(self, weight: Tensor) -> Tensor | None:
        """W with each input's column sparsified (the perceptron adjoint), chosen by the first backward pass after a
        forward one. W's version does not tell when it has changed: torch's fused optimizers leave it as it is."""
        if self.rule.weights is None:
            return None
        chosen = self._cache.get(id(weight))
        if chosen is None:
            chosen = self.rule.weights(weight.detach().t().contiguous()).t().contiguous()
            if isinstance(weight, nn.Parameter):  # not what autocast made of it
                self._cache[id(weight)] = chosen
        return chosen

    def begin_pass(self) -> None:
        """A forward pass begins: weights may have changed since the last one."""
        self._cache.clear()

    def is_exact(self: Any, x: Tensor) -> bool:
        """Whether the layer is the exact one now, for x: in eval mode, by the rule, or without gradients.

        Without them what the rule does to the forward pass, and its random numbers, stay: this may be the first pass of
        a checkpoint, whose second one has gradients.

        Raises:
            ValueError: the rule depends on the number of epochs, which is not known.
            TypeError: x is a CSR tensor, which only the exact layer reads.
        """
        if not self.training or (self.watched is None and self.config.rule.is_exact):
            return True
        if not torch.is_grad_enabled() and not self.config.rule.changes_forward:
            return True
        if any(parameter is not None and parameter.is_meta for parameter in self._parameters.values()):
            return True  # it has no numbers to choose from
        if self.rule is None:
            raise ValueError(
                f"{self._name}: its schedule needs to know the number of epochs: fg.SelectionSchedule(model, epochs)."
            )
        refuse_sparse_rows(x, f"{self._name} ({type(self).__name__})")
        return False


class AsymmetricLinear(Asymmetrical, DropIn, nn.Linear, replaces=(nn.Linear, FeatureMajorLinear)):
    """`nn.Linear` with an exact forward and a sparsified backward pass (Srivastava 2022, chapters 7 and 8).

    With delta = dL/d(x W^T + b) of a sample, s its sparsified form, and x' the sparsified input:

        dL/dW = s x'^T (eqs. 7.1, 7.4, 7.6)    dL/dx = W^T s (7.2; 7.5 with W sparsified by columns)    dL/db = s (7.3)

    Made by `fg.convert_(model, fg.Asymmetric...)`; it shares its parameters with the layer it replaces. With `relu` the
    ReLU is part of the layer. In eval mode gradients are exact. Shape: `(..., in_features)` to `(..., out_features)`,
    every position a sample. Dense equivalent: `dense()`.
    """

    relu = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_exact(x):
            return asymmetric_linear(x, self.weight, self.bias, self, self.relu)
        y = super().forward(x)
        return y.relu() if self.relu else y

    def c_training_form(self, name: str) -> list[Any]:
        step = replace(trained_linear(self, name), top=self.c_top(name))
        return [step, relu(name)] if self.relu else [step]

    def extra_repr(self) -> str:
        return super().extra_repr() + (", relu=True" if self.relu else "") + f", {self.config.label()}"

    def dense(self) -> nn.Module:
        """The equivalent `nn.Linear` (and `nn.ReLU`), with a copy of the parameters and exact gradients."""
        linear = super().dense()
        return nn.Sequential(linear, nn.ReLU()) if self.relu else linear

    def onnx_form(self) -> nn.Module:
        linear = super().onnx_form()
        return _LinearReLU(linear, nn.ReLU()) if self.relu else linear


class _LinearReLU(nn.Sequential):
    form = "Linear, ReLU"


@outside_graphs
def asymmetric_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, owner: Asymmetrical, relu: bool = False
) -> Tensor:
    """`x W^T + bias`, differentiated by the owner's rule; x `(..., in)`."""
    x, weight, bias = autocast(x, weight, bias)
    flat = x.reshape(-1, x.shape[-1])
    y: Tensor = with_rule(_AsymmetricProduct.apply, flat, weight, bias, owner, relu)
    return y.view(*x.shape[:-1], weight.shape[0])


def with_rule(function: Any, x: Tensor, weight: Tensor, bias: Tensor | None, owner: Asymmetrical, *rest: Any) -> Tensor:
    """`function(x, weight, bias, owner, *rest)`, whose gradients are by the owner's rule, as `torch.func` takes it.

    Under `vmap` each sample is a batch of its own. A rule's random numbers then come from a generator of its own, so
    that they are the same when gradients are computed.
    """
    if not transforming():
        return function(x, weight, bias, owner, *rest)
    if owner.rule.feedback is not None:
        raise ValueError(
            "feedback: direct feedback alignment hands the error of the last layer to the others, which is possible in "
            "backward() only. Got a transform of torch.func."
        )
    if not owner.rule.draws:
        return opaque(lambda *tensors: function(*tensors, owner, *rest), x, weight, bias)

    def seeded(seed: Tensor, *tensors: Any) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            return function(*tensors, owner, *rest)

    return opaque(seeded, torch.randint(2**63 - 1, ()), x, weight, bias)


def autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """A layer's tensors in the type in which torch's own layers compute: under autocast the lower one."""
    if not is_autocast(x):
        return x, weight, bias
    lower = torch.get_autocast_dtype(x.device.type)
    return x.to(lower), weight.to(lower), None if bias is None else bias.to(lower)


class _AsymmetricProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, owner: Asymmetrical, relu: bool) -> Tensor:
        rule = ctx.rule = owner.rule
        ctx.owner = owner
        owner.begin_pass()
        y = nn.functional.linear(x, weight, bias)
        kept = sparsify_output_(ctx, y, relu)
        inputs = _saved_inputs(rule, x) if ctx.needs_input_grad[1] else x.new_empty(0)
        ctx.saved = _pack(inputs)
        mask = y if relu and inputs is x else kept  # the next layer holds y as its input; the mask is smaller
        ctx.by_value = relu and inputs is x
        ctx.save_for_backward(weight, mask, *ctx.saved[1])
        ctx.saved = ctx.saved[0]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, mask, *tensors = ctx.saved_tensors
        need_input, need_weight, need_bias = ctx.needs_input_grad[:3]
        delta: Tensor = dy
        if mask is not None:
            delta = torch.ops.aten.threshold_backward(dy, mask, 0) if ctx.by_value else dy * mask
        x = _unpack(ctx.saved, tensors) if need_weight else NOTHING
        dx, dw, db = linear_gradients(ctx.owner, ctx.rule, delta, x, weight, need_input, need_weight, ctx.watched)
        return dx, dw, db if need_bias else None, None, None


def sparsify_output_(ctx: Any, y: Tensor, relu: bool) -> Tensor | None:
    """Apply the rule's `forward` function, and ReLU, to a layer's output in place; the usage is recorded.

    Returns:
        A mask of the outputs `(batch, out)` that have a gradient; None if all have.
    """
    kept = None if ctx.rule.forward is None else ctx.rule.forward.mask(y)
    if kept is not None:
        y.mul_(kept)
    ctx.watched = ctx.owner.watched
    if ctx.watched is not None:
        ctx.watched.saw_forward(kept, *y.shape)
    return y.relu_() > 0 if relu else kept


def linear_gradients(
    owner: Asymmetrical,
    rule: Rule,
    delta: Tensor,
    x: Kept,
    weight: Tensor,
    need_input: bool,
    need_weight: bool,
    watched: Any = None,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Gradients of x, W and b by the rule from delta `(batch, out)`, the saved `x` `(batch, in)` and W `(out, in)`."""
    adjoint = owner.adjoint(weight)
    plain = watched is None and rule.is_plain_topk(delta.shape[1]) and selection.native(delta)
    if plain and not isinstance(x, Columns) and not selection.is_thin(x):
        k = count(rule.sensitivity.k, delta.shape[1])  # type: ignore[union-attr]
        inputs = delta.new_empty(1, 1) if x is None else selection.dense(x)
        back = weight if adjoint is None else adjoint
        return selection.top_backward(delta, inputs, back, k, rule.unified, need_input, need_weight)
    if isinstance(rule.sensitivity, ColumnRowSampling):
        kept: Kept = rule.sensitivity.columns(delta, weight)
    else:
        kept = choose(rule.sensitivity, delta, rule.unified)
    if watched is not None:
        chosen = None if rule.sensitivity is None else selection.dense(kept) != 0
        seen_inputs = None if rule.inputs is None or x is None else selection.dense(x) != 0
        watched.saw_backward(
            rule.neurons, chosen, seen_inputs, weight.shape[1], None if adjoint is None else adjoint != 0
        )
    if rule.neurons == "union" and adjoint is not None and rule.sensitivity is not None:
        return _union(kept, delta, x, weight, adjoint)
    dx = None
    if need_input and rule.feedback is not None:
        dx = _direct_feedback(owner, rule.feedback, delta, weight)
    elif need_input:
        dx = selection.times(kept, weight if adjoint is None else adjoint)
    dw = selection.t_times(kept, x) if need_weight else None
    return dx, dw, selection.sums(kept)


def choose(function: Sparsification | None, x: Tensor, unified: bool, transposed: bool = True) -> Kept:
    """`x` `(batch, width)` sparsified: a choice for each sample, or one by the sums of magnitudes over the batch."""
    if function is None:
        return x
    if not unified:
        return function.kept(x, transposed)
    index = function(x.abs().sum(0, keepdim=True))[0].nonzero().squeeze(1)
    return x if len(index) == x.shape[1] else Columns(x.shape[1], x.index_select(1, index), index)


def _union(
    kept: Kept, delta: Tensor, x: Kept | None, weight: Tensor, adjoint: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients where a weight takes part if its neuron was chosen by sensitivity or by its input's column of W.

    This is Srivastava 2022, eq. 8.3. It takes a dense product and a sparse one: a union with a choice that is nearly
    full saves nothing.
    """
    chosen = adjoint != 0
    rest = torch.where(chosen, 0, weight)
    dx = (delta @ adjoint).add_(selection.times(kept, rest))
    dw = None if x is None else torch.where(chosen, selection.t_times(delta, x), selection.t_times(kept, x))
    db = torch.where(chosen.any(1), delta.sum(0), selection.sums(kept))
    return dx, dw, db


def _direct_feedback(owner: Asymmetrical, seed: int, delta: Tensor, weight: Tensor) -> Tensor:
    """Direct feedback alignment: the output's error by a fixed random matrix, drawn again from its seed at each use.

    The last one of the converted layers is the output layer: its delta is the error that all layers receive.

    Raises:
        ValueError: the backward pass reaches another layer before that one.
    """
    shared = owner.shared
    if owner is shared["last"]:
        shared["error"] = delta
    error = shared.get("error")
    if error is None or len(error) != len(delta):
        raise ValueError(
            f"Asymmetric: feedback needs the output layer to be the last one that the model registers, which is "
            f"{shared['last']._name!r}. Got a gradient of {owner._name!r} before."
        )
    numbers = torch.Generator(error.device).manual_seed(seed * 1_000_003 + shared["order"][owner])
    scale = weight.shape[1] ** -0.5
    matrix = torch.randn(error.shape[1], weight.shape[1], generator=numbers, device=error.device, dtype=error.dtype)
    return error @ matrix.mul_(scale)


# -- what the forward pass keeps for the backward pass -----------------------------------------------------------------


def _saved_inputs(rule: Rule, x: Tensor) -> Kept:
    """The input, or only what the rule keeps of it: then the activation itself need not be stored."""
    return choose(rule.inputs, x, rule.unified, transposed=False)


def _pack(x: Kept) -> tuple[tuple[Any, ...], tuple[Tensor, ...]]:
    if isinstance(x, Rows):
        return (Rows, x.width), (x.values, x.indptr, x.indices)
    if isinstance(x, Columns):
        return (Columns, x.width), (x.values, x.index)
    return (Tensor, None), (x,)


def _unpack(kind: tuple[Any, ...], tensors: list[Tensor]) -> Kept:
    return tensors[0] if kind[0] is Tensor else kind[0](kind[1], *tensors)
