"""kfac: every tensor's block replaced by one Kronecker product, scaled as in the paper's code. Not a proven bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ntkml.layers.factors import Eigensystem, RowEigensystem, factor_eigensystem, factor_spectrum
from ntkml.linalg import NotPositiveDefiniteError, log_det_from_spectrum, spectrum_error
from ntkml.priors import PriorPrecision
from ntkml.rows.block import Kept, Rows
from ntkml.structures.adjoints import KroneckerAdjoint

#: Share of a log-determinant that may be rounding.
_ROUNDING_SHARE = 1e-3


class KFAC:
    """sum over tensors and eigenvalue pairs of log(1 + g_i a_j / delta_l); a bias has one factor, a weight two.

    A parameter that no layer of positions has (a scale, or a raw or tied one) has one factor for each of its blocks,
    which are exact (:class:`ntkml.layers.kronecker.ExactBlocks`).

    Exact for one datum of a linear layer and for the weights of a deep linear network under squared loss; elsewhere an
    approximation of blockdiag that may fall on either side of it.
    """

    keeps: Kept = "factors"

    def __init__(self, rows: Rows):
        self._shapes = rows.shapes
        self._num_inputs = rows.num_inputs
        #: With eigenvectors, which only the adjoint needs.
        self._systems: dict[str, list[Eigensystem | RowEigensystem]] = {}
        self._eigenvalues = {}
        by_parameter = rows.kronecker_factors()
        systems: dict[int, Eigensystem | RowEigensystem] = {}
        spectra: dict[int, Tensor] = {}
        for name, factors in by_parameter.items():
            for factor in factors:
                if id(factor) in spectra:  # a bias has a factor of its weight
                    continue
                if rows.adjoint_follows:
                    systems[id(factor)] = factor_eigensystem(factor, name)
                    spectra[id(factor)] = systems[id(factor)].values
                else:
                    spectra[id(factor)] = factor_spectrum(factor, name)
            if rows.adjoint_follows:
                self._systems[name] = [systems[id(factor)] for factor in factors]
            self._eigenvalues[name] = _product_spectrum(*(spectra[id(factor)] for factor in factors))

    def log_det(self, prior: PriorPrecision) -> Tensor:
        """The sum above.

        Raises:
            ValueError: a diagonal prior, under which a Kronecker product has no eigenvalues in closed form.
            NotPositiveDefiniteError: the prior precision is so small that rounding may be a part of the sum.
        """
        if prior.kind == "diagonal":
            raise ValueError(
                "kfac takes a scalar or layerwise prior precision, not a diagonal one: use blockdiag, diag or ntk"
            )
        precision = prior.of(self._shapes)
        value = torch.stack(
            [log_det_from_spectrum(self._eigenvalues[name], precision[name]) for name in self._shapes]
        ).sum()
        self._refuse_rounding(value.detach(), precision)
        return value

    def _refuse_rounding(self, value: Tensor, precision: Mapping[str, Tensor]) -> None:
        """Raise NotPositiveDefiniteError where what rounding leaves of eigenvalues that are zero may be a part of the value."""
        errors = [spectrum_error(self._eigenvalues[name], precision[name].detach()) for name in self._shapes]
        if bool(torch.stack(errors).sum() > _ROUNDING_SHARE * value):
            raise NotPositiveDefiniteError(
                "the prior precision is so small that kfac's log-determinant may be rounding: raise the prior precision"
            )

    def prepare(self, prior_kind: str) -> None:
        """The eigenvalues are there."""

    def adjoint(self, prior: PriorPrecision) -> KroneckerAdjoint:
        assert self._systems, "the rows did not say that an adjoint follows"
        precision = prior.of(self._shapes)
        gradients = {name: _factor_gradients(self._systems[name], precision[name].detach()) for name in self._shapes}
        return KroneckerAdjoint(gradients, self._num_inputs)

    def spectrum(self) -> Tensor:
        return torch.cat([self._eigenvalues[name] for name in self._shapes])


def _product_spectrum(first: Tensor, *others: Tensor) -> Tensor:
    """Eigenvalues of the Kronecker product of factors with eigenvalues (q, m), group by group, flattened."""
    for other in others:
        first = (first.unsqueeze(2) * other.unsqueeze(1)).flatten(1)
    return first.flatten()


def _factor_gradients(systems: Sequence[Eigensystem | RowEigensystem], precision: Tensor) -> tuple[Tensor, ...]:
    """Gradient of sum log(1 + g_i a_j / delta) in every factor, shaped like it; of a single one a_j = 1."""
    if len(systems) == 1:
        values = systems[0].values
        return (systems[0].gradient(torch.ones_like(values[:, :1]), precision),)
    first, second = systems
    return first.gradient(second.values, precision), second.gradient(first.values, precision)
