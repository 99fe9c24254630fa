"""Views are made from one input and its noise: what else they depend on is refused at the first estimate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ntkml
from tests.factories import assert_same, generator
from tests.small_networks import X, Y, network


class Shift(nn.Module):
    """Three views with a learned size of their noise."""

    num_views = 3

    def __init__(self):
        super().__init__()
        self.size = nn.Parameter(torch.tensor(0.3))

    def draw(self, num_inputs, generator=None):
        return torch.randn(num_inputs, self.num_views, 1, generator=generator, dtype=torch.float64)

    def forward(self, x, noise):
        return (x.unsqueeze(1) + noise * self.size).flatten(0, 1)


class Mixing(Shift):
    def forward(self, x, noise):
        return super().forward((x + x.flip(0)) / 2, noise)


class DrawingForItself(Shift):
    def forward(self, x, noise):
        return super().forward(x, torch.randn_like(noise))


class OneView(Shift):
    def forward(self, x, noise):
        return x + noise[:, 0] * self.size


class Learned(Shift):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def forward(self, x, noise):
        return super().forward(self.net(x), noise)


class InPlace(Shift):
    num_views = 1

    def forward(self, x, noise):
        return x.add_(noise[:, 0] * self.size.detach())


@pytest.mark.parametrize(
    ("augmentation", "words"),
    [
        (Mixing, "views of Mixing depend on the other inputs of the batch: make them from one input"),
        (DrawingForItself, r"other views for the same noise: draw all random numbers in draw\(\)"),
        (OneView, r"num_views = 3 makes 9 views of 3 inputs, those of one adjacent; OneView gave \(3, 4\)"),
        (Learned, r"BatchNorm1d 'net.1' is in training mode, .*: call augmentation.eval\(\)"),
    ],
)
@pytest.mark.parametrize("call", ["estimate", "backward", "cached_backward"])
def test_views_that_are_not_of_one_input_and_its_noise_are_refused(augmentation, words, call):
    views = augmentation()
    views.requires_grad_(call != "cached_backward")
    objective = ntkml.MarginalLikelihood(network(), "ntk-4-1", augmentation=views)
    for _ in range(2):
        with pytest.raises(ValueError, match=words):
            getattr(objective, call)(X, Y)


def test_the_look_at_views_draws_from_no_stream_of_the_users():
    objective = ntkml.MarginalLikelihood(network(), "ntk-4-1", augmentation=Shift(), chunk=9)
    before = torch.random.get_rng_state()
    objective.estimate(X, Y, 1, generator(1))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_augmentation_that_works_in_place_leaves_the_data_alone():
    x = X.clone()
    objective = ntkml.MarginalLikelihood(network(), "ntk-4-1", augmentation=InPlace(), chunk=3)
    objective.resample(x, Y, generator(2))
    first, again = (objective.estimate(x, Y, None, generator(1)).total for _ in range(2))
    assert_same(first, again)
    objective.weight_loss(x, Y, num_data=len(x))
    objective.outputs(x)
    assert torch.equal(x, X)


class WithShift(nn.Module):
    """A network that is shifted by what the views are shifted by."""

    def __init__(self, size):
        super().__init__()
        self.layer, self.size = nn.Linear(4, 3), size

    def forward(self, x):
        return self.layer(torch.tanh(self.size * x))


@pytest.mark.parametrize("name", ["ntk-N-tree", "kfac-5-1"])
def test_what_network_and_augmentation_share_is_learned_once(name):
    views = Shift()
    views.size = ntkml.Hyperparameter(views.size.detach().double())
    objective = ntkml.MarginalLikelihood(WithShift(views.size).double(), name, augmentation=views)
    objective.resample(X, Y, generator(2))
    objective.backward(X, Y, None, generator(1))
    assert len(list(objective.parameters())) == 2

    def loss(step):
        with torch.no_grad():
            views.size += step
            value = -objective.estimate(X, Y, None, generator(1)).total / len(X)
            views.size -= step
        return value

    assert views.size.grad.item() == pytest.approx(((loss(1e-5) - loss(-1e-5)) / 2e-5).item(), rel=1e-6)


def test_an_augmentation_that_holds_a_weight_is_refused():
    model, views = network(), Shift()
    views.net = model[0]
    with pytest.raises(
        ValueError, match=r"the augmentation holds parameter '0.weight', a weight of the network: give it"
    ):
        ntkml.MarginalLikelihood(model, "ntk-4-1", augmentation=views)
    model[0].requires_grad_(False)
    ntkml.MarginalLikelihood(model, "ntk-4-1", augmentation=views)
