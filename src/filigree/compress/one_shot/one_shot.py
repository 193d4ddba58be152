"""The config `OneShot`: sparse weights, and integers, without training."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal, Self

import pydantic
import torch
from torch import Tensor, nn

from filigree.calibration import Calibration
from filigree.compress.compression import Compression
from filigree.compress.one_shot.allocation import by_error
from filigree.compress.one_shot.fitting import Fitted, How, Method, by_magnitude, fitted, side_by_side
from filigree.compress.one_shot.layers import with_layers
from filigree.compress.one_shot.moments import ProductMoments, moments_of, order_of, parts_of
from filigree.compress.one_shot.patterns import Pattern
from filigree.compress.one_shot.products import Product, Recurrent, products_of
from filigree.compress.one_shot.rounding import nearest_scale
from filigree.compress.pruning.errors import OutputError
from filigree.computed_weights import copied
from filigree.config import config
from filigree.convert import Change, Conversion

HELD_OUT = 512  # samples, at most an eighth, that nothing is fitted to

Share = Annotated[float, pydantic.Field(ge=0, lt=1)]
Side = Annotated[int, pydantic.Field(ge=1)]


@config
class OneShot(Compression):
    """Take weights out of a trained network, what stays makes up for them: no training, no labels.

        fg.compress_(model, fg.OneShot(0.7), data)              # 70% of the weights of each layer go
        fg.compress_(model, fg.OneShot(pattern="2:4"), data)    # two of each four
        fg.compress_(model, fg.OneShot(0.5, bits=4), data)      # and what is left is rounded to 4 bits

    Layer by layer, in the order in which they run, W becomes a V with few weights that has least
    `E|V x' + c - W x|^2`, x the layer's inputs in the original and x' those in the network as pruned so far. Which
    weights stay: the optimal brain surgeon (Hassibi and Stork 1993), one weight at a time in small layers, by blocks of
    columns in large ones (SparseGPT: Frantar and Alistarh 2023); then all that stay are refitted by least squares.

    Args:
        sparsity: the share of each layer's weights that goes, 0 to 1; or a mapping of layer names (globs) to that.
            Default: what the pattern leaves, else 0.5.
        pattern: None: any weight. "n:m", such as "2:4": n of each m neighbours along the inputs stay; of a convolution
            m channels at the same tap. `(rows, columns)`: blocks of the weight matrix `(out, in / groups * kernel)`
            stay or go whole, `(1, 9)` the kernels of a 3 x 3 convolution.
        method: what the choice goes by: "obs"; "wanda": `|w| |x|` in each row (Sun et al. 2024); "magnitude".
        compensate: "least_squares"; None: the weights that stay are what they were.
        allocation: "uniform": each layer loses the same share. "error": `sparsity` of all weights go, more of them
            where leaving them out changes the network's outputs less, which is measured for each layer alone.
        bits: weights become integers of so many bits, 2 to 16, times a scale for each row, in the same pass: each
            rounding error is made up for by the weights that are not rounded yet, then all are chosen again in turn.
        sequential: x' as above; else x' = x.
        damping: added to each variance, a share of their mean; None: 0.01, and more where samples are few (oracle
            approximating shrinkage: Chen et al. 2010). seed: of the draws of positions and held-out samples.

    Linear layers and 2-D convolutions become sparse ones (or layers of integers), LSTM and GRU loops over sparse
    products. Other convolutions, transposed ones, attention's packed projections, `nn.RNN`, an LSTM with projections,
    recurrent cells and the linear layers of GPT-2 stay dense, with zeros, as the report says. Layers that the data do
    not reach stay whole. Of recurrent layers and cells `[W_ih W_hh]` is one matrix that reads `[x_t, h_{t-1}]` of all
    time steps (of a GRU's new state two matrices), so that each part makes up for what the other loses; by "obs" each
    row loses the same share, since a sum that varies little may matter at every time step.

    Memory: two copies of the model, what its layers read of 64 samples, and the moments of one layer: `2 columns^2`
    numbers in float64, a gigabyte at most, and as much again to solve for 4,096 columns; a matrix with more of them is
    taken as several side by side, each made up for on its own, in several passes over the data.

    Raises:
        ValueError: no data, unless for method="magnitude", whose weights then stay what they were; numbers that are not
            finite; a pattern that fits no layer. The model is unchanged.
    """

    sparsity: Share | dict[str, Share] | None = None
    pattern: str | tuple[Side, Side] | None = None
    method: Method = "obs"
    compensate: Literal["least_squares"] | None = "least_squares"
    allocation: Literal["uniform", "error"] = "uniform"
    bits: Annotated[int, pydantic.Field(ge=2, le=16)] | None = None
    sequential: bool = True
    damping: Annotated[float, pydantic.Field(gt=0)] | None = None
    seed: int = 0

    @classmethod
    def examples(cls) -> dict[str, Self]:
        return {"OneShot": cls(0.6)}

    def __post_init__(self) -> None:
        pattern = Pattern.of(self.pattern)
        if pattern.m and self.sparsity not in (None, 1 - pattern.n / pattern.m):
            raise ValueError(
                f"OneShot: pattern={self.pattern!r} says how many weights go. Leave out sparsity={self.sparsity!r}."
            )
        if self.allocation == "error" and (pattern.m or isinstance(self.sparsity, dict)):
            raise ValueError('OneShot: allocation="error" needs one sparsity for all, and no n:m.')

    def accepts(self, module: nn.Module) -> bool:
        return bool(products_of(module))

    @torch.no_grad()
    def compress(
        self, model: nn.Module, names: list[str], data: Calibration | None
    ) -> tuple[list[Change], list[tuple[Conversion, list[str]]]]:
        plain = self.method == "magnitude" and self.bits is None and self.allocation == "uniform"
        if data is None and not plain:
            raise ValueError(
                'OneShot: data are needed, unless for method="magnitude" alone: fg.compress_(model, config, data).'
            )
        for name, parameter in model.named_parameters():
            if not bool(parameter.isfinite().all()):
                raise ValueError(f"OneShot: {name!r} is not finite.")
        before, after = copied(model), copied(model)
        inner, left = self._fitting(before, names)
        if data is None:
            fits = {name: self._by_magnitude(after, name) for name in inner}
            return with_layers(model, after, names, fits, left, self._multiple)
        x, held_out = self._split(model, data)
        chunks = parts_of(x)
        runs = order_of(after, inner, chunks)
        left |= {name: "the data do not reach it" for name in inner if name not in runs}
        if not runs:
            raise ValueError(f"OneShot: the data do not reach {inner[0]!r}.")
        if plain and self.compensate is None:
            fits = {name: self._by_magnitude(after, name) for name in runs}
        else:
            shares = self._shares(before, after, chunks, runs, x)
            fits = {name: self._fit(before, after, name, chunks, runs[name], shares[name]) for name in runs}
        changes, steps = with_layers(model, after, names, fits, left, self._multiple)
        which = held_out if held_out is not None else x[:HELD_OUT]
        error = OutputError.of(before, which)(after)
        note = "not fitted to" if held_out is not None else "fitted to"
        changes.append(Change.of("outputs", None, None, f"error {error:.3g} on {len(which)} samples {note}"))
        return changes, steps

    # -- what is asked of each layer -----------------------------------------------------------------------------------

    def _keep(self, name: str) -> float:
        pattern = Pattern.of(self.pattern)
        if pattern.m:
            return pattern.n / pattern.m
        if not isinstance(self.sparsity, dict):
            return 1 - (0.5 if self.sparsity is None else self.sparsity)
        for glob, share in self.sparsity.items():
            if fnmatch.fnmatchcase(name, glob):
                return 1 - share
        raise ValueError(f"OneShot: sparsity has no pattern for {name!r}. Add '*' for the rest.")

    def _how(self) -> How:
        return How(self.method, Pattern.of(self.pattern), self.compensate is not None, self.damping, self.bits)

    @property
    def _multiple(self) -> int:
        pattern = Pattern.of(self.pattern)
        return pattern.m or pattern.columns

    def _products(self, model: nn.Module, name: str) -> dict[str, Product]:
        """The products of a module that the pattern fits."""
        module, m = model.get_submodule(name), Pattern.of(self.pattern).m or 1
        products = products_of(module, self._multiple)
        return {key: each for key, each in products.items() if not each.matrix(module).shape[2] // each.taps % m}

    def _fitting(self, model: nn.Module, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The modules that the pattern fits, and why the others, or parts of them, do not."""
        fit: list[str] = []
        left: dict[str, str] = {}
        for name in names:
            module, fitting = model.get_submodule(name), self._products(model, name)
            if not any(product.matrix(module).numel() for product in fitting.values()):
                fitting = {}
            odd = {key: each for key, each in products_of(module, self._multiple).items() if key not in fitting}
            for key, product in odd.items():
                matrix = product.matrix(module)
                why = f"{self._multiple} does not divide its {matrix.shape[2] // product.taps} inputs"
                why = why if matrix.numel() else "it has no weights"
                left[f"{name}, {key}" if fitting else name] = why
            if fitting:
                self._keep(name)
                fit.append(name)
        if not fit:
            why = f"{names[0]!r}: {left[names[0]]}"
            raise ValueError(f"OneShot: no layer can be pruned (pattern={self.pattern!r}): {why}.")
        return fit, left

    def _split(self, model: nn.Module, data: Calibration) -> tuple[Calibration, Calibration | None]:
        """What is fitted to, and what is not."""
        if data.validation is not None:
            return data, data.validation
        if data.tensor is None:
            return data.split(len(data), self.seed, model, 8)
        count = min(len(data) // 8, HELD_OUT)
        if not count:
            return data, None
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(self.seed)).to(data.tensor.device)
        return data[order[count:].sort().values], data[order[:count].sort().values]

    def _shares(
        self, before: nn.Module, after: nn.Module, chunks: Sequence[Calibration], runs: dict[str, int], x: Calibration
    ) -> dict[str, float]:
        if self.allocation == "uniform":
            return {name: self._keep(name) for name in runs}
        sizes = {
            name: sum(
                product.matrix(before.get_submodule(name)).numel() for product in self._products(before, name).values()
            )
            for name in runs
        }
        error_of = OutputError.of(before, x.some(HELD_OUT, self.seed))
        how = replace(self._how(), bits=None)
        moments: dict[str, list[list[tuple[slice, ProductMoments]]]] = {}

        def error(name: str, keep: float) -> float:
            module = after.get_submodule(name)
            if name not in moments:
                moments.clear()  # one layer's at a time
                moments[name] = [
                    list(moments_of(product, name, (before, before), chunks, runs[name], self.seed))
                    for product in self._products(before, name).values()
                ]
            held = [(part, copy.copy(part._parameters)) for part in (module, *module.children())]
            for product, parts in zip(self._products(before, name).values(), moments[name], strict=True):
                weight = product.matrix(before.get_submodule(name))
                by_row = isinstance(product, Recurrent)
                new = side_by_side(
                    [fitted(weight[..., at], m, keep, how, product.taps, by_row=by_row) for at, m in parts]
                )
                product.write_(module, new.weight, new.shift)
            lost = error_of(after)
            for part, parameters in held:
                for key, parameter in parameters.items():
                    setattr(part, key, parameter)
            return lost

        return by_error(sizes, self._keep(""), error)

    # -- one layer -----------------------------------------------------------------------------------------------------

    def _by_magnitude(self, after: nn.Module, name: str) -> dict[str, Fitted]:
        module, fits = after.get_submodule(name), {}
        for key, product in self._products(after, name).items():
            fits[key] = by_magnitude(product.matrix(module), self._keep(name), Pattern.of(self.pattern), product.taps)
            product.write_(module, fits[key].weight, None)
        return fits

    def _fit(
        self, before: nn.Module, after: nn.Module, name: str, chunks: Sequence[Calibration], runs: int, keep: float
    ) -> dict[str, Fitted]:
        """The new weights of each product of a module, which the module of the pruned network has from then on."""
        module, fits = after.get_submodule(name), {}
        networks = before, after if self.sequential else before
        for key, product in self._products(before, name).items():
            weight, how, parts = product.matrix(before.get_submodule(name)), self._how(), []
            by_row = isinstance(product, Recurrent)
            widths = product.widths(module) if isinstance(product, Recurrent) and len(product.sides) > 1 else ()
            for columns, moments in moments_of(product, name, networks, chunks, runs, self.seed):
                if not all(bool(part.isfinite().all()) for part in (moments.own, moments.cross)):
                    raise ValueError(f"OneShot: the inputs of {name!r} are not finite on these data.")
                scale = self._common_scale(weight, moments, columns)
                parts.append(
                    fitted(weight[..., columns], moments, keep, how, product.taps, scale, widths=widths, by_row=by_row)
                )
            fits[key] = side_by_side(parts)
            product.write_(module, fits[key].weight, fits[key].shift)
        return fits

    def _common_scale(self, weight: Tensor, moments: ProductMoments, columns: slice) -> Tensor | None:
        """Of the integers of a matrix that is taken in several parts."""
        if self.bits is None or columns == slice(0, weight.shape[2]):
            return None
        weight = weight.double().cpu()
        return nearest_scale(weight, torch.ones_like(weight[:, 0]), self.bits).unsqueeze(2)
