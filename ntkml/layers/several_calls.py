"""A layer that was called several times in a forward pass: it has the positions of all calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ntkml.layers import conv
from ntkml.layers.kronecker import ExactBlocks, KroneckerInputs, KroneckerPart
from ntkml.layers.layer_rows import LayerRows, PlainRows
from ntkml.layers.linear import tokens
from ntkml.layers.uses import LayerUse, PositionsUse, RecurrentUse


@dataclass(frozen=True)
class SeveralUses:
    """A layer that was called several times and is no linear map: its rows are the sums of those of all calls."""

    calls: Sequence[LayerUse]

    @property
    def name(self) -> str:
        return self.calls[0].name

    @property
    def keys(self) -> tuple[str, ...]:
        return self.calls[0].keys

    @property
    def edges(self) -> tuple[GradientEdge, ...]:
        return tuple(edge for call in self.calls for edge in call.edges)

    @property
    def num_calls(self) -> int:
        return len(self.calls)

    @property
    def maps(self) -> Sequence[PositionsUse]:
        return [one for call in self.calls for one in call.maps]

    def rows(self, pulled: Sequence[Tensor]) -> LayerRows:
        found = iter(pulled)
        return RowsOfCalls([call.rows([next(found) for _ in call.edges]) for call in self.calls])

    def over_views(self) -> SeveralUses:
        return SeveralUses([call.over_views() for call in self.calls])

    def detached(self) -> SeveralUses:
        return SeveralUses([call.detached() for call in self.calls])


def used(calls: Sequence[LayerUse]) -> LayerUse:
    """The use of a layer in all of its calls."""
    first = calls[0]
    if len(calls) == 1:
        return first
    linear_maps = [call for call in calls if isinstance(call, PositionsUse) and not isinstance(call.module, conv.TYPES)]
    if len(linear_maps) == len(calls):
        return _linear_map(linear_maps)
    recurrent = [call for call in calls if isinstance(call, RecurrentUse)]
    return _recurrent_layer(recurrent) if len(recurrent) == len(calls) else SeveralUses(calls)


def _linear_map(calls: Sequence[PositionsUse]) -> PositionsUse:
    edges = tuple(edge for call in calls for edge in call.edges)
    joined = torch.cat([tokens(call.inputs, 1) for call in calls], 1)
    return replace(calls[0], edges=edges, inputs=joined, num_calls=len(calls))


def _recurrent_layer(calls: Sequence[RecurrentUse]) -> RecurrentUse:
    maps = [_linear_map(of_all_calls) for of_all_calls in zip(*(call.maps for call in calls), strict=True)]
    return replace(calls[0], maps=maps, num_calls=len(calls))


@dataclass(frozen=True)
class RowsOfCalls(PlainRows):
    """The rows of a layer that was called several times in a forward pass: the sums of the rows of all calls."""

    calls: Sequence[LayerRows]

    @property
    def counts(self) -> tuple[int, int]:
        return self.calls[0].counts

    def rows(self) -> dict[str, Tensor]:
        return {key: self.row(key) for key in self.calls[0].rows()}

    def row(self, key: str) -> Tensor:
        first, *others = (call.row(key) for call in self.calls)
        return sum(others, first)

    def pair(self, gradients: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([call.pair(gradients) for call in self.calls]).sum()

    def reduced(self) -> KroneckerPart:
        first, *others = (call.reduced() for call in self.calls)
        assert isinstance(first, (KroneckerInputs, ExactBlocks)), "linear maps are one map in all of their calls"
        return first.with_calls(others)  # type: ignore[arg-type]  # all calls of a layer give the same
