"""ggn: the generalised Gauss-Newton matrix of a block, H_B = R^T R (Equation 7), always P x P."""

from __future__ import annotations

from torch import Tensor

from ntkml.linalg import log_det_identity_plus, spectrum
from ntkml.priors import PriorPrecision
from ntkml.rows.block import Kept, Rows
from ntkml.structures.adjoints import RowPairing, matrix_adjoint
from ntkml.structures.parameter_side import gauss_newton, scaled

#: Largest P x P float64 matrix that is formed, in bytes; Cholesky needs about three of it.
MEMORY_BUDGET_BYTES = 2 * 2**30


class GGN:
    """log|P0^-1/2 H_B P0^-1/2 + I| by one Cholesky factorisation of a P x P matrix.

    Raises:
        ValueError: the matrix would exceed :data:`MEMORY_BUDGET_BYTES`; ``ntk`` gives the same number.
    """

    keeps: Kept = "rows"

    def __init__(self, rows: Rows):
        num_params = sum(shape.numel() for shape in rows.shapes.values())
        needed = 8 * num_params**2
        if needed > MEMORY_BUDGET_BYTES:
            raise ValueError(
                f"ggn would form a {num_params} x {num_params} matrix of {needed / 2**30:.1f} GiB "
                f"(limit {MEMORY_BUDGET_BYTES / 2**30:.1f} GiB): write ntk, which gives the same value (Theorem 3)"
            )
        self._rows, self._shapes = rows, rows.shapes
        self._matrix = gauss_newton(rows)

    def log_det(self, prior: PriorPrecision) -> Tensor:
        return log_det_identity_plus(
            scaled(self._matrix, prior, self._shapes),
            f"a block of {self._rows.num_rows} rows (structure ggn, {prior})",
            overwrite=True,
        )

    def prepare(self, prior_kind: str) -> None:
        """Nothing: use ntk, which gives the same number, where time matters."""

    def adjoint(self, prior: PriorPrecision) -> RowPairing:
        return matrix_adjoint(self._rows, prior)

    def spectrum(self) -> Tensor:
        return spectrum(self._matrix, "a block (structure ggn)")
