"""The interleaved loop: when hyperparameters are updated and by how much, what stays as it is, and how it goes on."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import ntkml
from ntkml.bayesian_model import BayesianModel
from ntkml.datasets import load_dataset, subset
from ntkml.learning import state
from ntkml.learning.loop import cosine, evaluate, learn
from ntkml.learning.scores import expected_calibration_error, score
from ntkml.learning.state import new_learner, restore, state_of
from ntkml.machine.processes import Processes
from ntkml.models import build_model
from ntkml.objective import MarginalLikelihood
from ntkml.protocols import ranges
from ntkml.protocols.train import load_train
from ntkml.randomness import generator_for
from ntkml.records import train as train_records
from ntkml.system_specs import TRAIN_HPARAMS
from ntkml.two_pass import TwoPass

COUNT = 60


pytestmark = pytest.mark.usefixtures("one_thread")


def problem(hparam="prior", **settings):
    """A learner on 60 digits (rotated ones for the invariance) and its data."""
    settings = {"epochs": 4, "batch_size": 30, "burn_in": 2, "update_every": 1, "estimator": "ntk-20-tree"} | settings
    if hparam == "invariance":
        settings = {"samples": 2} | settings
    protocol = replace(load_train("train-digits", hparam), num_data=COUNT, **settings)
    data = subset(load_dataset(protocol.dataset), COUNT, generator_for(protocol.seed, "data"))
    model = build_model(protocol.model, data.input_shape, data.num_classes, generator_for(protocol.seed, "init"))
    return new_learner(protocol, model, torch.device("cpu")), data


def weights_of(learner):
    return {name: value.clone() for name, value in learner.objective.model.state_dict().items()}


def test_the_schedule_is_half_a_cosine():
    assert cosine(0, 100, 1e-3, 1e-9) == pytest.approx(1e-3)
    assert cosine(50, 100, 0.1, 0.01) == pytest.approx(0.055)
    assert cosine(25, 100, 0.1, 0.01) == pytest.approx(0.01 + 0.045 * (1 + math.sqrt(0.5)))
    rates = [cosine(step, 40, 0.1, 0.01) for step in range(40)]
    assert rates == sorted(rates, reverse=True)
    assert 0.01 < rates[-1] < 0.0102


def test_every_optimizer_ends_where_its_own_schedule_does():
    settings = {"epochs": 7, "update_every": 2, "hyper_steps": 1, "aug_steps": 3}
    learner, data = problem("invariance", estimator="kfac-20-1", **settings)
    list(learn(learner, data))
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in learner.optimizers.items()}
    steps = {name: int(optimizer.state_dict()["state"][0]["step"]) for name, optimizer in learner.optimizers.items()}
    # Two batches in seven epochs; updates in epochs 2, 4 and 6.
    assert steps == {"weights": 14, "prior": 3, "augmentation": 9}
    assert rates["weights"] == cosine(13, 14, 1e-3, 1e-9)
    assert rates["prior"] == cosine(2, 3, 0.1, 0.01)
    assert rates["augmentation"] == cosine(8, 9, 0.05, 0.005)


@pytest.mark.parametrize(
    ("burn_in", "every", "updated"),
    [(2, 3, [2, 5, 8]), (1, 1, list(range(1, 10))), (0, 4, [4, 8]), (9, 5, [9]), (10, 1, [])],
)
def test_updates_begin_after_the_burn_in_and_come_every_so_many_epochs(monkeypatch, burn_in, every, updated):
    learner, data = problem(epochs=9, burn_in=burn_in, update_every=every, estimator="diag-20-1", hyper_steps=2)
    partitions = []
    resample = MarginalLikelihood.resample
    monkeypatch.setattr(
        MarginalLikelihood, "resample", lambda self, *args: partitions.append(resample(self, *args)) or partitions[-1]
    )
    records = list(learn(learner, data))
    assert [record.epoch for record in records] == list(range(1, 10))
    assert [record.epoch for record in records if record.log_marginal_likelihood is not None] == updated
    assert len(partitions) == len(updated)
    inputs = [tuple(partition.blocks[0].inputs.tolist()) for partition in partitions]
    assert len(set(inputs)) == len(inputs)  # drawn anew each time


@pytest.mark.parametrize("estimator", ["ntk-20-tree", "kfac-20-1", "diag-20-1"])
def test_an_update_of_one_step_is_the_same_with_fresh_blocks(estimator):
    kept, fresh = (problem(estimator=estimator, hyper_steps=1, fresh_blocks=fresh) for fresh in (False, True))
    for ours, theirs in zip(learn(*kept), learn(*fresh), strict=True):
        assert ours.log_marginal_likelihood == theirs.log_marginal_likelihood
        assert torch.equal(kept[0].objective.prior.values, fresh[0].objective.prior.values)


def test_prior_steps_share_one_block_or_draw_their_own_as_invariance_steps_do(monkeypatch):
    drawn = []
    first_pass = TwoPass.first

    def watched(self, data, **options):
        drawn.append(data.block)
        return first_pass(self, data, **options)

    monkeypatch.setattr(TwoPass, "first", watched)
    list(learn(*problem(epochs=2, hyper_steps=5)))
    assert len(drawn) == 1
    drawn.clear()
    list(learn(*problem(epochs=2, hyper_steps=5, fresh_blocks=True)))
    assert len(drawn) == 5
    assert len({(tuple(block.inputs.tolist()), tuple(block.columns.flatten().tolist())) for block in drawn}) > 1
    drawn.clear()
    list(learn(*problem("invariance", epochs=2, hyper_steps=1, aug_steps=3)))
    assert len(drawn) == 3
    assert len({id(block) for block in drawn}) > 1


@pytest.mark.parametrize(
    ("hparam", "fresh", "passes"), [("prior", False, 1), ("prior", True, 2), ("invariance", False, 4)]
)
def test_two_steps_cost_the_rows_that_they_draw_and_a_second_pass_of_views(hparam, fresh, passes):
    learner, data = problem(hparam, estimator="ntk-20-1", fresh_blocks=fresh)
    step = learner.system.update(data.train_inputs, data.train_targets, learner.streams)
    step(), step()
    assert learner.system.data_passes == pytest.approx(passes * 20 / COUNT)


def test_one_update_moves_every_hyperparameter_by_its_learning_rate():
    """The first step of Adam has the length of the learning rate in every coordinate."""
    settings = {"epochs": 2, "lr_hyper": 0.2, "lr_aug": 0.03, "hyper_steps": 1, "aug_steps": 1}
    learner, data = problem("invariance", estimator="ntk-N-C", prior_init=2.0, **settings)
    assert learner.objective.augmentation.eta.tolist() == [0.0] * 6
    assert learner.objective.prior.values.tolist() == pytest.approx([2.0] * 8)
    list(learn(learner, data))
    assert learner.objective.augmentation.eta.abs().tolist() == pytest.approx([0.03] * 6, rel=1e-3)
    moved = learner.objective.log_prior_precision.detach() - math.log(2.0)
    assert moved.abs().tolist() == pytest.approx([0.2] * 8, rel=1e-3)


def test_the_learned_prior_precision_is_the_best_of_the_grid():
    trained, data = problem(estimator="none", epochs=60, lr=1e-2)
    list(learn(trained, data))
    weights, start = weights_of(trained), 6.0
    settings = {"prior_kind": "scalar", "prior_init": start, "burn_in": 1, "epochs": 12, "hyper_steps": 4}
    # A learning rate of zero: the weights stay, and only the prior is learned.
    learner, _ = problem(estimator="ntk-N-C", lr=0.0, lr_min=0.0, lr_hyper=0.2, **settings)
    learner.objective.model.load_state_dict(weights)
    records = list(learn(learner, data))
    assert all(torch.equal(weights[name], value) for name, value in weights_of(learner).items())
    grid = torch.logspace(-1, 1, 21, dtype=torch.float64).tolist()
    values = [
        ntkml.log_marginal_likelihood(
            trained.objective.model, data.train_inputs, data.train_targets, "ntk-N-C", precision
        )
        for precision in grid
    ]
    best = max(range(len(grid)), key=lambda index: float(values[index].total))
    learned = learner.objective.prior.values.item()
    assert abs(math.log10(learned / grid[best])) < 0.11  # the spacing of the grid
    assert abs(math.log10(start / grid[best])) > 0.4
    assert records[-1].log_marginal_likelihood == pytest.approx(float(values[best].total) / COUNT, abs=0.02)
    assert records[0].log_marginal_likelihood < records[-1].log_marginal_likelihood


def test_map_learns_the_weights_and_nothing_else():
    learner, data = problem("invariance", estimator="none", prior_init=3.0)
    before = weights_of(learner)
    records = list(learn(learner, data))
    assert all(record.log_marginal_likelihood is None for record in records)
    assert set(learner.optimizers) == {"weights"}
    assert learner.objective.augmentation is None
    assert learner.objective.prior.values.tolist() == pytest.approx([3.0] * 8)
    assert not torch.equal(before["0.weight"], weights_of(learner)["0.weight"])
    assert records[-1].train_loss < records[0].train_loss
    assert [record.test is not None for record in records] == [False, False, False, True]


def test_until_the_burn_in_every_estimator_takes_the_same_steps():
    """One stream per purpose: what an estimator draws never changes the batches."""
    losses = {}
    for name in ("none", "ntk-20-1", "ntk-10-C+kmeans", "kfac-N-C"):
        learner, data = problem(estimator=name, burn_in=3, epochs=5, hyper_steps=1)
        losses[name] = [record.train_loss for record in learn(learner, data)]
    for name in losses:
        assert losses[name][:3] == losses["none"][:3]
        assert name == "none" or losses[name][4] != losses["none"][4]


@pytest.mark.parametrize("hparam", TRAIN_HPARAMS)
@pytest.mark.parametrize("optimizer", ranges.OPTIMIZERS)
def test_a_restored_learner_goes_on_bit_by_bit(hparam, optimizer):
    settings = {"epochs": 5, "hyper_steps": 2, "optimizer": optimizer, "eval_every": 2}
    whole, data = problem(hparam, **settings)
    expected = list(learn(whole, data))
    half, _ = problem(hparam, **settings)
    for record in learn(half, data):
        if record.epoch == 3:
            break
    fresh, _ = problem(hparam, **settings)
    restore(fresh, state_of(half))
    assert fresh.objective.tree == half.objective.tree is not None
    timings = {"seconds_weights": 0.0, "seconds_hyper": 0.0, "seconds_eval": 0.0}
    continued = [replace(record, **timings) for record in learn(fresh, data)]
    assert continued == [replace(record, **timings) for record in expected[3:]]
    for name, value in weights_of(whole).items():
        assert torch.equal(value, fresh.objective.model.state_dict()[name]), name
    for name, value in whole.objective.named_parameters():
        assert torch.equal(value, fresh.objective.get_parameter(name)), name


def test_an_evaluation_averages_over_views_and_repeats_itself():
    learner, data = problem("invariance", samples=3)
    with torch.no_grad():
        learner.objective.augmentation.eta[2] = 1.0
    once = evaluate(learner, data)
    assert evaluate(learner, data) == once
    with torch.no_grad():
        learner.objective.augmentation.eta[2] = 0.0
    plain = score(learner.objective.model(data.test_inputs).detach(), data.test_targets)
    assert evaluate(learner, data).log_likelihood == pytest.approx(plain.log_likelihood, abs=1e-6)
    assert once.log_likelihood != pytest.approx(plain.log_likelihood, abs=1e-5)


def test_scores_of_known_predictions():
    p = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9], [0.35, 0.65]], dtype=torch.float64)
    scores = score(p.log() + 7.0, torch.tensor([0, 1, 1, 1]))
    assert scores.log_likelihood == pytest.approx(sum(math.log(q) for q in (0.8, 0.4, 0.9, 0.65)) / 4)
    assert scores.accuracy == 0.75
    # Confidences .8 and .9 stand alone in their bins of 1/15; .6, which is wrong, and .65, which is right, share one.
    assert scores.ece == pytest.approx((0.2 + 0.1 + (0.6 - 0.35)) / 4)
    confidence, correct = torch.tensor([0.62, 0.64, 1.0]), torch.tensor([True, False, True])
    assert expected_calibration_error(confidence, correct) == pytest.approx(abs(1 - 1.26) / 3, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr": 1e30}, r"training diverged in epoch \d.*: lower the learning rate \(--lr, now 1e\+30\)"),
        (
            {"lr_hyper": 1e4, "prior_kind": "scalar"},
            r"(diverged in epoch \d|epoch \d.*not positive definite).*lower --lr-hyper",
        ),
        (
            {"estimator": "kfac-20-1", "prior_kind": "diagonal"},
            "epoch 2, step 3, kfac-20-1 with a diagonal prior: kfac takes",
        ),
        ({"optimizer": "lbfgs"}, "unknown optimizer 'lbfgs'; known: adam, sgd"),
        ({"prior_init": 0.0}, "a prior precision must be positive and finite; got 0"),
    ],
)
def test_trouble_has_a_name(settings, words):
    with pytest.raises(ValueError, match=words):
        list(learn(*problem(**settings)))


def test_exploding_half_widths_are_named():
    learner, data = problem("invariance")
    with torch.no_grad():
        learner.objective.augmentation.eta[0] = torch.nan
    with pytest.raises(ValueError, match="epoch 1"):
        list(learn(learner, data))


def test_processes_go_on_with_the_smallest_of_their_chunks():
    class BesideOneOfThree(Processes):
        def largest(self, number):
            return max(number, -3)

    learner, data = problem(epochs=2, hyper_steps=1)
    learner = replace(learner, processes=BesideOneOfThree())
    list(learn(learner, data))
    assert learner.objective.chunk == 3


@pytest.mark.parametrize("flip", [False, True])
def test_a_coin_for_each_batch_mirrors_all_of_it(monkeypatch, flip):
    learner, data = problem(estimator="ntk-20-tree", epochs=10, batch_size=20, flip=flip, burn_in=9)
    images = {image.numpy().tobytes() for image in data.train_inputs}
    mirrored = {image.numpy().tobytes() for image in data.train_inputs.flip(-1)}
    seen = {"weights": [], "blocks": []}
    weight_loss, first_pass = BayesianModel.weight_loss, TwoPass.first

    def watched(self, x, *others):
        seen["weights"].append([image.numpy().tobytes() for image in x])
        return weight_loss(self, x, *others)

    def watched_block(self, data, **options):
        seen["blocks"].append([image.numpy().tobytes() for image in data.inputs])
        return first_pass(self, data, **options)

    monkeypatch.setattr(BayesianModel, "weight_loss", watched)
    monkeypatch.setattr(TwoPass, "first", watched_block)
    list(learn(learner, data))
    flipped = [set(batch) <= mirrored for batch in seen["weights"]]
    assert [set(batch) <= images for batch in seen["weights"]] == [not one for one in flipped]
    assert len(flipped) == 30
    assert (5 < sum(flipped) < 25) if flip else not any(flipped)
    # What is estimated is the marginal likelihood of the data as they are.
    assert seen["blocks"]
    assert all(set(block) <= images for block in seen["blocks"])


def test_each_hyperparameter_ends_at_its_own_share_of_its_learning_rate():
    learner, data = problem("invariance", estimator="kfac-20-1", epochs=4, hyper_decay=1.0, aug_decay=20.0)
    list(learn(learner, data))
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in learner.optimizers.items()}
    assert rates["prior"] == pytest.approx(0.1)
    assert rates["augmentation"] == pytest.approx(cosine(5, 6, 0.05, 0.0025))


def test_the_generators_of_the_rows_are_those_of_the_invariance():
    from ntkml.hyperparameters.affine import GENERATOR_NAMES

    assert [name for name in train_records.COLUMNS if name.startswith("eta_")] == [f"eta_{i}" for i in range(6)]
    assert GENERATOR_NAMES == ("x-translation", "y-translation", "rotation", "x-scale", "y-scale", "shear")
    assert set(state.STREAMS) == {"batches", "views", "partition", "blocks"}
