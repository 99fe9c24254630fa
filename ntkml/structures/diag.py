"""diag: only the diagonal of H_B (the finest partition of Theorem 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkml.linalg import NotPositiveDefiniteError, log_det_from_spectrum
from ntkml.priors import PriorPrecision
from ntkml.rows.block import Kept, Rows
from ntkml.structures.adjoints import SquareAdjoint


class Diagonal:
    """sum over parameters of log(1 + h_p / delta_p), with h_p the sum of squares of column p of R."""

    keeps: Kept = "squares"

    def __init__(self, rows: Rows):
        self._shapes = rows.shapes
        squares = rows.column_squares()
        self._diagonal = {name: squares[name] for name in rows.shapes}
        if not bool(torch.stack([torch.isfinite(h).all() for h in self._diagonal.values()]).all()):
            raise NotPositiveDefiniteError(
                "a block (structure diag) has rows with NaN or infinite values; check the data and weights"
            )

    def log_det(self, prior: PriorPrecision) -> Tensor:
        precision = prior.of(self._shapes)
        return torch.stack([log_det_from_spectrum(h, precision[name]) for name, h in self._diagonal.items()]).sum()

    def prepare(self, prior_kind: str) -> None:
        """The squares are all there is."""

    def adjoint(self, prior: PriorPrecision) -> SquareAdjoint:
        """The gradient in h_p: 1 / (delta_p + h_p)."""
        precision = prior.of(self._shapes)
        return SquareAdjoint({name: (precision[name].detach() + h).reciprocal() for name, h in self._diagonal.items()})

    def spectrum(self) -> Tensor:
        return torch.cat(list(self._diagonal.values()))
