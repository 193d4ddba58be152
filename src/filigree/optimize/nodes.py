"""Which modules and functions of torch steps can stand for, and how."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from filigree.nn.dropout.dropout import FastDropout
from filigree.nn.sparse.channel_major_batch_norm import ChannelMajorBatchNorm2d
from filigree.ops.curves import CURVE_OF, GELU_OF
from filigree.ops.inference import ADD, MAXIMUM, MEAN, TIMES
from filigree.optimize.attention import attention, layer_norm
from filigree.optimize.concatenation import concatenate, first_tensor
from filigree.optimize.constants import constants
from filigree.optimize.depthwise import depthwise
from filigree.optimize.drafts import NotTaken
from filigree.optimize.functional_layers import FUNCTIONAL_LAYERS
from filigree.optimize.homes import CONCATENATIONS
from filigree.optimize.layouts import Layout
from filigree.optimize.pairs import negative, pairs
from filigree.optimize.planning import Plan
from filigree.optimize.recurrent import layers_of
from filigree.optimize.views import contiguous, flattened, is_of_einops, pad, same, split, unbind, view
from filigree.optimize.weights import is_depthwise, weight_of
from filigree.preserved import has_hooks

_GROWS = ("sizes", "drafts", "layouts", "makers", "homes", "written", "constants")  # of a plan, as nodes are taken


def take(plan: Plan, node: fx.Node) -> bool:
    """Add a node to a plan; returns False, and changes nothing, where it cannot be.

    What is laid out must have the node's size for one sample, and its samples along the same dimension.
    """
    before = {name: copy.copy(getattr(plan, name)) for name in _GROWS}
    try:
        layout = _laid_out(plan, node)
        plan.layouts[node] = _checked(plan, node, layout) if isinstance(layout, Layout) else layout
    except (NotTaken, RuntimeError, IndexError, TypeError, ValueError):
        vars(plan).update(before)
        return False
    plan.nodes.append(node)
    return True


def _checked(plan: Plan, node: fx.Node, layout: Layout) -> Layout:
    """A layout of the size that a node has for one sample, and with the samples along the same dimension."""
    value, samples = plan.traced.single[node], plan.traced.samples(node)
    if samples is None or value.dtype is not torch.float32:
        raise NotTaken
    layout = replace(layout, merged=samples[1] > 1)
    if layout.batch_dim != samples[0] or layout.of_tensor.shape != value.shape:
        raise NotTaken
    return layout


def _laid_out(plan: Plan, node: fx.Node) -> Any:
    first = first_tensor(plan.traced, node)
    if not isinstance(first, fx.Node) or first not in plan.layouts:
        raise NotTaken
    if node.args[0] is not first and node.target not in CONCATENATIONS:
        raise NotTaken
    if node.op == "call_module":
        return _of_module(plan, node, first, plan.traced.module_of(node))
    handler = FUNCTIONS.get(node.target) if node.op == "call_function" else METHODS.get(str(node.target))
    handler = view if handler is None and is_of_einops(node.target) else handler
    if handler is None:
        raise NotTaken
    return handler(plan, node, first)


def _of_module(plan: Plan, node: fx.Node, source: fx.Node, module: Any) -> Any:
    if not node.args or node.kwargs or module.training or has_hooks(module):
        raise NotTaken
    if (layers := layers_of(module)) is not None and all(map(plan.traced.is_zero, node.args[1:])):
        return plan.recurrent(node, source, layers, isinstance(module, nn.LSTM) or module.mode == "LSTM")
    if len(node.args) > 1:
        raise NotTaken
    if type(module) in MODULES:
        return MODULES[type(module)](plan, node, source, module)
    if is_of_einops(module):
        return view(plan, node, source)
    return _layer(plan, node, source)


def _layer(plan: Plan, node: fx.Node, source: fx.Node) -> Any:
    """A linear layer or a convolution: a module, or called by function."""
    module = plan.traced.module_of(node)
    if (equivalent := weight_of(module)) is None:
        raise NotTaken
    dense, weight = equivalent
    if isinstance(dense, nn.Linear):
        return plan.linear(node, source, dense, weight)
    return (depthwise if is_depthwise(dense) else Plan.convolution)(plan, node, source, dense, weight)


def _norm(plan: Plan, node: fx.Node, source: fx.Node, norm: Any) -> Layout:
    return _normed(plan, node, source, [norm.running_mean, norm.running_var, norm.weight, norm.bias], norm.eps)


def _batch_norm(plan: Plan, node: fx.Node, source: fx.Node, running_mean: Any, running_var: Any, weight: Any = None,
                bias: Any = None, training: Any = False, momentum: Any = 0.1, eps: float = 1e-5) -> Layout:  # fmt: skip
    if training is not False:
        raise NotTaken
    return _normed(plan, node, source, constants(plan, running_mean, running_var, weight, bias), eps)


def _layer_norm(plan: Plan, node: fx.Node, source: fx.Node, normalized_shape: Any, weight: Any = None,
                bias: Any = None, eps: float = 1e-5) -> Layout:  # fmt: skip
    weight, bias = constants(plan, weight, bias)
    return layer_norm(plan, node, source, tuple(normalized_shape), weight, bias, eps)


def _normed(plan: Plan, node: fx.Node, source: fx.Node, parts: list[Any], eps: float) -> Layout:
    mean, var, weight, bias = parts
    dim = 2 if plan.rows_first(source).merged else 1
    if mean is None or var is None or plan.shape(source)[dim] != len(mean):
        raise NotTaken
    factor = (var + eps).rsqrt()
    factor = factor if weight is None else factor * weight
    shift = -mean * factor
    shift = shift if bias is None else shift + bias
    return plan.affine(node, source, factor.detach(), shift.detach(), dim)


def _max_pool(plan: Plan, node: fx.Node, source: fx.Node, kernel: Any, stride: Any = None, padding: Any = 0,
              dilation: Any = 1, ceil_mode: bool = False, return_indices: bool = False) -> Layout:  # fmt: skip
    if return_indices or any(d != 1 for d in _many(dilation, 1)):
        raise NotTaken
    taps = _windows(plan, node, source, kernel, stride, padding, clamp=True)
    return plan.pool(node, source, MAXIMUM, taps, plan.shape(node)[2:])


def _mean_pool(plan: Plan, node: fx.Node, source: fx.Node, kernel: Any, stride: Any = None, padding: Any = 0,
               ceil_mode: bool = False, count_include_pad: bool = True,
               divisor_override: Any = None) -> Layout:  # fmt: skip
    sizes, outs = plan.shape(source)[2:], plan.shape(node)[2:]
    kernels, paddings = _many(kernel, len(sizes)), _many(padding, len(sizes))
    strides = kernels if stride in (None, [], ()) else _many(stride, len(sizes))
    windows, counts = [], torch.ones(1)
    for size, out, k, s, p in zip(sizes, outs, kernels, strides, paddings, strict=True):
        first = torch.arange(out) * s - p
        windows.append((first.clamp(min=0), (first + k).clamp(max=size)))
        counts = counts[:, None] * ((first + k).clamp(max=size + p) - first)
        counts = counts.flatten()
    divisors = torch.full_like(counts, divisor_override) if divisor_override is not None else counts
    if divisor_override is None and not count_include_pad:
        return _means(plan, node, source, windows)
    return _means(plan, node, source, windows, divisors)


def _adaptive(plan: Plan, node: fx.Node, source: fx.Node, *_: Any) -> Layout:
    sizes, outs = plan.shape(source)[2:], plan.shape(node)[2:]
    windows = []
    for size, out in zip(sizes, outs, strict=True):
        windows.append((torch.arange(out) * size // out, -(-(torch.arange(out) + 1) * size // out)))
    return _means(plan, node, source, windows)


def _means(plan: Plan, node: fx.Node, source: fx.Node, windows: Sequence[tuple[Tensor, Tensor]],
           divisors: Tensor | None = None) -> Layout:  # fmt: skip
    """The means over windows of pixels, which begin and end so along each dimension, or the sums over other numbers."""
    sizes, outs = plan.shape(source)[2:], plan.shape(node)[2:]
    if not windows or not outs.numel():
        raise NotTaken
    taps, inside = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)
    for size, (first, end) in zip(sizes, windows, strict=True):
        along = first[:, None] + torch.arange(int((end - first).max()))
        taps = (taps[:, None, :, None] * size + along[None, :, None]).flatten(2).flatten(0, 1)
        inside = (inside[:, None, :, None] & (along < end[:, None])[None, :, None]).flatten(2).flatten(0, 1)
    counts = inside.sum(1)
    order = (~inside).to(torch.int8).sort(dim=1, stable=True).indices  # first those within
    taps = torch.where(inside, taps, -1).gather(1, order)
    divisors = counts if divisors is None else divisors
    is_plain = bool((counts == taps.shape[1]).all()) and torch.equal(divisors.to(counts.dtype), counts)
    return plan.pool(node, source, MEAN, taps, outs, None if is_plain else divisors)


def _nearest(plan: Plan, node: fx.Node, source: fx.Node, size: Any = None, scale_factor: Any = None,
             mode: str = "nearest", align_corners: Any = None, recompute_scale_factor: Any = None,
             antialias: bool = False) -> Layout:  # fmt: skip
    """Each pixel is one of the input's."""
    sizes = plan.shape(source)[2:]
    if mode not in ("nearest", "nearest-exact") or isinstance(size, fx.Node):
        raise NotTaken
    numbers = torch.arange(sizes.numel(), dtype=torch.float64).view(1, 1, *sizes)
    taps = F.interpolate(numbers, size, scale_factor, mode, recompute_scale_factor=recompute_scale_factor)
    return plan.pool(node, source, MEAN, taps.reshape(-1, 1).long(), taps.shape[2:])


