"""Objectives with something to learn in the forward pass: a slope inside the network, gains and offsets of the images."""

from __future__ import annotations

import torch
from torch import nn

from ntkml.objective import MarginalLikelihood
from ntkml.parameters import Hyperparameter
from tests.factories import assert_same, generator

COUNT, CLASSES, VIEWS = 9, 4, 3
PARTS = ("total", "log_likelihood", "log_prior", "log_det")


class Slope(nn.Module):
    """tanh(a x) with a learned slope: a hyperparameter inside the network."""

    def __init__(self):
        super().__init__()
        self.slope = Hyperparameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x):
        return torch.tanh(self.slope * x)


class Brightness(nn.Module):
    """Random gains and offsets of an image: a smooth augmentation, so that finite differences mean something."""

    num_views = VIEWS

    def __init__(self):
        super().__init__()
        self.eta = nn.Parameter(torch.tensor([0.3, 0.2], dtype=torch.float64))

    def draw(self, num_inputs, generator=None):
        return 2 * torch.rand(num_inputs, VIEWS, 2, generator=generator, dtype=torch.float64) - 1

    def forward(self, x, noise):
        gain, offset = (self.eta * noise).unbind(-1)
        views = x.unsqueeze(1) * gain.exp()[..., None, None, None] + offset[..., None, None, None]
        return views.flatten(0, 1)


def problem(augmentation, name, prior="layerwise", chunk=None, likelihood="categorical", partitioned=True):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        Slope(),
        nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    ).double()
    x = torch.rand(COUNT, 1, 8, 8, dtype=torch.float64)
    y = torch.randint(0, CLASSES, (COUNT,)) if likelihood == "categorical" else torch.randn(COUNT, CLASSES).double()
    y = (y > 0).double() if likelihood == "bernoulli" else y
    objective = MarginalLikelihood(network, name, likelihood, prior, 0.7, augmentation, chunk)
    if partitioned:
        objective.resample(x, y, torch.Generator().manual_seed(5))
    return objective, x, y


def parts_of(estimate):
    return torch.stack([getattr(estimate, part).detach() for part in PARTS])


def everything(objective, x, y, blocks=None):
    """The value of ``backward`` and every gradient, by name."""
    objective.zero_grad()
    value = parts_of(objective.backward(x, y, blocks, generator(1)))
    return {"value": value} | {name: parameter.grad.clone() for name, parameter in objective.named_parameters()}


def assert_equal(ours, theirs):
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        assert_same(ours[name], expected, 1e-12)
