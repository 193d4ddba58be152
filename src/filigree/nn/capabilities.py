"""What a layer says of itself, so that measuring, pruning, saving, sampling and exporting need no list of layers.

A layer of filigree is a torch module with this mixin: `class MyLayer(Capabilities, nn.Module)`. It has to say its dense
reference; everything else has a default that is right, if not the cheapest, for a layer whose arithmetic is made of
torch's operations. torch's own modules say nothing: what is known of them stands beside each user of these methods.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from filigree.ops.c_steps import refuse


class Capabilities:
    """Mixin of filigree's layers, beside `nn.Module`; see the module's text."""

    # -- reference ---------------------------------------------------------------------------------------------------

    def dense(self) -> nn.Module:
        """The equivalent torch module, for comparison. `ValueError` where there is none."""
        raise ValueError(f"{type(self).__name__} has no dense equivalent.")

    # -- cost (filigree.measure) -------------------------------------------------------------------------------------

    macs: int | None = None
    """Multiply-adds of one sample (of one position of its input); None: torch's counter sees them."""

    def stored_numbers(self: Any) -> tuple[int, int]:
        """How many trained or stored numbers this module holds by itself, and how many of them are not zero."""
        own = list(self.parameters(recurse=False))
        return sum(p.numel() for p in own), sum(int(p.count_nonzero()) for p in own)

    # -- pruning of units (filigree.compress.pruning) and files of what changed its size -----------------------------

    def why_not_prunable(self) -> str | None:
        """Why units cannot be taken out of a network with this layer, to be put behind its name; None: they can."""
        return "keeps its inputs and outputs"

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
        first = dense[0] if isinstance(dense, nn.Sequential) else dense
        return first.weight.detach().flatten(1)


def plain_torch(layer: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """The torch module that a subclass of it is in eval mode, with the same parameters, shared ones too."""
    module = object.__new__(kind)
    module.__dict__.update(layer.__dict__)
    return module
