"""kfac: every tensor's block replaced by one Kronecker product, scaled as in the paper's code. Not a proven bound."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkml.linalg import spectrum
from ntkml.priors import PriorPrecision
from ntkml.rows import Rows


class KFAC:
    """sum over tensors and eigenvalue pairs of log(1 + g_i a_j / delta_l); a bias has one factor, a weight two.

    Exact for one datum of a linear layer and for the weights of a deep linear network under squared loss; elsewhere an
    approximation of blockdiag that may fall on either side of it.
    """

    def __init__(self, rows: Rows):
        self._shapes = rows.shapes
        self._eigenvalues = {
            name: _product_spectrum(factors, name) for name, factors in rows.kronecker_factors().items()
        }

    def log_det(self, prior: PriorPrecision) -> Tensor:
        """Raises ValueError for a diagonal prior, under which a Kronecker product has no eigenvalues in closed form."""
        if prior.kind == "diagonal":
            raise ValueError(
                "kfac takes a scalar or layerwise prior precision, not a diagonal one: use blockdiag, diag or ntk"
            )
        precision = prior.of(self._shapes)
        return torch.stack([(self._eigenvalues[name] / precision[name]).log1p().sum() for name in self._shapes]).sum()

    def spectrum(self) -> Tensor:
        return torch.cat([self._eigenvalues[name] for name in self._shapes])


def _product_spectrum(factors: tuple[Tensor, ...], name: str) -> Tensor:
    """Eigenvalues of the Kronecker product of (q, m, m) factors, group by group, flattened."""
    products = []
    for group in range(len(factors[0])):
        values = [spectrum(factor[group], f"{name!r} (structure kfac)") for factor in factors]
        product = values[0]
        for other in values[1:]:
            product = torch.outer(product, other).reshape(-1)
        products.append(product)
    return torch.cat(products)
