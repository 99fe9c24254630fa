"""The rows of one block: R = L^T J, one row per index pair (input, factor column), one column per parameter.

Structures ask for rows in the form they need (explicit, Gram matrix, Kronecker factors) and never learn where they come
from: from the capture of one batch (here) or from a table of all Jacobians (:mod:`ntkml.rows.tabulated`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from ntkml.layers.factors import Factor
from ntkml.layers.kronecker import KroneckerPart
from ntkml.layers.layer_rows import LayerRows, layer_of, parted, qualified
from ntkml.linalg import gram
from ntkml.rows.capture import Capture
from ntkml.rows.pulled import rows_by_layer

#: Parameter tensors whose explicit rows are held together.
Groups = Sequence[tuple[str, ...]]

#: delta_l of every parameter tensor, a scalar each; None: no prior is divided by.
Precisions = Mapping[str, Tensor] | None

#: What of a block outlives a chunk: explicit rows, sums of Kronecker factors, or sums of squares of columns.
Kept = Literal["rows", "factors", "squares"]


class Rows(Protocol):
    """b = num_rows rows over the parameters in ``shapes``; row order (input, column)."""

    shapes: Mapping[str, torch.Size]
    num_rows: int
    num_inputs: int
    #: Tensors whose explicit rows are held together; asking in this order computes nothing twice.
    groups: Groups
    #: Whether the structure's ``adjoint()`` will be asked for.
    adjoint_follows: bool

    def explicit(self, name: str) -> Tensor:
        """The rows of one parameter tensor. Shape (b, size), in the network's dtype."""

    def forget(self, name: str) -> None:
        """The rows of one parameter tensor are not needed any more: whoever holds them, or what they are made from, for one block lets go."""

    def gram(self, name: str) -> Tensor:
        """R_l R_l^T of one parameter tensor in float64. Shape (b, b)."""

    def total_gram(self, precisions: Precisions = None) -> Tensor:
        """R R^T over all parameters in float64, or sum over tensors of R_l R_l^T / delta_l. Shape (b, b)."""

    def kronecker_factors(self) -> dict[str, tuple[Factor, ...]]:
        """By parameter, float64 factors (q, m, m) whose Kronecker product approximates R_l^T R_l, one per channel group.

        A single one may be given by its rows. Where no gradient in the rows follows, the eigenvalues (q, m) may stand for a factor.
        """

    def column_squares(self) -> dict[str, Tensor]:
        """By parameter, the sums of squares of the columns: the diagonal of R_l^T R_l in float64, (size,)."""


class CapturedRows:
    """Rows of one captured batch for given cotangents."""

    adjoint_follows = False

    def __init__(self, captured: Capture, factor: Tensor, shapes: Mapping[str, torch.Size], keep_graph: bool = False):
        """factor: (n, C, k), the columns of L that stand in the block."""
        self.shapes: Mapping[str, torch.Size] = shapes
        self.groups: Groups = [tuple(shapes)]
        self.num_inputs = factor.shape[0]
        self.num_rows = factor.shape[0] * factor.shape[2]
        self._explicit: dict[str, Tensor] = {}
        self._layers = rows_by_layer(captured, factor, keep_graph)

    def explicit(self, name: str) -> Tensor:
        if name not in self._explicit:
            layer = layer_of(name)
            for key, rows in self._layers[layer].rows().items():
                self._explicit[qualified(layer, key)] = rows.reshape(self.num_rows, -1)
        return self._explicit[name]

    def forget(self, name: str) -> None:
        self._explicit.pop(name, None)

    def gram(self, name: str) -> Tensor:
        layer, key = parted(name)
        if self._layers[layer].direct_is_cheaper():
            return self._layers[layer].gram(key)
        return gram(self.explicit(name))

    def total_gram(self, precisions: Precisions = None) -> Tensor:
        return sum_of_grams(self, self.shapes, precisions)

    def kronecker_factors(self) -> dict[str, tuple[Factor, ...]]:
        return merge_factors({name: layer.reduced() for name, layer in self._layers.items()}, self.num_rows)

    def column_squares(self) -> dict[str, Tensor]:
        return merge_squares(self._layers)


def sum_of_grams(rows: Rows, names: Iterable[str], precisions: Precisions) -> Tensor:
    """Grams added up tensor by tensor: those of all tensors side by side would be many times the result."""
    total: Tensor | None = None
    for name in names:
        own = rows.gram(name)
        if precisions is not None:
            own.div_(precisions[name])
        total = own if total is None else total.add_(own)
    assert total is not None, "a network without parameters has no rows"
    return total


def merge_factors(
    layers: Mapping[str, KroneckerPart], num_rows: int | None = None, spectra_only: bool = False, moments: bool = True
) -> dict[str, tuple[Factor, ...]]:
    """Kronecker factors of all layers by qualified parameter name; see :meth:`KroneckerPart.factors`."""
    return {
        qualified(layer, key): pair
        for layer, kept in layers.items()
        for key, pair in kept.factors(spectra_only, moments, num_rows).items()
    }


def merge_squares(layers: Mapping[str, LayerRows]) -> dict[str, Tensor]:
    """Sums of squares of all columns by qualified parameter name."""
    return {qualified(layer, key): sums for layer, rows in layers.items() for key, sums in rows.squares().items()}
