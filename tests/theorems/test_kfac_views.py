"""KFAC's route over views: gradients summed and inputs averaged before anything is stacked, against full positions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ntkml.layers.fixup import Bias, Scale
from ntkml.rows.block import merge_factors
from ntkml.rows.capture import capture
from ntkml.rows.pulled import rows_by_layer
from tests.factories import assert_same, generator, seeded

COUNT, CLASSES = 4, 3


def network():
    """A convolution in groups with stride, padding and dilation; linear layers over tokens; elementwise scales and biases."""
    return seeded(
        nn.Sequential(
            Bias(),
            nn.Conv2d(2, 4, 3, stride=2, padding=2, dilation=2, groups=2),
            Scale((4, 1, 1)),
            nn.GroupNorm(2, 4),
            nn.Tanh(),
            nn.Conv2d(4, 2, 2, padding=1, padding_mode="zeros", bias=False),
            nn.Flatten(2),
            nn.Linear(16, 5),
            nn.LayerNorm(5),
            nn.Tanh(),
            nn.Flatten(),
            Bias((10,)),
            nn.Linear(10, CLASSES),
        )
    )


def factors_of(num_views, over_views, num_columns=2, differentiable=False):
    """Kronecker factors, the reduced layers, and the images that they are differentiable in."""
    model = network()
    images = torch.randn(COUNT * num_views, 2, 6, 6, generator=generator(), dtype=torch.float64, requires_grad=True)
    captured = capture(model, images, num_views, differentiable=differentiable)
    factor = torch.randn(COUNT, CLASSES, num_columns, generator=generator(1), dtype=torch.float64)
    layers = rows_by_layer(captured, factor, keep_graph=differentiable, over_views=over_views)
    reduced = {name: layer.reduced() for name, layer in layers.items()}
    return merge_factors(reduced), reduced, images


@pytest.mark.parametrize("num_columns", [1, 3])
@pytest.mark.parametrize("num_views", [1, 2, 5])
def test_factors_are_those_of_full_positions(num_views, num_columns):
    ours, _, _ = factors_of(num_views, over_views=True, num_columns=num_columns)
    theirs, _, _ = factors_of(num_views, over_views=False, num_columns=num_columns)
    assert set(ours) == set(theirs) == {name for name, _ in network().named_parameters()}
    for name, factors in theirs.items():
        assert len(factors) == len(ours[name])
        for one, other in zip(ours[name], factors, strict=True):
            assert one.abs().max() > 0
            assert_same(one, other, 1e-12)


@pytest.mark.parametrize("num_views", [1, 3])
def test_their_gradients_are_too(num_views):
    found = []
    for over_views in (True, False):
        factors, reduced, images = factors_of(num_views, over_views, differentiable=True)
        random = generator(2)
        total = torch.zeros((), dtype=torch.float64)
        for layer, part in reduced.items():
            own = {name.rpartition(".")[2]: kept for name, kept in factors.items() if name.rpartition(".")[0] == layer}
            adjoint = {
                key: tuple(torch.randn(f.shape, generator=random, dtype=torch.float64) for f in kept)
                for key, kept in own.items()
            }
            total = total + part.pair(adjoint, COUNT)
        found.append((total.detach(), torch.autograd.grad(total, images)[0]))
    assert found[1][1].abs().max() > 1e-3
    for ours, theirs in zip(*found, strict=True):
        assert_same(ours, theirs, 1e-12)


def test_nothing_of_several_views_is_left():
    """Whatever is kept is of n inputs and not of n S views, which is S times less."""
    _, reduced, _ = factors_of(5, over_views=True)
    tensors = [part.gradients for part in reduced.values() if hasattr(part, "gradients")]
    tensors += [part.inputs for part in reduced.values() if hasattr(part, "inputs")]
    tensors += [rows for part in reduced.values() for rows in getattr(part, "rows", {}).values()]
    assert len(tensors) > 8
    assert {len(tensor) for tensor in tensors} == {COUNT}
