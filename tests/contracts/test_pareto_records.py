"""Rows of Pareto runs, and the frontier."""

import itertools
import random

import pandas
import pytest

from ntkml.records import pareto as pareto_records
from ntkml.records.pareto import frontier
from ntkml.records.tables import write_rows
from tests.synthetic_training import pareto_rows

NAMES = ["ntk-N-C", "ntk-100-1", "ntk-100-tree", "kfac-N-C"]


def brute_force(seconds, values):
    points = list(zip(seconds, values, strict=True))
    return [not any(s <= x and v >= y and (s, v) != (x, y) for s, v in points) for x, y in points]


@pytest.mark.parametrize("seed", range(20))
def test_the_frontier_is_what_no_other_point_beats(seed):
    draw = random.Random(seed)
    # Few distinct values, so that ties of every kind are there.
    seconds = [draw.choice([0.1, 0.2, 0.3, 0.5]) for _ in range(12)]
    values = [draw.choice([-3.0, -2.0, -1.5, -1.0]) for _ in range(12)]
    assert frontier(seconds, values) == brute_force(seconds, values)


def test_the_frontier_does_not_depend_on_the_order():
    points = [(1.0, -2.0), (1.0, -2.0), (1.0, -3.0), (2.0, -2.0), (2.0, -1.0)]
    for order in itertools.permutations(range(5)):
        flags = frontier(*zip(*(points[index] for index in order), strict=True))
        assert {index for index, flag in zip(order, flags, strict=True) if flag} == {0, 1, 4}


@pytest.mark.parametrize(
    ("seconds", "values", "flags"),
    [
        ([], [], []),
        ([1.0], [-1.0], [True]),
        ([1.0, 1.0], [-1.0, -2.0], [True, False]),  # equal seconds: the higher one
        ([1.0, 2.0], [-1.0, -1.0], [True, False]),  # equal values: the faster one
        ([1.0, 1.0], [-1.0, -1.0], [True, True]),
    ],
)
def test_ties(seconds, values, flags):
    assert frontier(seconds, values) == flags


def test_a_frontier_of_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="a frontier needs finite seconds and values"):
        frontier([1.0, float("nan")], [-1.0, -1.0])
    with pytest.raises(ValueError, match="as many seconds as values are needed, got 1 and 2"):
        frontier([1.0], [-1.0, -1.0])


def test_rows_come_back_as_they_were_written(tmp_path):
    written = pareto_rows(NAMES, "prior", seeds=(0,))
    rows = pareto_records.read_rows(write_rows(tmp_path / "rows.csv", written, pareto_records.COLUMNS))
    assert list(rows.columns) == list(pareto_records.COLUMNS)
    for read, row in zip(rows.to_dict("records"), written, strict=True):
        for name, value in row.items():
            if value is None:
                assert pandas.isna(read[name])
            else:
                assert read[name] == (pytest.approx(value) if isinstance(value, float) else value)


def test_what_is_no_file_of_a_pareto_run_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="no CSV file was given; pass at least one"):
        pareto_records.read_rows()
    good = write_rows(tmp_path / "rows.csv", pareto_rows(NAMES, "prior"), pareto_records.COLUMNS)
    with pytest.raises(ValueError, match=r"ntk-N-C of run 12e4567890 is there more than once; give each file once"):
        pareto_records.read_rows(good, good)
    good.write_text(good.read_text().replace(",pareto,", ",train,"))
    with pytest.raises(ValueError, match=r"rows\.csv: holds rows of 'train', expected rows of 'pareto'"):
        pareto_records.read_rows(good)
    good.write_text("epoch,loss\n1,2\n")
    with pytest.raises(ValueError, match=r"rows\.csv: not a file of 'pareto', missing columns: run_id"):
        pareto_records.read_rows(good)
