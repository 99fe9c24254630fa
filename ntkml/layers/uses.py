"""One use of one layer in a forward pass: the autograd edges to ask for gradients at, and the rows made of those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from ntkml.layers import attention, conv, linear
from ntkml.layers.embedding import common_indices, embedding_rows
from ntkml.layers.grouped_convolution import GroupedConvolution, grouped_is_faster
from ntkml.layers.layer_rows import ElementwiseRows, LayerRows
from ntkml.layers.patches import Patches
from ntkml.layers.positions import Positions
from ntkml.layers.recurrent import Gates
from ntkml.layers.several_maps import RowsOfMaps


class LayerUse(Protocol):
    """The layer's name in the network, its trainable parameters, and where their gradients are asked for."""

    @property
    def name(self) -> str: ...

    @property
    def keys(self) -> tuple[str, ...]: ...

    @property
    def edges(self) -> tuple[GradientEdge, ...]: ...

    @property
    def num_calls(self) -> int:
        """Calls of the layer in a forward pass."""

    @property
    def maps(self) -> Sequence[PositionsUse]:
        """The linear maps that it is."""

    def rows(self, pulled: Sequence[Tensor]) -> LayerRows:
        """The rows for k cotangents pulled back to every edge, (n * S, k, ...) each."""

    def over_views(self) -> LayerUse:
        """The use that KFAC reduces: inputs averaged over the views, for gradients that are summed over them."""

    def detached(self) -> LayerUse:
        """The same with inputs that have no graph."""


class OneUse(LayerUse, Protocol):
    """That of one call."""

    @property
    def kept(self) -> Tensor | None:
        """What its rows, or torch's own gradient, are made of beside the edges: it must not be overwritten in place."""


@dataclass(frozen=True)
class PositionsUse:
    """A linear or convolutional layer, or a linear map within another one: its input, kept, and the edge of its output.

    A linear map that was called several times has the edges of all calls, and their inputs as its tokens.
    """

    name: str
    keys: tuple[str, ...]
    edges: tuple[GradientEdge, ...]
    module: nn.Module | Gates
    inputs: Tensor
    num_views: int
    num_calls: int = 1

    @property
    def kept(self) -> Tensor | None:
        # A bias alone needs no inputs, but torch's convolution keeps them for it too.
        return self.inputs if isinstance(self.module, conv.TYPES) or self._parameters[0] in self.keys else None

    @property
    def maps(self) -> Sequence[PositionsUse]:
        return (self,)

    @property
    def _parameters(self) -> tuple[str, str]:
        """The names of weight and bias."""
        if isinstance(self.module, Gates):
            return self.module.weight, self.module.bias
        return _code(self.module).PARAMETERS

    def num_patches(self) -> int:
        """Numbers of the input at every position: nine times those of the input at 3 x 3."""
        return self._patches.taken(self.inputs).numel()

    def rows(self, pulled: Sequence[Tensor]) -> Positions:
        code = _code(self.module)
        weight, bias = (key if key in self.keys else "" for key in self._parameters)
        own = pulled[0] if len(pulled) == 1 else torch.cat([linear.tokens(gradient, 2) for gradient in pulled], 2)
        return Positions(
            source=self.inputs,
            patches=self._patches,
            fan_in=code.fan_in(self.module),
            gradients=code.gradients(self.module, own, self.num_views),
            weight=weight,
            bias=bias,
            grouped=self.grouped(own),
        )

    @property
    def _patches(self) -> Patches:
        code = _code(self.module)
        return Patches(partial(code.taken, self.module, self.num_views), partial(code.added, self.module))

    def grouped(self, pulled: Tensor) -> GroupedConvolution | None:
        """The way to its rows without patches, where that is the faster one."""
        module = self.module
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            inputs, pulled = (conv.as_images(module, values) for values in (self.inputs, pulled))
            if grouped_is_faster(inputs, pulled, self.num_views, module.groups):
                return GroupedConvolution(module, inputs, pulled, self.num_views)
        return None

    def over_views(self) -> PositionsUse:
        # Patches are linear in the inputs, so that the mean of S patches is the patch of the mean.
        return replace(self, inputs=average_views(self.inputs, self.num_views), num_views=1)

    def detached(self) -> PositionsUse:
        return replace(self, inputs=self.inputs.detach())


@dataclass(frozen=True)
class RecurrentUse:
    """A recurrent layer: its linear maps, some of which have the same edges.

    ``maps``: those with trainable parameters; ``kept``: the layer's own inputs, where they are those of a map. What other maps are given
    is made for them alone.
    """

    name: str
    maps: Sequence[PositionsUse]
    kept: Tensor | None
    num_calls: int = 1

    @property
    def edges(self) -> tuple[GradientEdge, ...]:
        return tuple(dict.fromkeys(edge for one in self.maps for edge in one.edges))

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for each in self.maps for key in each.keys)

    def rows(self, pulled: Sequence[Tensor]) -> RowsOfMaps:
        at = dict(zip(self.edges, pulled, strict=True))
        return RowsOfMaps([one.rows([at[edge] for edge in one.edges]) for one in self.maps])

    def over_views(self) -> RecurrentUse:
        return replace(self, maps=[each.over_views() for each in self.maps])

    def detached(self) -> RecurrentUse:
        return replace(self, maps=[each.detached() for each in self.maps])


@dataclass(frozen=True)
class EmbeddingUse:
    """An embedding: its indices and the edge of the vectors that it gives for them."""

    name: str
    keys: tuple[str, ...]
    edges: tuple[GradientEdge, ...]
    module: nn.Embedding | nn.EmbeddingBag
    inputs: Tensor
    num_views: int
    num_calls: int = 1

    @property
    def kept(self) -> Tensor | None:
        return self.inputs

    @property
    def maps(self) -> Sequence[PositionsUse]:
        return ()

    def rows(self, pulled: Sequence[Tensor]) -> LayerRows:
        return embedding_rows(self.module, self.inputs, pulled[0], self.num_views)

    def over_views(self) -> EmbeddingUse:
        """Raises ValueError where the views of an input have other indices."""
        indices = common_indices(self.inputs.unflatten(0, (-1, self.num_views)))
        return replace(self, inputs=indices, num_views=1)

    def detached(self) -> EmbeddingUse:
        return self


@dataclass(frozen=True)
class ElementwiseUse:
    """A scale or bias: the edges of every input's own copies of its parameters."""

    name: str
    keys: tuple[str, ...]
    edges: tuple[GradientEdge, ...]
    num_views: int
    num_calls: int = 1

    @property
    def kept(self) -> Tensor | None:
        return None

    @property
    def maps(self) -> Sequence[PositionsUse]:
        return ()

    def rows(self, pulled: Sequence[Tensor]) -> LayerRows:
        summed = [g.unflatten(0, (-1, self.num_views)).sum(1) for g in pulled]  # (n, k, *shape)
        return ElementwiseRows(dict(zip(self.keys, summed, strict=True)))

    def over_views(self) -> ElementwiseUse:
        return replace(self, num_views=1)

    def detached(self) -> ElementwiseUse:
        return self


def average_views(values: Tensor, num_views: int) -> Tensor:
    """Means over the S adjacent views of one datum. (n * S, ...) -> (n, ...)."""
    return values if num_views == 1 else values.unflatten(0, (-1, num_views)).mean(1)


def _code(module: nn.Module | Gates) -> ModuleType:
    if isinstance(module, nn.MultiheadAttention):
        return attention
    return conv if isinstance(module, conv.TYPES) else linear
