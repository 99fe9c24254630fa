"""What KFAC keeps of one layer: Kronecker factors, exact blocks of small tensors, or a refusal by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ntkml.linalg import gram, scatter

#: Largest scale or bias whose block KFAC forms exactly, as one size x size matrix.
MAX_EXACT_SIZE = 4096

Factors = Mapping[str, tuple[Tensor, ...]]


class KroneckerPart(Protocol):
    """One layer's share of the Kronecker factors; keys are the layer's own parameter names."""

    def factors(self, spectra_only: bool, moments: bool) -> dict[str, tuple[Tensor, ...]]:
        """By parameter, float64 factors (q, m, m). The first one adds up over inputs, a second one is their mean.

        ``spectra_only``: a factor of fewer vectors than entries may be the Gram of its vectors, whose non-zero
        eigenvalues are the same; such factors of several chunks do not add up. Without ``moments`` only the first factors
        are made: a second one is the same for every cotangent.
        """

    def pair(self, gradients: Factors, num_inputs: int) -> Tensor:
        """<V, factors> for gradients V shaped like them, of a block of ``num_inputs`` inputs. Scalar, with its graph."""

    def cut(self, inputs: Tensor, outputs: Tensor, factor: Tensor) -> KroneckerPart:
        """The part of a block, from one of all inputs and outputs. factor: (n, c, k), columns of L."""


@dataclass(frozen=True)
class KroneckerInputs:
    """The reduced inputs (n, q, d, T) and gradients (n, k, q, o, T) of a linear map shared by T positions.

    ``made_inputs`` makes the inputs where they are asked for: patches are not held beside those of other layers.
    """

    made_inputs: Callable[[], Tensor]
    gradients: Tensor
    weight: bool
    bias: bool

    @property
    def inputs(self) -> Tensor:
        return self.made_inputs()

    def factors(self, spectra_only: bool, moments: bool) -> dict[str, tuple[Tensor, ...]]:
        """Kronecker factors by parameter, in float64, scaled as in the authors' code.

        weight: G = 1/T sum_{n,k,t} g g^T (q, o, o) and A = 1/n sum_{n,t} a a^T (q, d, d); the block is G (x) A.
        bias: its own block sum_{n,k,t} g g^T, (q, o, o).
        """
        n, _, _, _, num_positions = self.gradients.shape
        summed = torch.stack([scatter(g.flatten(0, 1)) for g in self.gradients.unbind(2)])
        factors: dict[str, tuple[Tensor, ...]] = {}
        if self.weight:
            factors["weight"] = (summed / num_positions,)
        if self.weight and moments:
            inputs = self.inputs
            narrow = spectra_only and n * num_positions < inputs.shape[2]
            product = _gram_of_vectors if narrow else scatter
            factors["weight"] += (torch.stack([product(a) for a in inputs.unbind(1)]) / n,)
        if self.bias:
            factors["bias"] = (summed,)
        return factors

    def pair(self, gradients: Factors, num_inputs: int) -> Tensor:
        total = self.gradients.new_zeros(())
        num_positions = self.gradients.shape[-1]
        if self.weight:
            summed, second_moment = gradients["weight"]
            total = total + _quadratic(summed / num_positions, self.gradients.flatten(0, 1))
            total = total + _quadratic(second_moment / num_inputs, self.inputs)
        if self.bias:
            total = total + _quadratic(gradients["bias"][0], self.gradients.flatten(0, 1))
        return total

    def cut(self, inputs: Tensor, outputs: Tensor, factor: Tensor) -> KroneckerInputs:
        gradients = self.gradients[inputs][:, outputs]
        turned = torch.einsum("ncqot,nck->nkqot", gradients, factor.to(gradients))
        return KroneckerInputs(lambda: self.inputs[inputs], turned, self.weight, self.bias)


@dataclass(frozen=True)
class ExactBlocks:
    """Scales and biases: one factor R^T R each, which is the exact block. ``rows``: (n, k, size) by parameter."""

    layer: str
    rows: Mapping[str, Tensor]

    def factors(self, spectra_only: bool, moments: bool) -> dict[str, tuple[Tensor, ...]]:
        """Raises ValueError where a block would be larger than :data:`MAX_EXACT_SIZE`."""
        for key, rows in self.rows.items():
            if rows.shape[-1] > MAX_EXACT_SIZE:
                raise ValueError(
                    f"kfac takes scales and biases of up to {MAX_EXACT_SIZE} entries as exact blocks, but {self.layer}.{key} has "
                    f"{rows.shape[-1]}: use ntk, blockdiag or diag, or freeze it with requires_grad_(False)"
                )
        return {key: (gram(rows.flatten(0, 1).T).unsqueeze(0),) for key, rows in self.rows.items()}

    def pair(self, gradients: Factors, num_inputs: int) -> Tensor:
        terms = [_quadratic(gradients[key][0], rows.flatten(0, 1)[:, None, :, None]) for key, rows in self.rows.items()]
        return torch.stack(terms).sum()

    def cut(self, inputs: Tensor, outputs: Tensor, factor: Tensor) -> ExactBlocks:
        rows = {
            key: torch.einsum("ncp,nck->nkp", rows[inputs][:, outputs], factor.to(rows))
            for key, rows in self.rows.items()
        }
        return ExactBlocks(self.layer, rows)


@dataclass(frozen=True)
class NoFactors:
    """Parameters that no Kronecker product describes: KFAC refuses them by name, every other structure takes their rows."""

    names: tuple[str, ...]
    why: str

    def factors(self, spectra_only: bool, moments: bool) -> dict[str, tuple[Tensor, ...]]:
        """Raises ValueError, naming the parameters and what to use."""
        raise ValueError(
            f"kfac has no meaning for parameter {', '.join(map(repr, self.names))} ({self.why}): use ntk, blockdiag or diag, or "
            "freeze it with requires_grad_(False)"
        )

    def pair(self, gradients: Factors, num_inputs: int) -> Tensor:
        raise AssertionError("factors() was refused before")

    def cut(self, inputs: Tensor, outputs: Tensor, factor: Tensor) -> NoFactors:
        return self


def _gram_of_vectors(vectors: Tensor) -> Tensor:
    """Products of all pairs of vectors in float64. vectors: (n, m, T). Returns (n T, n T)."""
    return gram(vectors.transpose(1, 2).flatten(0, 1))


def _quadratic(matrix: Tensor, vectors: Tensor) -> Tensor:
    """sum over n and t of v^T M v. matrix: (q, m, m), vectors: (n, q, m, T)."""
    return (vectors * (matrix.to(vectors) @ vectors)).sum()
