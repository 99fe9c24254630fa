"""Convolutions with constant filters: torch's values and derivatives towards the input, and nothing towards the filters."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import ntkml
from ntkml.capture import is_weight
from ntkml.layers.constant_filters import ConstantFilters
from tests.factories import assert_same, generator, seeded

MODULES = {
    "plain": lambda: nn.Conv2d(3, 4, 3),
    "without bias": lambda: nn.Conv2d(3, 4, 3, padding=1, bias=False),
    "stride and padding": lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)),
    "dilation": lambda: nn.Conv2d(3, 4, 2, dilation=2),
    "groups": lambda: nn.Conv2d(3, 6, 3, groups=3),
    "same": lambda: nn.Conv2d(3, 4, 3, padding="same"),
}


def derivatives(module, constant):
    """Outputs, their gradient in the input for cotangents that depend on it, and the gradient of that once more."""
    x = torch.randn(2, 3, 7, 6, generator=generator(), dtype=torch.float64, requires_grad=True)
    with ConstantFilters(constant):
        outputs = module(x.sin())
    (first,) = torch.autograd.grad(outputs, x, outputs.detach().cos(), create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum() + outputs.square().sum(), x)
    return outputs, first, second


@pytest.mark.parametrize("name", MODULES)
def test_values_and_both_derivatives_are_those_of_torch(name):
    module = seeded(MODULES[name]())
    for own, plain in zip(derivatives(module, is_weight), derivatives(module, lambda p: False), strict=True):
        assert_same(own, plain)


def test_the_gradient_in_the_filters_is_not_computed():
    """The convolution of images with filters as large as they are, which torch makes of every second derivative."""
    module = seeded(nn.Conv2d(3, 4, 3))

    def sizes_of_filters(constant):
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
            derivatives(module, constant)
        averages = seen.key_averages(group_by_input_shape=True)
        return {tuple(event.input_shapes[1][2:]) for event in averages if event.key == "aten::convolution"}

    assert sizes_of_filters(is_weight) == {(3, 3)}
    assert sizes_of_filters(lambda p: False) > {(3, 3)}


def test_a_filter_that_is_learned_keeps_its_gradient():
    module = seeded(nn.Conv2d(3, 4, 3))
    module.weight = ntkml.Hyperparameter(module.weight.detach())
    with ConstantFilters(is_weight):
        outputs = module(torch.randn(2, 3, 5, 5, generator=generator(), dtype=torch.float64))
    (gradient,) = torch.autograd.grad(outputs.sum(), module.weight)
    assert bool((gradient != 0).all())
