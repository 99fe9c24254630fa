"""Numerical trouble in training has a name: where it happened, what it concerns and what to change."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ntkml.datasets import load_dataset, subset
from ntkml.learning import loop, trouble
from ntkml.learning.loop import learn
from ntkml.learning.state import new_learner
from ntkml.learning.trouble import DivergenceError, TrainingMemoryError, check_loss
from ntkml.linalg import NotPositiveDefiniteError
from ntkml.machine.memory import is_out_of_memory
from ntkml.models import build_model
from ntkml.objective import MarginalLikelihood
from ntkml.protocols.train import load_train
from ntkml.randomness import generator_for
from ntkml.rows.chunking import BlockMemoryError
from ntkml.two_pass import TwoPass

COUNT = 60
NO_MEMORY = (
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
)

pytestmark = pytest.mark.usefixtures("one_thread")


def problem(hparam="prior", chunk=None, **settings):
    small = {
        "epochs": 3,
        "batch_size": 30,
        "burn_in": 2,
        "update_every": 1,
        "estimator": "ntk-20-tree",
        "hyper_steps": 2,
    }
    small |= {"samples": 2} if hparam == "invariance" else {}
    protocol = replace(load_train("train-digits", hparam), num_data=COUNT, **(small | settings))
    data = subset(load_dataset(protocol.dataset), COUNT, generator_for(protocol.seed, "data"))
    model = build_model(protocol.model, data.input_shape, data.num_classes, generator_for(protocol.seed, "init"))
    return new_learner(protocol, model, torch.device("cpu"), chunk), data


def fails(monkeypatch, target, name, error):
    def failing(*arguments, **named):
        raise error

    monkeypatch.setattr(target, name, failing)


def test_a_loss_that_is_not_finite_names_step_and_rate_before_the_weights_move():
    learner, data = problem()
    with torch.no_grad():
        learner.objective.model[0].weight[0] = torch.nan
    before = learner.objective.model[3].weight.clone()
    words = r"training diverged in epoch 1, step 1: the loss is nan at learning rate 0.001: .*\(--lr, now 0.001\)"
    with pytest.raises(DivergenceError, match=words):
        list(learn(learner, data))
    assert torch.equal(before, learner.objective.model[3].weight)


def test_a_divergence_that_a_grown_precision_explains_names_its_rate():
    """With momentum the prior's own term cannot be descended from r p / N = 3.8 on; Adam's steps do not grow with it."""
    learner, data = problem(prior_kind="layerwise", estimator="diag-20-1", optimizer="sgd")
    rate = 0.5 * learner.protocol.lr  # as a schedule has it later on
    limit = 3.8 * learner.protocol.num_data / rate
    for precision, words in (
        (
            1.1 * limit,
            r"prior precision has grown to .*: lower --lr-hyper \(now 0.1\), or lower the learning rate \(--lr",
        ),
        (0.9 * limit, r"nan at learning rate 0.0005: lower the learning rate \(--lr, now 0.001\)$"),
    ):
        with torch.no_grad():
            learner.objective.log_prior_precision[1] = math.log(precision)
        with pytest.raises(DivergenceError, match=words):
            check_loss(learner, math.nan, 0, rate)
    adam, _ = problem(prior_kind="layerwise", estimator="diag-20-1")
    with torch.no_grad():
        adam.objective.log_prior_precision[1] = math.log(9 * limit)
    given, _ = problem(estimator="diag-20-1", optimizer="sgd", prior_init=9 * limit)
    for other in (adam, given):
        with pytest.raises(DivergenceError, match=r": lower the learning rate \(--lr"):
            check_loss(other, math.nan, 0, rate)


def test_scores_that_are_not_finite_are_named(monkeypatch):
    learner, data = problem()
    nan = replace(loop.evaluate(learner, data), log_likelihood=math.nan)
    monkeypatch.setattr(loop, "evaluate", lambda *_: nan)
    with pytest.raises(DivergenceError, match=r"diverged in epoch 3: the test log likelihood is nan: .*\(--lr, now"):
        list(learn(learner, data))


@pytest.mark.parametrize(
    ("kind", "estimator", "index", "words"),
    [
        ("scalar", "ntk-20-tree", 0, "the prior precision is inf: lower --lr-hyper"),
        ("layerwise", "diag-20-1", 3, r"the prior precision of '3.bias' is inf: lower --lr-hyper \(now 0.1\)"),
        ("diagonal", "diag-20-1", 100, r"the prior precision of '3.weight' is inf: lower --lr-hyper"),
    ],
)
def test_an_exploded_precision_names_its_parameter_tensor(kind, estimator, index, words):
    learner, data = problem(prior_kind=kind, estimator=estimator)
    step = learner.optimizers["prior"].step

    def exploding():
        step()
        with torch.no_grad():
            learner.objective.log_prior_precision[index] = 800.0

    learner.optimizers["prior"].step = exploding
    with pytest.raises(DivergenceError, match=rf"hyperparameters diverged in epoch 2, step 3 \({estimator}\): {words}"):
        list(learn(learner, data))


@pytest.mark.parametrize(
    ("settings", "spoil", "words"),
    [
        (
            {"likelihood": "gaussian"},
            "log_observation_noise",
            "the variance of the observation noise is inf: lower --lr-h",
        ),
        ({}, "eta", r"the half-widths are \[inf, 0.*: lower --lr-hyper \(now 0.1\) or --lr-aug \(now 0.05\)"),
    ],
)
def test_other_hyperparameters_that_exploded_are_named(settings, spoil, words):
    learner, data = problem("invariance" if spoil == "eta" else "prior", **settings)
    value = learner.objective.augmentation.eta if spoil == "eta" else learner.objective.log_observation_noise
    with torch.no_grad():
        value.reshape(-1)[0] = torch.inf
        with pytest.raises(DivergenceError, match=f"diverged in epoch 1, step 1 .*{words}"):
            trouble.check_update(learner, -1.0)
    with pytest.raises(DivergenceError, match="the estimate of log q / N is nan"):
        trouble.check_update(learner, math.nan)


@pytest.mark.parametrize("structure", ["ntk", "ggn", "blockdiag", "kfac", "diag"])
def test_a_singular_kernel_names_block_structure_size_prior_and_what_to_change(structure, monkeypatch):
    """The weights become NaN between the last step on them and the hyperparameters."""
    learner, data = problem(estimator=f"{structure}-40-C")
    resample = MarginalLikelihood.resample

    def spoiled(self, *arguments):
        partition = resample(self, *arguments)
        with torch.no_grad():
            self.model[0].weight.fill_(torch.nan)
        return partition

    monkeypatch.setattr(MarginalLikelihood, "resample", spoiled)
    with pytest.raises(NotPositiveDefiniteError) as caught:
        list(learn(learner, data))
    message = str(caught.value)
    assert message.startswith(
        f"epoch 2, step 3, {structure}-40-C with a layerwise prior, blocks of up to 360 index pairs: "
    )
    assert f"structure {structure}" in message
    assert message.endswith(
        "; lower --lr-hyper (now 0.1), start from a larger --prior-init, or lower --lr (now 0.001) where the weights exploded"
    )


def test_a_failed_factorisation_of_torch_is_one_of_a_singular_kernel(monkeypatch):
    fails(monkeypatch, TwoPass, "second", torch.linalg.LinAlgError("linalg.cholesky: not positive"))
    learner, data = problem("invariance")
    with pytest.raises(
        NotPositiveDefiniteError, match=r"epoch 2, step 3, ntk-20-tree .*linalg.cholesky.*--lr-aug \(now"
    ):
        list(learn(learner, data))


@pytest.mark.parametrize("error", NO_MEMORY, ids=["python", "cuda", "cpu"])
def test_no_memory_for_a_block_names_estimator_size_and_a_smaller_one(error, monkeypatch):
    """The estimator that is asked for is never replaced."""
    fails(monkeypatch, TwoPass, "first", error)
    words = (
        "out of memory in epoch 2, step 3: ntk-20-tree takes blocks of 20 inputs; try a smaller estimator "
        r"\(--estimator ntk-10-tree\)$"
    )
    with pytest.raises(TrainingMemoryError, match=words) as caught:
        list(learn(*problem()))
    assert isinstance(caught.value.__cause__, BlockMemoryError)
    assert caught.value.__cause__.__cause__ is error
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    ("estimator", "chunk", "words"),
    [
        ("kfac-N-C", 7, r"kfac-N-C takes blocks of 60 inputs; .*--estimator kfac-30-C\)$"),
        ("ntk-1-C", None, r"blocks of 1 inputs; .*--estimator ntk-1-1\)$"),
        ("ntk-1-1", None, r"blocks of 1 inputs; try a smaller --model$"),
        ("ntk-20-1+greedy", None, r"ntk-10-1\+greedy\)$"),
    ],
)
def test_the_smaller_estimator_is_of_the_same_family(estimator, chunk, words, monkeypatch):
    fails(monkeypatch, TwoPass, "first", MemoryError())
    with pytest.raises(TrainingMemoryError, match=words):
        list(learn(*problem(estimator=estimator, chunk=chunk)))


@pytest.mark.parametrize(
    ("estimator", "chunk", "words"),
    [
        ("ntk-20-1", 7, r"--estimator ntk-10-1\) or fewer inputs at a time \(--chunk, now 7\)$"),
        (
            "ntk-20-1+greedy",
            None,
            r"\(--chunk, now auto\), or another grouping than greedy, which needs the kernel of all",
        ),
    ],
)
def test_no_memory_for_a_partition_can_also_be_met_by_a_smaller_chunk(estimator, chunk, words, monkeypatch):
    fails(monkeypatch, MarginalLikelihood, "resample", MemoryError())
    with pytest.raises(TrainingMemoryError, match=words):
        list(learn(*problem(estimator=estimator, chunk=chunk)))


def test_no_memory_for_a_batch_or_the_test_data_says_what_to_lower(monkeypatch):
    with monkeypatch.context() as patch:
        fails(patch, MarginalLikelihood, "weight_loss", MemoryError())
        words = r"out of memory in epoch 1, step 1: a batch .* lower --batch-size \(now 30\) or --samples \(now 2\)"
        with pytest.raises(TrainingMemoryError, match=words):
            list(learn(*problem("invariance")))
    fails(monkeypatch, loop, "evaluate", MemoryError())
    with pytest.raises(
        TrainingMemoryError, match="epoch 3, .*the test data take too much at a time; choose a smaller --model"
    ):
        list(learn(*problem(chunk=5)))


def test_errors_that_are_none_of_these_stay_what_they_are(monkeypatch):
    fails(monkeypatch, TwoPass, "first", RuntimeError("a mistake of ours"))
    with pytest.raises(RuntimeError, match=r"^a mistake of ours$"):
        list(learn(*problem()))
