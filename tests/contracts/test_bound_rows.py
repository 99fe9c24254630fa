"""The rows of a bound grid are the public estimates per datum, block by block and point by point."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from ntkml import log_marginal_likelihood
from ntkml.evidence import evaluate_partition
from ntkml.grouping import tree_for
from ntkml.linalg import NotPositiveDefiniteError
from ntkml.priors import PriorPrecision
from ntkml.records.bound_grid import COLUMNS
from ntkml.rows.model_contract import check_model
from ntkml.rows.tabulated import tabulate
from ntkml.runs import bound_rows
from ntkml.runs.bound_rows import GridPoint, estimator_rows
from tests.factories import STRUCTURES, assert_same, make_case

PRECISIONS = (0.03, 1.0, 40.0)
LOG_COLUMNS = ("log_marginal_likelihood", "log_likelihood", "log_prior", "log_det")
NAMES = ["N-C", "3-C", "3-1", "3-2", "3-tree+iid", "2-C+kmeans"]


def rows_of(case, name, precisions=PRECISIONS, block_rows=True):
    spec, partition = case.partition(name)
    table = tabulate(case.model, lambda start, stop: case.x[start:stop], len(case.x), case.plan)
    square = float(case.weights @ case.weights)
    points = [
        GridPoint(value, PriorPrecision(torch.tensor([value], dtype=torch.float64), "scalar"), -0.5 * value * square)
        for value in precisions
    ]
    rows = estimator_rows(
        spec,
        partition,
        table,
        case.y,
        case.likelihood,
        tree_for(case.model, case.num_outputs),
        points,
        {"run_id": "x"},
        block_rows,
    )
    return list(rows)


def per_datum(result, num_data):
    values = (result.total, result.log_likelihood, result.log_prior, result.log_det)
    return dict(zip(LOG_COLUMNS, (float(value) / num_data for value in values), strict=True))


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_estimates_of_the_public_entry(structure, name):
    """Aggregates are the bound, a block's row its one-block estimate; all log columns in nats per datum."""
    case = make_case("mlp")
    spec, partition = case.partition(f"{structure}-{name}")
    rows, plan = rows_of(case, f"{structure}-{name}"), check_model(case.model, case.x)
    assert len(rows) == len(PRECISIONS) * (1 + len(partition))
    for row in rows:
        drawn = None if row["block"] is None else [row["block"]]
        expected = evaluate_partition(
            case.model, case.x, case.y, spec, partition, row["hparam_value"], case.likelihood, plan, drawn
        )
        for column, value in per_datum(expected, 7).items():
            assert_same(row[column], value, 1e-9)
        assert row["estimator"] == str(spec)
        assert row["certified"] == expected.certified
        assert row["num_blocks"] == len(partition)
        assert row["run_id"] == "x"
        assert row["exceeds_exact"] is None  # known only beside the exact rows


@pytest.mark.parametrize("name", ["ntk-3-1", "kfac-3-C", "diag-3-tree"])
def test_one_point_and_a_grid_agree(name):
    """One Cholesky factorisation at a point, or one eigen-decomposition for all."""
    case = make_case("convnet")
    grid = rows_of(case, name, block_rows=False)
    for precision, row in zip(PRECISIONS, grid, strict=True):
        (alone,) = rows_of(case, name, (precision,), block_rows=False)
        for column in LOG_COLUMNS:
            assert_same(alone[column], row[column], 1e-10)


@pytest.mark.parametrize("structure", ["ntk", "ggn", "blockdiag"])
def test_a_grid_has_no_value_where_one_point_has_none(structure):
    """Equal inputs: eigenvalues that should be zero count at a tiny precision, which a single point refuses."""
    case = make_case("mlp")
    case = replace(case, x=case.x[:1].repeat(7, 1))
    for precisions in ((1e-20,), (1e-20, 1.0)):
        with pytest.raises(NotPositiveDefiniteError, match="raise the prior precision"):
            rows_of(case, f"{structure}-N-C", precisions)


def test_the_standard_error_is_that_of_one_block_estimates():
    case = make_case("mlp")
    rows = rows_of(case, "ntk-3-1", (1.0,))
    singles = torch.tensor([row["log_marginal_likelihood"] for row in rows if row["block"] is not None])
    assert rows[0]["standard_error"] == pytest.approx(float(singles.std()) / len(singles) ** 0.5)
    assert rows[0]["log_marginal_likelihood"] == pytest.approx(float(singles.mean()))
    assert all(row["standard_error"] is None for row in rows[1:])
    assert rows_of(case, "ntk-N-C", (1.0,))[0]["standard_error"] is None


def test_the_seconds_of_a_block_are_shared_by_the_points(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(bound_rows, "clock", lambda device: float(next(ticks)))
    rows = rows_of(make_case("mlp"), "ntk-3-C", block_rows=False)
    assert [row["seconds"] for row in rows] == pytest.approx(
        [rows[0]["num_blocks"] / len(PRECISIONS)] * len(PRECISIONS)
    )


def test_names_are_taken_apart_into_columns():
    case = make_case("mlp")
    row = rows_of(case, "blockdiag-3-tree+kmeans+iid", (1.0,))[0]
    assert [row[key] for key in ("structure", "inputs", "outputs", "grouping")] == [
        "blockdiag",
        "3",
        "tree",
        "kmeans+iid",
    ]
    row = rows_of(case, "ntk-N-2", (1.0,))[0]
    assert [row[key] for key in ("structure", "inputs", "outputs", "grouping")] == ["ntk", "N", "2", ""]


def test_rows_fit_the_schema_of_the_records():
    case = make_case("mlp")
    produced = set(rows_of(case, "ntk-3-1", (1.0,))[0])
    shared = {"command", "dataset", "model", "seed", "num_data", "num_params", "hparam", "device", "dtype"}
    assert produced | shared == set(COLUMNS)


def test_the_exact_row_is_the_exact_value():
    case = make_case("convnet")
    for row in rows_of(case, "ntk-N-C"):
        exact = log_marginal_likelihood(case.model, case.x, case.y, "ggn-N-C", row["hparam_value"])
        assert_same(row["log_marginal_likelihood"], exact.total / 7, 1e-10)
