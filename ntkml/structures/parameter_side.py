"""The P x P side of a block: always that of ggn, and of ntk where the block has more rows than there are parameters."""

from __future__ import annotations

from torch import Tensor

from ntkml.linalg import gram
from ntkml.priors import PriorPrecision, Shapes
from ntkml.rows.block import Rows


def gauss_newton(rows: Rows) -> Tensor:
    """H_B = R^T R in float64, (P, P)."""
    return gram(*(rows.explicit(name).T for name in rows.shapes))


def scaled(matrix: Tensor, prior: PriorPrecision, shapes: Shapes) -> Tensor:
    """P0^-1/2 H P0^-1/2, differentiable in the prior precision. matrix: H, (P, P)."""
    inverse_root = prior.diagonal(shapes).rsqrt()
    return matrix * inverse_root.unsqueeze(1) * inverse_root
