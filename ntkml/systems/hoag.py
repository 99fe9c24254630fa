"""What HOAG takes from its paper (Pedregosa, ICML 2016): tolerances that fall, and linear systems solved no further than them.

    minimise over lambda  g(X(lambda), lambda),    X(lambda) = argmin_x h(x, lambda)

By the implicit function theorem the gradient of the outer objective is p = dg/dlambda - (d^2 h / dlambda dx)^T q with
(d^2 h / dx^2) q = dg/dx. Step k solves for q by conjugate gradients to a tolerance eps_k only; where the eps_k have a finite
sum, the steps converge to a stationary point. Networks take it in :mod:`ntkml.systems.hoag_networks`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

#: eps_0 of the schedules.
FIRST_TOLERANCE = 1e-3

#: Tolerance of the schedule "exact", and of solutions that are reported.
FULL_TOLERANCE = 1e-10

#: eps_k of step k = 1, 2, ...
SCHEDULES: dict[str, Callable[[int], float]] = {
    "exponential": lambda step: FIRST_TOLERANCE * 0.9**step,
    "quadratic": lambda step: FIRST_TOLERANCE / step**2,
    "cubic": lambda step: FIRST_TOLERANCE / step**3,
    "exact": lambda step: FULL_TOLERANCE,
}


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    right_side: Tensor,
    tolerance: float,
    start: Tensor | None = None,
    most: int | None = None,
) -> Tensor:
    """Solve A q = b to ||A q - b|| <= tolerance ||b|| with a positive definite A given by its product, (P,) -> (P,).

    ``most`` bounds the iterations; without it they are bounded by scipy alone (10 P).
    """
    size = len(right_side)

    def matvec(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        return product(torch.from_numpy(vector.copy()).to(right_side)).double().cpu().numpy()

    operator = LinearOperator((size, size), matvec=matvec, dtype=np.float64)
    b, x0 = (None if t is None else t.detach().double().cpu().numpy() for t in (right_side, start))
    found, _ = cg(operator, b, x0=x0, rtol=tolerance, atol=0.0, maxiter=most)
    return torch.from_numpy(found).to(right_side)
