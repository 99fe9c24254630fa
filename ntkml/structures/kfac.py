"""kfac: every tensor's block replaced by one Kronecker product, scaled as in the paper's code. Not a proven bound."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkml.linalg import log_det_from_spectrum
from ntkml.priors import PriorPrecision
from ntkml.rows import Kept, Rows, spectra
from ntkml.structures.adjoints import KroneckerAdjoint


class KFAC:
    """sum over tensors and eigenvalue pairs of log(1 + g_i a_j / delta_l); a bias has one factor, a weight two.

    Exact for one datum of a linear layer and for the weights of a deep linear network under squared loss; elsewhere an
    approximation of blockdiag that may fall on either side of it.
    """

    keeps: Kept = "factors"

    def __init__(self, rows: Rows):
        self._shapes = rows.shapes
        self._num_inputs = rows.num_inputs
        self._factors = rows.kronecker_factors()
        self._eigenvalues = {name: _product_spectrum(factors, name) for name, factors in self._factors.items()}

    def log_det(self, prior: PriorPrecision) -> Tensor:
        """Raises ValueError for a diagonal prior, under which a Kronecker product has no eigenvalues in closed form."""
        precision = _tensorwise(prior).of(self._shapes)
        return torch.stack(
            [log_det_from_spectrum(self._eigenvalues[name], precision[name]) for name in self._shapes]
        ).sum()

    def prepare(self, prior_kind: str) -> None:
        """The eigenvalues are there."""

    def adjoint(self, prior: PriorPrecision) -> KroneckerAdjoint:
        assert all(factor.ndim == 3 for factors in self._factors.values() for factor in factors), "made for values only"
        precision = _tensorwise(prior).of(self._shapes)
        gradients = {name: _factor_gradients(self._factors[name], precision[name].detach()) for name in self._shapes}
        return KroneckerAdjoint(gradients, self._num_inputs)

    def spectrum(self) -> Tensor:
        return torch.cat([self._eigenvalues[name] for name in self._shapes])


def _product_spectrum(factors: tuple[Tensor, ...], name: str) -> Tensor:
    """Eigenvalues of the Kronecker product of (q, m, m) factors, or of their eigenvalues (q, m), group by group, flattened."""
    first, *others = (factor if factor.ndim == 2 else spectra(factor, name) for factor in factors)
    for other in others:
        first = (first.unsqueeze(2) * other.unsqueeze(1)).flatten(1)
    return first.flatten()


def _factor_gradients(factors: tuple[Tensor, ...], precision: Tensor) -> tuple[Tensor, ...]:
    """Gradient of sum log(1 + g_i a_j / delta) in every factor: U diag(sum over the others) U^T. Shapes of the factors."""
    decompositions = [torch.linalg.eigh(factor) for factor in factors]
    values = [eigenvalues.clamp_min(0.0) for eigenvalues, _ in decompositions]  # (q, m) each
    if len(values) == 1:
        weights = [1.0 / (precision + values[0])]
    else:
        g, a = values[0].unsqueeze(2), values[1].unsqueeze(1)
        shared = 1.0 / (precision + g * a)  # (q, o, d)
        weights = [(a * shared).sum(2), (g * shared).sum(1)]
    return tuple(
        vectors @ (weight.unsqueeze(-1) * vectors.transpose(1, 2))
        for weight, (_, vectors) in zip(weights, decompositions, strict=True)
    )


def _tensorwise(prior: PriorPrecision) -> PriorPrecision:
    if prior.kind == "diagonal":
        raise ValueError(
            "kfac takes a scalar or layerwise prior precision, not a diagonal one: use blockdiag, diag or ntk"
        )
    return prior
