"""The rows of one block: R = L^T J, one row per index pair (input, factor column), one column per parameter.

Structures ask for rows in the form they need (explicit, Gram matrix, Kronecker factors) and never learn where they come
from: from the capture of one batch (here) or from a table of all Jacobians (:mod:`ntkml.tabulated`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ntkml.capture import Capture
from ntkml.layers.positions import KroneckerInputs, Positions
from ntkml.linalg import gram


class Rows(Protocol):
    """b = num_rows rows over the parameters in ``shapes``; row order (input, column)."""

    shapes: Mapping[str, torch.Size]
    num_rows: int

    def explicit(self, name: str) -> Tensor:
        """The rows of one parameter tensor. Shape (b, size), in the network's dtype."""

    def gram(self, name: str) -> Tensor:
        """R_l R_l^T of one parameter tensor in float64. Shape (b, b)."""

    def total_gram(self) -> Tensor:
        """R R^T over all parameters in float64. Shape (b, b)."""

    def kronecker_factors(self) -> dict[str, tuple[Tensor, ...]]:
        """By parameter, float64 factors whose Kronecker product approximates R_l^T R_l, one per channel group."""


class CapturedRows:
    """Rows of one captured batch for given cotangents."""

    def __init__(self, captured: Capture, factor: Tensor, shapes: Mapping[str, torch.Size], keep_graph: bool = False):
        """factor: (n, C, k), the columns of L that stand in the block."""
        self.shapes = shapes
        self.num_rows = factor.shape[0] * factor.shape[2]
        self._explicit: dict[str, Tensor] = {}
        self._positions = positions_of(captured, factor, keep_graph)

    def explicit(self, name: str) -> Tensor:
        if name not in self._explicit:
            layer, _, _ = name.rpartition(".")
            for key, rows in self._positions[layer].rows().items():
                self._explicit[qualified(layer, key)] = rows.reshape(self.num_rows, -1)
        return self._explicit[name]

    def gram(self, name: str) -> Tensor:
        layer, _, key = name.rpartition(".")
        if self._positions[layer].direct_is_cheaper():
            return self._positions[layer].gram(key)
        return gram(self.explicit(name))

    def total_gram(self) -> Tensor:
        first, *others = self.shapes
        total = self.gram(first)
        for name in others:  # one at a time: the Grams of all tensors side by side would be many times the result
            total += self.gram(name)
        return total

    def kronecker_factors(self) -> dict[str, tuple[Tensor, ...]]:
        return merge_factors({layer: positions.reduced() for layer, positions in self._positions.items()})


def positions_of(captured: Capture, factor: Tensor, keep_graph: bool) -> dict[str, Positions]:
    """The positions of every layer, its k cotangents pulled back one at a time. factor: (n, C, k)."""
    columns: Sequence[Tensor] = factor.unbind(-1)
    pulled = [captured.pull_back(v, keep_graph or i < len(columns) - 1) for i, v in enumerate(columns)]
    return {layer.name: layer.positions(_stack([g[i] for g in pulled])) for i, layer in enumerate(captured.layers)}


def _stack(gradients: list[Tensor]) -> Tensor:
    """Side by side in dimension 1; a single one is not copied."""
    return gradients[0].unsqueeze(1) if len(gradients) == 1 else torch.stack(gradients, dim=1)


def merge_factors(layers: Mapping[str, KroneckerInputs]) -> dict[str, tuple[Tensor, ...]]:
    """Kronecker factors of all layers by qualified parameter name."""
    return {qualified(layer, key): pair for layer, kept in layers.items() for key, pair in kept.factors().items()}


def qualified(layer: str, key: str) -> str:
    """The parameter's name in the network."""
    return f"{layer}.{key}" if layer else key
