"""Rows of a Pareto run: one per estimator, in ``results/pareto/<hparam>-<dataset>-<run_id>/rows.csv``.

A row joins what the training runs of an estimator achieved with what one estimate and its gradient cost. Log columns are
nats per datum, ``seconds`` is the median over ``repeats`` measurements. Beside the rows lie ``manifest.json``, whose
``runs`` maps the id of every training run to its manifest, and ``training.csv.gz``, their rows (:mod:`ntkml.records.train`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ntkml.records.checks import ESTIMATOR, PARTS, above_zero, fully_matching, one_of
from ntkml.records.tables import Columns, read_joined
from ntkml.system_specs import TRAIN_HPARAMS

if TYPE_CHECKING:
    import pandas

COLUMNS: Columns = {
    "run_id": ("text", False),
    "command": ("text", False),
    "dataset": ("text", False),
    "model": ("text", False),
    "num_data": ("integer", False),
    "num_params": ("integer", False),
    "hparam": ("text", False),  # what was learned: "prior" or "invariance"
    "estimator": ("text", False),
    "structure": ("text", False),
    "inputs": ("text", False),  # "N" or a number
    "outputs": ("text", False),  # "1", "C", "tree" or a number
    "grouping": ("text", True),
    "certified": ("flag", False),
    "num_seeds": ("integer", False),
    "seeds": ("text", False),  # "0 1 2"
    "epochs": ("integer", False),
    "samples": ("integer", False),  # augmentation views S
    "log_marginal_likelihood": ("number", False),  # mean of the last five own estimates of every run, over seeds
    "standard_error": ("number", True),  # of that, over seeds; empty with one
    "exact_log_marginal_likelihood": ("number", True),  # ntk-N-C at the end of training, of the first seed
    "test_log_likelihood": ("number", True),  # this and the next two: end of training, over seeds
    "test_accuracy": ("number", True),
    "eta_2": ("number", True),  # learned rotation, radians: mean of |eta_2| over seeds, as its sign is free
    "seconds": ("number", False),  # median of one estimate with its gradient
    "seconds_low": ("number", False),  # first quartile
    "seconds_high": ("number", False),  # third quartile
    "repeats": ("integer", False),
    "num_pairs": ("integer", False),  # index pairs of a block
    "peak_bytes": ("integer", True),  # while it was timed, with interpreter, torch and data on a CPU; empty: not known
    "threads": ("integer", False),
    "device": ("text", False),
    "dtype": ("text", False),
    "on_frontier": ("flag", False),  # see frontier()
}
KEY = ["run_id", "estimator"]
CHECKS = [
    one_of("hparam", TRAIN_HPARAMS),
    ESTIMATOR,
    *PARTS,
    fully_matching("seeds", "[0-9]{1,19}( [0-9]{1,19})*", "whole numbers with spaces between them, such as 0 1 2"),
    *above_zero("num_data", "num_params", "num_seeds", "epochs", "samples"),
    *above_zero("seconds", "seconds_low", "seconds_high", "repeats", "num_pairs", "threads"),
]


def read_rows(*paths: str | Path) -> pandas.DataFrame:
    """Read and join row files of ``ntkml pareto``; the columns have their proper types.

    Raises:
        ValueError: no file, or one that is missing, empty, not such a CSV, of another command, or repeats an estimator.
    """
    return read_joined(paths, "pareto", COLUMNS, KEY, lambda row: f"{row.estimator} of run {row.run_id}", CHECKS)


def frontier(seconds: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Which points lie on the Pareto frontier of few ``seconds`` and high ``values``, in the order given.

    A point lies on it if none is at least as good in both and better in one. Of points with equal seconds only the
    highest can lie on it, of points with equal values only the fastest; points equal in both stand or fall together.

    Raises:
        ValueError: lengths that differ, or a number that is not finite.
    """
    if len(seconds) != len(values):
        raise ValueError(f"as many seconds as values are needed, got {len(seconds)} and {len(values)}")
    if not all(map(math.isfinite, [*seconds, *values])):
        raise ValueError("a frontier needs finite seconds and values")
    # From fast to slow, the highest of equal seconds first: a point then has to be above all before it.
    order = sorted(range(len(values)), key=lambda index: (seconds[index], -values[index]))
    chosen, best = [False] * len(values), (math.nan, -math.inf)
    for index in order:
        point = (seconds[index], values[index])
        chosen[index] = point[1] > best[1] or point == best
        best = point if chosen[index] else best
    return chosen
