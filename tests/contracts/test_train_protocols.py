"""Training protocols hold the settings of the paper; a reduced one says so, and old runs keep their names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ntkml.datasets import load_dataset
from ntkml.protocols.bound_grid import bound_grid_names
from ntkml.protocols.sweep import load_sweep
from ntkml.protocols.train import default_hparam, default_name, departures, load_train, train_names
from ntkml.runs.train import TrainRun
from ntkml.specs import parse_estimator, resolve_estimator
from ntkml.system_specs import TRAIN_HPARAMS

NAMES = {"train-digits", "train-mnist", "table-1", "table-1-reduced", "table-2", "figure-7", "figure-7-reduced"}
INVARIANCE_ONLY = {"figure-7", "figure-7-reduced"}


def settings_of(protocol, *names):
    return tuple(getattr(protocol, name) for name in names)


def test_the_papers_mnist():
    prior, invariance = (load_train("train-mnist", hparam) for hparam in TRAIN_HPARAMS)
    for protocol in (prior, invariance):
        assert (protocol.model, protocol.num_data, protocol.batch_size, protocol.epochs) == ("mininet", 1000, 250, 500)
        assert (protocol.optimizer, protocol.lr, protocol.lr_min) == ("adam", 1e-3, 1e-9)
        assert (protocol.lr_hyper, protocol.lr_aug, protocol.hyper_decay, protocol.burn_in) == (0.1, 0.05, 10.0, 10)
        assert (protocol.prior_kind, protocol.prior_init, protocol.update_every) == ("layerwise", 1.0, 1)
    assert (prior.dataset, prior.hyper_steps, prior.aug_steps, prior.samples) == ("mnist", 1, 0, 1)
    assert (invariance.dataset, invariance.hyper_steps, invariance.aug_steps) == ("mnist_r180", 1, 1)
    assert invariance.samples == 30
    code = load_train("train-mnist", "prior", "code")
    assert (code.update_every, code.hyper_steps, code.fresh_blocks, code.num_updates(500)) == (5, 10, True, 99)
    code = load_train("train-mnist", "invariance", "code")
    assert (code.update_every, code.hyper_steps, code.aug_steps, code.steps_per_update) == (1, 2, 2, 2)


@pytest.mark.parametrize(("variant", "lr_min"), [("paper", 1e-6), ("code", 1e-8)])
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_the_papers_table_1(variant, lr_min, dataset):
    prior = load_train("table-1", "prior", variant, "ntk-500-1", dataset)
    weights = ("dataset", "model", "num_data", "batch_size", "optimizer", "lr", "lr_min", "prior_kind")
    common = (dataset, "wrn16-4", 50000, 128, "sgd", 0.1, lr_min, "layerwise")
    assert settings_of(prior, *weights) == common
    schedule = ("epochs", "burn_in", "update_every", "hyper_steps", "lr_hyper", "hyper_decay", "prior_init", "flip")
    assert settings_of(prior, *schedule) == (300, 10, 5, 50, 0.1, 1.0, 25.0, False)
    assert (prior.samples, prior.aug_steps, prior.fresh_blocks) == (1, 0, True)
    for name in ("kfac-N-1", "kfac-N-C", "none", "hoag"):  # fitted once for all steps, or without blocks
        assert not load_train("table-1", "prior", variant, name, dataset).draws_afresh
    stochastic = load_train("table-1", "invariance", variant, "kfac-150-1", dataset)
    assert settings_of(stochastic, *weights) == common
    steps = (
        "epochs",
        "samples",
        "update_every",
        "aug_steps",
        "hyper_steps",
        "lr_aug",
        "aug_decay",
        "prior_init",
        "flip",
    )
    assert settings_of(stochastic, *steps) == (200, 20, 1, 20, 4, 0.01, 10.0, 1.0, True)
    for name in ("kfac-N-1", "kfac-N-C"):
        full = load_train("table-1", "invariance", variant, name, dataset)
        assert settings_of(full, *steps) == (200, 20, 1, 1, 1, 0.05, 10.0, 1.0, True)


def test_the_baseline_keeps_its_prior():
    baseline = load_train("table-1", "prior", "paper", "none", "cifar100")
    assert (baseline.prior_init, baseline.num_updates(baseline.epochs)) == (25.0, 0)


@pytest.mark.parametrize(
    ("variant", "model", "prior_steps"), [("paper", "resnet50-bottleneck", 50), ("code", "resnet50", 4)]
)
def test_the_papers_table_2(variant, model, prior_steps):
    prior, invariance = (load_train("table-2", hparam, variant) for hparam in TRAIN_HPARAMS)
    for protocol in (prior, invariance):
        weights = ("dataset", "model", "num_data", "epochs", "batch_size", "optimizer", "lr", "lr_min")
        expected = ("tinyimagenet", model, 100_000, 100, 128, "sgd", 0.1, 1e-6)
        assert settings_of(protocol, *weights) == expected
        assert (protocol.burn_in, protocol.prior_init, protocol.lr_hyper, protocol.hyper_decay) == (10, 25.0, 0.1, 1.0)
    assert settings_of(prior, "update_every", "hyper_steps", "estimator") == (5, 50, "ntk-400-1")
    steps = ("update_every", "aug_steps", "hyper_steps", "samples", "lr_aug", "aug_decay", "estimator")
    assert settings_of(invariance, *steps) == (1, 50, prior_steps, 10, 0.01, 10.0, "ntk-70-1+iid")


@pytest.mark.parametrize(
    ("estimator", "steps", "rate"), [("kfac-400-1", 100, 0.01), ("ntk-400-1", 100, 0.01), ("kfac-N-C", 10, 0.05)]
)
def test_the_papers_figure_7(estimator, steps, rate):
    protocol = load_train("figure-7", "invariance", "paper", estimator, "cifar10_r180")
    assert settings_of(protocol, "dataset", "model", "samples", "epochs", "batch_size") == (
        "cifar10_r180", "resnet18-16", 20, 200, 128,
    )  # fmt: skip
    assert settings_of(protocol, "optimizer", "lr", "lr_hyper", "lr_aug") == ("adam", 0.1, 0.1, rate)
    assert (protocol.hyper_steps, protocol.aug_steps) == (steps, steps)


@pytest.mark.parametrize("burn_in", [0, 1, 3, 10])
@pytest.mark.parametrize("update_every", [1, 3, 12])
def test_updates_are_counted_as_they_come(burn_in, update_every):
    protocol = replace(load_train("train-digits", "prior"), burn_in=burn_in, update_every=update_every)
    counted = [protocol.num_updates(epochs) for epochs in range(30)]
    assert counted == [sum(map(protocol.updates_at, range(1, epochs + 1))) for epochs in range(30)]
    assert replace(protocol, estimator="none").num_updates(30) == 0
    assert protocol.num_updates(10**9) > 10**7  # at once, without a look at every epoch


def test_every_training_protocol_has_an_estimator_on_its_data():
    assert set(train_names()) == NAMES
    assert not set(train_names()) & set(bound_grid_names())
    for name in train_names():
        for hparam in TRAIN_HPARAMS if name not in INVARIANCE_ONLY else ["invariance"]:
            protocol = load_train(name, hparam)
            spec = resolve_estimator(parse_estimator(protocol.estimator), protocol.num_data, 10)
            assert str(spec) == protocol.estimator
            assert protocol.num_updates(protocol.epochs)


@pytest.mark.parametrize("name", ["table-1-reduced", "figure-7-reduced"])
def test_a_reduced_protocol_says_what_it_reduces(name):
    protocol = load_train(name, "invariance", "paper", "kfac-N-C")
    whole = name.removesuffix("-reduced")
    assert load_train(whole, "invariance", "paper", "kfac-N-C").samples == 20
    [words] = departures(protocol, protocol)
    assert words.startswith(
        f"Against protocol {whole}: dataset folder:cifar10-jpeg.tar.xz instead of cifar10, model resnet8-16 instead of "
    )
    assert "samples 4 instead of 20" in words
    assert "lr aug" not in words  # the rate of full estimators is the same in both
    assert departures(load_train(whole, "invariance"), load_train(whole, "invariance")) == []


def test_a_protocol_of_two_data_sets_departs_from_neither():
    asked = load_train("table-1", "prior", dataset="cifar100")
    assert departures(asked, asked) == []
    elsewhere = replace(load_train("table-1", "prior", dataset="digits"), dataset="digits")
    assert departures(elsewhere, load_train("table-1", "prior", dataset="digits")) == [
        "Against protocol table-1: dataset digits instead of cifar10."
    ]


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        (None, "train-digits"), ("digits_r180", "train-digits"), ("cifar10", "table-1"), ("cifar100", "table-1"),
        ("translated_cifar10", "table-1"), ("tinyimagenet", "table-2"), ("folder:my_cifar10", "train-digits"),
    ],
)  # fmt: skip
def test_a_data_set_alone_picks_its_protocol(dataset, name):
    assert default_name(dataset) == name


def test_a_protocol_of_one_hyperparameter_needs_no_option():
    assert default_hparam("figure-7") == "invariance"
    assert default_hparam("table-1") == default_hparam("train-digits") == "prior"


@pytest.mark.parametrize(
    ("estimator", "matters"), [("ntk-20-1", True), ("ntk-N-C", False), ("none", False), ("hoag", False)]
)
def test_fresh_blocks_name_a_run_where_there_are_blocks_to_draw(estimator, matters):
    kept = replace(load_train("train-digits", "prior"), estimator=estimator)
    fresh = replace(kept, fresh_blocks=True)
    ours, theirs = (TrainRun(one, load_dataset("digits"), torch.device("cpu")).run_id for one in (fresh, kept))
    assert (ours != theirs) == matters
    said = ["Against protocol train-digits: fresh blocks on instead of off."] if matters else []
    assert departures(fresh, kept) == said


def test_a_setting_that_is_off_leaves_the_id_of_a_run_as_it_was():
    """The names of results that were computed before the setting existed."""
    data = load_dataset("digits")
    protocol = load_train("train-digits", "prior")
    settings = TrainRun(protocol, data, torch.device("cpu")).settings
    assert not {"flip", "aug_decay", "variant", "name", "title"} & set(settings)
    assert {"hyper_decay", "lr_min", "data_checksum", "dtype"} <= set(settings)
    on = TrainRun(replace(protocol, flip=True), data, torch.device("cpu")).settings
    assert on == settings | {"flip": True}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train-mnits", "prior"), "unknown protocol 'train-mnits'; did you mean 'train-mnist'"),
        (("digits", "prior"), "unknown protocol 'digits'"),
        (("train-mnist", "rotation"), "unknown hyperparameter 'rotation'; known: prior, invariance"),
        (("train-mnist", "prior", "cod"), "unknown protocol variant 'cod'; did you mean 'code'"),
        (("figure-7", "prior"), "figure-7 learns the invariance: write --hparam invariance"),
    ],
)
def test_unknown_protocols_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        load_train(*arguments)


@pytest.mark.parametrize(
    ("name", "count", "estimators"),
    [
        ("table-1", 2 * 5 * 9 + 2 * 3 * 7, {"none", "ntk-500-1", "kfac-500-C", "kfac-N-1", "kfac-N-C", "kfac-150-1", "ntk-150-1"}),
        ("table-1-reduced", 9 + 7, {"none", "ntk-500-tree", "kfac-500-tree", "kfac-N-tree", "kfac-150-1", "kfac-N-C"}),
        ("table-2", 3 * 9, {"none", "ntk-400-1", "kfac-400-1", "ntk-70-1+iid", "kfac-60-1+iid"}),
        ("figure-7", 5 * 5 * 3 * 3, {"kfac-400-1", "ntk-400-1", "kfac-N-C"}),
        ("figure-7-reduced", 2 * 3 * 2 * 3, {"kfac-400-1", "ntk-400-1", "kfac-N-C"}),
        ("train-digits", 1, {"ntk-100-tree"}),
    ],
)  # fmt: skip
def test_a_training_protocol_lists_its_cells(name, count, estimators):
    """Each with the settings that its protocol has for its estimator, so that none departs from it by mistake."""
    cells = load_sweep(name, None if name != "train-digits" else "prior").cells
    assert len({(cell.protocol.hparam, cell.protocol) for cell in cells}) == len(cells) == count
    assert {cell.protocol.estimator for cell in cells} >= estimators
    for cell in cells:
        protocol = cell.protocol
        asked = load_train(name, protocol.hparam, "paper", protocol.estimator, protocol.dataset)
        assert replace(protocol, seed=0, num_data=0) == replace(asked, seed=0, num_data=0)
    invariance = [cell.protocol for cell in cells if cell.protocol.hparam == "invariance"]
    for protocol in invariance:
        full = protocol.estimator.startswith("kfac-N")
        assert protocol.lr_aug == (0.05 if full else 0.01)
