"""Structures: the rows of one block -> log|K_B + I| = log|H_B P0^-1 + I| (Theorem 3 makes it one contract for all)."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ntkml.priors import PriorPrecision
from ntkml.registry import STRUCTURES, resolve
from ntkml.rows.block import Kept, Rows
from ntkml.structures.adjoints import Adjoint


class Structure(Protocol):
    """What one block's rows are reduced to. Built once per block; every prior afterwards costs only linear algebra."""

    #: What it is built from, and all that is kept of a block that is captured in chunks.
    keeps: Kept

    def __init__(self, rows: Rows) -> None: ...

    def log_det(self, prior: PriorPrecision) -> Tensor:
        """log|H_B P0^-1 + I| in nats, a float64 scalar differentiable in the prior precision."""

    def prepare(self, prior_kind: str) -> None:
        """Compute what all priors of one kind share, so that :meth:`log_det` gives the same numbers (to 1e-5 nats) cheaply."""

    def adjoint(self, prior: PriorPrecision) -> Adjoint:
        """The gradient of :meth:`log_det` in the rows or factors, at a prior that needs no gradient itself."""

    def spectrum(self) -> Tensor:
        """Eigenvalues of H_B (or of its approximation) that give log|H_B / delta + I| = sum log(1 + lambda / delta)."""


def structure_named(name: str) -> type[Structure]:
    """The structure called ``name``; raises ValueError for an unknown one."""
    found: type[Structure] = resolve(STRUCTURES, name, "structure")
    return found