def _mean(plan: Plan, node: fx.Node, source: fx.Node, dim: Any = None, keepdim: bool = False) -> Layout:
    """Of all pixels, channel by channel, or of all vectors."""
    shape = plan.batch_first(source).positions.shape
    dims = sorted(d % len(shape) for d in (dim if isinstance(dim, tuple | list) else [dim])) if dim is not None else []
    if len(shape) > 2 and dims == list(range(2, len(shape))):
        layout = plan.pool(node, source, MEAN, torch.arange(shape[2:].numel())[None], [1] * len(dims))
        return layout if keepdim else layout.viewed(layout.positions.flatten(1), 0)
    if len(shape) < 3 or dims != list(range(1, len(shape) - 1)) or not plan.has_vectors(source):
        raise NotTaken
    layout = plan.mean_of_vectors(node, source)
    return layout.viewed(layout.positions.view(1, *[1] * len(dims), -1), 0) if keepdim else layout


def _windows(plan: Plan, node: fx.Node, source: fx.Node, kernel: Any, stride: Any, padding: Any, clamp: bool) -> Tensor:
    """The pixels of each window, flat; beyond a border its own pixel again, which a maximum does not notice."""
    sizes, outs = plan.shape(source)[2:], plan.shape(node)[2:]
    dims = len(sizes)
    if not dims:
        raise NotTaken
    kernels, paddings = _many(kernel, dims), _many(padding, dims)
    strides = kernels if stride in (None, [], ()) else _many(stride, dims)
    flat = torch.zeros([1] * 2 * dims, dtype=torch.int64)
    for d in range(dims):
        along = (torch.arange(outs[d]) * strides[d] - paddings[d])[:, None] + torch.arange(kernels[d])
        if clamp:
            along = along.clamp(0, sizes[d] - 1)
        shape = [1] * 2 * dims
        shape[d], shape[dims + d] = along.shape
        flat = flat * sizes[d] + along.view(shape)
    return flat.expand(*outs, *kernels).reshape(outs.numel(), -1)


