"""Training under other likelihoods than the softmax, and the learning rates of Fixup's scalars."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ntkml.datasets import load_dataset, subset
from ntkml.layers.fixup import Bias, Scale
from ntkml.learning.loop import _step, learn
from ntkml.learning.scores import one_hot, score
from ntkml.learning.state import FIXUP_SHARE, new_learner
from ntkml.likelihoods import Bernoulli, Gaussian
from ntkml.models import build_model
from ntkml.objective import MarginalLikelihood
from ntkml.protocols.train import load_train
from ntkml.randomness import generator_for

pytestmark = pytest.mark.usefixtures("one_thread")


def protocol_of(**settings):
    small = {"num_data": 60, "epochs": 3, "batch_size": 30, "burn_in": 2, "update_every": 1, "estimator": "ntk-20-1"}
    return replace(load_train("train-digits", "prior"), **(small | settings))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_other_likelihoods_are_trained_on_one_hot_targets(likelihood, monkeypatch):
    protocol = protocol_of(likelihood=likelihood)
    whole = load_dataset(protocol.dataset)
    kept = whole.train_targets < 9  # the classes are those of the data set, not those that were drawn
    drawn_from = replace(whole, train_inputs=whole.train_inputs[kept], train_targets=whole.train_targets[kept])
    data = subset(drawn_from, 60, generator_for(0, "data"))
    model = build_model(protocol.model, data.input_shape, data.num_classes, generator_for(0, "init"))
    learner = new_learner(protocol, model, torch.device("cpu"))
    seen, weight_loss, cached = [], MarginalLikelihood.weight_loss, MarginalLikelihood.cached_backward

    def watched(function):
        return lambda self, x, y, *rest: seen.append((x, y)) or function(self, x, y, *rest)

    monkeypatch.setattr(MarginalLikelihood, "weight_loss", watched(weight_loss))
    monkeypatch.setattr(MarginalLikelihood, "cached_backward", watched(cached))
    records = list(learn(learner, data))
    classes = {tuple(image.flatten().tolist()): int(y) for image, y in zip(data.train_inputs, data.train_targets)}  # noqa: B905
    assert len(seen) == 3 * 2 + 2
    for x, y in seen:
        assert y.shape == (len(x), 10)
        assert y.argmax(1).tolist() == [classes[tuple(image.flatten().tolist())] for image in x]
        assert (y.sum(1) == 1).all()
    assert records[-1].test.ece is None
    assert math.isfinite(records[-1].log_marginal_likelihood)


def test_scores_of_a_gaussian_and_a_bernoulli_are_those_by_hand():
    outputs = torch.tensor([[1.0, 0.0], [0.5, 2.0], [0.3, 0.1]], dtype=torch.float64)
    classes = torch.tensor([0, 1, 1])
    squares = (0.0, 0.5**2 + 1.0**2, 0.3**2 + 0.9**2)
    variance = 0.5**2
    expected = sum(-0.5 * (square / variance + 2 * math.log(2 * math.pi * variance)) for square in squares) / 3
    found = score(outputs, classes, Gaussian(0.5))
    assert found.log_likelihood == pytest.approx(expected, rel=1e-12)
    assert (found.accuracy, found.ece) == (2 / 3, None)
    sigmoid = lambda f: 1 / (1 + math.exp(-f))  # noqa: E731
    terms = [
        math.log(sigmoid(f) if index == int(y) else 1 - sigmoid(f))
        for row, y in zip(outputs.tolist(), classes, strict=True)
        for index, f in enumerate(row)
    ]
    found = score(outputs, classes, Bernoulli())
    assert found.log_likelihood == pytest.approx(sum(terms) / 3, rel=1e-12)
    assert found.ece is None


def test_one_hot_targets():
    assert torch.equal(one_hot(torch.tensor([2, 0]), 3), torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))


class Fixup(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.layer, self.scale, self.head = Bias(), nn.Linear(4, 5), Scale(), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.scale(self.layer(self.before(x)))))


def moved(optimizer, model, rate=0.2):
    """By parameter, the first step of a learner's weights where every gradient is 1."""
    learner = new_learner(protocol_of(optimizer=optimizer, lr=0.01), model, torch.device("cpu"))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight) if weight.requires_grad else None
    _step(learner.optimizers["weights"], rate)
    return {name: float((before[name] - weight.detach()).mean()) for name, weight in model.named_parameters()}


def test_fixups_scalars_take_a_tenth_of_the_learning_rate_under_sgd():
    assert FIXUP_SHARE == 0.1
    for name, step in moved("sgd", Fixup()).items():
        share = 0.1 if name in ("before.bias", "scale.weight") else 1.0
        assert step == pytest.approx(0.2 * share, rel=1e-4), name


def test_under_adam_all_weights_take_the_same_learning_rate():
    for name, step in moved("adam", Fixup()).items():
        assert step == pytest.approx(0.2, rel=1e-4), name


def test_frozen_scalars_and_networks_of_scalars_alone():
    model = Fixup()
    model.scale.requires_grad_(False)
    steps = moved("sgd", model)
    assert steps["scale.weight"] == 0.0
    assert steps["before.bias"] == pytest.approx(0.02, rel=1e-4)
    alone = nn.Sequential(Scale((3,)))
    assert moved("sgd", alone) == pytest.approx({"0.weight": 0.02}, rel=1e-4)
