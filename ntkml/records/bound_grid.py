"""Rows of bound grids: one per estimator, grid value and block, in ``results/bound-grid/<hparam>-<dataset>-<run_id>/rows.csv``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntkml.records import tables
from ntkml.records.checks import ESTIMATOR, PARTS, Check, above_zero, one_of

if TYPE_CHECKING:
    import pandas

COLUMNS: tables.Columns = {
    "run_id": ("text", False),
    "command": ("text", False),
    "dataset": ("text", False),
    "model": ("text", False),
    "seed": ("integer", False),
    "num_data": ("integer", False),
    "num_params": ("integer", False),
    "estimator": ("text", False),
    "structure": ("text", False),
    "inputs": ("text", False),  # "N" or a number
    "outputs": ("text", False),  # "1", "C", "tree" or a number
    "grouping": ("text", True),  # "class", "kmeans" or "greedy", "iid", or one of those and "+iid"
    "hparam": ("text", False),
    "hparam_value": ("number", False),
    "block": ("integer", True),  # empty on aggregate rows
    "num_blocks": ("integer", False),
    "certified": ("flag", False),
    "log_marginal_likelihood": ("number", False),  # this and the other log columns: nats per datum
    "standard_error": ("number", True),  # over blocks; empty where there is one block only
    "log_likelihood": ("number", False),
    "log_prior": ("number", False),
    "log_det": ("number", False),
    "exceeds_exact": ("flag", True),  # aggregate rows only
    "seconds": ("number", True),
    "peak_bytes": ("integer", True),  # of the process so far, whichever estimators it computed, not of the row's own
    "device": ("text", False),
    "dtype": ("text", False),
}
KEY = ["run_id", "dataset", "model", "seed", "num_data", "estimator", "hparam", "hparam_value", "block"]
HPARAMS = ("prior", "rotation")
CHECKS = [
    one_of("hparam", HPARAMS),
    Check(
        "hparam_value",
        "a number above 0 (prior) or of 0 or more (rotation)",
        lambda rows: (rows["hparam_value"] > 0) | ((rows["hparam"] == "rotation") & (rows["hparam_value"] == 0)),
    ),
    ESTIMATOR,
    *PARTS,
    *above_zero("num_data", "num_params", "num_blocks"),
]


def read_rows(*paths: str | Path) -> pandas.DataFrame:
    """Read and join row files of ``ntkml bound-grid``; the columns have their proper types.

    Text columns are strings (an empty grouping is ``""``), ``block`` and ``peak_bytes`` nullable integers, ``certified`` and
    ``exceeds_exact`` nullable booleans, the rest integers and floats.

    Raises:
        ValueError: no file, or one that is missing, empty, not such a CSV, of another command, cut between two lines, or repeats a cell.
    """
    rows = tables.read_joined(
        paths,
        "bound-grid",
        COLUMNS,
        KEY,
        lambda cell: f"the row of {cell.estimator} at {cell.hparam} = {cell.hparam_value:g}, seed {cell.seed},",
        CHECKS,
    )
    _refuse_cut(rows)
    return rows


def _refuse_cut(rows: pandas.DataFrame) -> None:
    """A file that was cut between two lines: aggregates of all estimators are at the same points, as many blocks at each."""
    for (run_id, *_), run in rows.groupby(["run_id", "dataset", "model", "seed", "num_data", "hparam"], sort=False):
        whole = run["block"].isna()
        values = run.loc[whole].groupby("estimator", sort=False)["hparam_value"].agg(frozenset)
        everywhere = frozenset(run["hparam_value"])
        blocks = run[~whole].groupby(["estimator", "hparam_value"], sort=False).size().groupby("estimator", sort=False)
        few = [name for name in dict.fromkeys(run["estimator"]) if values.get(name) != everywhere]
        few += [str(name) for name, counts in blocks if counts.nunique() > 1 or len(counts) < len(everywhere)]
        if few:
            raise ValueError(
                f"the rows of run {run_id} are not whole: some of {few[0]} are missing; restore the file, or compute it again "
                "with --force"
            )


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write the rows of a bound grid; see :func:`ntkml.records.tables.write_rows`.

    Raises:
        ValueError: also where the row of one block says whether it exceeds the exact value.
    """
    rows = list(rows)
    for number, row in enumerate(rows):
        if row.get("block") is not None and row.get("exceeds_exact") is not None:
            raise ValueError(
                f"row {number} of {path}: exceeds_exact belongs to aggregate rows, block must be empty there"
            )
    return tables.write_rows(path, rows, COLUMNS)
