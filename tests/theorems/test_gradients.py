"""Every estimate is differentiable in its hyperparameters, and the derivative is that of the number it returns."""

from __future__ import annotations

import itertools

import pytest
import torch

from ntkml import PriorPrecision, log_marginal_likelihood
from ntkml.evidence import evaluate_partition
from ntkml.likelihoods import Gaussian
from ntkml.rows.model_contract import check_model
from tests.factories import PRIOR_KINDS, STRUCTURES, assert_same, generator, make_case, make_prior

NAMES = ["N-C", "3-C", "3-1", "2-2", "3-tree+iid"]


def gradient_of(function, point):
    point = point.detach().requires_grad_()
    return torch.autograd.grad(function(point), point)[0]


def finite_difference(function, point, direction, step=1e-5):
    return (function(point + step * direction) - function(point - step * direction)).detach() / (2 * step)


def directions(size):
    """All axes of a short vector, three random directions of a long one."""
    if size <= 4:
        return list(torch.eye(size, dtype=torch.float64))
    return list(torch.randn(3, size, generator=generator(9), dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("structure", "kind"),
    [pair for pair in itertools.product(STRUCTURES, PRIOR_KINDS) if pair != ("kfac", "diagonal")],
)
def test_log_prior_precision(structure, kind, name):
    case = make_case("mlp")
    log_precision = make_prior(kind, case).values.log()
    spec, partition = case.partition(f"{structure}-{name}")
    plan = check_model(case.model, case.x)

    def total(log_precision):
        prior = PriorPrecision(log_precision.exp(), kind)
        return evaluate_partition(case.model, case.x, case.y, spec, partition, prior, case.likelihood, plan).total

    gradient = gradient_of(total, log_precision)
    assert gradient.shape == log_precision.shape
    assert (gradient.abs() > 1e-4).all()
    for direction in directions(len(log_precision)):
        assert_same(gradient @ direction, finite_difference(total, log_precision, direction), 1e-7)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["N-C", "3-1"])
def test_observation_noise(structure, name):
    """Through the likelihood and the log-determinant together."""
    case = make_case("mlp", "gaussian")

    def total(log_noise):
        noise = Gaussian(log_noise.exp())
        return log_marginal_likelihood(
            case.model, case.x, case.y, f"{structure}-{name}", 0.8, noise, generator=generator(1)
        ).total

    point = torch.tensor(-0.3, dtype=torch.float64)
    gradient = gradient_of(total, point)
    assert abs(gradient) > 1e-2
    assert_same(gradient, finite_difference(total, point, 1.0), 1e-7)


@pytest.mark.parametrize("name", ["ntk-N-C", "ggn-N-C"])
def test_the_log_determinant_falls_by_the_effective_number_of_parameters(name):
    """d log|H P0^-1 + I| / d log delta = - tr H (H + P0)^-1 (MacKay 1992)."""
    case = make_case("convnet")
    precision = torch.tensor(0.3, dtype=torch.float64)
    gradient = gradient_of(lambda log_precision: case.estimate(name, log_precision.exp()).log_det, precision.log())
    effective = torch.linalg.solve(case.ggn + precision.expand(case.num_params).diag(), case.ggn).trace()
    assert_same(gradient, -effective)


def test_the_mean_of_the_stochastic_gradient_is_the_gradient_of_the_bound():
    case = make_case("mlp")
    spec, partition = case.partition("kfac-3-1")
    weighted = partition.weighted(torch.arange(1.0, len(partition) + 1))

    def gradient(drawn):
        def total(log_precision):
            prior = PriorPrecision(log_precision.exp(), "layerwise")
            return evaluate_partition(
                case.model, case.x, case.y, spec, weighted, prior, case.likelihood, case.plan, drawn
            ).total

        return gradient_of(total, make_prior("layerwise", case).values.log())

    mean = sum(q * gradient([m]) for m, q in enumerate(weighted.probabilities))
    assert_same(mean, gradient(None))


@pytest.mark.parametrize("prior", [torch.ones(1), torch.ones(4), torch.ones(43), torch.ones(())])
def test_a_plain_tensor_receives_its_gradient_in_its_own_shape_and_dtype(prior):
    case = make_case("mlp")
    prior = prior.clone().requires_grad_()
    case.estimate("ntk-3-C", prior).total.backward()
    assert prior.grad.shape == prior.shape
    assert prior.grad.dtype == torch.float32
    assert (prior.grad != 0).all()
    assert all(parameter.grad is None for parameter in case.model.parameters())
