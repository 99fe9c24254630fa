"""HOAG (Pedregosa, ICML 2016) with its outer loop, on small problems in float64: what the method of networks is held against.

    minimise over lambda  g(X(lambda), lambda),    X(lambda) = argmin_x h(x, lambda)

By the implicit function theorem the gradient of the outer objective is p = dg/dlambda - (d^2 h / dlambda dx)^T q with
(d^2 h / dx^2) q = dg/dx. Step k solves the inner problem (L-BFGS) and the linear system (conjugate gradients) to a
tolerance eps_k only. Where the eps_k have a finite sum, the steps converge to a stationary point. The experiment of the
paper, logistic regression, stands at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.func import grad, grad_and_value, vjp
from torch.nn import functional as F

from ntkml.systems.hoag import FULL_TOLERANCE, SCHEDULES, conjugate_gradients

#: L shrinks by this after a step that lowered g; a step that raised g by this factor is taken back.
SHRINK, RISE = 0.95, 1.2

Objective = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Bilevel:
    """``inner`` h(x, lambda) and ``outer`` g(x, lambda), scalars, differentiable; x (P,), lambda (H,) in float64.

    h is strongly convex in x. lambda stays in ``bounds``.
    """

    inner: Objective
    outer: Objective
    bounds: tuple[float, float] = (-12.0, 12.0)


@dataclass(frozen=True)
class HoagStep:
    """After a step: lambda, x and g at the inexact solution that the step used, and what was spent so far.

    ``hyperparameters`` is lambda before the step, ``gradient`` is p there. ``products`` counts Hessian-vector products and
    ``evaluations`` gradients of the inner objective.
    """

    hyperparameters: Tensor
    parameters: Tensor
    outer: float
    gradient: Tensor
    tolerance: float
    products: int
    evaluations: int


def hoag(
    problem: Bilevel, parameters: Tensor, hyperparameters: Tensor, schedule: str = "exponential", steps: int = 50
) -> Iterator[HoagStep]:
    """``steps`` steps from ``parameters`` (P,) and ``hyperparameters`` (H,), one record each.

    L starts at ||p|| / sqrt(H), so that the first step has length sqrt(H); it shrinks where g falls. Where g rises, L
    doubles and eps halves; where it rises RISE-fold the step is also taken back, and g computed again there with the new
    eps: solutions cut short are regularised, and their g would be out of reach for better ones. (With smaller rises left alone, as the rule is often stated, steps that overshoot alternate around the optimum for ever.)

    Raises:
        ValueError: an unknown schedule, or an inner problem that L-BFGS cannot solve.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}; known: {', '.join(SCHEDULES)}")
    spent, scale = _Spent(), _scale(problem, parameters, hyperparameters)
    x, lam, q = parameters.double(), hyperparameters.double(), torch.zeros_like(parameters, dtype=torch.float64)
    kept: HoagStep | None = None
    smoothness, caution = math.nan, 1.0
    for step in range(1, steps + 1):
        tolerance = caution * SCHEDULES[schedule](step)
        x = solve_inner(problem, x, lam, tolerance * scale, spent)
        outer = float(problem.outer(x, lam))
        if kept is not None and outer > kept.outer:
            smoothness, caution, tolerance = 2.0 * smoothness, 0.5 * caution, 0.5 * tolerance
            if outer >= RISE * kept.outer:
                lam = kept.hyperparameters
                x = solve_inner(problem, kept.parameters, lam, tolerance * scale, spent)
                outer = float(problem.outer(x, lam))
        else:
            smoothness = SHRINK * smoothness
        q, gradient = hypergradient(problem, x, lam, tolerance, q, spent)
        if kept is None:
            smoothness = float(gradient.norm()) / math.sqrt(len(lam)) or 1.0
        kept = HoagStep(lam, x, outer, gradient, tolerance, spent.products, spent.evaluations)
        yield kept
        lam = (lam - gradient / smoothness).clamp(*problem.bounds)