def _many(value: Any, dims: int) -> list[int]:
    each = list(value) if isinstance(value, tuple | list) else [value]
    if len(each) not in (1, dims):
        raise NotTaken
    return each if len(each) == dims else each * dims


def _call(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A function of torch with further arguments that are plain numbers."""

    def handle(plan: Plan, node: fx.Node, source: fx.Node) -> Any:
        named = {{"kernel_size": "kernel"}.get(key, key): value for key, value in node.kwargs.items()}
        return handler(plan, node, source, *node.args[1:], **named)

    return handle


def _relu(plan: Plan, node: fx.Node, source: fx.Node, *_: Any, **__: Any) -> Layout:
    return plan.activation(node, source)


def _leaky_relu(
    plan: Plan, node: fx.Node, source: fx.Node, negative_slope: float = 0.01, inplace: bool = False
) -> Layout:
    return plan.activation(node, source, torch.tensor([negative_slope]))


def _curve(name: str) -> Callable[..., Layout]:
    def handle(plan: Plan, node: fx.Node, source: fx.Node, *_: Any, **__: Any) -> Layout:
        return plan.activation(node, source, curve=name)

    return handle


def _gelu(plan: Plan, node: fx.Node, source: fx.Node, approximate: str = "none") -> Layout:
    return plan.activation(node, source, curve=GELU_OF[approximate])


def _dropout(plan: Plan, node: fx.Node, source: fx.Node) -> Any:
    given = {**dict(zip(("p", "training"), node.args[1:], strict=False)), **node.kwargs}
    if given.get("training", True):
        raise NotTaken
    return same(plan, node, source)


def _pools(handler: Any) -> Callable[..., Layout]:
    names = ("padding", "dilation", "ceil_mode", "return_indices", "count_include_pad", "divisor_override")

    def handle(plan: Plan, node: fx.Node, source: fx.Node, module: Any) -> Layout:
        settings = {name: getattr(module, name) for name in names if hasattr(module, name)}
        return handler(plan, node, source, module.kernel_size, module.stride, **settings)

    return handle


MODULES: dict[type, Callable[..., Any]] = {
    nn.ReLU: _relu,
    nn.LeakyReLU: lambda p, n, s, m: p.activation(n, s, torch.tensor([m.negative_slope])),
    nn.PReLU: lambda p, n, s, m: p.activation(n, s, m.weight.detach()),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, FastDropout), same),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, ChannelMajorBatchNorm2d), _norm),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _pools(_max_pool)),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _pools(_mean_pool)),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), _adaptive),
    nn.GELU: lambda p, n, s, m: _gelu(p, n, s, m.approximate),
    **{module: _curve(name) for module, name in CURVE_OF.items()},
    nn.LayerNorm: lambda p, n, s, m: layer_norm(p, n, s, m.normalized_shape, m.weight, m.bias, m.eps),
    **dict.fromkeys(
        (nn.Upsample, nn.UpsamplingNearest2d),
        lambda p, n, s, m: _nearest(
            p, n, s, m.size, m.scale_factor, m.mode, recompute_scale_factor=m.recompute_scale_factor
        ),
    ),
    nn.Flatten: lambda p, n, s, m: flattened(p, n, s, m),
}

FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.relu: _relu, torch.relu: _relu, F.dropout: _dropout, F.pad: pad,
    F.leaky_relu: _call(_leaky_relu), F.gelu: _call(_gelu),
    F.silu: _curve("silu"), torch.tanh: _curve("tanh"), F.tanh: _curve("tanh"),
    F.relu6: _curve("relu6"), F.hardswish: _curve("hard_swish"), F.hardsigmoid: _curve("hard_sigmoid"),
    **dict.fromkeys((torch.sigmoid, F.sigmoid), _curve("sigmoid")), F.batch_norm: _call(_batch_norm),
    F.layer_norm: _call(_layer_norm), F.interpolate: _call(_nearest),
    torch.mean: _call(_mean),
    F.scaled_dot_product_attention: _call(attention),
    **dict.fromkeys((F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d), _call(_max_pool)),
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), _call(_mean_pool)),
    **dict.fromkeys((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), _adaptive),
    **dict.fromkeys(FUNCTIONAL_LAYERS, _layer), **dict.fromkeys((operator.neg, torch.neg), negative),
    **dict.fromkeys((operator.add, operator.iadd, torch.add), pairs(ADD)),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub), pairs(ADD, -1)),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div), pairs(TIMES, -1)),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), pairs(TIMES)),
    **dict.fromkeys(CONCATENATIONS, _call(concatenate)), torch.chunk: _call(split), torch.split: _call(split),
    torch.unbind: _call(unbind),
    **dict.fromkeys((torch.flatten, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.reshape,
                     torch.movedim, torch.moveaxis, torch.swapaxes, torch.swapdims, torch.unflatten, torch.narrow,
                     torch.select, torch.roll, operator.getitem, getattr), view),
}  # fmt: skip

METHODS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "t", "unflatten",
                     "movedim", "moveaxis", "swapaxes", "swapdims", "narrow", "select", "roll", "reshape_as",
                     "view_as"), view),
    **dict.fromkeys(("chunk", "split"), _call(split)), "unbind": _call(unbind),
    "contiguous": contiguous, **dict.fromkeys(("detach", "to", "float", "type_as", "clone"), same),
    "neg": negative,
    "relu": _relu, "relu_": _relu, "tanh": _curve("tanh"), "sigmoid": _curve("sigmoid"), "mean": _call(_mean),
    **dict.fromkeys(("add", "add_"), pairs(ADD)), **dict.fromkeys(("mul", "mul_"), pairs(TIMES)),
    **dict.fromkeys(("sub", "sub_"), pairs(ADD, -1)), **dict.fromkeys(("div", "div_"), pairs(TIMES, -1)),
}  # fmt: skip
