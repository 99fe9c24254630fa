"""Convolutions with constant filters: torch's values and derivatives towards the input, and nothing towards the filters."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

import ntkml
from ntkml.dichotomies import balanced
from ntkml.hyperparameters import affine
from ntkml.layers.constant_filters import ConstantFilters
from ntkml.likelihoods import Categorical
from ntkml.rows import capture as capture_module
from tests.factories import assert_same, generator, seeded

MODULES = {
    "plain": lambda: nn.Conv2d(3, 4, 3),
    "without bias": lambda: nn.Conv2d(3, 4, 3, padding=1, bias=False),
    "stride and padding": lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)),
    "dilation": lambda: nn.Conv2d(3, 4, 2, dilation=2),
    "groups": lambda: nn.Conv2d(3, 6, 3, groups=3),
    "same": lambda: nn.Conv2d(3, 4, 3, padding="same"),
}


def derivatives(module, modules):
    """Outputs, their gradient in the input for cotangents that depend on it, and that of those, twice."""
    x = torch.randn(2, 3, 7, 6, generator=generator(), dtype=torch.float64, requires_grad=True)
    with ConstantFilters(modules):
        outputs = module(x.sin())
    (first,) = torch.autograd.grad(outputs, x, outputs.cos(), create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum() + outputs.square().sum(), x, create_graph=True)
    (third,) = torch.autograd.grad(second.cos().sum(), x)
    return outputs, first, second, third


@pytest.mark.parametrize("name", MODULES)
def test_values_and_three_derivatives_are_those_of_torch(name):
    module = seeded(MODULES[name]())
    for own, plain in zip(derivatives(module, [module]), derivatives(module, []), strict=True):
        assert_same(own, plain)


def test_the_gradient_in_the_filters_is_not_computed():
    """The convolution of images with filters as large as they are, which torch makes of every second derivative."""
    module = seeded(nn.Conv2d(3, 4, 3))

    def sizes_of_filters(modules):
        x = torch.randn(2, 3, 7, 6, generator=generator(), dtype=torch.float64, requires_grad=True)
        with ConstantFilters(modules):
            outputs = module(x.sin())
        (first,) = torch.autograd.grad(outputs, x, outputs, create_graph=True)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
            torch.autograd.grad(first.square().sum(), x)
        averages = seen.key_averages(group_by_input_shape=True)
        return {tuple(event.input_shapes[1][2:]) for event in averages if event.key == "aten::convolution"}

    assert sizes_of_filters([module]) == {(3, 3)}
    assert sizes_of_filters([]) > {(3, 3)}


class Network(nn.Module):
    """Two convolutions around what is asked of the first one, and a linear head."""

    def __init__(self, middle):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3), nn.Linear(2 * 4 * 4, 3)
        self.middle = middle

    def forward(self, x):
        return self.head(torch.tanh(self.second(self.middle(self.first, x))).flatten(1))


def sloped(first, x):
    """An activation with a gradient of its own inside the forward pass."""
    with torch.enable_grad():
        z = first(x).tanh()
        (slope,) = torch.autograd.grad(z.square().sum(), z, create_graph=True)
    return slope * z


def descended(first, x):
    """A step on an energy of a convolution, which differentiates it inside the forward pass."""
    with torch.enable_grad():
        x = x if x.requires_grad else x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(first(x).tanh().square().sum(), x, create_graph=True)
    return first(x - 0.1 * slope)


NETWORKS = {
    "plain": lambda: Network(lambda first, x: first(x).tanh()),
    "checkpointed": lambda: Network(lambda first, x: checkpoint(lambda y: first(y).tanh(), x, use_reentrant=False)),
    "an image at a time": lambda: Network(lambda first, x: torch.stack([first(image).tanh() for image in x])),
    "frozen and vmapped": lambda: frozen(
        Network(lambda first, x: torch.vmap(lambda image: first(image.unsqueeze(0))[0].tanh())(x))
    ),
    "a slope inside": lambda: Network(sloped),
    "a derivative inside": lambda: Network(descended),
    "a learned filter": lambda: with_learned_filter(Network(lambda first, x: first(x).tanh())),
    "a filter computed from another": lambda: weight_normed(Network(lambda first, x: first(x).tanh())),
    "compiled": lambda: torch.compile(Network(lambda first, x: first(x).tanh()), backend="eager"),
}


def with_learned_filter(network):
    network.first.weight = ntkml.Hyperparameter(network.first.weight.detach())
    return network


def frozen(network):
    network.first.requires_grad_(False)
    return network


def weight_normed(network):
    nn.utils.parametrizations.weight_norm(network.second)
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_in_eta_are_those_without_it(name, monkeypatch):
    """Whatever a network does with its convolutions, and in finite differences too."""
    model = NETWORKS[name]()
    for parameter, seed in zip(model.parameters(), range(100), strict=False):
        parameter.data = torch.randn(parameter.shape, generator=generator(seed), dtype=torch.float64) * 0.4
    x, y = torch.rand(4, 1, 6, 6, generator=generator(), dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    found = []
    for constant in (ConstantFilters, lambda modules: nullcontext()):
        monkeypatch.setattr(capture_module, "ConstantFilters", constant)
        augmentation = ntkml.AffineInvariance(2, torch.full((6,), 0.2, dtype=torch.float64))
        objective = ntkml.MarginalLikelihood(model, "ntk-4-1", augmentation=augmentation, chunk=2)
        objective.zero_grad()  # that of a learned filter is the network's
        objective.resample(x, y, generator())
        objective.backward(x, y, 1, generator())
        found.append([p.grad for p in objective.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) >= 2
    for own, plain in zip(*found, strict=True):
        assert_same(own, plain)


def test_what_is_kept_in_inference_mode_serves_afterwards():
    affine._generators.cache_clear()
    tree = balanced(range(3))
    augmentation = ntkml.AffineInvariance(2, torch.full((6,), 0.2))
    x, y = torch.rand(4, 1, 6, 6, generator=generator()), torch.tensor([0, 1, 2, 0])
    with torch.inference_mode():
        augmentation(x, augmentation.draw(4, generator()))
        Categorical().factor(torch.zeros(2, 3), "tree", tree)
    model = Network(lambda first, x: first(x).tanh())
    ntkml.MarginalLikelihood(model, "ntk-4-C", augmentation=augmentation).backward(x, y, 1, generator())
    assert bool(augmentation.eta.grad.any())
    outputs = torch.zeros(2, 3, requires_grad=True)
    Categorical().factor(outputs, "tree", tree).square().sum().backward()
    assert outputs.grad is not None
