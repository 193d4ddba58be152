"""Tensors in the memory order that the kernels read."""

from __future__ import annotations

import torch
from torch import Tensor

from filigree.ops._load import compiled, kernels
from filigree.ops.addresses import matrix
from filigree.ops.transforms import transforming

FLOATS = (torch.float32, torch.float64)
SHORT = (torch.bfloat16, torch.float16)  # of activations that are summed in float32
_LARGE = 4 << 20  # bytes
_modes = torch._C._len_torch_dispatch_stack


def in_memory(x: Tensor) -> bool:
    """Whether a kernel may read x: a plain tensor on the CPU, no transform, tracing or dispatch mode is active."""
    plain = compiled and type(x) in (Tensor, torch.nn.Parameter) and x.is_cpu and not torch.compiler.is_compiling()
    return plain and not _modes() and not transforming()  # modes: fake tensors, the FLOP counter, ...


def floats_on_cpu(x: Tensor) -> bool:
    """Whether x is of the type and on the device of the kernels, and these are there."""
    return compiled and x.is_cpu and x.dtype in FLOATS


def check_native(*tensors: Tensor) -> None:
    """Raise `TypeError` unless kernels can read these tensors: all float32 or all float64, on the CPU."""
    first = tensors[0].dtype
    for tensor in tensors:
        if tensor.dtype is not first or first not in FLOATS or not tensor.is_cpu:
            kinds = ", ".join(f"{t.dtype} on {t.device}" for t in tensors)
            raise TypeError(
                f"filigree's kernels: float32 or float64 throughout, on the CPU, was expected. Got {kinds}."
            )


def check_activations(values: Tensor, *activations: Tensor) -> None:
    """As `check_native`, but beside float32 values activations may be all bfloat16 or all float16."""
    stored = activations[0].dtype
    if stored not in SHORT or values.dtype is not torch.float32:
        return check_native(values, *activations)
    if not values.is_cpu or not all(x.is_cpu and x.dtype is stored for x in activations):
        kinds = ", ".join(f"{t.dtype} on {t.device}" for t in activations)
        raise TypeError(f"filigree's kernels: activations of one type, on the CPU, were expected. Got {kinds}.")
    return None


def resolved(x: Tensor) -> Tensor:
    """`x` as its numbers are in memory: complex arithmetic makes views that are negated only when they are read."""
    return x.resolve_neg() if x.is_neg() else x


def feature_major(x: Tensor) -> Tensor:
    """`x` `(features, batch)` with contiguous rows: itself, or a copy by the blocked transpose."""
    x = resolved(x)
    features, batch = x.shape
    if x.stride(1) == 1 or batch <= 1:
        return x
    if x.stride(0) != 1 or not floats_on_cpu(x):
        return x.contiguous()
    out = new_matrix(x, features, batch)
    kernels.transpose(x.dtype is torch.float64, batch, features, (x.data_ptr(), x.stride(1)), matrix(out))
    return out


def new_matrix(like: Tensor, *shape: int, by_column: bool = False) -> Tensor:
    """`like.new_empty(*shape)`, on huge pages if it is large: with small ones each random read costs a page walk.

    `by_column`: columns are contiguous, not rows.
    """
    new = like.new_empty_strided(shape, (1, max(shape[0], 1))) if by_column else like.new_empty(shape)
    bytes_ = new.numel() * new.element_size()
    if bytes_ >= _LARGE:
        kernels.advise_huge_pages(new.data_ptr(), bytes_)
    return new


def contiguous(x: Tensor) -> Tensor:
    x = resolved(x)
    return x if x.is_contiguous() else x.contiguous()  # the question is cheaper than the call
