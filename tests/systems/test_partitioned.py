"""Partitioned networks: a shard never reaches the subnetwork that predicts it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ntkml.datasets import load_dataset, subset
from ntkml.learning.loop import learn
from ntkml.learning.state import new_learner, restore, state_of
from ntkml.models import build_model
from ntkml.protocols.train import load_train
from ntkml.randomness import generator_for
from ntkml.systems.partitioned import shards_of, weight_parts
from tests.factories import generator

pytestmark = pytest.mark.usefixtures("one_thread")


def problem(name, dataset="digits_r180", **settings):
    settings = {"num_data": 40, "epochs": 2, "batch_size": 20, "samples": 1, "burn_in": 99} | settings
    protocol = replace(load_train("train-digits", "invariance"), estimator=name, dataset=dataset, **settings)
    data = subset(load_dataset(dataset), protocol.num_data, generator_for(0, "data"))
    model = build_model("mininet", (1, 8, 8), 10, generator_for(0, "init"))
    return new_learner(protocol, model, torch.device("cpu")), data


def test_changing_a_shard_leaves_the_subnetworks_before_it_as_they_were():
    trained = []
    for changed in (False, True):
        learner, data = problem("partitioned-4")
        if changed:
            data.train_inputs[learner.system.shards == 2] = 0.0
            data.train_targets[learner.system.shards == 2] = 0
        list(learn(learner, data))
        trained.append([learner.system.subnetwork(k) for k in range(4)])
    same = [all(torch.equal(ours[name], theirs[name]) for name in ours) for ours, theirs in zip(*trained, strict=True)]
    assert same == [True, True, False, False]


def test_parts_and_shards_are_disjoint_covers():
    learner, _ = problem("partitioned-3")
    parts = weight_parts(learner.objective.model, 3, 0)
    for name, weight in learner.objective.model.named_parameters():
        assert parts[name].shape == weight.shape
        assert torch.equal(sum((parts[name] == k).int() for k in range(3)), torch.ones_like(parts[name]).int())
    assert sorted((shards_of(10, 3, 0) == k).sum().item() for k in range(3)) == [3, 3, 4]


def test_one_shard_is_plain_training():
    ends = []
    for name in ("partitioned-1", "fixed-augmentation-180"):
        learner, data = problem(name)
        with torch.no_grad():
            learner.objective.augmentation.eta.zero_()
        list(learn(learner, data))
        ends.append(torch.cat([w.detach().reshape(-1) for w in learner.objective.model.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)


def test_a_part_decays_by_its_share_of_the_data_that_it_sees():
    learner, data = problem("partitioned-2")
    system, losses = learner.system, []
    for precision in (1.0, 3.0):
        learner.objective.log_prior_precision.data.fill_(precision).log_()
        of_parts = system.weight_losses(data.train_inputs, data.train_targets, torch.arange(40), generator())
        losses.append([loss.item() for loss, _ in of_parts])
    for k, (low, high) in enumerate(zip(*losses, strict=True)):
        squares = sum(float(w.detach().square().sum()) for w in system.subnetwork(k).values())
        assert high - low == pytest.approx(squares / (20, 40)[k], rel=1e-4)


def test_a_restored_run_has_the_initial_values_that_it_began_with():
    first, _ = problem("partitioned-2")
    for value in first.system.defaults.values():
        value.add_(1.0)
    second, _ = problem("partitioned-2")
    restore(second, state_of(first))
    ours, theirs = (learner.system.subnetwork(-1) for learner in (first, second))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_gradient_of_the_objective_is_direct():
    learner, data = problem("partitioned-2")
    list(learn(learner, data))
    system = learner.system
    system.objective.model.zero_grad()
    with torch.no_grad():
        system.objective.augmentation.eta.fill_(0.2)
    value = system.backward(data.train_inputs, data.train_targets, generator_for(0, "noise"))
    assert value < 0
    assert system.objective.augmentation.eta.grad.abs().min() > 0
    assert all(weight.grad is None for weight in system.objective.model.parameters())


def test_the_loss_of_an_epoch_is_the_mean_over_the_parts_that_saw_a_batch():
    learner, data = problem("partitioned-4", batch_size=1, epochs=1)
    system, seen = learner.system, []
    losses = system.weight_losses

    def noted(x, y, batch, generator):
        mine = []
        for loss, names in losses(x, y, batch, generator):
            mine.append(loss.item())
            yield loss, names
        seen.append(sum(mine) / len(mine))

    system.weight_losses = noted
    (record,) = learn(learner, data)
    assert record.train_loss == pytest.approx(sum(seen) / 40, rel=1e-6)


@pytest.mark.slow
def test_rotation_is_learned_where_there_is_one():
    learned = {}
    for dataset in ("digits", "digits_r180"):
        learner, data = problem(
            "partitioned-2",
            dataset,
            num_data=1000,
            epochs=80,
            batch_size=100,
            samples=4,
            burn_in=10,
            aug_steps=4,
            lr=5e-3,
        )
        list(learn(learner, data))
        learned[dataset] = abs(learner.objective.augmentation.eta[2].item())
    assert learned["digits_r180"] > 1.0
    assert learned["digits"] < 0.1
