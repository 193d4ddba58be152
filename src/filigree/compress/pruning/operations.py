"""What the operations of torch do to the labels of their inputs' elements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from filigree.compress.pruning.label_maps import LabelMaps, aligned, varying

Rule = Callable[[LabelMaps, Any, dict[str, Any], Any], None]  # maps, operation, its arguments by name, its result


def follow(maps: LabelMaps, func: Any, given: dict[str, Any], result: Any) -> None:
    """Give the result of an operation the labels that come of its inputs'."""
    name = name_of(func)
    if _RULES.get(name) is _moved and func._schema.is_mutable:
        fix_all(maps, given, f"are read by {name} in place")
    elif name in _RULES:
        _RULES[name](maps, func, given, result)
    elif torch.Tag.pointwise in func.tags:
        _elementwise(maps, func, given, result)
    else:
        fix_all(maps, given, f"are read by {name}")


def name_of(func: Any) -> str:
    """What it is called, whether it works in place or not."""
    return str(func._schema.name).removeprefix("aten::").rstrip("_")


def arguments(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by their names, with the values of those that are not given."""
    schema = func._schema.arguments
    given = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    return given | {argument.name: value for argument, value in zip(schema, args, strict=False)} | dict(kwargs)


def reduced_dims(given: Mapping[str, Any], dims: int) -> list[int]:
    """The dimensions over which an operation reduces: all where none is named."""
    dim = given.get("dim")
    named = [dim] if isinstance(dim, int) else list(dim or range(dims))
    return [d % max(1, dims) for d in named]


def tensors_of(given: Mapping[str, Any]) -> list[Tensor]:
    """The tensors among arguments, also those in lists."""
    values = [part for value in given.values() for part in (value if isinstance(value, list | tuple) else [value])]
    return [value for value in values if isinstance(value, Tensor)]


def fix_all(maps: LabelMaps, given: Mapping[str, Any], reason: str) -> None:
    for tensor in tensors_of(given):
        for labels in maps.of(tensor):
            maps.labels.fix(labels, reason)


def _first(given: Mapping[str, Any]) -> Tensor:
    return tensors_of(given)[0]


def _split_by(maps: LabelMaps, tensor: Tensor, dims: Sequence[int], reason: str) -> list[Tensor]:
    """The tensor's maps that do not vary over these dimensions; the labels of the others have to stay."""
    kept = []
    for labels in maps.of(tensor):
        if set(varying(labels)) & set(dims):
            labels = maps.settle(labels)
        if set(varying(labels)) & set(dims):
            maps.labels.fix(labels, reason)
        else:
            kept.append(labels)
    return kept


# -- element by element ------------------------------------------------------------------------------------------------


def _elementwise(maps: LabelMaps, func: Any, given: dict[str, Any], result: Any) -> None:
    operands = [tensor for tensor in tensors_of(given) if tensor.numel() > 1 or maps.of(tensor)]
    for out in [result] if isinstance(result, Tensor) else result:
        maps.put(out, maps.meet([(tensor, maps.of(tensor)) for tensor in operands], out.dim()))
        if operands and all(map(maps.is_uniform, operands)):
            maps.set_uniform(out)


def _copy(maps: LabelMaps, func: Any, given: dict[str, Any], result: Tensor) -> None:
    if result._is_view() and maps.of(given["src"]):  # the tensor that it is a part of would have to know
        fix_all(maps, given, "are written into a part of a tensor")
        return
    _elementwise(maps, func, {"src": given["src"]}, result)


def _normalised(maps: LabelMaps, func: Any, given: dict[str, Any], result: Any) -> None:
    """Norms over the last dimensions, or over channels: scales, offsets and statistics meet the channels."""
    x = _first(given)
    last = "normalized_shape" in given
    dims = range(x.dim() - len(given["normalized_shape"]), x.dim()) if last else [1]
    operands: list[tuple[Tensor, Sequence[Tensor]]] = [(x, [maps.settle(labels) for labels in maps.of(x)])]
    for numbers in [tensor for tensor in tensors_of(given) if tensor is not x]:
        shape = list(numbers.shape) if last else [1, -1, *[1] * (x.dim() - 2)]
        own = [labels if last else labels.view([1, *labels.shape, *[1] * (x.dim() - 2)]) for labels in maps.of(numbers)]
        operands.append((numbers.view(shape), own))
    met = maps.meet(operands, x.dim())
    groups = given.get("group", 1)
    for labels in met:
        if name_of(func) == "native_group_norm" and 1 not in varying(labels):
            maps.labels.fix(labels, "are positions of a norm's groups")
        if 1 < groups < x.shape[1] and varying(labels) == list(dims):  # equally many of each group
            maps.slices(labels.view(groups, -1), 1)
    maps.put(result if isinstance(result, Tensor) else result[0], met)


# -- moved -------------------------------------------------------------------------------------------------------------


def _moved(maps: LabelMaps, func: Any, given: dict[str, Any], result: Any) -> None:
    """Elements move, and their labels with them, by the same operation."""
    x = _first(given)
    _map(maps, x, result, lambda labels: func(**_replaced(given, x, labels)))


def _map(maps: LabelMaps, x: Tensor, result: Any, moved: Callable[[Tensor], Any]) -> None:
    results = [result] if isinstance(result, Tensor) else list(result)
    parts = [moved(labels.expand(x.shape)) for labels in maps.of(x)]
    for number, out in enumerate(results):
        maps.put(out, [part if isinstance(result, Tensor) else part[number] for part in parts])
        if maps.is_uniform(x):
            maps.set_uniform(out)


def _replaced(given: dict[str, Any], x: Tensor, labels: Tensor) -> dict[str, Any]:
    return {name: labels if value is x else value for name, value in given.items()}


def _reshaped(maps: LabelMaps, func: Any, given: dict[str, Any], result: Tensor) -> None:
    _map(maps, _first(given), result, lambda labels: labels.reshape(result.shape))


def _padded(maps: LabelMaps, func: Any, given: dict[str, Any], result: Tensor) -> None:
    """Numbers around channels are no units; around the positions of a channel they are the channel's."""
    x, kept = given["self"], []
    for labels in map(maps.compact, maps.of(x)):
        along = [x.dim() - 1 - number // 2 in varying(labels) for number in range(len(given["pad"]))]
        kept.append(torch.constant_pad_nd(labels, [n * used for n, used in zip(given["pad"], along, strict=True)], 0))
    maps.put(result, kept)


def _same(maps: LabelMaps, func: Any, given: dict[str, Any], result: Tensor) -> None:
    x = _first(given)
    maps.put(result, maps.of(x))
    if maps.is_uniform(x):
        maps.set_uniform(result)


def _restrided(maps: LabelMaps, func: Any, given: dict[str, Any], result: Tensor) -> None:
    """The same elements in the same order, where shape and strides stay what they were; else not followed."""
    x = given["self"]
    if result.shape == x.shape and all(
        a == b for a, b, n in zip(result.stride(), x.stride(), x.shape, strict=True) if n > 1
    ):
        maps.put(result, maps.of(x))
    else:
        fix_all(maps, given, "are read by as_strided")


def _shuffled(maps: LabelMaps, func: Any, given: dict[str, Any], result: Tensor) -> None:
    """Channels of several groups in turn: equally many of each."""
    for labels in maps.of(given["self"]):
        if varying(labels) == [1]:
            maps.slices(labels.view(given["groups"], -1), 1)
    _moved(maps, func, given, result)


def _pixels(maps: LabelMaps, func: Any, given: dict[str, Any], result: Tensor) -> None:
    """Channels that become pixels go together."""
    factor = given["upscale_factor"]
    for labels in maps.of(given["self"]):
        if varying(labels) == [labels.dim() - 3]:
            maps.slices(labels.view(-1, factor * factor), 0)
    _moved(maps, func, given, result)


def _joined(maps: LabelMaps, func: Any, given: dict[str, Any], result: Tensor) -> None:
    """Concatenation: along its dimension labels stand behind each other, in the others they meet."""
    tensors = [tensor for tensor in given["tensors"] if tensor.dim() == result.dim() or tensor.numel()]
    _join(maps, tensors, [maps.of(tensor) for tensor in tensors], given["dim"] % result.dim(), result)


def _stacked(maps: LabelMaps, func: Any, given: dict[str, Any], result: Tensor) -> None:
    dim = given["dim"] % result.dim()
    tensors = [tensor.unsqueeze(dim) for tensor in given["tensors"]]
    each = [[labels.unsqueeze(dim) for labels in maps.of(tensor)] for tensor in given["tensors"]]
    for tensor, before in zip(tensors, given["tensors"], strict=True):
        if maps.is_uniform(before):
            maps.set_uniform(tensor)
    _join(maps, tensors, each, dim, result)


def _join(maps: LabelMaps, tensors: list[Tensor], each: list[list[Tensor]], dim: int, result: Tensor) -> None:
    along, across = [], []
    for tensor, own in zip(tensors, each, strict=True):
        own = [maps.compact(labels) for labels in own]
        over = [labels for labels in own if dim in varying(labels)]
        across.append((tensor, [labels for labels in own if dim not in varying(labels)]))
        along.append(over[0] if over else torch.zeros([1] * tensor.dim(), dtype=torch.long))
    joined = []
    if any(bool(labels.any()) for labels in along):
        sides = [max(labels.shape[d] for labels in along) for d in range(result.dim())]
        expanded = [
            labels.expand([tensor.shape[d] if d == dim else sides[d] for d in range(result.dim())])
            for labels, tensor in zip(along, tensors, strict=True)
        ]
        joined.append(torch.cat(expanded, dim))
    # a tensor whose labels vary over several dimensions at once has met the others already
    met = maps.meet([(t, own) for (t, own), labels in zip(across, along, strict=True) if len(varying(labels)) < 2],
                    result.dim())  # fmt: skip
    maps.put(result, [*joined, *met])


def _picked(dims: Callable[[dict[str, Any]], list[int]]) -> Rule:
    """Elements at positions that numbers name: labels move along, but for those of the dimension picked from."""

    def rule(maps: LabelMaps, func: Any, given: dict[str, Any], result: Tensor) -> None:
        x = _first(given)
        kept = _split_by(maps, x, [d % max(1, x.dim()) for d in dims(given)], "are picked by their numbers")
        maps.put(result, [func(**_replaced(given, x, labels.expand(x.shape))) for labels in kept])

    return rule


def _indexed_dims(given: dict[str, Any]) -> list[int]:
    return [dim for dim, index in enumerate(given["indices"]) if index is not None]


def _embedded(maps: LabelMaps, func: Any, given: dict[str, Any], result: Tensor) -> None:
    weight = given["weight"]
    columns = _split_by(maps, weight, [0], "are picked by their numbers")
    maps.put(result, [aligned(labels.flatten(), result.dim()) for labels in columns])


def _scattered(maps: LabelMaps, func: Any, given: dict[str, Any], result: Tensor) -> None:
    """Added up at the positions that a tensor names: the other dimensions meet."""
    x, source = given["self"], given.get("source", given.get("src"))
    dim = given["dim"] % x.dim()
    reason = "are added up where numbers say"
    kept = [(x, _split_by(maps, x, [dim], reason))] if not maps.is_uniform(x) else []
    if isinstance(source, Tensor):
        kept.append((source, _split_by(maps, source, [dim], reason)))
    maps.put(result, maps.meet(kept, result.dim()))


# -- over whole dimensions ---------------------------------------------------------------------------------------------


def _reduced(maps: LabelMaps, func: Any, given: dict[str, Any], result: Any) -> None:
    """Sums, means and the like: over units they are over those that stay."""
    x = _first(given)
    dims = reduced_dims(given, x.dim())
    for out in [result] if isinstance(result, Tensor) else result:
        kept = []
        for labels in maps.of(x):
            if set(varying(labels)) & set(dims):
                labels = maps.settle(labels)
            if not set(varying(labels)) & set(dims):
                keeps = out.dim() == x.dim()
                kept.append(labels if keeps else _squeezed(labels, dims))
        maps.put(out, kept)


def _squeezed(labels: Tensor, dims: Sequence[int]) -> Tensor:
    return labels.reshape([side for dim, side in enumerate(labels.shape) if dim not in dims])


def _compared(reason: str) -> Rule:
    """Elements along a dimension are compared or normalised with each other, so units have to stay there."""

    def rule(maps: LabelMaps, func: Any, given: dict[str, Any], result: Any) -> None:
        x = _first(given)
        dims = reduced_dims(given, x.dim()) if given.get("dim") is not None else list(range(x.dim()))
        kept = _split_by(maps, x, dims, reason)
        for out in [result] if isinstance(result, Tensor) else result:
            maps.put(out, kept if out.dim() == x.dim() else [_squeezed(labels, dims) for labels in kept])

    return rule


def _pooled(spatial: int) -> Rule:
    """Positions are pooled, padded or resampled: channels stay what they are."""

    def rule(maps: LabelMaps, func: Any, given: dict[str, Any], result: Any) -> None:
        x = _first(given)
        kept = _split_by(maps, x, range(x.dim() - spatial, x.dim()), "are positions that are pooled")
        for out in [result] if isinstance(result, Tensor) else result:
            maps.put(out, kept)

    return rule


def _halved(maps: LabelMaps, func: Any, given: dict[str, Any], result: Tensor) -> None:
    x, dim = given["self"], given["dim"]
    halves = [(part, [labels.expand(x.shape).chunk(2, dim)[i] for labels in maps.of(x)])
              for i, part in enumerate(x.chunk(2, dim))]  # fmt: skip
    maps.put(result, maps.meet(halves, x.dim()))


# -- products ----------------------------------------------------------------------------------------------------------


def _product(letters: str) -> Rule:
    """A product of two matrices, by the letters of their dimensions and of the result's, as in `einsum`."""
    one, other, out = letters.replace("->", ",").split(",")

    def rule(maps: LabelMaps, func: Any, given: dict[str, Any], result: Tensor) -> None:
        x, y = tensors_of({key: value for key, value in given.items() if key not in ("self", "input")} if
                          name_of(func).startswith(("add", "badd")) else given)[:2]  # fmt: skip
        product = _contract(maps, [(x, one), (y, other)], out)
        if (added := given.get("self")) is not None and added is not x:
            product = maps.meet([(added, maps.of(added)), (result, product)], result.dim())
        maps.put(result, product)

    return rule


def _contract(maps: LabelMaps, operands: Sequence[tuple[Tensor, str]], out: str) -> list[Tensor]:
    """Unite the labels of dimensions with the same letter; the maps of the result."""
    by_letter: dict[str, list[Tensor | None]] = {}
    for tensor, letters in operands:
        own = {varying(settled)[0]: settled for labels in maps.of(tensor) if varying(settled := maps.settle(labels))}
        for dim, letter in enumerate(letters):
            if tensor.shape[dim] > 1 and not maps.is_uniform(tensor):
                by_letter.setdefault(letter, []).append(own[dim].flatten() if dim in own else None)
    results = []
    for letter, each in by_letter.items():
        labelled = [labels for labels in each if labels is not None]
        for labels in labelled[1:]:
            maps.labels.unite(labelled[0], labels)
        if labelled and len(labelled) < len(each):
            maps.labels.fix(labelled[0], "are read together with numbers that are no units")
        if labelled and letter in out:
            results.append(labelled[0].view([-1 if other == letter else 1 for other in out]))
    return results


def _convolved(maps: LabelMaps, func: Any, given: dict[str, Any], result: Tensor) -> None:
    x, weight, bias, groups = given["input"], given["weight"], given["bias"], given["groups"]
    outs, ins = (1, 0) if given["transposed"] else (0, 1)
    own = {dim: labels.flatten() for labels in maps.of(weight) for dim in varying(labels)}
    read = [maps.settle(labels) for labels in maps.of(x)]
    for labels in read:
        if varying(labels) and varying(labels) != [1]:
            maps.labels.fix(labels, "are positions of a convolution")
    channels = next((labels.flatten() for labels in read if varying(labels) == [1]), None)
    filters = _side(own, outs, weight)
    reading = _side(own, ins, weight)
    if channels is None and x.shape[1] > 1 and not maps.is_uniform(x):
        maps.labels.fix(reading, "read the input")
    if groups == 1:
        if channels is not None:
            maps.labels.unite(channels, reading)
    elif given["transposed"]:  # its weight is (in, out / groups, ...): of inputs and outputs the same of each group
        if channels is not None:
            maps.labels.unite(channels, reading)
        each = reading.view(groups, -1)
        if each.shape[1] > 1:
            maps.labels.unite(each, each[:1].expand_as(each))
        else:
            maps.labels.fix(reading, "are read by a transposed convolution of depth")
        filters = filters.repeat(groups)
    elif channels is not None and len(reading) == 1:  # of depth: each channel makes its own
        maps.labels.unite(filters.view(groups, -1), channels.view(-1, 1).expand(groups, len(filters) // groups))
    else:  # the same of each group
        each = (reading if channels is None else channels).view(-1, len(reading))
        maps.labels.unite(each, reading.expand_as(each))
        maps.slices(filters.view(groups, -1), 1)
    results = [filters.view([1, -1, *[1] * (result.dim() - 2)])]
    if bias is not None:
        results = maps.meet([(bias.view(results[0].shape), [labels.view(results[0].shape) for labels in maps.of(bias)]),
                             (result, results)], result.dim())  # fmt: skip
    maps.put(result, results)


def _side(own: Mapping[int, Tensor], dim: int, weight: Tensor) -> Tensor:
    return own.get(dim, torch.zeros(weight.shape[dim], dtype=torch.long))


# -- the rules by name -------------------------------------------------------------------------------------------------


def _filled(maps: LabelMaps, func: Any, given: dict[str, Any], result: Tensor) -> None:
    maps.set_uniform(result)


def _fresh(maps: LabelMaps, func: Any, given: dict[str, Any], result: Any) -> None:
    """Numbers of its own."""


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_RULES: dict[str, Rule] = {
    **_named(_elementwise, "_prelu_kernel prelu masked_fill where native_dropout lerp addcmul addcdiv rrelu_with_noise "
             "softplus celu hardswish hardsigmoid hardtanh mish elu leaky_relu silu gelu threshold hardshrink "
             "softshrink "
             "logit"),
    **_named(_copy, "copy"),
    **_named(_filled, "zeros ones full new_zeros new_ones new_full scalar_tensor empty new_empty "
             "zeros_like ones_like full_like empty_like rand_like randn_like"),
    **_named(_fresh, "arange randn rand randint randperm linspace eye _local_scalar_dense equal"),
    **_named(_same, "clone _to_copy contiguous detach alias lift_fresh lift_fresh_copy lift dropout tril triu"),
    **_named(_reshaped, "view _unsafe_view reshape _reshape_alias flatten unflatten"),
    **_named(_moved, "permute transpose t expand squeeze unsqueeze slice select split split_with_sizes unsafe_split "
             "unsafe_split_with_sizes chunk unsafe_chunk unbind narrow movedim flip repeat diagonal numpy_T "
             "repeat_interleave unfold pixel_unshuffle split_copy unbind_copy expand_copy"),
    **_named(_restrided, "as_strided"),
    **_named(_shuffled, "channel_shuffle native_channel_shuffle"),
    **_named(_pixels, "pixel_shuffle"),
    **_named(_padded, "constant_pad_nd"),
    **_named(_joined, "cat concat concatenate"),
    **_named(_stacked, "stack"),
    **_named(_picked(_indexed_dims), "index _unsafe_index"),
    **_named(_picked(lambda given: [given["dim"]]), "index_select gather"),
    **_named(_picked(lambda given: list(given["dims"])), "roll"),
    **_named(_embedded, "embedding"),
    **_named(_scattered, "index_add scatter_add scatter_reduce index_reduce index_copy"),
    **_named(_reduced, "sum mean amax amin var std linalg_vector_norm norm prod max min median any all var_mean "
             "std_mean logsumexp nansum"),
    **_named(_compared("are compared with each other"), "softmax _softmax _log_softmax _safe_softmax log_softmax sort "
             "topk argmax argmin cumsum cumprod argsort logcumsumexp"),
    **_named(_normalised, "native_layer_norm layer_norm native_group_norm native_batch_norm "
             "_native_batch_norm_legit_no_training _native_batch_norm_legit cudnn_batch_norm batch_norm "
             "_batch_norm_with_update _fused_rms_norm rms_norm"),
    **{f"{name}{n}d": _pooled(n) for n in (1, 2, 3) for name in (
        "avg_pool", "max_pool", "adaptive_avg_pool", "_adaptive_avg_pool", "adaptive_max_pool", "reflection_pad",
        "replication_pad", "upsample_nearest", "_upsample_nearest_exact", "fractional_max_pool")},
    **{f"max_pool{n}d_with_indices": _pooled(n) for n in (2, 3)},
    **_named(_pooled(1), "upsample_linear1d"),
    **_named(_pooled(2), "upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"),
    **_named(_pooled(3), "upsample_trilinear3d"),
    **_named(_halved, "glu"),
    **_named(_product("nk,km->nm"), "mm addmm"),
    **_named(_product("bnk,bkm->bnm"), "bmm baddbmm"),
    **_named(_product("nk,k->n"), "mv addmv"),
    **_named(_product("k,k->"), "dot vdot"),
    **_named(_convolved, "convolution _convolution convolution_overrideable mkldnn_convolution"),
}  # fmt: skip

STATISTICS = frozenset(
    name for name, rule in _RULES.items() if rule in (_reduced, _normalised) and "batch_norm" not in name
)
PRODUCTS = frozenset(["mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "vdot", "convolution"])
