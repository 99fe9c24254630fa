"""ntk: the kernel of a block, K_B = R P0^-1 R^T (Equation 11), exact on its block."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkml.linalg import gram, log_det_identity_plus, spectrum
from ntkml.priors import PriorPrecision
from ntkml.rows import Rows


class NTK:
    """log|K_B + I| by one Cholesky factorisation on the smaller side.

    A block with more rows than parameters is turned into log|R^T R P0^-1 + I|, the same number (Sylvester's identity).
    """

    def __init__(self, rows: Rows):
        self._rows = rows
        self._total: Tensor | None = None

    def log_det(self, prior: PriorPrecision) -> Tensor:
        if prior.kind == "scalar":
            return log_det_identity_plus(
                self._unit_matrix() / prior.of(self._rows.shapes)[next(iter(self._rows.shapes))], _where(self._rows)
            )
        return log_det_identity_plus(self._kernel(prior), _where(self._rows))

    def spectrum(self) -> Tensor:
        return spectrum(self._unit_matrix(), _where(self._rows))

    def _kernel(self, prior: PriorPrecision) -> Tensor:
        precision = prior.of(self._rows.shapes)
        if prior.kind == "layerwise":
            grams = [self._rows.gram(name) / precision[name] for name in precision]
        else:
            explicit = {name: self._rows.explicit(name).double() for name in precision}
            grams = [(explicit[name] / precision[name]) @ explicit[name].T for name in precision]
        return torch.stack(grams).sum(0) if len(grams) < 3 else _running_sum(grams)

    def _unit_matrix(self) -> Tensor:
        """R R^T, or R^T R where that is smaller."""
        if self._total is None:
            num_params = sum(shape.numel() for shape in self._rows.shapes.values())
            if num_params < self._rows.num_rows:
                self._total = gram(torch.cat([self._rows.explicit(name) for name in self._rows.shapes], dim=1).T)
            else:
                self._total = self._rows.total_gram()
        return self._total


def _running_sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _where(rows: Rows) -> str:
    return f"a block of {rows.num_rows} rows (structure ntk)"
