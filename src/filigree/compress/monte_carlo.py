"""The config `MonteCarlo`: weights as integers drawn by importance sampling, without retraining."""

from __future__ import annotations

import copy
import fnmatch
from typing import Annotated, Any, Literal, Self

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.calibration import Calibration
from filigree.compress.compression import Compression
from filigree.compress.error_diffusion import diffuse_errors
from filigree.compress.weight_sampling import Sampling, sample
from filigree.config import config
from filigree.convert import Change, Conversion, layer_inputs, replace_module, run_on
from filigree.nn.integer.empty_integer_layers import (
    EmptyIntegerLayers,
    has_integer_form,
    integer_layer,
    weight_matrix,
)
from filigree.nn.integer.integer_layer import IntegerLayer, SampledActivation, by_channel
from filigree.wrappers import check_on_cpu

WIDE = 5_000  # columns of a matrix: error diffusion holds six matrices of their square, 1.2 GB
POSITIONS = 20_000  # of a convolution or a sequence, at most, that calibration looks at

Share = Annotated[float, pydantic.Field(gt=0)]


@config
class MonteCarlo(Compression):
    """Quantise trained layers to small integers by sampling (Keller et al.; Mordido et al. 2019); no retraining.

        fg.compress_(model, fg.MonteCarlo(samples=0.12))              # from the weights alone
        fg.compress_(model, fg.MonteCarlo(samples=0.12), calibration) # calibrated: better by far

    |w| over a layer or a neuron is a density; N samples are drawn from it; weight k becomes its sign times the number
    of samples that hit it, times one scale, `sum |w| / N`. Few samples leave few weights: at 0.12 samples a weight at
    most 12% are kept, most with a count of one (ternary). Without data the expectation of a layer is the layer.

    Args:
        samples: a weight, > 0 (of a sparse layer: a connection); or a mapping of layer names (globs) to that, the first
            that fits.
        per: what has a density and a scale of its own: the "layer", or each "neuron" (of a convolution: "filter").
        sampling: "jittered" (equidistant, one random shift), "stratified" (a shift each) or "independent" points.
        calibrate: what data are used for. "error_diffusion": the error of each weight is spread over those not yet
            sampled, as the data say (`filigree.compress.error_diffusion`; in layers of more than 5,000 columns it is
            "rms"), and the expectation is no longer the layer: the output on the data is what is kept. "rms": the
            density is |w| rms(x), the integers stand for w rms(x), and inputs are divided by their rms. "none": for the
            bias only. Layer by layer, on the quantised network's own inputs.
        correct_bias: with data, the mean shift of each unit goes to its bias.
        activations: with data, the inputs of each layer are sampled too: counts an activation (mean over the data).
        damping: of "error_diffusion". seed: the same seed, the same integers.

    Biases and batch norms stay as they are but for the shift; sparse layers stay within their connections.

    Raises:
        ValueError: an all-zero layer, NaN or infinite weights, activations without data; the model is unchanged.
    """

    samples: Share | dict[str, Share] = 0.12
    per: Literal["layer", "neuron", "filter"] = "layer"
    sampling: Sampling = "jittered"
    calibrate: Literal["error_diffusion", "rms", "none"] = "error_diffusion"
    correct_bias: bool = True
    activations: Share | None = None
    damping: Share = 0.1
    seed: int = 0

    @classmethod
    def examples(cls) -> dict[str, Self]:
        return {"MonteCarlo": cls(samples=1.0)}

    def accepts(self, module: nn.Module) -> bool:
        return has_integer_form(module)

    @torch.no_grad()
    def compress(
        self, model: nn.Module, names: list[str], data: Calibration | None
    ) -> tuple[list[Change], list[tuple[Conversion, list[str]]]]:
        if data is not None:
            check_on_cpu(model, "MonteCarlo")
        if data is None and self.activations is not None:
            raise ValueError("MonteCarlo: activations need data: fg.compress_(model, config, data).")
        for name in names:
            weight = weight_matrix(model.get_submodule(name))
            if not bool(weight.isfinite().all()):
                raise ValueError(f"MonteCarlo: the weights of {name!r} are not finite.")
            if not bool(weight.any()):
                raise ValueError(f"MonteCarlo: the weights of {name!r} are all zero: there is nothing to sample.")
            self._samples(name)
        generator = torch.Generator().manual_seed(self.seed)
        copied = copy.deepcopy(model).eval()  # inputs of the original are read from the model until all is done
        if data is not None:
            names = _in_order(copied, names, data)
        changes = []
        for name in names:
            layer: Any = model.get_submodule(name)
            if data is None:
                share = self._share(name, layer)
                counts, scale = sample(weight_matrix(layer), share, self._per, self.sampling, generator)
                new = integer_layer(layer, counts, scale, None, layer.bias)
            else:
                new = self._calibrated(model, copied, name, data, generator)
            replace_module(copied, name, new)
            drawn = int(new.integers().abs().sum())
            numbers = new.in_features * new.out_features
            size = getattr(layer, "nnz", numbers)
            bits = new.bits * numbers / size
            note = f"{drawn:,} samples, {new.nnz / size:.1%} of the weights kept, {bits:.3g} bits a weight"
            if data is not None and self._how(weight_matrix(layer)) != self.calibrate:
                note += f", by rms: {new.in_features:,} columns are too many for error diffusion"
            changes.append(Change.of(name, layer, new, note))
        steps: list[tuple[Conversion, list[str]]] = []
        for name in names:
            quantised: Any = copied.get_submodule(name)
            replace_module(model, name, quantised)
            steps.append((EmptyIntegerLayers.like(quantised), [name]))
        return changes, steps

    @property
    def _per(self) -> Literal["layer", "row"]:
        return "layer" if self.per == "layer" else "row"

    def _how(self, weight: Tensor) -> str:
        """How the layer is calibrated: wide ones by rms, since error diffusion takes memory by the columns' square."""
        wide = self.calibrate == "error_diffusion" and weight.shape[1] > WIDE
        return "rms" if wide else self.calibrate

    def _share(self, name: str, layer: Any) -> float:
        """Samples a place of the weight matrix: fewer than a weight where the layer is sparse."""
        numbers = weight_matrix(layer).numel()
        return self._samples(name) * getattr(layer, "nnz", numbers) / numbers

    def _samples(self, name: str) -> float:
        if not isinstance(self.samples, dict):
            return self.samples
        for glob, share in self.samples.items():
            if fnmatch.fnmatchcase(name, glob):
                return share
        raise ValueError(f"MonteCarlo: samples has no pattern for {name!r}. Add '*' for the rest.")

    def _calibrated(
        self, model: nn.Module, copied: nn.Module, name: str, data: Calibration, generator: torch.Generator
    ) -> IntegerLayer:
        layer: Any = model.get_submodule(name)
        was, now = (layer_inputs(network, [name], data, "MonteCarlo")[name] for network in (model, copied))
        for x in (was, now):
            if not bool(x.isfinite().all()):
                raise ValueError(f"MonteCarlo: the inputs of {name!r} are not finite on these data.")
        activation = None
        if self.activations is not None:
            activation = SampledActivation(now.abs().mean().clamp(min=1e-12) / self.activations)
            now = activation(now)
        weight, share = weight_matrix(layer), self._share(name, layer)
        groups, input_scale = getattr(layer, "groups", 1), None
        parts = weight.view(groups, -1, weight.shape[1])
        how = self._how(weight)
        if how == "error_diffusion":
            columns, columns_now = _columns(layer, was, now)
            mask = (parts != 0) if hasattr(layer, "nnz") else [None] * groups
            pairs = [
                diffuse_errors(part, *_covariances(x, y), share, self._per == "row", self.damping, generator, allowed)
                for part, x, y, allowed in zip(parts, columns, columns_now, mask, strict=True)
            ]
            counts = torch.cat([pair[0] for pair in pairs])
            scale = torch.cat([s.expand(len(c)) for c, s in pairs]) if groups > 1 else pairs[0][1]
        elif how == "rms":
            rms = _input_rms(layer, now)
            counts, scale = sample(weight * by_channel(rms, weight, groups), share, self._per, self.sampling, generator)
            input_scale = 1 / rms.clamp(min=1e-12)
        else:
            counts, scale = sample(weight, share, self._per, self.sampling, generator)
        new = integer_layer(layer, counts, scale, input_scale, layer.bias)
        new.activation = activation
        if self.correct_bias:
            shift = _channel_means(layer, was) - _channel_means(new, now, sampled=True)
            new.bias = nn.Parameter(shift if new.bias is None else new.bias + shift)
        return new


