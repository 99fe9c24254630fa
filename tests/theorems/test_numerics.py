"""Float32 networks give float64's numbers, and no input in reach gives NaN."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from ntkml import MarginalLikelihood, log_marginal_likelihood
from ntkml.likelihoods import Categorical, Gaussian
from ntkml.linalg import NotPositiveDefiniteError, log_det_row_gradient
from ntkml.rows.block import CapturedRows
from ntkml.rows.capture import capture
from ntkml.structures import structure_named
from tests.factories import (
    LIKELIHOODS,
    NETWORKS,
    STRUCTURES,
    assert_same,
    generator,
    in_float32,
    make_case,
    make_prior,
    seeded,
)

NAMES = ["N-C", "3-C", "3-1", "2-2", "N-tree", "3-tree+iid"]


def names_for(likelihood):
    return [name for name in NAMES if likelihood == "categorical" or "tree" not in name]


def rounded(case):
    """The float64 case whose weights and data are exactly those of its float32 twin, and that twin."""
    single = in_float32(case)
    with torch.no_grad():
        for wide, narrow in zip(case.model.parameters(), single.model.parameters(), strict=True):
            wide.copy_(narrow)
    case.x.copy_(single.x)
    if case.y.is_floating_point():
        case.y.copy_(single.y)
    return case, single


#: Every precision of these with every likelihood, and each of both with either network; the other combinations are slow.
FEW_PRECISIONS = (1e-4, 1.0, 1e4)
PAIRED = {
    (list(NETWORKS)[(at + place) % 2], likelihood, precision)
    for at, likelihood in enumerate(LIKELIHOODS)
    for place, precision in enumerate(FEW_PRECISIONS)
}


@pytest.mark.parametrize(
    ("network", "likelihood", "precision"),
    [
        pytest.param(*case, marks=() if case in PAIRED else pytest.mark.slow)
        for case in itertools.product(NETWORKS, LIKELIHOODS, (1e-4, 1e-2, 1.0, 1e2, 1e4))
    ],
)
def test_a_float32_network_gives_the_values_of_float64(network, likelihood, precision):
    double, single = rounded(make_case(network, likelihood))
    assert next(single.model.parameters()).dtype == torch.float32
    for structure in STRUCTURES:
        for name in names_for(likelihood):
            wide, narrow = (case.estimate(f"{structure}-{name}", precision) for case in (double, single))
            assert narrow.total.dtype == torch.float64
            for term in ("log_likelihood", "log_prior", "log_det", "total"):
                assert_same(getattr(narrow, term), getattr(wide, term), 1e-5)


def test_a_gaussian_density_of_float32_outputs_is_summed_in_float64():
    outputs, targets = torch.full((2, 4), 0.1), torch.zeros(2, 4)
    expected = Gaussian(1e-3).log_prob(outputs.double(), targets.double())
    assert_same(Gaussian(1e-3).log_prob(outputs, targets), expected, 1e-12)


def test_the_log_determinant_of_nearly_nothing_keeps_its_digits():
    """At precision 1e8 float32 algebra would round 1 + x to 1; the diagonal structures keep log1p throughout."""
    case = make_case("mlp")
    for structure in ("kfac", "diag"):
        value, ten_times = (case.estimate(f"{structure}-N-C", precision).log_det for precision in (1e12, 1e13))
        assert value / ten_times == pytest.approx(10, rel=1e-9)
    assert case.estimate("ntk-N-C", 1e8).log_det * 1e8 == pytest.approx(case.ggn.trace().item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
@pytest.mark.parametrize("precision", [1e-8, 1.0, 1e8])
def test_saturated_outputs_give_finite_values_and_gradients(precision, likelihood, structure, dtype):
    """Logits of +-1e3, some of them tied, and one input whose probabilities are ordinary."""
    case = make_case("mlp", likelihood)
    with torch.no_grad():
        case.model[2].weight.zero_()
        case.model[2].bias.copy_(torch.tensor([1e3, -1e3, 1e3]))
        case.model[2].weight[0, 0] = 3e3  # makes the tied first class win, lose or share
    case = case if dtype == torch.float64 else in_float32(case)
    assert case.model(case.x).abs().max() > 1e3
    log_precision = torch.tensor(math.log(precision), dtype=torch.float64, requires_grad=True)
    for name in names_for(likelihood):
        estimate = case.estimate(f"{structure}-{name}", log_precision.exp())
        (gradient,) = torch.autograd.grad(estimate.total, log_precision)
        assert torch.isfinite(torch.stack([estimate.total, estimate.log_det, gradient])).all()
        assert estimate.log_det >= 0


@pytest.mark.parametrize("structure", STRUCTURES)
def test_certain_outputs_have_no_complexity(structure):
    """Where every probability is 0 or 1 to float64, Lambda vanishes and so does the log-determinant, exactly."""
    case = make_case("mlp")
    with torch.no_grad():
        case.model[2].weight.zero_()
        case.model[2].bias.copy_(torch.tensor([3e3, 0.0, -3e3]))
    for name in NAMES:
        assert case.estimate(f"{structure}-{name}", 1e-8).log_det == 0


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_extreme_precisions_give_finite_values_and_gradients(likelihood, structure):
    case = in_float32(make_case("convnet", likelihood))
    for precision in (1e-8, 1e8):
        log_precision = torch.tensor(math.log(precision), dtype=torch.float64, requires_grad=True)
        for name in names_for(likelihood):
            estimate = case.estimate(f"{structure}-{name}", log_precision.exp())
            (gradient,) = torch.autograd.grad(estimate.total, log_precision)
            assert torch.isfinite(torch.stack([estimate.total, gradient])).all()


def test_identical_inputs_at_a_tiny_precision_stay_positive_definite():
    """A kernel of rank C - 1 times 1e8: the Cholesky factorisation sees I + K with a condition number of 1e10."""
    case = make_case("mlp")
    x, y = case.x[:1].repeat(6, 1), case.y[:1].repeat(6)
    values = [log_marginal_likelihood(case.model, x, y, f"{s}-N-C", 1e-8).log_det for s in ("ntk", "ggn")]
    assert_same(values[0], values[1], 1e-6)


def test_nan_rows_raise_and_are_not_hidden():
    """Every structure names itself and says what to do; nothing is added to the diagonal."""
    case = make_case("mlp")
    captured = capture(case.model, case.x)
    factor = case.likelihood.factor(captured.outputs.detach(), "C", None)
    factor[2, 0, 0] = torch.nan
    rows = CapturedRows(captured, factor, case.shapes, keep_graph=True)
    for structure in STRUCTURES:
        with pytest.raises(NotPositiveDefiniteError, match=rf"\(structure {structure}[,)].*check the data and weights"):
            structure_named(structure)(rows).log_det(make_prior("layerwise", case))
        with pytest.raises(NotPositiveDefiniteError, match="check the data and weights"):
            structure_named(structure)(rows).spectrum()


def _weight_of_nan(case):
    case.model[2].bias[0] = torch.nan


def _weight_of_infinity(case):
    """Behind a tanh its outputs are ordinary."""
    case.model[0].bias[0] = torch.inf


def _weight_without_a_square(case):
    case.model[0].bias[0] = 1e200


def _target_without_a_square(case):
    case.y[0, 0] = 1e200


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_weight_of_nan, "the log (prior|likelihood).* is nan"),
        (_weight_of_infinity, "the log prior of the weights is -inf"),
        (_weight_without_a_square, "the log prior of the weights is -inf"),
        (_target_without_a_square, "the log likelihood is -inf"),
    ],
)
def test_no_term_is_nan_or_infinite_without_a_word(spoil, words, structure):
    """Rows of a Gaussian likelihood do not depend on such numbers, so that no factorisation fails; nothing reaches ``.grad``."""
    case = make_case("mlp", "gaussian")
    objective = MarginalLikelihood(case.model, f"{structure}-3-1", "gaussian")
    cached = objective.cached_backward(case.x, case.y, None)
    with torch.no_grad():
        spoil(case)
    for estimate in (objective.estimate, objective.backward, objective.cached_backward):
        with pytest.raises(ValueError, match=words):
            estimate(case.x, case.y, None)()
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert torch.isfinite(cached().total)  # of the weights as they were
    with pytest.raises(ValueError, match=f"{words}|holds NaN or infinite values"):
        case.estimate(f"{structure}-3-1")


def test_a_linear_layer_of_zeros_has_rows():
    """Untrained, symmetric networks give singular kernels, not errors."""
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    case = make_case("mlp")
    for structure in STRUCTURES:
        estimate = log_marginal_likelihood(model, case.x, case.y, f"{structure}-3-tree+kmeans", 1e-6)
        assert torch.isfinite(estimate.total)


def test_a_matrix_that_only_a_gradient_needs_and_that_cannot_be_factorised_is_named():
    """P0 + R^T R of huge rows at a tiny precision has no digit of P0, where I + P0^-1/2 R^T R P0^-1/2 has its ones."""
    rows = 1e8 * torch.ones(3, 2, dtype=torch.float64)
    with pytest.raises(
        NotPositiveDefiniteError, match="a matrix of 2 rows is not positive definite .* gradient is taken"
    ):
        log_det_row_gradient(rows, torch.tensor(1e-12, dtype=torch.float64))


def test_kfac_is_right_or_refused_where_the_prior_precision_is_tiny():
    """Inputs in three of twenty dimensions: rounding leaves eigenvalues of their factor that should be zero."""
    left, right = (torch.randn(*shape, generator=generator(), dtype=torch.float64) for shape in ((60, 3), (3, 20)))
    x = left @ right
    model, y = seeded(nn.Linear(20, 3)), torch.arange(60) % 3
    root = Categorical().factor(model(x).detach(), "C", None)
    gradients = torch.linalg.svdvals(root.transpose(1, 2).flatten(0, 1))[:2].square()  # those of a softmax sum to zero
    inputs = torch.linalg.svdvals(x)[:3].square() / 60
    refused = 0
    for precision in [10.0**exponent for exponent in range(-20, 1)]:
        products = (torch.outer(gradients, inputs).flatten(), gradients)
        exact = torch.stack([(values / precision).log1p().sum() for values in products]).sum()
        try:
            estimate = log_marginal_likelihood(model, x, y, "kfac-N-C", precision)
        except NotPositiveDefiniteError:
            refused += 1
            continue
        assert abs(estimate.log_det - exact) < 1e-3 * exact
    assert 0 < refused < 10
    with pytest.raises(NotPositiveDefiniteError, match="kfac.* may be rounding: raise the prior precision"):
        log_marginal_likelihood(model, x, y, "kfac-N-C", 1e-20)
