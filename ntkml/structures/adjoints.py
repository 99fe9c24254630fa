"""Adjoints of a block's log-determinant: what turns its gradient in the rows into a sum over chunks of the batch.

With V the gradient of log|K_B + I| in the rows (or in the Kronecker factors), the derivative in anything that enters the
forward pass is that of <V, R(chunk)> summed over chunks, V fixed. The graph of one chunk is alive at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from ntkml.layers.layer_rows import LayerRows, layer_of, parted, qualified
from ntkml.linalg import cholesky, left_product, log_det_row_gradient
from ntkml.priors import PriorPrecision
from ntkml.rows.block import Rows


class Pairing(Protocol):
    """The gradient V of a log-determinant in what its structure is made of."""

    def pair(self, layers: Mapping[str, LayerRows], inputs: slice) -> Tensor:
        """<V, R(chunk)> for the chunk ``inputs`` of the block, its graph kept. Scalar."""


class Adjoint(Protocol):
    """V of all parameter tensors."""

    def pairings(self) -> Iterator[Pairing]:
        """V a group of tensors at a time; together the groups are all of it. One is made when the one before it was let go."""


class KnownAtOnce:
    """V of all tensors in one: an adjoint and its own pairing."""

    def pairings(self) -> Iterator[Self]:
        yield self


@dataclass(frozen=True)
class RowPairing(KnownAtOnce):
    """V by parameter, (n, k, size) each; parameters that are not in it are left out."""

    rows: Mapping[str, Tensor]

    def pair(self, layers: Mapping[str, LayerRows], inputs: slice) -> Tensor:
        owned: dict[str, dict[str, Tensor]] = {}
        for name, gradient in self.rows.items():
            owner, key = parted(name)
            owned.setdefault(owner, {})[key] = gradient[inputs]
        return torch.stack([layers[owner].pair(gradients) for owner, gradients in owned.items()]).sum()


class RowAdjoint:
    """V from the explicit rows of one tensor at a time, which are forgotten for it.

    ``gradient(name, rows)`` gives V of a tensor, (b, size).
    """

    def __init__(self, rows: Rows, gradient: Callable[[str, Tensor], Tensor]):
        self._rows, self._gradient = rows, gradient

    def pairings(self) -> Iterator[RowPairing]:
        for names in self._rows.groups[::-1]:  # the last one is there, from the log-determinant
            yield self.of(names)

    def of(self, names: tuple[str, ...]) -> RowPairing:
        """V of one group."""
        by_name = {}
        for name in names:
            explicit = self._rows.explicit(name)
            by_name[name] = self._gradient(name, explicit).to(explicit.dtype)
            self._rows.forget(name)  # R and V of a whole group side by side would be twice its memory
        return RowPairing({name: v.reshape(self._rows.num_inputs, -1, v.shape[1]) for name, v in by_name.items()})


@dataclass(frozen=True)
class KroneckerAdjoint(KnownAtOnce):
    """Gradients in the factors by parameter, shaped like them; ``num_inputs`` is that of the whole block."""

    factors: Mapping[str, tuple[Tensor, ...]]
    num_inputs: int

    def pair(self, layers: Mapping[str, LayerRows], inputs: slice) -> Tensor:
        terms = [layer.reduced().pair(self._of(name), self.num_inputs) for name, layer in layers.items()]
        return torch.stack(terms).sum()

    def _of(self, layer: str) -> dict[str, tuple[Tensor, ...]]:
        """The gradients of one layer's factors by its own names."""
        return {parted(name)[1]: own for name, own in self.factors.items() if layer_of(name) == layer}


@dataclass(frozen=True)
class SquareAdjoint(KnownAtOnce):
    """Gradients in the sums of squares of the columns, by parameter (size,)."""

    squares: Mapping[str, Tensor]

    def pair(self, layers: Mapping[str, LayerRows], inputs: slice) -> Tensor:
        """<V, R(chunk)> with V = 2 R w, the gradients w times that of a square, V fixed.

        Autograd through the sums of squares gives the same and takes several times as long.
        """
        terms = []
        for name, layer in layers.items():
            rows = {key: row.detach() for key, row in layer.rows().items()}
            weights = {key: 2.0 * self.squares[qualified(name, key)].to(row) for key, row in rows.items()}
            terms.append(layer.pair({key: weights[key] * row for key, row in rows.items()}))
        return torch.stack(terms).sum()


def kernel_adjoint(rows: Rows, prior: PriorPrecision, kernel: Tensor) -> RowAdjoint:
    """V = 2 (I + K)^-1 R P0^-1 of ntk. kernel: K = R P0^-1 R^T, (b, b), float64."""
    precision = prior.of(rows.shapes)
    shifted = kernel.detach().clone()
    shifted.diagonal().add_(1.0)
    doubled = 2.0 * torch.cholesky_inverse(cholesky(shifted))

    def gradient(name: str, explicit: Tensor) -> Tensor:
        return left_product(doubled, explicit, precision[name].detach())

    return RowAdjoint(rows, gradient)


def matrix_adjoint(rows: Rows, prior: PriorPrecision) -> RowPairing:
    """V = 2 R (P0 + H)^-1 of ggn, and of ntk where the rows outnumber the parameters: all tensors at once."""
    sizes = {name: shape.numel() for name, shape in rows.shapes.items()}
    everything = torch.cat([rows.explicit(name) for name in sizes], dim=1)  # (b, P)
    diagonal = prior.diagonal(rows.shapes).detach()
    for name in sizes:
        rows.forget(name)
    gradient = log_det_row_gradient(everything, diagonal).to(everything.dtype)
    by_input = gradient.unflatten(0, (rows.num_inputs, -1)).split(list(sizes.values()), dim=2)
    return RowPairing(dict(zip(sizes, by_input, strict=True)))


def tensor_adjoint(rows: Rows, prior: PriorPrecision) -> RowAdjoint:
    """V of blockdiag, one parameter tensor at a time."""
    precision = prior.of(rows.shapes)
    return RowAdjoint(rows, lambda name, explicit: log_det_row_gradient(explicit, precision[name].detach()))
