"""A network that its owner compiles for training: estimates take it as it was before, and leave what was compiled alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ntkml
from tests.factories import assert_same, generator, seeded


class Scaled(nn.Module):
    """Operations that AOT compilers fuse, behind a learned scale of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = ntkml.Hyperparameter(torch.tensor(1.0, dtype=torch.float64))
        self.layers = seeded(
            nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.LayerNorm(6), nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 3))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(self.scale * x)


X, Y = torch.randn(12, 4, generator=generator(1), dtype=torch.float64), torch.arange(12) % 3


def in_place(model, **settings):
    model.compile(**settings)
    return model


WAYS = {"torch.compile": torch.compile, "model.compile": in_place}


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()


def estimates(model):
    """Of a network that was not called before; its gradients too."""
    found = [ntkml.log_marginal_likelihood(model, X, Y, "ntk-6-1", generator=generator()).total]
    objective = ntkml.MarginalLikelihood(model, "ntk-6-C+greedy")
    found.append(objective.backward(X, Y, None, generator()).total)
    return found + [parameter.grad for parameter in objective.parameters()]


@pytest.mark.parametrize("way", WAYS)
def test_estimates_are_those_of_the_network_that_was_compiled(way):
    """A compiler that makes the backward pass too frees what that has read, and has no second derivatives."""
    for own, plain in zip(estimates(WAYS[way](Scaled(), backend="aot_eager")), estimates(Scaled()), strict=True):
        assert_same(own, plain)


@pytest.mark.parametrize("way", WAYS)
def test_only_the_steps_of_the_weights_are_compiled(way):
    sizes = []

    def backend(graph, examples):
        return lambda *given: (
            sizes.extend(len(one) for one in given if one.ndim and one.shape[1:] == (4,)) or graph(*given)
        )

    model = WAYS[way](Scaled(), backend=backend)
    objective = ntkml.MarginalLikelihood(model, "ntk-6-tree+kmeans")
    for _ in range(2):
        objective.backward(X, Y, 1, generator())
    assert not sizes
    objective.weight_loss(X[:5], Y[:5], 12).backward()
    compiled = torch._dynamo.utils.counters["frames"]["total"]
    assert 5 in sizes
    objective.backward(X, Y, 1, generator())
    objective.weight_loss(X[:5], Y[:5], 12).backward()
    assert torch._dynamo.utils.counters["frames"]["total"] == compiled
