"""How much a file may ask for: memory and work in proportion to its size, refused before they are taken."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from filigree.modes import DispatchMode

_SMALLEST = 1 << 24  # what the sizes in any file may add up to


class LoadLimits(DispatchMode):
    """While it is active, torch refuses to build more than a model file of this size can be about.

    What counts: the bytes of all tensors that are made (none on the meta device), 2 GiB and 1024 times the file's size
    together, and operations, 10,000 and 200 for each of its tensors. Sparse models were seen to need 7 to 26 times
    their size, structured ones up to 140 times, and 4 to 30 operations a tensor.

    Raises:
        ValueError: more was asked for; before a tensor of a given size is made.
    """

    def __init__(self, path: str | Path, tensors: int) -> None:
        super().__init__()
        self.bytes = (2 << 30) + 1024 * Path(path).stat().st_size
        self.operations = 10_000 + 200 * tensors

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.operations -= 1
        if torch.device(kwargs.get("device") or "cpu").type != "meta":
            # sizes are lists of integers; what randperm and arange make is said by a number
            sizes = [math.prod(arg) for arg in args if isinstance(arg, list) and all(type(n) is int for n in arg)]
            if func.overloadpacket in (torch.ops.aten.randperm, torch.ops.aten.arange):
                sizes += [arg for arg in args if type(arg) is int]
            if func is torch.ops.aten.repeat_interleave.Tensor:
                sizes.append(int(args[0].sum()))
            like = any(isinstance(arg, Tensor) and arg.is_meta for arg in args)
            self._check(0 if like else max(sizes, default=0))
        output = func(*args, **kwargs)
        new = all(part.alias_info is None for part in func._schema.returns)  # neither a view nor written in place
        if new and isinstance(output, Tensor) and not output.is_meta:
            self.bytes -= output.numel() * output.element_size()
        self._check(0)
        return output

    def _check(self, numbers: int) -> None:
        if self.operations < 0 or self.bytes < numbers:
            raise ValueError("a model far larger than the file is asked for")


def check_numbers(plain: Any, path: str | Path) -> None:
    """`ValueError` where the whole numbers of a file's description (seeds apart) add up to more than its size explains.

    They are widths, depths and counts: what is made outside torch is about as large as they say.
    """
    largest, total = max(_SMALLEST, Path(path).stat().st_size), _sum(plain)
    if total > largest:
        raise ValueError(f"the sizes in a file of this length should add up to {largest:,} at most")


def _sum(plain: Any) -> int:
    if isinstance(plain, Mapping):
        return sum(_sum(value) for key, value in plain.items() if key != "seed")
    if isinstance(plain, list | tuple):
        return sum(map(_sum, plain))
    return abs(plain) if isinstance(plain, int) else 0
