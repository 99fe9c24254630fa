"""blockdiag: one diagonal block per parameter tensor, weight and bias apart (Theorem 1, Corollary 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkml.linalg import gram, log_det_from_spectrum, log_det_identity_plus, resolves, spectrum
from ntkml.priors import PriorPrecision
from ntkml.rows.block import Kept, Rows
from ntkml.structures.adjoints import RowAdjoint, tensor_adjoint


class BlockDiagonal:
    """sum over tensors of log|H_l P0_l^-1 + I|, each on the smaller of its two sides."""

    keeps: Kept = "rows"

    def __init__(self, rows: Rows):
        self._rows = rows
        self._matrices: dict[str, Tensor] = {}
        self._spectra: dict[str, Tensor] = {}

    def log_det(self, prior: PriorPrecision) -> Tensor:
        precision = prior.of(self._rows.shapes)
        return torch.stack(
            [
                self._tensor_log_det(name, value, f"the rows of {name!r} (structure blockdiag, {prior})")
                for name, value in precision.items()
            ]
        ).sum()

    def prepare(self, prior_kind: str) -> None:
        """Eigenvalues of every tensor's block, where one precision scales all of it: on a CPU as dear as two factorisations."""
        if prior_kind != "diagonal":
            for name in self._rows.shapes:
                self._spectra[name] = self._spectrum(name)
                del self._matrices[name]  # made again where the eigenvalues do not do

    def adjoint(self, prior: PriorPrecision) -> RowAdjoint:
        return tensor_adjoint(self._rows, prior)

    def spectrum(self) -> Tensor:
        return torch.cat([self._spectrum(name) for name in self._rows.shapes])

    def _spectrum(self, name: str) -> Tensor:
        if name in self._spectra:
            return self._spectra[name]
        return spectrum(self._matrix(name), f"{name!r} (structure blockdiag)")

    def _tensor_log_det(self, name: str, precision: Tensor, where: str) -> Tensor:
        if precision.ndim == 0:
            if name in self._spectra and resolves(self._spectra[name], precision):
                return log_det_from_spectrum(self._spectra[name], precision)
            return log_det_identity_plus(self._matrix(name), where, precision)
        scaled = self._rows.explicit(name).double() * precision.rsqrt()
        smaller = scaled if scaled.shape[0] <= scaled.shape[1] else scaled.T
        return log_det_identity_plus(smaller @ smaller.T, where, overwrite=True)

    def _matrix(self, name: str) -> Tensor:
        if name not in self._matrices:
            narrow = self._rows.shapes[name].numel() < self._rows.num_rows
            self._matrices[name] = gram(self._rows.explicit(name).T) if narrow else self._rows.gram(name)
        return self._matrices[name]
