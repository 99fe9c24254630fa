"""Rows of ``ntkml compare``: one per system and seed, in ``results/compare/<hparam>-<dataset>-<run_id>/rows.csv``.

A row says what one training run ended with and what it cost: ``fits`` trainings from the start, ``data_passes`` gradients
or products with the Jacobian for N inputs (see :class:`ntkml.systems.System`), ``seconds`` of training without
evaluations. Log columns are nats per datum.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ntkml.records.checks import Check, above_zero, one_of, system
from ntkml.records.tables import Columns, read_joined
from ntkml.system_specs import TRAIN_HPARAMS, is_bound

if TYPE_CHECKING:
    import pandas

COLUMNS: Columns = {
    "run_id": ("text", False),
    "command": ("text", False),
    "dataset": ("text", False),
    "model": ("text", False),
    "seed": ("integer", False),
    "num_data": ("integer", False),
    "num_params": ("integer", False),
    "hparam": ("text", False),  # what was learned: "prior" or "invariance"
    "system": ("text", False),  # the name of an estimator or another system
    "family": ("text", False),  # "bound", or the system without its number
    "learns_from": ("text", False),  # "train", "train + validation" or "shards"
    "epochs": ("integer", False),  # of every fit
    "test_log_likelihood": ("number", False),
    "test_accuracy": ("number", False),
    "test_ece": ("number", True),
    "prior_precision_median": ("number", False),  # over tensors at the end, of two middle values the lower one
    "eta_2": ("number", True),  # half-width of the rotation at the end, radians, of either sign
    "fits": ("integer", False),
    "data_passes": ("number", False),
    "seconds": ("number", False),
    "device": ("text", False),
}
KEY = ["run_id", "system", "seed"]
CHECKS = [
    one_of("hparam", TRAIN_HPARAMS),
    system("system"),
    Check(
        "family",
        "bound for estimators of the marginal likelihood alone",
        lambda rows: (rows["family"] == "bound") == rows["system"].map(is_bound),
    ),
    *above_zero("num_data", "num_params", "epochs", "fits", "data_passes", "seconds"),
]


def read_rows(*paths: str | Path) -> pandas.DataFrame:
    """Read and join row files of ``ntkml compare``; the columns have their proper types.

    Raises:
        ValueError: no file, or one that is missing, empty, not such a CSV, of another command, or repeats a cell.
    """
    return read_joined(paths, "compare", COLUMNS, KEY, lambda row: f"{row.system} with seed {row.seed}", CHECKS)
