"""ntk: the kernel of a block, K_B = R P0^-1 R^T (Equation 11), exact on its block."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkml.linalg import log_det_from_spectrum, log_det_identity_plus, resolves, spectrum
from ntkml.priors import PriorPrecision
from ntkml.rows.block import Kept, Rows
from ntkml.structures.adjoints import RowAdjoint, RowPairing, kernel_adjoint, matrix_adjoint
from ntkml.structures.parameter_side import gauss_newton, scaled


class NTK:
    """log|K_B + I| by one Cholesky factorisation on the smaller side, or from eigenvalues once it is prepared.

    A block with more rows than parameters is turned into log|P0^-1/2 R^T R P0^-1/2 + I|, the same number (Sylvester's identity).
    """

    keeps: Kept = "rows"

    def __init__(self, rows: Rows):
        self._rows = rows
        self._unit: Tensor | None = None
        self._spectrum: Tensor | None = None
        self._grams: Tensor | None = None  # (tensors, b, b)

    def log_det(self, prior: PriorPrecision) -> Tensor:
        if prior.kind == "scalar":
            precision = next(iter(prior.of(self._rows.shapes).values()))
            if self._spectrum is not None and resolves(self._spectrum, precision):
                return log_det_from_spectrum(self._spectrum, precision)
            return log_det_identity_plus(self._unit_matrix(), self._where(prior), precision)
        matrix = scaled(self._unit_matrix(), prior, self._rows.shapes) if self._narrow else self._kernel(prior)
        return log_det_identity_plus(matrix, self._where(prior), overwrite=True)

    def prepare(self, prior_kind: str) -> None:
        """Eigenvalues for a scalar prior, on a CPU as dear as two factorisations; other priors change the eigenvectors.

        For these R^T R is made where that is smaller, else the Gram of every tensor for a layerwise prior, and the rows are let go.
        """
        if prior_kind == "scalar":
            self._spectrum = self.spectrum()
            self._unit = None  # made again where the eigenvalues do not do
        elif self._narrow:
            self._unit_matrix()
            for name in self._rows.shapes:
                self._rows.forget(name)
        elif prior_kind == "layerwise":
            self._grams = self._gram_of_every_tensor(forget=True)

    def adjoint(self, prior: PriorPrecision) -> RowAdjoint | RowPairing:
        if self._narrow:
            return matrix_adjoint(self._rows, prior)
        with torch.no_grad():
            kernel = self._unit_matrix() / prior.values.double() if prior.kind == "scalar" else self._kernel(prior)
        return kernel_adjoint(self._rows, prior, kernel)

    def spectrum(self) -> Tensor:
        return spectrum(self._unit_matrix(), f"a block of {self._rows.num_rows} rows (structure ntk)")

    def _where(self, prior: PriorPrecision) -> str:
        return f"a block of {self._rows.num_rows} rows (structure ntk, {prior})"

    def _kernel(self, prior: PriorPrecision) -> Tensor:
        """R P0^-1 R^T; the Gram of every tensor is kept, so that a further layerwise prior costs no rows."""
        if prior.kind == "layerwise":
            return self._layerwise_kernel(prior.values.double())
        total = torch.zeros(self._rows.num_rows, self._rows.num_rows, dtype=torch.float64, device=prior.values.device)
        for name, values in prior.of(self._rows.shapes).items():
            rows = self._rows.explicit(name).double()
            total = total + (rows / values) @ rows.T
        return total

    def _layerwise_kernel(self, precisions: Tensor) -> Tensor:
        """sum over tensors of R_l R_l^T / delta_l, as one product with the Grams side by side.

        Where no gradient is asked for, one value is all that is wanted, and no Gram is kept.
        """
        num_rows, names = self._rows.num_rows, list(self._rows.shapes)
        if self._grams is None and not torch.is_grad_enabled():
            return self._rows.total_gram(dict(zip(names, precisions, strict=True)))
        if self._grams is None:
            self._grams = self._gram_of_every_tensor()
        return (precisions.reciprocal() @ self._grams.flatten(1)).reshape(num_rows, num_rows)

    def _gram_of_every_tensor(self, forget: bool = False) -> Tensor:
        """R_l R_l^T side by side, (tensors, b, b); ``forget``: the rows are let go, tensor by tensor."""
        grams: Tensor | None = None
        for index, name in enumerate(self._rows.shapes):
            gram = self._rows.gram(name)
            grams = gram.new_empty(len(self._rows.shapes), *gram.shape) if grams is None else grams
            grams[index] = gram
            if forget:
                self._rows.forget(name)
        assert grams is not None, "a network without parameters has no rows"
        return grams

    @property
    def _narrow(self) -> bool:
        """Whether the block has more rows than there are parameters."""
        return sum(shape.numel() for shape in self._rows.shapes.values()) < self._rows.num_rows

    def _unit_matrix(self) -> Tensor:
        """R R^T, or R^T R where that is smaller."""
        if self._unit is None:
            self._unit = gauss_newton(self._rows) if self._narrow else self._rows.total_gram()
        return self._unit