def _in_order(model: nn.Module, names: list[str], data: Calibration) -> list[str]:
    """The layers in the order in which they run."""
    order: list[str] = []
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _m, _a, name=name: order.append(name))
        for name in names
    ]
    try:
        run_on(model, data[:1], "MonteCarlo")
    finally:
        for hook in hooks:
            hook.remove()
    missing = [name for name in names if name not in order]
    if missing:
        raise ValueError(f"MonteCarlo: the data do not reach {missing[0]!r}.")
    return list(dict.fromkeys(order))


def _is_conv(layer: Any) -> bool:
    return hasattr(layer, "kernel_size")


def _columns(layer: Any, was: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
    """What each weight of a row reads, `(groups, positions, in_features)`, of both networks at the same positions."""
    if not _is_conv(layer):
        was, now = was.reshape(1, -1, was.shape[-1]), now.reshape(1, -1, now.shape[-1])
    else:
        was, now = (_patches(layer, x) for x in (was, now))
    step = max(1, -(-was.shape[1] // POSITIONS))
    return was[:, ::step], now[:, ::step]


def _patches(layer: Any, x: Tensor) -> Tensor:
    kernel, g = layer.kernel_size, layer.groups
    around = tuple(layer._around if hasattr(layer, "_around") else layer._reversed_padding_repeated_twice)
    mode = {"zeros": "constant"}.get(layer.padding_mode, layer.padding_mode)
    most = max(1, POSITIONS * 8 // max(1, x[0, 0].numel()))  # images: their patches are k^2 times as large
    x = F.pad(x[:: max(1, len(x) // most)], around, mode=mode)
    patches = F.unfold(x, kernel, dilation=layer.dilation, stride=layer.stride)  # (images, C k k, positions)
    patches = patches.view(len(x), g, -1, patches.shape[-1]).permute(1, 0, 3, 2)
    return patches.reshape(g, -1, patches.shape[-1])


def _covariances(was: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
    was, now = was - was.mean(0), now - now.mean(0)
    return now.T @ now / len(now), now.T @ was / len(now)


def _input_rms(layer: Any, x: Tensor) -> Tensor:
    """Of each input, of a convolution each input channel."""
    if _is_conv(layer):
        return x.square().mean((0, 2, 3)).sqrt()
    return x.reshape(-1, x.shape[-1]).square().mean(0).sqrt()


def _channel_means(layer: Any, x: Tensor, sampled: bool = False) -> Tensor:
    """The mean of each output unit or channel, before a fused ReLU."""
    relu, layer.relu = getattr(layer, "relu", False), False
    activation = getattr(layer, "activation", None)
    if sampled:
        layer.activation = None  # x has been sampled already
    try:
        y = layer.forward(x)  # without the hooks of a user, which stay behind it
    finally:
        layer.relu = relu
        if sampled:
            layer.activation = activation
    return y.mean((0, 2, 3)) if _is_conv(layer) else y.reshape(-1, y.shape[-1]).mean(0)
