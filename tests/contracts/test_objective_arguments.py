"""What an objective may be given: estimators, precisions, counts, likelihoods and augmentations of every kind, or a refusal."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy
import pytest
import torch

import ntkml
from ntkml.likelihoods import Gaussian
from ntkml.specs import parse_estimator
from tests.factories import assert_same, generator
from tests.objectives import everything
from tests.small_networks import CLASSES, N, X, Y, network


def test_whole_numbers_of_other_libraries_are_numbers():
    objective = ntkml.MarginalLikelihood(network(), "ntk-4-C", chunk=numpy.int64(3))
    assert math.isfinite(objective.backward(X, Y, numpy.int64(2)).total)


def test_a_likelihood_object_starts_from_its_own_noise():
    model, targets = network(), torch.randn(N, CLASSES, generator=generator(4), dtype=torch.float64)
    objective = ntkml.MarginalLikelihood(model, "ntk-N-C", likelihood=Gaussian(0.1), prior="scalar")
    assert objective.log_observation_noise.item() == pytest.approx(math.log(0.1))
    expected = ntkml.log_marginal_likelihood(model, X, targets, "ntk-N-C", likelihood=Gaussian(0.1))
    assert_same(objective.estimate(X, targets).total, expected.total, 1e-10)
    with pytest.raises(ValueError, match="observation noise must be positive; got -1"):
        ntkml.MarginalLikelihood(model, "ntk-N-C", likelihood=Gaussian(-1.0))
    with pytest.raises(ValueError, match="observation noise is one number for all outputs; got 3"):
        ntkml.MarginalLikelihood(model, "ntk-N-C", likelihood=Gaussian(torch.ones(3)))


def test_an_estimator_may_be_a_name_or_what_it_means():
    spec = parse_estimator("ntk-4-tree")
    assert ntkml.MarginalLikelihood(network(), spec).estimator == spec
    with pytest.raises(ValueError, match="unknown structure '100'"):
        ntkml.MarginalLikelihood(network(), 100)


@pytest.mark.parametrize(
    ("prior", "given", "expected"),
    [
        ("scalar", torch.tensor([2.0], requires_grad=True), [2.0]),
        ("layerwise", torch.tensor(3), [3.0] * 4),
        ("layerwise", torch.arange(1.0, 5.0), [1.0, 2.0, 3.0, 4.0]),
        ("layerwise", [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]),
        ("diagonal", torch.arange(1.0, 44.0), list(range(1, 44))),
    ],
)
def test_the_first_prior_precision_is_one_number_or_as_many_as_the_prior_has(prior, given, expected):
    objective = ntkml.MarginalLikelihood(network(), "ntk-4-C", prior=prior, prior_precision=given)
    assert objective.prior.values.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.ones(3), r"4 \(layerwise: one per parameter tensor\) .*; got 3 with kind 'layerwise'"),
        (torch.tensor([1.0, 1.0, -2.0, 1.0]), "must be positive and finite; got -2"),
        ("one", "a prior precision is a number or a tensor of numbers; got 'one'"),
        (None, "a prior precision is a number or a tensor of numbers; got None"),
    ],
)
def test_other_first_prior_precisions_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ntkml.MarginalLikelihood(network(), "ntk-4-C", prior_precision=given)


@pytest.mark.parametrize("chunk", [0, 2.5, "4", True])
def test_a_chunk_that_is_no_number_of_inputs_is_refused(chunk):
    with pytest.raises(ValueError, match=f"chunk must be a positive number of inputs, got {chunk}"):
        ntkml.MarginalLikelihood(network(), "ntk-4-C", chunk=chunk)


@pytest.mark.parametrize("blocks", [2.0, "2", 0, True])
def test_a_number_of_blocks_that_is_none_is_refused(blocks):
    with pytest.raises(ValueError, match=f"blocks={blocks}: write a number from 1 to 3, or None for all 3 blocks"):
        ntkml.MarginalLikelihood(network(), "ntk-4-C").backward(X, Y, blocks)


@dataclass(frozen=True)
class Tempered(Gaussian):
    """A subclass with a likelihood of its own."""

    temperature: float = 1.0

    def log_prob(self, outputs, targets):
        return super().log_prob(outputs, targets) / self.temperature


class Scaled:
    """No relative of ours: a Gaussian whose noise is called a scale, with twice its log density."""

    softmax = False

    def __init__(self, scale):
        self.observation_noise = scale

    def with_noise(self, noise):
        return Scaled(noise)

    @property
    def noise_variance(self):
        return torch.as_tensor(self.observation_noise, dtype=torch.float64).square() / 2

    def check_targets(self, outputs, targets):
        Gaussian().check_targets(outputs, targets)

    def log_prob(self, outputs, targets):
        return 2 * Gaussian(self.observation_noise).log_prob(outputs, targets)

    def factor(self, outputs, split, tree):
        return Gaussian().factor(outputs, split, tree)


@pytest.mark.parametrize("own", [Tempered(0.1, temperature=3.0), Scaled(0.1)])
def test_the_noise_of_an_own_likelihood_is_learned_by_its_own_density(own):
    model, targets = network(), torch.randn(N, CLASSES, generator=generator(4), dtype=torch.float64)
    objective = ntkml.MarginalLikelihood(model, "ntk-N-C", likelihood=own, prior="scalar")
    assert type(objective.likelihood) is type(own)
    assert objective.weight_loss(X, targets, N).item() == pytest.approx(
        (-own.log_prob(model(X), targets).sum() + objective.prior.energy(dict(model.named_parameters()))).item() / N
    )
    noise = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    expected = ntkml.log_marginal_likelihood(model, X, targets, "ntk-N-C", likelihood=own.with_noise(noise))
    (-expected.total / N).backward()
    assert_same(objective.backward(X, targets).total, expected.total.detach(), 1e-10)
    assert_same(objective.log_observation_noise.grad, 0.1 * noise.grad, 1e-10)


def test_an_objective_may_be_converted_to_float32():
    objective = ntkml.MarginalLikelihood(network(), "ntk-4-C")
    expected = everything(objective, X, Y)
    found = everything(objective.float(), X, Y)
    for name, value in expected.items():
        assert_same(found[name], value, 1e-5)
    objective.cached_backward(X, Y)()


@pytest.mark.parametrize("num_views", [0, -1, 1.5])
def test_a_number_of_views_that_is_none_is_refused_at_once(num_views):
    with pytest.raises(ValueError, match="num_views must be a positive integer, got"):
        ntkml.AffineInvariance(num_views)


@pytest.mark.parametrize(
    "eta", [torch.zeros(1), torch.zeros(3), torch.tensor(0.5), torch.zeros(6, 1), torch.zeros(6).long()]
)
def test_half_widths_are_one_for_each_generator(eta):
    with pytest.raises(
        ValueError, match=r"eta holds 6 .*\(x-translation, y-translation, rotation, .*shear\); got shape"
    ):
        ntkml.AffineInvariance(2, eta)
