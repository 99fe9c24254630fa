"""Equations 5 and 6: the exact value of the linearised Laplace approximation, in the primal and in the dual."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from ntkml import log_marginal_likelihood
from ntkml.likelihoods import Gaussian
from tests.factories import (
    LIKELIHOODS,
    NETWORKS,
    PRIOR_KINDS,
    assert_same,
    generator,
    make_case,
    make_prior,
    seeded,
)


def dense_value(case, precision):
    """log p(D|w) + log N(w; 0, P0^-1) + (P/2) log 2 pi - 1/2 log|H + P0|, Equation 5 as printed."""
    num_params = case.num_params
    log_prior = 0.5 * precision.log().sum() - num_params / 2 * math.log(2 * math.pi)
    log_prior = log_prior - 0.5 * (precision * case.weights**2).sum()
    log_det = torch.linalg.slogdet(case.ggn + precision.diag()).logabsdet
    return case.log_likelihood + log_prior + num_params / 2 * math.log(2 * math.pi) - 0.5 * log_det


@pytest.mark.parametrize("kind", PRIOR_KINDS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("network", NETWORKS)
def test_primal_and_dual_are_one_number(network, likelihood, kind):
    """Equation 6: log|H P0^-1 + I| = log|K + I|, with K the unsymmetric J P0^-1 J^T Lambda of the paper."""
    case = make_case(network, likelihood)
    prior = make_prior(kind, case)
    precision = case.precision(prior)
    rows = case.jacobian.flatten(0, 1)
    kernel = rows / precision @ rows.T @ torch.block_diag(*case.hessians)
    primal = torch.linalg.slogdet(case.ggn / precision + torch.eye(case.num_params)).logabsdet
    dual = torch.linalg.slogdet(kernel + torch.eye(len(rows))).logabsdet
    assert_same(primal, dual)
    for name in ("ntk-N-C", "ggn-N-C"):
        assert_same(case.estimate(name, prior).log_det, dual)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("kind", PRIOR_KINDS)
def test_the_total_is_equation_5_with_all_its_constants(likelihood, kind):
    case = make_case("convnet", likelihood)
    prior = make_prior(kind, case)
    for name in ("ntk-N-C", "ggn-N-C"):
        result = case.estimate(name, prior)
        assert_same(result.total, dense_value(case, case.precision(prior)))
        assert_same(result.log_likelihood, case.log_likelihood)
        assert_same(result.log_prior, -0.5 * (case.precision(prior) * case.weights**2).sum())


@pytest.mark.parametrize("kind", PRIOR_KINDS)
def test_more_index_pairs_than_parameters_change_nothing(kind):
    """35 x 2 rows over 43 parameters: the dual turns to the smaller side by itself."""
    case = make_case("mlp", num_inputs=35)
    prior = make_prior(kind, case)
    assert len(case.x) * 2 > case.num_params
    assert_same(case.estimate("ntk-N-C", prior).total, dense_value(case, case.precision(prior)))


@pytest.mark.parametrize("name", ["ntk-N-C", "ggn-N-C"])
def test_linear_regression_at_its_mode_has_its_true_evidence(name):
    """Where the network is linear, Laplace is exact: log N(y; 0, sigma^2 I + X P0^-1 X^T)."""
    noise, precision = 0.6, torch.tensor([0.5, 2.0], dtype=torch.float64)  # of the weight and the bias
    x = torch.randn(9, 3, generator=generator(1), dtype=torch.float64)
    y = torch.randn(9, 1, generator=generator(2), dtype=torch.float64)
    features = torch.cat([x, torch.ones(9, 1)], dim=1)
    prior = precision.repeat_interleave(torch.tensor([3, 1]))
    mode = torch.linalg.solve(features.T @ features / noise**2 + prior.diag(), features.T @ y / noise**2)
    model = seeded(nn.Linear(3, 1))
    with torch.no_grad():
        model.weight.copy_(mode[:3].T)
        model.bias.copy_(mode[3])
    covariance = noise**2 * torch.eye(9, dtype=torch.float64) + features / prior @ features.T
    evidence = MultivariateNormal(torch.zeros(9, dtype=torch.float64), covariance).log_prob(y.squeeze(1))
    assert_same(log_marginal_likelihood(model, x, y, name, precision, Gaussian(noise)).total, evidence)


def test_outputs_that_share_no_parameter_add_up():
    """Two logistic regressions in one linear layer are separate problems, and their evidences add up."""
    case = make_case("mlp", "bernoulli", num_outputs=2)
    model = seeded(nn.Linear(4, 2))
    both = log_marginal_likelihood(model, case.x, case.y, "ntk-N-C", 0.7, "bernoulli").total
    single = 0.0
    for output in range(2):
        one = seeded(nn.Linear(4, 1))
        with torch.no_grad():
            one.weight.copy_(model.weight[output : output + 1])
            one.bias.copy_(model.bias[output : output + 1])
        single += log_marginal_likelihood(one, case.x, case.y[:, output], "ntk-N-C", 0.7, "bernoulli").total
    assert_same(both, single)
