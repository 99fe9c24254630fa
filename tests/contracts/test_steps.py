"""Training one step at a time: it can be left after any step, and a learner restored from there goes on bit by bit."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace

import pytest
import torch

from ntkml.datasets import load_dataset, subset
from ntkml.learning.loop import learn, steps
from ntkml.learning.state import new_learner, restore, state_of
from ntkml.models import build_model
from ntkml.protocols.train import load_train
from ntkml.randomness import generator_for

COUNT = 60
SETTINGS = {"epochs": 2, "batch_size": 25, "burn_in": 1, "update_every": 1, "hyper_steps": 2, "eval_every": 2}
#: Cached steps of the prior, with partitions that come from the weights, and steps that draw their blocks and views.
CASES = {
    "cached": ("prior", {"estimator": "ntk-20-tree"}),
    "fresh": ("prior", {"estimator": "kfac-20-1", "fresh_blocks": True, "hyper_steps": 3}),
    "kmeans": ("prior", {"estimator": "blockdiag-20-C+kmeans", "optimizer": "sgd", "prior_kind": "diagonal"}),
    "greedy": ("prior", {"estimator": "ntk-20-1+greedy+iid", "likelihood": "gaussian"}),
    "invariance": ("invariance", {"estimator": "kfac-20-1", "samples": 2, "aug_steps": 3}),
    "map": ("prior", {"estimator": "none"}),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def problem(case):
    hparam, settings = CASES[case]
    protocol = replace(load_train("train-digits", hparam), num_data=COUNT, **(SETTINGS | settings))
    data = subset(load_dataset(protocol.dataset), COUNT, generator_for(protocol.seed, "data"))
    model = build_model(protocol.model, data.input_shape, data.num_classes, generator_for(protocol.seed, "init"))
    return new_learner(protocol, model, torch.device("cpu")), data


def untimed(records):
    return [replace(record, seconds_weights=0.0, seconds_hyper=0.0, seconds_eval=0.0) for record in records]


def assert_same_state(ours, theirs):
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert set(ours) == set(theirs)
        for key in set(ours) - {"seconds"}:
            assert_same_state(ours[key], theirs[key])
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs


@pytest.mark.parametrize("case", CASES)
def test_a_learner_left_after_any_step_goes_on_bit_by_bit(case):
    whole, data = problem(case)
    expected, states = [], []
    for record in steps(whole, data):
        expected += [] if record is None else [record]
        states.append((len(expected), copy.deepcopy(state_of(whole))))
    final = state_of(whole)
    num_updates = 0 if case == "map" else 2
    assert len(states) == 2 * (3 + 1) + num_updates * whole.protocol.steps_per_update  # three batches and a record
    for done, state in states:
        fresh, _ = problem(case)
        restore(fresh, state)
        assert untimed(learn(fresh, data)) == untimed(expected[done:])
        assert_same_state(state_of(fresh), final)


def test_a_position_names_the_steps_that_are_done():
    learner, data = problem("cached")
    seen = []
    for record in steps(learner, data):
        seen.append((learner.position.epoch, learner.position.step, learner.position.phase_start is not None))
        assert (record is None) == (learner.position.step > 0)
    kept = [(1, True), (2, True), (3, False), (4, True), (5, False)]  # three batches, two steps on one block
    assert seen == [(1, *place) for place in kept] + [(2, 0, False)] + [(2, *place) for place in kept] + [(3, 0, False)]


def test_a_state_is_not_tied_to_the_learner_it_was_put_into():
    learner, data = problem("invariance")
    walk = steps(learner, data)
    for _ in range(5):
        next(walk)
    state = copy.deepcopy(state_of(learner))
    kept = copy.deepcopy(state)
    for _ in range(2):
        fresh, _ = problem("invariance")
        restore(fresh, state)
        list(learn(fresh, data))
        assert_same_state(state["position"], kept["position"])


def test_seconds_leave_out_the_pauses():
    learner, data = problem("cached")
    began, paused = time.perf_counter(), 0.0
    records = []
    for record in steps(learner, data):
        records += [] if record is None else [record]
        if record is None:
            pause = time.perf_counter()
            time.sleep(0.02)
            paused += time.perf_counter() - pause
    seconds = sum(record.seconds_weights + record.seconds_hyper + record.seconds_eval for record in records)
    assert 0.0 < seconds <= time.perf_counter() - began - paused


def test_seconds_of_an_epoch_that_was_left_are_kept():
    learner, data = problem("map")
    walk = steps(learner, data)
    next(walk)
    learner.position.seconds["weights"] += 1000.0
    fresh, _ = problem("map")
    restore(fresh, state_of(learner))
    record = next(learn(fresh, data))
    assert 1000.0 < record.seconds_weights < 1100.0
    assert math.isfinite(record.train_loss)
