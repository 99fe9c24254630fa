"""What a likelihood reads of the network's hyperparameters is learned through it: by the log density and by the rows."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import ntkml
from tests.factories import assert_same, generator, seeded
from tests.small_networks import N, Sloped, X, Y, network

NAMES = ("ntk-N-C", "ntk-5-tree", "ntk-5-1", "ggn-N-C", "blockdiag-N-1", "kfac-5-1", "diag-N-C")


@dataclass(frozen=True)
class Tempered(ntkml.Categorical):
    """softmax(t f)."""

    temperature: torch.Tensor

    def log_prob(self, outputs, targets):
        return super().log_prob(self.temperature * outputs, targets)

    def hessian(self, outputs):
        return self.temperature**2 * super().hessian(self.temperature * outputs)

    def factor(self, outputs, split, tree, columns=None):
        return self.temperature * super().factor(self.temperature * outputs, split, tree, columns)


class InModule(nn.Module):
    """A likelihood that is a module."""

    softmax, noise_variance = True, 1.0

    def __init__(self, temperature):
        super().__init__()
        self.temperature = temperature

    def __getattr__(self, name):
        if name in ("check_targets", "log_prob", "factor"):
            return getattr(Tempered(self.temperature), name)
        return super().__getattr__(name)


class WithTemperature(Sloped):
    """A network that holds the temperature of its likelihood, in whose own outputs it does not appear."""

    def __init__(self, kind=ntkml.Hyperparameter):
        super().__init__()
        self.temperature = kind(torch.tensor(1.3))


def problem(name, chunk=None, kind=Tempered):
    model = seeded(WithTemperature())
    objective = ntkml.MarginalLikelihood(model, name, kind(model.temperature), chunk=chunk)
    objective.resample(X, Y, generator(2))
    return objective, model


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_temperature_that_network_and_likelihood_hold_has_the_gradient_of_finite_differences(name, chunk):
    objective, model = problem(name, chunk)
    objective.backward(X, Y, None)
    for parameter in (model.temperature, model.slope, objective.log_prior_precision):
        flat, step = parameter.data.view(-1), 1e-5
        value, around = flat[0].item(), []
        for moved in (value + step, value - step):
            flat[0] = moved
            around.append(-objective.estimate(X, Y).total.item() / N)
        flat[0] = value
        difference = (around[0] - around[1]) / (2 * step)
        assert parameter.grad.view(-1)[0].item() == pytest.approx(difference, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_likelihood_that_is_a_module_is_one_too(frozen):
    found = []
    for kind in (Tempered, InModule):
        objective, model = problem("ntk-5-tree", 2, kind)
        objective.log_prior_precision.requires_grad_(not frozen)
        objective.backward(X, Y, None)
        assert (objective.log_prior_precision.grad is None) is frozen
        found.append(model.temperature.grad)
    assert_same(*found)


class OfNetwork(Tempered):
    """Holds the network for its temperature."""

    def __init__(self, network):
        object.__setattr__(self, "network", network)

    @property
    def temperature(self):
        return self.network.temperature


@pytest.mark.parametrize("wrapped", [nn.Identity, nn.Sequential])
def test_a_likelihood_may_hold_the_network_that_an_objective_has_in_a_wrapper(wrapped):
    model = seeded(WithTemperature())
    given = model if wrapped is nn.Identity else wrapped(model)
    objective = ntkml.MarginalLikelihood(given, "ntk-N-C", OfNetwork(model))
    objective.backward(X, Y, None)
    expected, held = problem("ntk-N-C")
    expected.backward(X, Y, None)
    assert_same(model.temperature.grad, held.temperature.grad)


def test_a_frozen_temperature_leaves_cached_steps():
    objective, model = problem("ntk-5-tree")
    with pytest.raises(ValueError, match="cached steps are for the prior and the observation noise alone"):
        objective.cached_backward(X, Y)
    for hyperparameter in objective.in_network:
        hyperparameter.requires_grad_(False)
    objective.cached_backward(X, Y, None)()
    cached = objective.log_prior_precision.grad.clone()
    objective.zero_grad()
    objective.backward(X, Y, None)
    assert_same(objective.log_prior_precision.grad, cached)
    assert model.temperature.grad is None


def test_the_loss_of_the_weights_leaves_no_gradient_in_a_temperature():
    objective, model = problem("ntk-5-tree")
    objective.weight_loss(X, Y, num_data=N).backward()
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert model.temperature.requires_grad
    assert model.head.weight.grad is not None


OWN = {
    "parameter": lambda: Tempered(nn.Parameter(torch.tensor(1.3))),
    "tensor": lambda: Tempered(torch.tensor(1.3, requires_grad=True)),
    "of another network": lambda: Tempered(WithTemperature().temperature),
    "module": lambda: InModule(nn.Parameter(torch.tensor(1.3))),
    "module inside": lambda: Tempered(nn.Linear(1, 1)),
}


@pytest.mark.parametrize("own", OWN)
def test_what_a_likelihood_would_have_to_learn_alone_is_refused(own):
    words = r"^(Tempered|InModule) holds a tensor of shape .* that requires a gradient: .* ntkml.Hyperparameter of the network"
    with pytest.raises(ValueError, match=words):
        ntkml.MarginalLikelihood(network(), "ntk-5-1", OWN[own]())


def test_a_parameter_that_is_the_noise_or_fixed_is_none_to_be_learned_alone():
    fixed = Tempered(nn.Parameter(torch.tensor(1.3), requires_grad=False))
    for likelihood in (fixed, ntkml.Gaussian(nn.Parameter(torch.tensor(0.1)))):
        ntkml.MarginalLikelihood(network(), "ntk-5-1", likelihood)


class Spread:
    """A Gaussian without a noise to learn, whose variance is a hyperparameter of the network."""

    softmax = False

    def __init__(self, temperature):
        self.noise_variance = temperature
        self.log_prob = self.factor = self.check_targets = None


def test_a_variance_that_depends_on_a_hyperparameter_is_refused():
    model = seeded(WithTemperature())
    with pytest.raises(
        ValueError, match="noise_variance of Spread depends on a Hyperparameter: let it be 1, and factor"
    ):
        ntkml.MarginalLikelihood(model, "ntk-5-1", Spread(model.temperature))
