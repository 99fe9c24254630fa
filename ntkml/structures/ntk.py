"""ntk: the kernel of a block, K_B = R P0^-1 R^T (Equation 11), exact on its block."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkml.linalg import gram, log_det_identity_plus, spectrum
from ntkml.priors import PriorPrecision
from ntkml.rows import Rows
from ntkml.structures.adjoints import RowAdjoint, whole_row_adjoint


class NTK:
    """log|K_B + I| by one Cholesky factorisation on the smaller side.

    Under a scalar prior, a block with more rows than parameters is turned into log|R^T R P0^-1 + I|, the same number
    (Sylvester's identity); other priors take the kernel.
    """

    factored = False

    def __init__(self, rows: Rows):
        self._rows = rows
        self._unit: Tensor | None = None
        self._grams: dict[str, Tensor] = {}

    def log_det(self, prior: PriorPrecision) -> Tensor:
        precision = prior.of(self._rows.shapes)
        if prior.kind == "scalar":
            return log_det_identity_plus(self._unit_matrix(), self._where(prior), next(iter(precision.values())))
        return log_det_identity_plus(self._kernel(prior.kind, precision), self._where(prior))

    def adjoint(self, prior: PriorPrecision) -> RowAdjoint:
        return whole_row_adjoint(self._rows, prior)

    def spectrum(self) -> Tensor:
        return spectrum(self._unit_matrix(), f"a block of {self._rows.num_rows} rows (structure ntk)")

    def _where(self, prior: PriorPrecision) -> str:
        return f"a block of {self._rows.num_rows} rows (structure ntk, {prior})"

    def _kernel(self, kind: str, precision: dict[str, Tensor]) -> Tensor:
        """R P0^-1 R^T; the Gram of every tensor is kept, so that a further layerwise prior costs no rows."""
        total = torch.zeros(self._rows.num_rows, self._rows.num_rows, dtype=torch.float64, device=_device(precision))
        for name, values in precision.items():
            if kind == "layerwise":
                total = total + self._gram(name) / values
            else:
                rows = self._rows.explicit(name).double()
                total = total + (rows / values) @ rows.T
        return total

    def _gram(self, name: str) -> Tensor:
        if name not in self._grams:
            self._grams[name] = self._rows.gram(name)
        return self._grams[name]

    def _unit_matrix(self) -> Tensor:
        """R R^T, or R^T R where that is smaller."""
        if self._unit is None:
            num_params = sum(shape.numel() for shape in self._rows.shapes.values())
            if num_params < self._rows.num_rows:
                self._unit = gram(torch.cat([self._rows.explicit(name) for name in self._rows.shapes], dim=1).T)
            else:
                self._unit = self._rows.total_gram()
        return self._unit


def _device(precision: dict[str, Tensor]) -> torch.device:
    return next(iter(precision.values())).device
