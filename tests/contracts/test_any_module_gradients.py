"""Gradients of estimates of any network are finite differences, whole and in chunks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ntkml.objective import MarginalLikelihood
from ntkml.parameters import Hyperparameter
from tests.factories import assert_same, generator
from tests.networks import NETWORKS, case_of, pairs

pytestmark = pytest.mark.usefixtures("one_thread")


class Slope(nn.Module):
    """A network whose outputs and hidden layers are scaled by learned hyperparameters."""

    def __init__(self, network, scales_inputs):
        super().__init__()
        self.network, self.scales_inputs = network, scales_inputs
        self.inner = Hyperparameter(torch.tensor(0.8, dtype=torch.float64))
        self.outer = Hyperparameter(torch.tensor(1.3, dtype=torch.float64))

    def forward(self, x):
        inside = self.inner * torch.tanh(x) if self.scales_inputs else x
        return self.outer * torch.tanh(self.inner * self.network(inside))


def objective_of(name, estimator, chunk=None):
    case = case_of(name, num_inputs=5)
    model = Slope(case.model, case.x.is_floating_point())
    objective = MarginalLikelihood(model, estimator, prior_precision=0.7, chunk=chunk)
    objective.resample(case.x, case.y, generator(5))
    return objective, case.x, case.y


def value_of(objective, x, y):
    """The number of :func:`loss_of` without its gradients, at a third of the price."""
    return -objective.estimate(x, y, None, generator(1)).total.item() / len(x)


def loss_of(objective, x, y):
    objective.zero_grad()
    return -objective.backward(x, y, None, generator(1)).total.item() / len(x)


def check_against_differences(name, estimator):
    objective, x, y = objective_of(name, estimator)
    loss_of(objective, x, y)
    found, step = [p.grad.item() for p in objective.in_network], 1e-5
    for parameter, gradient in zip(objective.in_network, found, strict=True):
        value = parameter.item()
        losses = []
        for sign in (1, -1):
            parameter.data.fill_(value + sign * step)
            losses.append(value_of(objective, x, y))
        parameter.data.fill_(value)
        assert gradient == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize(("name", "estimator"), pairs(NETWORKS, "ntk-3-C", "diag-4-tree"))
def test_two_pass_gradients_are_those_of_finite_differences(name, estimator):
    check_against_differences(name, estimator)


@pytest.mark.parametrize(("name", "estimator"), pairs(NETWORKS, "kfac-3-C", "kfac-3-1"))
def test_two_pass_gradients_of_kfac_are_those_of_finite_differences(name, estimator):
    check_against_differences(name, estimator)


class Gains(nn.Module):
    """Random gains of the inputs, as an augmentation with one hyperparameter."""

    num_views = 3

    def __init__(self):
        super().__init__()
        self.eta = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))

    def draw(self, num_inputs, generator=None):
        return torch.randn(num_inputs, self.num_views, generator=generator, dtype=torch.float64)

    def forward(self, x, noise):
        gains = (self.eta * noise).exp()
        return (x.unsqueeze(1) * gains.reshape(*noise.shape, *[1] * (x.ndim - 1))).flatten(0, 1)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize(
    "name", ["Fixup", "BatchNorm", "raw parameters", "module used twice", "tied weights", "branch on a value"]
)
def test_augmentations_are_differentiated_through_views(name, chunk):
    case = case_of(name)
    augmentation = Gains()
    objective = MarginalLikelihood(case.model, "ntk-3-C", augmentation=augmentation, chunk=chunk)
    objective.resample(case.x, case.y, generator(5))
    loss_of(objective, case.x, case.y)
    found, losses = augmentation.eta.grad.item(), []
    for value in (0.4 + 1e-5, 0.4 - 1e-5):
        augmentation.eta.data.fill_(value)
        losses.append(value_of(objective, case.x, case.y))
    assert found == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize(("name", "estimator"), pairs(NETWORKS, "ntk-4-1", "kfac-4-C"))
def test_chunks_change_nothing(name, estimator):
    results = []
    for chunk in (None, 2):
        objective, x, y = objective_of(name, estimator, chunk)
        value = loss_of(objective, x, y)
        results.append(torch.tensor([value, *(p.grad.item() for p in objective.in_network)], dtype=torch.float64))
    for part in results[1:]:
        assert_same(part, results[0], 1e-12)


@pytest.mark.parametrize("estimator", ["ntk-N-C", "kfac-N-1"])
def test_operations_without_a_second_derivative_are_refused_by_name(estimator):
    """Torch's own error names a function that nobody calls. Values, and gradients in the prior alone, take no second derivative."""

    class Prototypes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.slope = nn.Linear(4, 5), Hyperparameter(torch.tensor(0.8))

        def forward(self, x):
            return -torch.cdist(self.slope * self.layer(x), torch.eye(3, 5))

    objective, x, y = (
        MarginalLikelihood(Prototypes(), estimator),
        torch.randn(5, 4, generator=generator()),
        torch.arange(5) % 3,
    )
    with pytest.raises(ValueError, match="no second derivative of 'cdist', .* learn prior and noise alone"):
        objective.backward(x, y)
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert objective.estimate(x, y).log_det > 0
    objective.model.slope.requires_grad_(False)
    objective.backward(x, y)
    assert objective.log_prior_precision.grad is not None
