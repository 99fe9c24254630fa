"""The factors of KFAC's Kronecker products, their spectra, and the gradients of a log-determinant in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ntkml.linalg import eigensystem, gram, spectrum

#: Float64 entries of the rows of some blocks while these are made (128 MiB).
_TILE_ENTRIES = 2**24

#: V by parameter: matrices shaped like its factors.
FactorGradients = Mapping[str, tuple[Tensor, ...]]


@dataclass(frozen=True)
class RowFactor:
    """A factor R^T R / c of more entries than rows, by these: its spectrum is that of R R^T / c.

    ``parts``: of R, (b_i, q, m) each; ``count``: c, that of what the factor is a mean over, or 1.
    """

    parts: tuple[Tensor, ...]
    count: int = 1

    @property
    def rows(self) -> Tensor:
        """R^T / sqrt(c), (q, m, b) in float64."""
        return torch.cat(self.parts).double().permute(1, 2, 0) / self.count**0.5

    def gram(self) -> Tensor:
        """R R^T / c of every block in float64, (q, b, b)."""
        return block_grams(torch.cat(self.parts).transpose(0, 2)) / self.count


Factor = Tensor | RowFactor


def added(total: Factor, further: Factor) -> Factor:
    """The sum of two first factors of one parameter; a matrix is overwritten with it."""
    if isinstance(total, RowFactor) and isinstance(further, RowFactor):
        return RowFactor(total.parts + further.parts)
    assert isinstance(total, Tensor), "the parts of a block agree on how a factor is given"
    assert isinstance(further, Tensor)
    return total.add_(further)


def averaged(mean: Factor, further: Factor, share: float) -> Factor:
    """The mean of two second factors, of which the ``share`` of ``further`` is that of its inputs; a matrix is overwritten with it."""
    if isinstance(mean, RowFactor) and isinstance(further, RowFactor):
        return RowFactor(mean.parts + further.parts, mean.count + further.count)
    assert isinstance(mean, Tensor), "the parts of a block agree on how a factor is given"
    assert isinstance(further, Tensor)
    return mean.lerp_(further, share)


def factor_spectrum(factor: Factor, name: str) -> Tensor:
    """The eigenvalues of a factor (q, m, m) of parameter ``name``; what has two dimensions holds them already. (q, m).

    Of a factor by its rows the b eigenvalues that may differ from zero, (q, b).

    Raises:
        NotPositiveDefiniteError: see :func:`ntkml.linalg.spectrum`.
    """
    if isinstance(factor, RowFactor):
        return spectrum(factor.gram(), _described(name))
    return factor if factor.ndim == 2 else spectrum(factor, _described(name))


@dataclass(frozen=True)
class Eigensystem:
    """Eigenvalues (q, m) and eigenvectors (q, m, m) of a factor, None of a diagonal one."""

    values: Tensor
    vectors: Tensor | None

    def gradient(self, others: Tensor, precision: Tensor) -> Tensor:
        """That of sum_ij log(1 + g_i a_j / delta) in the factor with eigenvalues g, shaped like it. others: a, (q, d)."""
        weights = (others.unsqueeze(1) / (precision + self.values.unsqueeze(2) * others.unsqueeze(1))).sum(2)
        if self.vectors is None:
            return weights
        return self.vectors @ (weights.unsqueeze(-1) * self.vectors.transpose(1, 2))


@dataclass(frozen=True)
class RowEigensystem:
    """Of a factor R^T R by its rows: the eigenvalues (q, b) of R R^T = U S U^T, and R^T U, (q, m, b)."""

    values: Tensor
    turned: Tensor

    def gradient(self, others: Tensor, precision: Tensor) -> Tensor:
        """That of :meth:`Eigensystem.gradient`: w(0) I + R^T U diag((w(s) - w(0)) / s) U^T R, w(s) = sum_j a_j / (delta + s a_j)."""
        a, s = others.unsqueeze(1), self.values.unsqueeze(2)
        slopes = (a.square() / (precision + s * a)).sum(
            2
        )  # of (w(0) - w(s)) / s = sum_j a_j^2 / (delta (delta + s a_j))
        found = (self.turned * slopes.unsqueeze(1)) @ self.turned.transpose(1, 2)
        found.neg_().diagonal(dim1=1, dim2=2).add_(others.sum(1, keepdim=True))
        return found / precision


def factor_eigensystem(factor: Factor, name: str) -> Eigensystem | RowEigensystem:
    """Raises NotPositiveDefiniteError as :func:`factor_spectrum` does."""
    if isinstance(factor, RowFactor):
        values, vectors = eigensystem(factor.gram(), _described(name))
        return RowEigensystem(values, factor.rows @ vectors)
    return Eigensystem(*((factor, None) if factor.ndim == 2 else eigensystem(factor, _described(name))))


def _described(name: str) -> str:
    return f"{name!r} (structure kfac)"


def block_grams(rows: Tensor) -> Tensor:
    """R^T R of every block in float64. (b, q, m) -> (q, m, m)."""
    if rows.shape[1] == 1:
        return gram(rows[:, 0].T).unsqueeze(0)
    step = max(1, _TILE_ENTRIES // (rows.shape[0] * rows.shape[2]))
    tiles = (tile.transpose(0, 1).double() for tile in rows.split(step, dim=1))  # (q, b, m)
    return torch.cat([tile.mT @ tile for tile in tiles])
