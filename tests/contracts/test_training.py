"""MAP training: the loss it reports, what it depends on, and how it fails."""

from __future__ import annotations

import pytest
import torch

from ntkml.hyperparameters.affine import affine_views, draw_noise, rotation_eta
from ntkml.learning.map_training import train_map
from ntkml.likelihoods import Categorical
from ntkml.protocols.bound_grid import MapTraining
from tests.factories import assert_same, generator, make_case


def settings(**changes):
    plain = {
        "epochs": 3,
        "batch_size": 3,
        "lr": 1e-2,
        "lr_min": 1e-4,
        "prior_precision": 0.5,
        "rotation": 0.0,
        "samples": 1,
    }
    return MapTraining(**{**plain, **changes})


def train(case, eta=None, seed=0, **changes):
    chosen = settings(**changes)
    return list(train_map(case.model, case.x, case.y, Categorical(), chosen, eta, generator(seed)))


def weight_loss(case, outputs, precision=0.5):
    """(-log p(D|w) + 1/2 w^T P0 w) / N."""
    log_prob = outputs.log_softmax(-1).gather(1, case.y.unsqueeze(1)).sum()
    return (-log_prob + 0.5 * precision * case.weights @ case.weights) / len(case.x)


def test_the_loss_is_the_negative_log_joint_per_datum():
    """Held still by a learning rate of nothing, batches of unequal size add up to the loss over all data."""
    case = make_case("convnet")
    expected = weight_loss(case, case.outputs)
    (record,) = train(case, epochs=1, lr=0.0, lr_min=0.0)
    assert_same(record.loss, expected)
    assert record.accuracy == pytest.approx(float((case.outputs.argmax(1) == case.y).double().mean()))
    assert record.epoch == 0


def test_augmented_outputs_are_averaged_over_fresh_views():
    case = make_case("convnet")
    eta = rotation_eta(1.0, torch.float64)
    (record,) = train(case, eta, epochs=1, batch_size=7, lr=0.0, lr_min=0.0, rotation=1.0, samples=4)
    stream = generator(0)
    order = torch.randperm(7, generator=stream)
    views = affine_views(case.x[order], eta, draw_noise(7, 4, stream))
    outputs = torch.empty_like(case.outputs)
    outputs[order] = case.model(views).unflatten(0, (7, 4)).mean(1).detach()
    assert_same(record.loss, weight_loss(case, outputs))
    assert record.loss != pytest.approx(float(weight_loss(case, case.outputs)))


def test_training_lowers_the_loss_and_repeats_with_its_generator():
    first, again, other = make_case("mlp"), make_case("mlp"), make_case("mlp")
    records = train(first, epochs=30)
    assert [record.epoch for record in records] == list(range(30))
    assert records[-1].loss < records[0].loss - 0.1
    assert train(again, epochs=30) == records
    assert torch.equal(first.model[0].weight, again.model[0].weight)
    train(other, epochs=30, seed=1)
    assert not torch.equal(first.model[0].weight, other.model[0].weight)


def test_long_training_ends_where_the_gradient_of_the_posterior_vanishes():
    case = make_case("mlp")
    train(case, epochs=1500, batch_size=7, lr=5e-2, lr_min=1e-6)
    case.model.zero_grad()
    weights = torch.cat([weight.flatten() for weight in case.model.parameters()])
    log_prob = case.model(case.x).log_softmax(-1).gather(1, case.y.unsqueeze(1)).sum()
    gradients = torch.autograd.grad(log_prob - 0.25 * weights @ weights, list(case.model.parameters()))
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-3


def test_frozen_parameters_stay_and_have_no_prior():
    case = make_case("mlp")
    case.model[0].requires_grad_(False)
    before = case.model[0].weight.clone()
    expected = weight_loss(case, case.outputs)
    assert_same(train(case, epochs=1, lr=0.0, lr_min=0.0)[0].loss, expected)
    train(case)
    assert torch.equal(case.model[0].weight, before)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="unknown optimizer 'sgd'; known: adam"):
        train(make_case("mlp"), optimizer="sgd")


def test_divergence_is_named():
    case = make_case("mlp")
    with pytest.raises(
        ValueError, match=r"training diverged in epoch \d at learning rate 1e\+200 and .*: lower one of them"
    ):
        train(case, lr=1e200, lr_min=1e200)
