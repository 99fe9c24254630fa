"""Rows of training runs: one per epoch, in ``results/train/<estimator>-<dataset>-<run_id>/rows.csv``.

The settings are repeated on every row, so that files of many runs can be joined and grouped without their manifests.
Log columns are nats per datum. Empty cells: the log marginal likelihood of epochs that update nothing, test columns where
nothing was evaluated, half-widths where no invariance is learned, and whatever has no meaning for ``none``.

``prior_precisions`` is a JSON list in the order of the network's parameter tensors (one value for a scalar prior). A
diagonal prior has too many for a cell: it is left empty, minimum, median and maximum stay. Of an even number of values the
median is the lower of the two middle ones. ``peak_bytes`` is the peak of the process so far, of a GPU's allocator on CUDA.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ntkml.records.checks import (
    PARTS,
    Check,
    above_zero,
    empty_where,
    not_below_zero,
    one_for_every,
    one_of,
    positive_list,
    shares,
    system,
)
from ntkml.records.notes import first_few
from ntkml.records.tables import Columns, read_joined
from ntkml.registry import LIKELIHOODS
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
    "likelihood": ("text", False),
    "estimator": ("text", False),
    "structure": ("text", False),  # "none" for MAP
    "inputs": ("text", True),
    "outputs": ("text", True),
    "grouping": ("text", True),
    "hparam": ("text", False),  # what is learned: "prior" or "invariance"
    "certified": ("flag", True),
    "epoch": ("integer", False),  # epochs that are finished, from 1
    "train_loss": ("number", False),  # mean over the epoch's batches of (-log p(D|w) + 1/2 w^T P0 w) / N
    "log_marginal_likelihood": ("number", True),  # mean of the epoch's own estimates
    "test_log_likelihood": ("number", True),
    "test_accuracy": ("number", True),
    "test_ece": ("number", True),
    "observation_noise": ("number", True),  # standard deviation, of a Gaussian likelihood alone
    "prior_precision_min": ("number", False),
    "prior_precision_median": ("number", False),  # of two middle values the lower one
    "prior_precision_max": ("number", False),
    "prior_precisions": ("text", True),
    "eta_0": ("number", True),  # x-translation
    "eta_1": ("number", True),  # y-translation
    "eta_2": ("number", True),  # rotation, radians
    "eta_3": ("number", True),  # x-scale
    "eta_4": ("number", True),  # y-scale
    "eta_5": ("number", True),  # shear
    "seconds_weights": ("number", False),
    "seconds_hyper": ("number", False),
    "seconds_eval": ("number", False),
    "peak_bytes": ("integer", True),  # of the process so far, not of the epoch
    "device": ("text", False),
    "dtype": ("text", False),
}
KEY = ["run_id", "epoch"]
#: What a run has once: figures take it from any of its rows.
_OF_THE_RUN = ("dataset", "model", "seed", "num_data", "num_params", "likelihood", "estimator", "hparam", "dtype")
CHECKS = [
    one_of("likelihood", list(LIKELIHOODS)),
    one_of("hparam", TRAIN_HPARAMS),
    system("estimator"),
    *PARTS,
    Check(
        "certified",
        "true or false for estimators of the marginal likelihood alone",
        lambda rows: rows["certified"].notna() == rows["estimator"].map(is_bound),
    ),
    *above_zero("num_data", "num_params", "epoch", "observation_noise"),
    *above_zero("prior_precision_min", "prior_precision_median", "prior_precision_max"),
    positive_list("prior_precisions"),
    *(empty_where(f"eta_{index}", "eta_0") for index in range(1, 6)),
    *shares("test_accuracy", "test_ece"),
    *not_below_zero("seed", "seconds_weights", "seconds_hyper", "seconds_eval"),
    *(one_for_every("run_id", column) for column in _OF_THE_RUN),
]

#: What differs between a run and the same run stopped and resumed.
MEASURED = ("seconds_weights", "seconds_hyper", "seconds_eval", "peak_bytes")


def read_rows(*paths: str | Path) -> pandas.DataFrame:
    """Read and join row files of ``ntkml train``; the columns have their proper types.

    Raises:
        ValueError: no file, or one that is missing, empty, not such a CSV, of another command, repeats an epoch, or holds
            a cell that the checks refuse.
    """
    return read_joined(paths, "train", COLUMNS, KEY, lambda row: f"epoch {row.epoch} of run {row.run_id}", CHECKS)


def read_finished(path: Path, epochs: int, run_id: str | None = None) -> pandas.DataFrame:
    """The rows of one finished run of so many ``epochs``, by epoch: the last ones are where it ended.

    ``run_id``: that of its manifest, None where it has none.

    Raises:
        ValueError: see :func:`read_rows`, and rows of another run or that end with another epoch; says what to remove.
    """
    try:
        rows = read_rows(path).sort_values("epoch", ignore_index=True)
    except ValueError as error:
        raise ValueError(f"{error}; {_remedy(path)}") from None
    if others := sorted(set(rows["run_id"]) - {run_id or rows["run_id"].iloc[0]}):
        raise ValueError(f"{path}: holds rows of run {first_few(others)}, not of this one alone; {_remedy(path)}")
    check_end(rows, path, epochs)
    return rows


def check_end(rows: pandas.DataFrame, path: Path, epochs: int) -> None:
    """Raise ValueError where the rows of a finished run, in the file ``path``, do not end with its last epoch."""
    if (last := int(rows["epoch"].max())) != epochs:
        raise ValueError(f"{path}: ends with epoch {last} of {epochs}; {_remedy(path)}")


def _remedy(path: Path) -> str:
    return f"remove {path.parent} and compute it again"
