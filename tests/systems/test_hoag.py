"""HOAG on logistic regression: the hypergradient, convergence from far away, and what inexact solutions save."""

from __future__ import annotations

import pytest
import torch

from ntkml.datasets import load_dataset
from ntkml.systems.hoag import FULL_TOLERANCE, SCHEDULES, conjugate_gradients
from tests.systems.bilevel import (
    Bilevel,
    fully_solved,
    hoag,
    hypergradient,
    logistic_regression,
    solve_inner,
    standardised,
)

pytestmark = pytest.mark.usefixtures("one_thread")
STARTS = (0.0, -4.0, 4.0, -8.0)


def digits(num_train=898, num_validation=899):
    """All digits, those below 5 against the others, split by seed 0."""
    data = load_dataset("digits")
    features = torch.cat([data.train_inputs, data.test_inputs]).flatten(1).double()
    labels = torch.where(torch.cat([data.train_targets, data.test_targets]) < 5, 1.0, -1.0).double()
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    train, validation = order[:num_train], order[num_train : num_train + num_validation]
    ours, theirs = standardised(features[train], features[validation])
    return logistic_regression((ours, labels[train]), (theirs, labels[validation]))


def at(value):
    return torch.tensor([value], dtype=torch.float64)


def zeros():
    return torch.zeros(64, dtype=torch.float64)


def hypergradient_at(problem, value):
    x = solve_inner(problem, zeros(), at(value), 1e-9)
    return x, float(hypergradient(problem, x, at(value), FULL_TOLERANCE)[1])


def finite_difference(problem, value, step=1e-3):
    above, below = (fully_solved(problem, zeros(), at(value + sign * step)) for sign in (1, -1))
    return (above - below) / (2 * step)


def test_the_hypergradient_is_the_slope_of_the_reoptimised_validation_loss():
    problem = digits()
    slope = finite_difference(problem, 3.0)
    x, gradient = hypergradient_at(problem, 3.0)
    assert gradient == pytest.approx(slope, rel=1e-3)
    # With the identity for the Hessian, q is the outer gradient itself; that must not pass for the hypergradient.
    outer = torch.func.grad(problem.outer)(x, at(3.0))
    faked = -float((at(3.0).exp() * x * outer).sum())
    assert abs(faked / slope) > 2


def test_a_direct_dependence_of_the_outer_objective_enters():
    toy = Bilevel(
        inner=lambda x, lam: 0.5 * (lam.exp() * x.square()).sum() - x.sum(),
        outer=lambda x, lam: x.sum() + lam.square().sum(),
    )
    lam = torch.tensor([0.3, -0.7], dtype=torch.float64)
    x = solve_inner(toy, torch.zeros(2, dtype=torch.float64), lam, 1e-12)
    _, gradient = hypergradient(toy, x, lam, 1e-12)
    torch.testing.assert_close(gradient, -(-lam).exp() + 2 * lam, rtol=1e-8, atol=0)


def test_every_schedule_finds_the_optimum_of_a_fine_grid():
    problem = digits(100, 100)
    best = min(fully_solved(problem, zeros(), at(value)) for value in torch.linspace(1, 3, 9).tolist())
    for schedule in SCHEDULES:
        end = list(hoag(problem, zeros(), at(4.0), schedule, 20))[-1]
        assert fully_solved(problem, zeros(), end.hyperparameters) < best + 0.02


@pytest.mark.slow
def test_from_far_away_on_all_digits_and_at_less_than_half_of_the_products():
    problem, products = digits(), {}
    grid = torch.linspace(0.6, 1.8, 49).tolist()  # around the one minimum of linspace(-8, 8), which is at 1.2
    best = min(fully_solved(problem, zeros(), at(value)) for value in grid)
    for schedule in SCHEDULES:
        ends = [list(hoag(problem, zeros(), at(start), schedule, 50))[-1] for start in STARTS]
        assert all(fully_solved(problem, zeros(), end.hyperparameters) < best + 0.02 for end in ends)
        products[schedule] = sum(end.products for end in ends)
    assert products["exponential"] < products["exact"] / 2


def test_tolerances_have_a_finite_sum_unless_exact():
    for name in ("exponential", "quadratic", "cubic"):
        tolerances = [SCHEDULES[name](step) for step in range(1, 2001)]
        assert tolerances == sorted(tolerances, reverse=True)
        assert sum(tolerances[1000:]) < 2e-6
    assert SCHEDULES["exponential"](3) == pytest.approx(1e-3 * 0.9**3)


def test_conjugate_gradients_start_where_they_are_told():
    matrix = torch.diag(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))
    solution, calls = torch.ones(3, dtype=torch.float64), []
    found = conjugate_gradients(
        lambda v: calls.append(1) or matrix @ v, matrix @ solution, 1e-10, start=solution.clone()
    )
    torch.testing.assert_close(found, solution)
    assert len(calls) == 1  # the residual of the start


def test_constant_features_stay_finite():
    train, other = standardised(torch.tensor([[1.0, 2.0], [1.0, 4.0]]), torch.tensor([[3.0, 3.0]]))
    assert train.tolist() == [[0, -1], [0, 1]]
    assert other.tolist() == [[2, 0]]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="unknown schedule 'linear'; known: exponential"):
        next(hoag(digits(20, 20), zeros(), at(0.0), "linear"))
    features, labels = torch.zeros(2, 1), torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match="labels of logistic regression are -1 or 1"):
        logistic_regression((features, labels), (features, labels))
