"""nn.RNN, nn.LSTM, nn.GRU and their cells: in every layer and direction two linear maps to the gates, of its inputs and of its states.

Each is shared by T steps, of which a cell has one in every call. torch computes all of them in one operation; its output is replaced by that of the same steps one
after another, so that the gates have edges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Module types that take a sequence, and those that take a step.
SEQUENCES: tuple[type[nn.RNNBase], ...] = (nn.RNN, nn.LSTM, nn.GRU)
CELLS: tuple[type[nn.RNNCellBase], ...] = (nn.RNNCell, nn.LSTMCell, nn.GRUCell)

#: Module types of this file.
TYPES = SEQUENCES + CELLS

Recurrent = nn.RNNBase | nn.RNNCellBase

#: One step: the gates that the inputs give and those that the states give, with the state h and the cell c, to the next two.
Step = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Gates:
    """One of the linear maps: the names of its weight and bias, and the entries of one row of the weight."""

    weight: str
    bias: str
    in_features: int


@dataclass(frozen=True)
class GateMap:
    """What it maps, (n, T, d), and the tensor whose gradient is that of its gates, (n, T, o)."""

    gates: Gates
    inputs: Tensor
    gradients_at: Tensor


def unsupported(module: Recurrent) -> str | None:
    """Settings under which the steps are others than below."""
    return "it projects its states" if isinstance(module, nn.RNNBase) and module.proj_size else None


def unsupported_call(module: Recurrent, given: tuple[Any, ...], named: Mapping[str, Any]) -> str | None:
    """Why the rows of a call would be wrong, or None."""
    try:
        _arguments(module, given, named)
    except TypeError:
        return f"it is called with other arguments than nn.{type(module).__name__}"
    if not isinstance(given[0], Tensor):
        return "it is called with a packed sequence"
    dimensions = 3 if isinstance(module, SEQUENCES) else 2
    return None if given[0].ndim == dimensions else "it does not see the batch in its first dimension"


def unrolled(
    module: Recurrent, sequence: Tensor, given: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[Any, list[GateMap]]:
    """What the module gives in a call with these arguments, and its linear maps. sequence: its inputs, (n, T, d)."""
    first = _arguments(module, given, named).get("hx")
    if isinstance(module, nn.RNNBase):
        return _all_layers(module, sequence, first)
    start = next(_starts(module, sequence, first, 1))
    _, (state, cell), maps = _one_direction(module, "", sequence, *start)
    return (state, cell) if isinstance(module, nn.LSTMCell) else state, maps


def _all_layers(module: nn.RNNBase, sequence: Tensor, first: Any) -> tuple[tuple[Tensor, Any], list[GateMap]]:
    lasts, maps = [], []
    directions = ("", "_reverse") if module.bidirectional else ("",)
    starts = _starts(module, sequence, first, len(directions) * module.num_layers)
    for layer in range(module.num_layers):
        both = []
        for direction in directions:
            states, last, own = _one_direction(module, f"_l{layer}{direction}", sequence, *next(starts))
            both.append(states)
            lasts.append(last)
            maps += own
        sequence = torch.cat(both, -1) if len(both) > 1 else both[0]
    hidden, cells = (torch.stack(each) for each in zip(*lasts, strict=True))
    sequence = sequence if module.batch_first else sequence.transpose(0, 1)
    return (sequence, (hidden, cells) if isinstance(module, nn.LSTM) else hidden), maps


def _arguments(module: Recurrent, given: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    return signature(type(module).forward).bind(module, *given, **named).arguments


def _starts(module: Recurrent, sequence: Tensor, given: Any, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """State and cell before the first step, of every layer and direction, (n, h) each."""
    if given is None:
        none = sequence.new_zeros(len(sequence), module.hidden_size)
        return iter([(none, none)] * count)
    hidden, cells = given if isinstance(module, (nn.LSTM, nn.LSTMCell)) else (given, given)
    if isinstance(module, nn.RNNCellBase):
        return iter([(hidden, cells)])
    return zip(hidden.unbind(0), cells.unbind(0), strict=True)


def _one_direction(
    module: Recurrent, suffix: str, sequence: Tensor, state: Tensor, cell: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor], list[GateMap]]:
    """All states (n, T, h), the last one with its cell, and both linear maps."""

    def parameter(kind: str) -> Tensor | None:
        found = getattr(module, kind + suffix, None)
        return None if found is None else found.view_as(found)  # one use in the graph, however many steps take it

    step = _step(module)
    weight, bias = parameter("weight_hh"), parameter("bias_hh")
    assert weight is not None
    of_inputs = F.linear(sequence, getattr(module, f"weight_ih{suffix}"), getattr(module, f"bias_ih{suffix}", None))
    if not of_inputs.requires_grad:
        of_inputs.requires_grad_()  # frozen, but the gates of the states have the same gradient
    # Those of a GRU stand in a product before they are added, and have one of their own: that of nothing, added to them.
    has_own = isinstance(module, (nn.GRU, nn.GRUCell))
    nothing = torch.zeros_like(of_inputs).requires_grad_() if has_own else None
    num_steps = sequence.shape[1]
    order = range(num_steps)[::-1] if suffix.endswith("reverse") else range(num_steps)
    inputs_at = of_inputs.unbind(1)
    nothing_at = None if nothing is None else nothing.unbind(1)
    before, after = [state] * num_steps, [state] * num_steps
    for t in order:
        before[t] = state
        of_states = F.linear(state, weight, bias)
        if nothing_at is not None:
            of_states = of_states + nothing_at[t]
        state, cell = step(inputs_at[t], of_states, state, cell)
        after[t] = state
    maps = [
        GateMap(_gates(module, f"ih{suffix}", sequence.shape[-1]), sequence, of_inputs),
        GateMap(
            _gates(module, f"hh{suffix}", module.hidden_size),
            torch.stack(before, 1),
            of_inputs if nothing is None else nothing,
        ),
    ]
    return torch.stack(after, 1), (state, cell), maps


def _gates(module: Recurrent, name: str, fan_in: int) -> Gates:
    return Gates(f"weight_{name}", f"bias_{name}" if module.bias else "", fan_in)


def _step(module: Recurrent) -> Step:
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        return _lstm_step
    if isinstance(module, (nn.GRU, nn.GRUCell)):
        return _gru_step
    activation = torch.tanh if module.nonlinearity == "tanh" else torch.relu
    return lambda inputs, states, state, cell: (activation(inputs + states), cell)


def _lstm_step(inputs: Tensor, states: Tensor, state: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    entry, forget, new, output = (inputs + states).chunk(4, -1)
    cell = forget.sigmoid() * cell + entry.sigmoid() * new.tanh()
    return output.sigmoid() * cell.tanh(), cell


def _gru_step(inputs: Tensor, states: Tensor, state: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    (reset, update, new), (of_reset, of_update, of_new) = inputs.chunk(3, -1), states.chunk(3, -1)
    update = (update + of_update).sigmoid()
    new = (new + (reset + of_reset).sigmoid() * of_new).tanh()
    return new + update * (state - new), cell