@dataclass
class _Spent:
    products: int = 0
    evaluations: int = 0


def _scale(problem: Bilevel, x: Tensor, lam: Tensor) -> float:
    """Tolerances of the inner problem are shares of this: the largest entry of its gradient at the start."""
    return float(grad(problem.inner)(x.double(), lam.double()).abs().max()) or 1.0


def solve_inner(problem: Bilevel, x: Tensor, lam: Tensor, tolerance: float, spent: _Spent | None = None) -> Tensor:
    """argmin_x h(x, lambda) by L-BFGS from ``x``, until no entry of the gradient exceeds ``tolerance``.

    Raises:
        ValueError: the objective became NaN or infinite.
    """
    gradient_and_value = grad_and_value(problem.inner)

    def evaluate(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        gradient, value = gradient_and_value(torch.from_numpy(point.copy()), lam)
        return float(value), gradient.numpy()

    # ftol 0: the gradient alone decides when the solution is good enough.
    options = {"gtol": tolerance, "ftol": 0.0, "maxiter": 10_000, "maxfun": 20_000}
    found = minimize(evaluate, x.numpy(), jac=True, method="L-BFGS-B", options=options)
    if not math.isfinite(found.fun):
        raise ValueError(f"the inner problem is {found.fun} at hyperparameters {lam.tolist()}: narrow their bounds")
    if spent is not None:
        spent.evaluations += int(found.nfev)
    return torch.from_numpy(found.x)


def hypergradient(
    problem: Bilevel, x: Tensor, lam: Tensor, tolerance: float, start: Tensor | None = None, spent: _Spent | None = None
) -> tuple[Tensor, Tensor]:
    """(q, p) at the solution ``x`` of the inner problem; conjugate gradients start at ``start``."""
    outer_x, outer_lam = grad(problem.outer, argnums=(0, 1))(x, lam)
    # Both second derivatives are one pull-back through the gradient in x; the Hessian is symmetric.
    pull_back = vjp(grad(problem.inner), x, lam)[1]

    def hessian(vector: Tensor) -> Tensor:
        if spent is not None:
            spent.products += 1
        return pull_back(vector)[0]

    q = conjugate_gradients(hessian, outer_x, tolerance, start)
    return q, outer_lam - pull_back(q)[1]


def fully_solved(problem: Bilevel, parameters: Tensor, hyperparameters: Tensor) -> float:
    """g after the inner problem was solved to full tolerance: what is reported of a lambda."""
    scale = _scale(problem, parameters, hyperparameters)
    x = solve_inner(problem, parameters.double(), hyperparameters.double(), FULL_TOLERANCE * scale)
    return float(problem.outer(x, hyperparameters.double()))


def logistic_regression(train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]) -> Bilevel:
    """The regularisation of a linear classifier without intercept, chosen on validation data.

    h(x, lambda) = sum over train of log(1 + exp(-b_i a_i^T x)) + 1/2 e^lambda ||x||^2, g = the same sum over validation
    without the penalty. Each part: features a (n, P) and labels b (n,) in {-1, 1}, in float64. lambda: (1,).

    Raises:
        ValueError: labels other than -1 and 1.
    """
    for _, labels in (train, validation):
        if not bool((labels.abs() == 1).all()):
            raise ValueError("labels of logistic regression are -1 or 1; got others: write 2 * label - 1")

    def loss(part: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
        return F.softplus(-part[1] * (part[0] @ x)).sum()

    return Bilevel(
        inner=lambda x, lam: loss(train, x) + 0.5 * (lam.exp() * x.square().sum()).sum(),
        outer=lambda x, lam: loss(validation, x),
    )


def standardised(train: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Features with mean 0 and variance 1 on ``train``; the others are moved alike. Constant features become 0 there."""
    mean, deviation = train.mean(0), train.std(0, correction=0)
    scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    return tuple((part - mean) / scale for part in (train, *others))
