"""What every layer's share of the rows can be asked for, and the plain implementation by explicit rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ntkml.layers.kronecker import ExactBlocks, KroneckerPart
from ntkml.linalg import gram

#: Squares that are added in the dtype of the rows before their sums are added in float64.
_SUMMED_AS_THEY_ARE = 16


class LayerRows(Protocol):
    """The rows of one layer's parameters for n inputs with k cotangents each; keys are the layer's own names."""

    @property
    def counts(self) -> tuple[int, int]:
        """(n, k): inputs and cotangents of each."""

    def rows(self) -> dict[str, Tensor]:
        """Explicit Jacobian rows by parameter. Shape (n, k, size) each."""

    def row(self, key: str) -> Tensor:
        """Explicit Jacobian rows of one parameter. Shape (n, k, size)."""

    def gram(self, key: str) -> Tensor:
        """Float64 Gram matrix of one parameter's rows. Shape (n * k, n * k), index order (input, cotangent)."""

    def pair(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """<V, rows> for gradients V by parameter, (n, k, size) each. Scalar, with its graph."""

    def squares(self) -> dict[str, Tensor]:
        """Sums of squares of the rows' columns by parameter, float64. Shape (size,) each."""

    def direct_is_cheaper(self) -> bool:
        """Whether :meth:`gram` needs fewer multiplications than the Gram matrix of explicit rows."""

    def rows_are_larger(self) -> bool:
        """Whether explicit rows take more memory than what they can be made from at any time."""

    def joined(self, others: Sequence[Any]) -> LayerRows | None:
        """The rows of these inputs and those of ``others`` behind them; only where the direct route is the cheaper one.

        None where their positions differ: a network may cut its batch to the longest sequence in it.
        """

    def reduced(self) -> KroneckerPart:
        """What KFAC keeps."""


class PlainRows(ABC):
    """What follows from explicit rows alone; a layer without a cheaper route inherits it."""

    @abstractmethod
    def rows(self) -> dict[str, Tensor]:
        """See :class:`LayerRows`."""

    def row(self, key: str) -> Tensor:
        return self.rows()[key]

    def gram(self, key: str) -> Tensor:
        return gram(self.row(key).flatten(0, 1))

    def pair(self, gradients: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([(gradients[key] * row).sum() for key, row in self.rows().items()]).sum()

    def squares(self) -> dict[str, Tensor]:
        return squares_of(self.rows())

    def direct_is_cheaper(self) -> bool:
        return False

    def rows_are_larger(self) -> bool:
        return False

    def joined(self, others: Sequence[Any]) -> LayerRows:
        raise AssertionError("without a direct route the rows themselves are kept")


@dataclass(frozen=True)
class ElementwiseRows(PlainRows):
    """Scales and biases: their rows are there at once. ``values``: (n, k, *shape) by parameter."""

    values: Mapping[str, Tensor]

    @property
    def counts(self) -> tuple[int, int]:
        n, k, *_ = next(iter(self.values.values())).shape
        return n, k

    def rows(self) -> dict[str, Tensor]:
        return {key: values.reshape(*self.counts, -1) for key, values in self.values.items()}

    def reduced(self) -> KroneckerPart:
        return ExactBlocks(self.values)


def squares_of(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums of squares over inputs and cotangents in float64. (n, k, size) -> (size,).

    Up to :data:`_SUMMED_AS_THEY_ARE` squares are added in the rows' own dtype first: all positive, they lose no more than
    its rounding, and converting every single one would take seven times as long as the sum.
    """
    return {
        key: torch.stack([part.square().sum(0) for part in row.flatten(0, 1).split(_SUMMED_AS_THEY_ARE)]).sum(
            0, dtype=torch.float64
        )
        for key, row in rows.items()
    }


def qualified(layer: str, key: str) -> str:
    """The parameter's name in the network."""
    return f"{layer}.{key}" if layer else key


def parted(name: str) -> tuple[str, str]:
    """The layer of a parameter, and its name there: what :func:`qualified` makes ``name`` of."""
    layer, _, key = name.rpartition(".")
    return layer, key


def layer_of(name: str) -> str:
    """The layer of a parameter."""
    return parted(name)[0]
