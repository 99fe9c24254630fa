"""Cells of a comparison: what ``[[cells]]`` tables stand for, in which order, and what sweeps are made of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ntkml.protocols.cells import expanded, with_estimators, with_seeds
from ntkml.protocols.pareto import load_pareto
from ntkml.protocols.sweep import load_sweep, swept_names
from ntkml.protocols.tables import kind_of
from ntkml.protocols.train import load_train, train_names

SWEEPS = [name for name in swept_names() if kind_of(name) == "sweep"]
TABLE1 = {
    "base": "train-mnist",
    "variant": "code",
    "settings": {"epochs": 30},
    "prior": {"settings": {"prior_init": 25.0}},
    "invariance": {"settings": {"samples": 20}},
    "cells": [
        {
            "row": "NTK-500-1",
            "hparam": "prior",
            "dataset": ["mnist", "fashion-mnist"],
            "num_data": [500, 1000],
            "estimators": ["ntk-500-1"],
            "seeds": [0, 1],
        },
        {"row": "inv. KFAC", "hparam": "invariance", "estimators": ["kfac-N-1", "kfac-N-C"], "lr_aug": 0.01},
    ],
}


def facts(cells, *names):
    return [tuple(getattr(cell.protocol, name) for name in names) for cell in cells]


def test_lists_are_expanded_with_the_seed_slowest_and_the_estimator_fastest():
    cells = expanded("table-1", TABLE1)
    assert facts(cells[:8], "seed", "dataset", "num_data") == [
        (seed, dataset, size) for seed in (0, 1) for dataset in ("mnist", "fashion-mnist") for size in (500, 1000)
    ]
    assert facts(cells[8:], "seed", "estimator") == [(0, "kfac-N-1"), (0, "kfac-N-C")]
    shared = {"base": "train-digits", "hparam": "prior", "settings": {"model": ["mininet", "mlp"]}}
    cells = expanded("x", shared | {"cells": [{"estimators": ["ntk-10-1", "ntk-20-1"], "epochs": [10, 20]}]})
    assert facts(cells, "model", "epochs", "estimator") == [
        (model, epochs, name)
        for model in ("mininet", "mlp")
        for epochs in (10, 20)
        for name in ("ntk-10-1", "ntk-20-1")
    ]


def test_rows_of_both_hyperparameters_stand_in_one_file_each_with_its_own_base_settings():
    cells = expanded("table-1", TABLE1)
    assert [cell.row for cell in cells] == ["NTK-500-1"] * 8 + ["inv. KFAC"] * 2
    prior, invariance = cells[0], cells[-1]
    assert prior.asked == load_train("train-mnist", "prior", "code", "ntk-500-1")
    assert invariance.asked == load_train("train-mnist", "invariance", "code", "kfac-N-C")
    assert prior.protocol == replace(
        prior.asked, epochs=30, prior_init=25.0, dataset="mnist", num_data=500, estimator="ntk-500-1"
    )
    assert invariance.protocol == replace(invariance.asked, epochs=30, samples=20, lr_aug=0.01, estimator="kfac-N-C")
    assert invariance.notes == (
        "Settings of the authors' code where it differs from the paper's text.",
        "Against protocol train-mnist: samples 20 instead of 30, epochs 30 instead of 500, lr aug 0.01 instead of 0.05.",
    )


def test_a_table_may_start_from_another_training_protocol():
    table = {"base": "train-mnist", "hparam": "prior", "cells": [{"base": "train-digits", "variant": "code"}]}
    [cell] = expanded("x", table)
    assert (cell.protocol, cell.asked.variant) == (load_train("train-digits", "prior", "code"), "code")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hparam": "prior", "sampels": 3}, "x, ..cells.. table 1: unknown setting 'sampels'; did you mean 'samples'"),
        ({"hparam": "prior", "seed": [0, 1]}, "x, ..cells.. table 1: unknown setting 'seed'"),
        ({"hparam": "prio"}, "unknown hyperparameter 'prio'; did you mean 'prior'"),
        ({"hparam": "prior", "base": "train-mist"}, "unknown protocol 'train-mist'; did you mean 'train-mnist'"),
        ({}, "x does not say what is learned: write --hparam prior or --hparam invariance"),
    ],
)
def test_what_no_run_can_be_made_of_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        expanded("x", {"base": "train-mnist", "cells": [{"estimators": ["ntk-10-1"], "seeds": [0], **change}]})


def test_an_added_estimator_takes_the_settings_of_the_first_one_and_fills_no_row():
    cells = with_estimators(expanded("table-1", TABLE1), ("kfac-N-C", "ntk-100-1"))
    kept, added = cells[0], cells[1:]
    assert (kept.row, kept.protocol.estimator) == ("inv. KFAC", "kfac-N-C")
    assert {cell.row for cell in added} == {""}
    assert facts(added, "estimator", "hparam") == [("ntk-100-1", "prior")] * 8


def test_other_seeds_are_those_of_every_cell_the_first_seed_first():
    cells = with_seeds(expanded("table-1", TABLE1), (7, 3))
    assert facts(cells, "seed") == [(7,)] * 6 + [(3,)] * 6
    assert len(set(cells)) == 12


def test_sweeps_are_made_of_pareto_comparisons_and_of_training_protocols_too():
    pareto = {"figure-1", "figure-1-reduced", "figure-13", "pareto-digits"}
    assert {*pareto, *train_names(), *SWEEPS} == set(swept_names())
    assert load_sweep("figure-1").cells == load_pareto("figure-1", "invariance").cells
    assert load_sweep("pareto-digits", "prior").cells == load_pareto("pareto-digits", "prior").cells
    [cell] = load_sweep("train-digits", "invariance").cells
    assert cell.protocol == load_train("train-digits", "invariance")
    assert load_sweep("train-digits", "prior").title == "Learning hyperparameters"


@pytest.mark.parametrize(
    ("name", "hparam", "message"),
    [
        ("figure-3", None, "unknown protocol 'figure-3'"),
        ("pareto-digits", None, "pareto-digits does not say what is learned: write --hparam prior"),
        (
            "figure-13",
            "invariance",
            "no cell of figure-13 learns the invariance: leave out --hparam, its cells learn the",
        ),
    ],
)
def test_sweeps_that_are_not_there_are_refused(name, hparam, message):
    with pytest.raises(ValueError, match=message):
        load_sweep(name, hparam)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_cell_of_a_sweep_is_another_run(name):
    cells = load_sweep(name).cells
    assert len({cell.protocol for cell in cells}) == len(cells)


def test_hparam_keeps_the_cells_that_learn_it(monkeypatch):
    monkeypatch.setattr("ntkml.protocols.sweep.read_tables", lambda name, known: TABLE1 | {"title": "Table 1"})
    assert len(load_sweep("table-1").cells) == 10
    assert {cell.row for cell in load_sweep("table-1", "prior").cells} == {"NTK-500-1"}


def test_a_file_of_ones_own_is_a_sweep(tmp_path):
    path = tmp_path / "eigene Läufe.toml"
    text = 'base = "train-digits"\nhparam = "prior"\n[[cells]]\nestimators = ["ntk-20-1", "none"]\nlr = [0.001, 0.01]\n'
    path.write_text(text, encoding="utf-8")
    sweep = load_sweep(str(path))
    assert sweep.title == "eigene Läufe"
    assert facts(sweep.cells, "lr", "estimator") == [
        (lr, name) for lr in (0.001, 0.01) for name in ("ntk-20-1", "none")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"x\.toml: no such file"),
        ("base = ", r"x\.toml: not a TOML file \("),
        ('base = "train-digits"', r"x\.toml: a sweep has base = .* and \[\[cells\]\] tables"),
        ('base = "train-digits"\n[cells]', r"and \[\[cells\]\] tables"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(tmp_path, text, message):
    path = tmp_path / "x.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_sweep(str(path))
