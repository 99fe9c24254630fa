"""What is compared by ``ntkml pareto``: cells of a protocol, fewer or others of them, and what the caption must say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ntkml.protocols.pareto import load_pareto, pareto_names, restricted
from ntkml.protocols.train import load_train
from ntkml.records import train as train_records
from ntkml.runs.pareto_rows import pareto_rows
from ntkml.specs import NO_ESTIMATOR, parse_estimator, resolve_estimator
from tests.synthetic_training import training_rows

PROTOCOLS = [
    ("figure-1", "invariance"),
    ("figure-1-reduced", "invariance"),
    ("figure-13", "prior"),
    ("pareto-digits", "prior"),
    ("pareto-digits", "invariance"),
]


def names_of(protocol):
    return [(cell.protocol.estimator, cell.protocol.seed) for cell in protocol.cells]


def test_the_protocols_that_are_there():
    assert set(pareto_names()) == {name for name, _ in PROTOCOLS}


@pytest.mark.parametrize(("name", "hparam"), PROTOCOLS)
def test_every_cell_resolves_on_its_data_and_ends_with_an_estimate(name, hparam):
    protocol = load_pareto(name, hparam)
    assert protocol.repeats >= 3
    for cell in protocol.cells:
        ours = cell.protocol
        assert ours.hparam == hparam
        if ours.estimator != NO_ESTIMATOR:
            spec = resolve_estimator(parse_estimator(ours.estimator), ours.num_data, 10)
            assert str(spec) == ours.estimator
            assert ours.updates_at(ours.epochs)
    assert len(set(protocol.cells)) == len(protocol.cells)


@pytest.mark.parametrize(("name", "hparam"), [("figure-1", "prior"), ("figure-13", "invariance")])
def test_the_other_hyperparameter_is_refused_with_what_to_type(name, hparam):
    other = {"prior": "invariance", "invariance": "prior"}[hparam]
    with pytest.raises(ValueError, match=f"{name} learns the {other}: write --hparam {other}"):
        load_pareto(name, hparam)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown protocol 'figure-14'; did you mean 'figure-1"):
        load_pareto("figure-14", "prior")
    with pytest.raises(ValueError, match="unknown hyperparameter 'momentum'; known: prior, invariance"):
        load_pareto("pareto-digits", "momentum")


def test_controls_and_map_are_trained_and_not_compared():
    protocol = load_pareto("figure-1-reduced", "invariance")
    controls = [cell.protocol for cell in protocol.cells if cell.protocol.dataset != protocol.dataset]
    assert {control.dataset for control in controls} == {"mnist"}
    compared = [cell.protocol for cells in protocol.compared.values() for cell in cells]
    assert {cell.dataset for cell in compared} == {"mnist_r180"}
    assert NO_ESTIMATOR in dict(names_of(protocol))
    assert NO_ESTIMATOR not in protocol.compared
    assert len(compared) == len(protocol.cells) - len(controls) - 1


def test_seeds_of_an_estimator_stand_in_rising_order():
    cells = load_pareto("figure-13", "prior").compared["ntk-100-1"]
    assert [cell.protocol.seed for cell in cells] == [0, 1, 2]


def test_fewer_and_other_estimators():
    protocol = restricted(load_pareto("figure-13", "prior"), ("ntk-30-1", "ntk-100-1"), None, {})
    assert sorted(names_of(protocol)) == [(name, seed) for name in ("ntk-100-1", "ntk-30-1") for seed in (0, 1, 2)]
    shared = {replace(cell.protocol, estimator="", seed=0) for cell in protocol.cells}
    assert len(shared) == 1
    with pytest.raises(ValueError, match="nothing is left to compare: name at least one estimator and one seed"):
        restricted(load_pareto("figure-13", "prior"), (NO_ESTIMATOR,), None, {})


def test_other_seeds_are_those_of_every_cell():
    protocol = restricted(load_pareto("figure-1-reduced", "invariance"), ("ntk-100-1", "ntk-500-1"), (3, 5), {})
    cells = sorted((cell.protocol.dataset, cell.protocol.estimator, cell.protocol.seed) for cell in protocol.cells)
    expected = [("mnist", "ntk-100-1"), ("mnist_r180", "ntk-100-1"), ("mnist_r180", "ntk-500-1")]
    assert cells == [(*one, seed) for one in expected for seed in (3, 5)]


def test_notes_hold_every_cell_against_the_training_protocol_that_is_named():
    whole = load_pareto("figure-1-reduced", "invariance")
    assert whole.cells[0].notes == (
        "Against protocol train-mnist: samples 10 instead of 30, epochs 150 instead of 500.",
    )
    control = whole.cells[-1]
    assert "dataset mnist instead of mnist_r180" in control.notes[0]
    fewer = restricted(whole, None, None, {"epochs": 20, "samples": 30})
    assert fewer.cells[0].notes == ("Against protocol train-mnist: epochs 20 instead of 500.",)
    asked = load_train("train-mnist", "invariance")
    assert restricted(whole, None, None, {"epochs": asked.epochs, "samples": asked.samples}).cells[0].notes == ()
    [words] = load_pareto("figure-13", "prior").cells[0].notes
    assert "the authors' code" in words


def test_runs_that_end_before_their_first_update_are_refused():
    protocol = load_pareto("pareto-digits", "prior")
    with pytest.raises(ValueError, match="in 9 epochs no hyperparameter is updated: take --epochs 10 or more"):
        restricted(protocol, None, None, {"epochs": 9})
    assert restricted(protocol, None, None, {"epochs": 10}).cells[0].protocol.epochs == 10


def frames_of(estimator, seeds):
    import pandas

    frames = []
    for seed in seeds:
        frame = pandas.DataFrame(
            training_rows(estimator, "prior", seed, epochs=20, burn_in=10), columns=[*train_records.COLUMNS]
        )
        frame["log_marginal_likelihood"] = pandas.to_numeric(frame["log_marginal_likelihood"])
        frames.append(frame)
    return frames


SETTINGS = {"epochs": 20, "samples": 1, "device": "cpu", "threads": 2}


def measured(seconds, exact=None):
    return {"seconds": seconds, "peak_bytes": 7, "num_pairs": 100, "exact_log_marginal_likelihood": exact}


def test_rows_are_the_means_over_the_last_five_estimates_and_the_seeds():
    frames = frames_of("ntk-100-1", (0, 2))
    values = [[-3.0, -100.0, -1.0, -2.0, -3.0, -4.0, -5.0], [-9.0, -9.0, -1.0, -1.0, -1.0, -1.0, -1.0]]
    for frame, own in zip(frames, values, strict=True):
        frame["log_marginal_likelihood"] = [None] * 10 + own + [None] * 3
        frame["test_accuracy"] = [0.1] * 10 + [0.5 + 0.1 * frame["seed"].iloc[0]] + [None] * 9
    [row] = pareto_rows(
        "run", SETTINGS, {"ntk-100-1": frames}, {"ntk-100-1": measured([4.0, 1.0, 2.0, 3.0, 9.0], -0.5)}
    )
    assert row["log_marginal_likelihood"] == pytest.approx((-3.0 - 1.0) / 2)
    # The standard deviation of -3 and -1 is the root of 2, over the root of 2.
    assert row["standard_error"] == pytest.approx(1.0)
    assert (row["num_seeds"], row["seeds"]) == (2, "0 2")
    assert row["test_accuracy"] == pytest.approx(0.6)
    assert (row["seconds_low"], row["seconds"], row["seconds_high"], row["repeats"]) == (2.0, 3.0, 4.0, 5)
    assert row["exact_log_marginal_likelihood"] == -0.5
    assert (row["eta_2"], row["peak_bytes"], row["command"], row["epochs"]) == (None, 7, "pareto", 20)


def test_half_widths_are_averaged_by_their_magnitudes():
    frames = frames_of("ntk-100-1", (0, 1))
    for frame, eta in zip(frames, (1.0, -2.0), strict=True):
        frame["log_marginal_likelihood"] = -1.0
        frame["eta_2"] = eta
    [row] = pareto_rows("run", SETTINGS, {"ntk-100-1": frames}, {"ntk-100-1": measured([1.0])})
    assert row["eta_2"] == 1.5


def test_the_flags_are_those_of_the_frontier_and_one_seed_has_no_error():
    names = {"ntk-10-1": (-3.0, 1.0), "ntk-100-1": (-2.0, 2.0), "diag-100-C": (-2.5, 3.0)}
    training = {name: frames_of(name, (0,)) for name in names}
    for name, [frame] in training.items():
        frame["log_marginal_likelihood"] = names[name][0]
    rows = pareto_rows("run", SETTINGS, training, {name: measured([seconds]) for name, (_, seconds) in names.items()})
    assert [row["on_frontier"] for row in rows] == [True, True, False]
    assert all(row["standard_error"] is None for row in rows)
