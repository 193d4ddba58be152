"""What the layers of torch's recurrent networks and cells read at each time step: inputs and states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

NETWORKS = (nn.LSTM, nn.GRU, nn.RNN)
CELLS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)

Call = tuple[tuple[Any, ...], Mapping[str, Any]]  # the arguments of one call of a module


class Read(NamedTuple):
    """What a layer in one direction reads: x_t `(total, in)`, h_{t-1} `(total, state)`, and with projections what these
    read, `(total, hidden)`; all time steps of all sequences, in one order for the three."""

    ih: Tensor
    hh: Tensor
    hr: Tensor | None = None


def read(module: Any, suffix: str, call: Call) -> Read:
    """What a network's layer and direction of this suffix (such as "_l0_reverse"), or a cell (""), reads in a call."""
    arguments = dict(zip(("input", "hx"), call[0], strict=False)) | dict(call[1])
    x, state = arguments["input"], arguments.get("hx")
    if isinstance(module, CELLS):
        state = state if state is None or isinstance(state, Tensor) else state[0]
        state = x.new_zeros(*x.shape[:-1], module.hidden_size) if state is None else state
        return Read(x.reshape(-1, x.shape[-1]), state.reshape(-1, module.hidden_size))
    x, given = _packed(module, x, state)
    for layer in range(module.num_layers):
        sides = []
        for side in range(2 if module.bidirectional else 1):
            name = f"_l{layer}" + ("_reverse" if side else "")
            turned = (_turned(x.batch_sizes) if side else torch.arange(len(x.data))).to(x.data.device)
            steps = PackedSequence(x.data[turned], x.batch_sizes)
            states = [part[(2 if module.bidirectional else 1) * layer + side].unsqueeze(0) for part in given]
            y = _alone(module, name)(steps, tuple(states) if len(states) > 1 else states[0])[0].data
            if name == suffix:
                before = _before(y, x.batch_sizes, states[0][0])
                return Read(steps.data, before, _unprojected(module, suffix, steps, before, states))
            sides.append(y[turned])  # turned twice, as it was
        x = PackedSequence(torch.cat(sides, 1), x.batch_sizes)
    raise AssertionError(suffix)


def _packed(module: Any, x: Any, state: Any) -> tuple[PackedSequence, list[Tensor]]:
    """The sequences, the longest first, time step by time step; and the initial states, `(layers, sequences, ...)`."""
    given = None if state is None else [state] if isinstance(state, Tensor) else list(state)
    if not isinstance(x, PackedSequence):
        alone = x.dim() == 2
        x = x.unsqueeze(1) if alone else x.transpose(0, 1) if module.batch_first else x
        given = [part.unsqueeze(1) for part in given] if alone and given is not None else given
        x = PackedSequence(x.reshape(-1, x.shape[2]), torch.full((x.shape[0],), x.shape[1]))
    elif given is not None and x.sorted_indices is not None:
        given = [part.index_select(1, x.sorted_indices) for part in given]
    x = PackedSequence(x.data, x.batch_sizes)
    if given is None:
        count = module.num_layers * (2 if module.bidirectional else 1), int(x.batch_sizes[0])
        sizes = [getattr(module, "proj_size", 0) or module.hidden_size]
        sizes += [module.hidden_size] if isinstance(module, nn.LSTM) else []
        given = [x.data.new_zeros(*count, size) for size in sizes]
    return x, given


def _alone(module: Any, suffix: str) -> nn.Module:
    """One layer in one direction as a network of its own, with the same parameters."""
    more = {"nonlinearity": module.nonlinearity} if isinstance(module, nn.RNN) else {}
    more |= {"proj_size": module.proj_size} if isinstance(module, nn.LSTM) else {}
    width = getattr(module, f"weight_ih{suffix}").shape[1]
    one = type(module)(width, module.hidden_size, bias=module.bias, device="meta", **more)
    for name, _ in list(one.named_parameters()):
        setattr(one, name, getattr(module, name.removesuffix("_l0") + suffix))
    return one.eval()


def _turned(sizes: Tensor) -> Tensor:
    """The rows of packed sequences, each read from its end."""
    starts = sizes.cumsum(0) - sizes
    steps, sequence = (sizes[:, None] > torch.arange(int(sizes[0]))).nonzero().T
    lengths = (sizes[:, None] > torch.arange(int(sizes[0]))).sum(0)
    return starts[lengths[sequence] - 1 - steps] + sequence


def _before(y: Tensor, sizes: Tensor, first: Tensor) -> Tensor:
    """What stands one time step before each row: the first states `(sequences, ...)`, then the rows of y."""
    steps = [first, *y.split(sizes.tolist())]
    return torch.cat([step[:size] for step, size in zip(steps, sizes.tolist(), strict=False)])


def _unprojected(
    module: Any, suffix: str, steps: PackedSequence, before: Tensor, states: list[Tensor]
) -> Tensor | None:
    """The states of an LSTM before their projection, `o tanh(c)`."""
    if not getattr(module, "proj_size", 0):
        return None
    gates = steps.data @ getattr(module, f"weight_ih{suffix}").T + before @ getattr(module, f"weight_hh{suffix}").T
    if module.bias:
        gates = gates + getattr(module, f"bias_ih{suffix}") + getattr(module, f"bias_hh{suffix}")
    c, out = states[1][0], []
    for part in gates.split(steps.batch_sizes.tolist()):
        i, f, g, o = part.chunk(4, 1)
        c = f.sigmoid() * c[: len(part)] + i.sigmoid() * g.tanh()
        out.append(o.sigmoid() * c.tanh())
    return torch.cat(out)
