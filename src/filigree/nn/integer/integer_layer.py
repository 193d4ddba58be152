"""What layers of small integers share: their bytes, scales and bias."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from filigree.nn.capabilities import Capabilities
from filigree.nn.dense_weight import DenseWeight
from filigree.nn.integer.integer_code import decode, encode
from filigree.nn.integer.integer_onnx import IntegerWeight, PlainSampling
from filigree.nn.onnx_operators import Code, encoded
from filigree.ops.c_steps import ScaleShift, csr, floats, refuse
from filigree.ops.integers import Integers


class IntegerLayer(Capabilities, DenseWeight, nn.Module):
    """Base of `IntegerLinear` and `IntegerConv2d`: `W = scale * C * input_scale`, C a matrix of small integers.

    In `state_dict`: `code`, C in a byte a sample, packed, or in int8 (`filigree.nn.integer.integer_code`); `scale`, one
    for the layer or one a row; `input_scale`, one an input (channel), or absent; `bias`. The integers are constants:
    nothing but the bias can be trained. The form that the kernels read, with int16 or int32 columns, is made from
    the code.
    """

    code: Tensor
    indptr: Tensor
    indices: Tensor
    counts: Tensor
    scale: Tensor
    input_scale: Tensor | None
    activation: SampledActivation | None

    def __init__(
        self, counts: Tensor, scale: Tensor, input_scale: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = counts.shape
        self.register_buffer("scale", scale.detach().clone().reshape(-1))
        self.register_buffer("input_scale", None if input_scale is None else input_scale.detach().clone())
        if bias is not None and bias.shape != (self.out_features,):
            raise ValueError(f"{type(self).__name__}: bias must be ({self.out_features},). Got {tuple(bias.shape)}.")
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.activation = None
        self._set_code(encode(counts))

    @property
    def nnz(self) -> int:
        """Distinct weights kept."""
        return self._nnz

    @property
    def samples(self) -> int:
        """The sum of the magnitudes of the integers: the samples that made them."""
        return int(self.counts.long().abs().sum())

    @property
    def bits(self) -> float:
        """Bits a weight of the dense layer in a file, scales and bias aside."""
        return 8 * self.code.numel() * self.code.element_size() / max(1, self.in_features * self.out_features)

    # -- what it says of itself; see `Capabilities` --------------------------------------------------------------------

    @property
    def macs(self) -> int:
        return self.nnz

    def stored_numbers(self) -> int:
        return super().stored_numbers() + self.nnz

    def stored_nonzeros(self) -> int:
        return super().stored_nonzeros() + self.nnz

    def why_not_prunable(self) -> str | None:
        return None

    def integers(self) -> Tensor:
        """C, `(out_features, in_features)` int32, dense."""
        indptr, columns, counts = decode(self.code, self.out_features, self.in_features)
        rows = torch.repeat_interleave(indptr.diff().long())
        out = torch.zeros(self.out_features, self.in_features, dtype=torch.int32)
        return out.index_put((rows, columns.long()), counts)

    def _dense_weight(self) -> Tensor:
        weight = self.integers().to(self.scale) * self.scale[:, None]
        return weight if self.input_scale is None else weight * self.input_scale

    # -- export --------------------------------------------------------------------------------------------------------

    def c_form(self, name: str) -> list[Any]:
        if self.activation is not None:
            raise refuse(
                name, "samples its activations, which cannot be written as C: give MonteCarlo(activations=None)"
            )
        inputs = floats(self.input_scale)
        before = [] if inputs is None else [ScaleShift(name, inputs, np.zeros_like(inputs), -1)]
        return [*before, *self._c_product(name, csr(self.integers().cpu().numpy()), floats(self.scale))]

    def integer_weight(self) -> IntegerWeight | None:
        return None if self.activation is not None else IntegerWeight(self.integers(), self.scale, self.input_scale)

    def _onnx_code(self) -> Code | None:
        """The integers for an operator of ONNX Runtime, which computes in float32 and samples no activations."""
        return encoded(self.integers()) if self.scale.dtype is torch.float32 and self.activation is None else None

    def _c_product(self, name: str, matrix: Any, scale: Any) -> list[Any]:
        raise NotImplementedError

    # -- keeping the code and what the kernels read in step ------------------------------------------------------------

    def _set_code(self, code: Tensor) -> None:
        self._set_decoded(code, decode(code, self.out_features, self.in_features))

    def _set_decoded(self, code: Tensor, decoded: tuple[Tensor, Tensor, Tensor]) -> None:
        self._nnz = len(decoded[1])
        device = self.scale.device
        self.register_buffer("code", code.to(device))
        for name, part in zip(Integers._fields, self._run_form(*decoded), strict=True):
            self.register_buffer(name, part.to(device), persistent=False)

    def _run_form(self, indptr: Tensor, columns: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return Integers.of(indptr, columns, counts, self.in_features)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        code, scale = state_dict.get(prefix + "code"), state_dict.get(prefix + "scale")
        if isinstance(code, Tensor) and isinstance(scale, Tensor):
            if scale.shape not in ((1,), (self.out_features,)):
                raise ValueError(
                    f"state_dict: {prefix}scale must be (1,) or ({self.out_features},). Got {tuple(scale.shape)}."
                )
            bias = state_dict.get(prefix + "bias")
            if isinstance(bias, Tensor) and bias.shape != (self.out_features,):
                raise ValueError(f"state_dict: {prefix}bias must be ({self.out_features},). Got {tuple(bias.shape)}.")
            try:
                decoded = decode(code, self.out_features, self.in_features)
            except ValueError as error:
                raise ValueError(f"state_dict: {prefix}{error}") from None
            self.scale = torch.empty_like(scale, device=self.scale.device)  # from here on nothing is refused
            stored = state_dict.get(prefix + "input_scale")
            if isinstance(stored, Tensor):
                self.input_scale = torch.empty_like(stored, device=self.scale.device)
            if isinstance(state_dict.get(prefix + "activation.scale"), Tensor):
                self.activation = SampledActivation(1.0).to(self.scale.device)
            if isinstance(bias, Tensor) and self.bias is None:
                self.bias = nn.Parameter(torch.empty_like(bias, device=self.scale.device))
            self._set_decoded(code, decoded)
        super()._load_from_state_dict(state_dict, prefix, *args)


class SampledActivation(Capabilities, nn.Module):
    """Activations as small integers, by the same sampling as of weights.

    `scale * diff(floor(cumsum(|x|) / scale + 1/2)) * sign(x)` along the features (all that is not the batch): samples
    `scale` apart through the cumulative sum of a sample's magnitudes, the first at half a step. Each number is within
    `scale` of what it was, sums over any run of features too. No random numbers: the same in every call.

    Args:
        scale: of one count; by `MonteCarlo(activations=s)` the mean magnitude over the calibration data by s.
    """

    scale: Tensor

    def __init__(self, scale: float | Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.get_default_dtype()).reshape(1))

    def integers(self, x: Tensor) -> Tensor:
        """The integers, in a float type: shape as `x`."""
        flat = x.flatten(1)
        at = (flat.abs().double().cumsum(1) / self.scale + 0.5).floor()
        return (torch.diff(at, dim=1, prepend=at.new_zeros(len(at), 1)) * flat.sign()).reshape(x.shape).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.integers(x) * self.scale

    def onnx_form(self) -> nn.Module:
        return PlainSampling(self)


def by_channel(numbers: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    """A number for each input, or input channel, for each weight `(out, in / groups * taps)` that reads it."""
    inputs = len(numbers) // groups
    each = numbers.view(groups, 1, inputs).expand(-1, len(weight) // groups, -1).reshape(len(weight), inputs)
    return each.repeat_interleave(weight.shape[1] // inputs, 1)
