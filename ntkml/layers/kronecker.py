"""What KFAC keeps of one layer: Kronecker factors, or blocks of R^T R where no Kronecker product describes its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from ntkml.layers.factors import Factor, FactorGradients, RowFactor, block_grams
from ntkml.linalg import gram, scatters

#: Most multiplications, q m^3, of the eigendecompositions of q blocks of m parameters: some seconds on a core.
MAX_BLOCK_WORK = 2**33

#: Most float64 entries, q m^2, of those blocks (64 MiB): made anew for every chunk and column, more would take longer than
#: their eigenvalues.
MAX_BLOCK_ENTRIES = 2**23


class KroneckerPart(Protocol):
    """One layer's share of the Kronecker factors; keys are the layer's own parameter names."""

    @property
    def num_positions(self) -> int | None:
        """The positions T over which factors are means, None where they are sums."""

    def factors(self, spectra_only: bool, moments: bool, num_rows: int | None = None) -> dict[str, tuple[Factor, ...]]:
        """By parameter, float64 factors (q, m, m). The first one adds up over inputs, a second one is their mean. A
        diagonal one may be its diagonal, (q, m).

        ``spectra_only``: a factor of fewer vectors than entries may be the Gram of its vectors, whose non-zero
        eigenvalues are the same; such factors of several chunks do not add up. Without ``moments`` only the first factors
        are made: a second one is the same for every cotangent. ``num_rows``: of the whole block; with it a first factor of more
        entries than that may be its rows.
        """

    def pair(self, gradients: FactorGradients, num_inputs: int) -> Tensor:
        """<V, factors> for gradients V shaped like them, of a block of ``num_inputs`` inputs. Scalar, with its graph."""

    def cut(self, inputs: Tensor, outputs: Tensor, factor: Tensor) -> KroneckerPart:
        """The part of a block, from one of all inputs and outputs. factor: (n, c, k), columns of L."""


@dataclass(frozen=True)
class KroneckerInputs:
    """The reduced inputs (n, q, d, T) and gradients (n, k, q, o, T) of a linear map shared by T positions.

    ``made_inputs`` makes the inputs where they are asked for: patches are not held beside those of other layers. ``weight`` and
    ``bias``: the names of the parameters, or "".
    """

    made_inputs: Callable[[], Tensor]
    gradients: Tensor
    weight: str
    bias: str

    @property
    def inputs(self) -> Tensor:
        return self.made_inputs()

    @property
    def num_positions(self) -> int:
        return self.gradients.shape[-1]

    def factors(self, spectra_only: bool, moments: bool, num_rows: int | None = None) -> dict[str, tuple[Factor, ...]]:
        """Kronecker factors by parameter, in float64; their product is scaled as in the authors' code.

        weight: G = sum_{n,k,t} g g^T (q, o, o) and A = 1/(n T) sum_{n,t} a a^T (q, d, d); the block is G (x) A.
        bias: its own block, G itself, the same tensor, whose eigenvalues are found once.
        """
        summed = self._scatter(num_rows)
        factors: dict[str, tuple[Factor, ...]] = {}
        if self.weight:
            factors[self.weight] = (summed,)
        if self.weight and moments:
            factors[self.weight] += (self._second_moment(spectra_only, num_rows),)
        if self.bias:
            factors[self.bias] = (summed,)
        return factors

    def _scatter(self, num_rows: int | None) -> Factor:
        """G, by its vectors where the block has fewer of them than entries."""
        if num_rows is not None and num_rows * self.num_positions < self.gradients.shape[3]:
            return RowFactor((self.gradients.permute(0, 1, 4, 2, 3).flatten(0, 2),))
        return scatters(self.gradients.flatten(0, 1))

    def _second_moment(self, spectra_only: bool, num_rows: int | None) -> Factor:
        """A likewise."""
        inputs = self.inputs
        n, _, size, positions = inputs.shape
        if num_rows is not None and num_rows * positions < size:
            return RowFactor((inputs.permute(0, 3, 1, 2).flatten(0, 1),), n * positions)
        if spectra_only and n * positions < size:
            return torch.stack([_gram_of_vectors(a) for a in inputs.unbind(1)]) / (n * positions)
        return scatters(inputs) / (n * positions)

    def _paired_moment(self, gradient: Tensor) -> Tensor:
        return _quadratic(gradient, self.inputs)

    def pair(self, gradients: FactorGradients, num_inputs: int) -> Tensor:
        total = self.gradients.new_zeros(())
        if self.weight:
            summed, second_moment = gradients[self.weight]
            total = total + _quadratic(summed, self.gradients.flatten(0, 1))
            total = total + self._paired_moment(second_moment / (num_inputs * self.num_positions))
        if self.bias:
            total = total + _quadratic(gradients[self.bias][0], self.gradients.flatten(0, 1))
        return total

    def with_calls(self, others: Sequence[KroneckerInputs]) -> KroneckerInputs:
        """Of a layer that was called several times: all positions of all calls."""
        calls = (self, *others)
        return replace(
            self,
            made_inputs=lambda: torch.cat([call.inputs for call in calls], -1),
            gradients=torch.cat([call.gradients for call in calls], -1),
        )

    def cut(self, inputs: Tensor, outputs: Tensor, factor: Tensor) -> KroneckerInputs:
        gradients = self.gradients[inputs][:, outputs]
        turned = torch.einsum("ncqot,nck->nkqot", gradients, factor.to(gradients))
        return replace(self, made_inputs=lambda: self.inputs[inputs], gradients=turned)


@dataclass(frozen=True)
class KroneckerIndices(KroneckerInputs):
    """An embedding: a linear map of one-hot inputs, whose second moment is diagonal. Inputs are indices, (n, 1, 1, T).

    ``padding``: the index whose vector is not learned, or None.
    """

    num_entries: int = 0
    padding: int | None = None

    def _second_moment(self, spectra_only: bool, num_rows: int | None) -> Tensor:
        """How often every index occurs, over n T, (1, num_entries)."""
        indices = self.inputs.flatten()
        counts = torch.zeros(self.num_entries, dtype=torch.float64, device=indices.device)
        # bincount would make the host wait for a GPU.
        counts.index_add_(0, indices, torch.ones_like(indices, dtype=torch.float64))
        if self.padding is not None:
            counts[self.padding] = 0.0
        return counts.unsqueeze(0) / max(1, len(indices))

    def _paired_moment(self, gradient: Tensor) -> Tensor:
        """Counts are constants."""
        return self.gradients.new_zeros(())


@dataclass(frozen=True)
class ExactBlocks:
    """Parameters that no Kronecker product describes: one factor R^T R each, the exact block while its eigenvalues are affordable.

    A larger tensor has one block for each leading index, or for each two of them, at last for every entry: the first of
    these divisions within :data:`MAX_BLOCK_WORK` and :data:`MAX_BLOCK_ENTRIES`. ``rows``: (n, k, *shape) by parameter.
    """

    rows: Mapping[str, Tensor]

    @property
    def num_positions(self) -> None:
        return None

    def factors(self, spectra_only: bool, moments: bool, num_rows: int | None = None) -> dict[str, tuple[Factor, ...]]:
        def factor(rows: Tensor) -> Factor:
            by_row = num_rows is not None and num_rows < rows.shape[2]
            return RowFactor((rows,)) if by_row else block_grams(rows)

        return {key: (factor(_in_blocks(rows)),) for key, rows in self.rows.items()}

    def pair(self, gradients: FactorGradients, num_inputs: int) -> Tensor:
        # (1, q, m, b): multiplied row by row, every row would take a copy of V.
        vectors = {key: _in_blocks(rows).permute(1, 2, 0).unsqueeze(0) for key, rows in self.rows.items()}
        return torch.stack([_quadratic(gradients[key][0], own) for key, own in vectors.items()]).sum()

    def with_calls(self, others: Sequence[ExactBlocks]) -> ExactBlocks:
        """Of a layer that was called several times: the sums of the rows of all calls."""
        return ExactBlocks({key: sum((call.rows[key] for call in others), rows) for key, rows in self.rows.items()})

    def cut(self, inputs: Tensor, outputs: Tensor, factor: Tensor) -> ExactBlocks:
        return ExactBlocks(
            {
                key: torch.einsum("nc...,nck->nk...", rows[inputs][:, outputs], factor.to(rows))
                for key, rows in self.rows.items()
            }
        )


def _in_blocks(rows: Tensor) -> Tensor:
    """Rows (n, k, *shape) by the blocks of :class:`ExactBlocks`, (n * k, q, m)."""
    n, k, *shape = rows.shape
    sizes = [(prod(shape[:leading]), prod(shape[leading:])) for leading in range(len(shape) + 1)]
    for count, size in sizes:
        if count * size**3 <= MAX_BLOCK_WORK and count * size**2 <= MAX_BLOCK_ENTRIES:
            break
    return rows.reshape(n * k, count, size)  # at last its entries


def _gram_of_vectors(vectors: Tensor) -> Tensor:
    """Products of all pairs of vectors in float64. vectors: (n, m, T). Returns (n T, n T)."""
    return gram(vectors.transpose(1, 2).flatten(0, 1))


def _quadratic(matrix: Tensor, vectors: Tensor) -> Tensor:
    """sum over n and t of v^T M v. matrix: (q, m, m), vectors: (n, q, m, T)."""
    return (vectors * (matrix.to(vectors) @ vectors)).sum()
