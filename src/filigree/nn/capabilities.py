"""What a layer says of itself, so that measuring, pruning, saving, sampling and exporting need no list of layers.

A layer of filigree is a torch module with this mixin: `class MyLayer(Capabilities, nn.Module)`. It has to say its dense
reference; everything else has a default that is right, if not the cheapest, for a layer whose arithmetic is made of
torch's operations. What is known of torch's own modules stands in `filigree.summary` and
`filigree.nn.resizing`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from filigree.nn.resizing import torch_sizes
from filigree.ops.c_steps import refuse
from filigree.summary import matrix_numbers, sized_label


class Capabilities:
    """Mixin of filigree's layers, beside `nn.Module`; see the module's text."""

    # -- reference ---------------------------------------------------------------------------------------------------

    def dense(self) -> nn.Module:
        """The equivalent torch module, for comparison. `ValueError` where there is none."""
        raise ValueError(f"{type(self).__name__} has no dense equivalent.")

    def label(self) -> str:
        """What reports call the layer."""
        return sized_label(self)

    # -- cost (filigree.measure) -------------------------------------------------------------------------------------

    @property
    def macs(self: Any) -> int:
        """Multiply-adds of one sample (of one position of its input); default: a number of a matrix is one."""
        return matrix_numbers(self)

    uncounted = False
    """Whether torch's counter does not see the arithmetic: `measure` then takes `macs`, and twice that backward."""

    runs_together = False
    """Whether a call needs other processes to make the same call: then nothing here is timed by the clock."""

    def stored_numbers(self: Any) -> int:
        """How many trained or stored numbers this module holds by itself."""
        return sum(parameter.numel() for parameter in self.parameters(recurse=False))

    def stored_nonzeros(self: Any) -> int:
        """How many of these numbers are not zero."""
        return sum(int(parameter.count_nonzero()) for parameter in self.parameters(recurse=False))

    # -- pruning of units (filigree.compress.pruning) and files of what changed its size -----------------------------

    def sizes(self: Any) -> list[int] | None:
        """The sizes that pruning can change: outputs, inputs, whether there is a bias, and more; None: it can none.

        A layer that says its sizes has `keep_outputs_` and `keep_inputs_` too, unless it is a subclass of a torch
        module whose units can be pruned.
        """
        return torch_sizes(self)

    def resized_(self) -> None:
        """Make what depends on the sizes anew: parameters, buffers and attributes have those of a pruned layer now."""

    def keep_outputs_(self, kept: Tensor) -> None:
        """Lose all outputs but these `(kept,)`, which are sorted."""
        raise NotImplementedError

    def keep_inputs_(self, kept: Tensor) -> None:
        """Lose all inputs but these `(kept,)`, which are sorted."""
        raise NotImplementedError

    def why_not_prunable(self: Any) -> str | None:
        """Why units cannot be taken out of a network with this layer, to be put behind its name; None: they can."""
        tensors = [*self.parameters(recurse=False), *self.buffers(recurse=False)]
        fixed = self.sizes() is None and any(tensor.numel() > 1 for tensor in tensors)
        return "has a number for each unit, which cannot be pruned" if fixed else None

    # -- sampling and sparsified backpropagation ---------------------------------------------------------------------

    has_integer_form = False
    """Whether a layer of small integers can stand in its place: it computes `x W^T + b`, or a convolution by such a W,
    with W its `weight_matrix()`, and then a ReLU if it has an attribute `relu` that says so."""

    # -- layout for inference (filigree.optimize) --------------------------------------------------------------------

    calls_layers_only = False
    """Whether its forward calls the modules in it and does nothing else: each of them is laid out then."""

    # -- export ------------------------------------------------------------------------------------------------------

    def onnx_form(self: Any) -> nn.Module:
        """A module with the same outputs in eval mode, made of operations that ONNX has; the layer itself if it is one.

        An attribute `form` of what is returned says in a word what stands in the file. Submodules have been replaced by
        their own forms before.
        """
        return self

    def onnx_candidates(self) -> dict[str, nn.Module]:
        """Several such modules by the names of their forms, of which the fastest is taken; {}: `onnx_form`."""
        return {}

    def onnx_operator(self) -> nn.Module | None:
        """The layer as a node of filigree's operators for ONNX Runtime (`filigree.nn.onnx_operators`), or None."""
        return None

    def integer_weight(self) -> Any:
        """The weight as an `IntegerWeight` (`filigree.nn.integer.integer_onnx`), of a layer that is `dense()` with that
        weight; None: it is none of integers, or does more."""
        return None

    def c_form(self: Any, name: str) -> list[Any]:
        """The layer in eval mode as steps of a C program (`filigree.ops.c_steps`). Default: its dense equivalent's.

        A pair of a name and a module in the list stands for the steps of that module. `ValueError` names a layer that
        cannot be written as C.
        """
        try:
            dense = self.dense()
        except ValueError as error:
            reason = str(error).rstrip(".")
            raise refuse(name, f"is a {type(self).__name__}, which cannot be written as C: {reason}") from None
        return [(name, part) for part in (dense if isinstance(dense, nn.Sequential) else [dense])]

    def c_training_form(self, name: str) -> list[Any]:
        """The layer as steps of a C program that trains as `torch.optim.SGD` does. `ValueError`: it cannot."""
        raise refuse(name, f"is a {type(self).__name__}, which a program that trains cannot hold")

    def weight_matrix(self: Any) -> Tensor:
        """The weight as `(out_features, in_features)`, zeros where there is no connection."""
        dense = self.dense()
        layer: Any = dense[0] if isinstance(dense, nn.Sequential) else dense
        weight: Tensor = layer.weight
        return weight.detach().flatten(1)
