"""Augerino: its regulariser, when it stops, and what is left of the augmentation without it."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from ntkml.datasets import load_dataset, subset
from ntkml.learning.loop import learn
from ntkml.learning.state import new_learner
from ntkml.models import build_model
from ntkml.protocols.train import load_train
from ntkml.randomness import generator_for
from ntkml.systems.augerino import Augerino, LilaAugerino, SoftplusWidths, regulariser
from tests.factories import generator

pytestmark = pytest.mark.usefixtures("one_thread")


#: Where a reader's own MNIST lies; without it the test on MNIST is skipped.
DATA_ROOT = os.environ.get("NTKML_DATA")


def learner_on(name, strength=None, dataset="digits_r180", **settings):
    settings = {"num_data": 40, "epochs": 2, "batch_size": 20, "samples": 2} | settings
    protocol = replace(load_train("train-digits", "invariance"), estimator=name, **settings)
    data = subset(load_dataset(dataset, DATA_ROOT), protocol.num_data, generator_for(0, "data"))
    model = build_model("mininet", tuple(data.train_inputs.shape[1:]), 10, generator_for(0, "init"))
    learner = new_learner(protocol, model, torch.device("cpu"))
    if strength is not None:
        learner.system.strength = strength
    return learner, data


def test_the_gradient_of_the_regulariser():
    rho = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    widths = F.softplus(rho)
    (gradient,) = torch.autograd.grad(regulariser(widths, 0.1), rho)
    expected = -0.1 * widths * torch.sigmoid(rho) / widths.norm()
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-12, atol=0)


def test_it_is_off_once_a_width_reaches_ten():
    for values, on in (([9.99] + [1.0] * 5, True), ([10.0] + [1.0] * 5, False), ([-10.0] + [1.0] * 5, False)):
        widths = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(regulariser(widths, 0.1), widths)
        assert bool((gradient != 0).any()) == on


def test_widths_of_zero_have_a_finite_gradient():
    eta = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(regulariser(eta, 0.01), eta)
    assert torch.equal(gradient, torch.zeros_like(eta))


def test_the_variant_of_lilas_paper_has_a_tenth_of_the_strength():
    assert (Augerino.strength, LilaAugerino.strength) == (0.1, 0.01)


@pytest.mark.parametrize(("name", "widths"), [("augerino", F.softplus), ("augerino-lila", torch.abs)])
def test_the_loss_is_regularised_by_the_widths_of_the_system(name, widths):
    learner, data = learner_on(name)
    eta, losses = learner.objective.augmentation.eta, []
    with torch.no_grad():
        eta.copy_(torch.linspace(-0.3, 0.4, 6))
    for strength in (0.0, 1.0):
        learner.system.strength = strength
        [(loss, _)] = learner.system.weight_losses(data.train_inputs, data.train_targets, torch.arange(20), generator())
        losses.append(loss)
    torch.testing.assert_close(losses[0] - losses[1], widths(eta).norm(), rtol=1e-4, atol=1e-5)


def test_the_loss_of_a_batch_is_its_mean_fit_and_a_share_of_the_decay_for_all_data():
    learner, data = learner_on("augerino", strength=0.0, prior_init=3.0)
    x, y = data.train_inputs, data.train_targets
    [(loss, _)] = learner.system.weight_losses(x, y, torch.arange(20), generator())
    network, views = learner.objective.model, learner.objective.augmentation
    fit = F.cross_entropy(network(views(x[:20], views.draw(20, generator()))), y[:20])
    torch.testing.assert_close(loss, fit + 1.5 * sum(w.square().sum() for w in network.parameters()) / 40)
    assert learner.system.data_passes == 0.5


def test_views_are_drawn_from_half_the_width():
    views = SoftplusWidths(1)
    torch.testing.assert_close(views.half_widths, F.softplus(torch.zeros(6)) / 2)


def test_augerino_predicts_the_mean_log_softmax_and_its_variant_mean_logits():
    learner, data = learner_on("augerino")
    assert isinstance(learner.system, Augerino)
    log_p = learner.system.outputs(data.test_inputs[:3], generator_for(0, "t"))
    assert (log_p.logsumexp(-1) < 0).all()  # a mean of log-probabilities is below the log of their mean
    learner, data = learner_on("augerino-lila")
    ours = learner.system.outputs(data.test_inputs[:3], generator_for(0, "t"))
    torch.testing.assert_close(ours, learner.objective.outputs(data.test_inputs[:3], generator_for(0, "t")))
    assert torch.equal(learner.objective.augmentation.eta.detach(), torch.zeros(6))


def test_widths_and_weights_move_in_the_same_step_and_the_prior_stays():
    learner, data = learner_on("augerino")
    before = learner.objective.augmentation.eta.detach().clone()
    list(learn(learner, data))
    assert not torch.equal(learner.objective.augmentation.eta.detach(), before)
    assert set(learner.optimizers) == {"weights", "augmentation"}
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in learner.optimizers.items()}
    assert rates["weights"] < learner.protocol.lr  # which the widths follow
    assert rates["augmentation"] / rates["weights"] == pytest.approx(learner.protocol.lr_aug / learner.protocol.lr)
    assert (learner.objective.prior.values == learner.protocol.prior_init).all()


@pytest.mark.slow
def test_without_its_regulariser_the_augmentation_collapses():
    width = {}
    for strength in (0.0, 0.1):
        learner, data = learner_on(
            "augerino", strength, num_data=1000, epochs=40, batch_size=50, prior_init=0.1, lr=3e-3, lr_aug=0.01
        )
        list(learn(learner, data))
        width[strength] = float(learner.objective.augmentation.half_widths[2].detach())
    assert width[0.0] < 0.15 < 1.0 < width[0.1]


@pytest.mark.slow
@pytest.mark.skipif(DATA_ROOT is None, reason="needs MNIST: set NTKML_DATA to the folder that holds it")
def test_it_gains_more_than_ten_points_on_a_thousand_rotated_digits():
    settings = {"num_data": 1000, "epochs": 75, "batch_size": 50, "prior_init": 0.1, "lr": 5e-3, "lr_aug": 0.003}
    accuracy = {}
    for name in ("none", "augerino"):
        learner, data = learner_on(name, dataset="mnist_r180", **settings, samples=1, eval_every=75)
        *_, last = learn(learner, data)
        accuracy[name] = last.test.accuracy
    assert accuracy["augerino"] > accuracy["none"] + 0.10
