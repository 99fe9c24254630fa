"""One row of a table: what an estimator reached, as published or in our own runs."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas

from ntkml.protocols.tables import experiments_folder

#: Column of a training run's rows -> what the tables call it. Log columns are nats per datum, the accuracy is in percent.
METRICS = {
    "log_marginal_likelihood": "log_q",
    "test_log_likelihood": "test_log_likelihood",
    "test_accuracy": "accuracy",
}

#: Where the seconds of this estimator are 100%, among those that learn the same.
FULL_BATCH = "kfac-N-C"


@dataclass(frozen=True)
class Value:
    """A mean over seeds and its standard error, None with one seed."""

    mean: float
    error: float | None = None

    def overlaps(self, other: Value) -> bool:
        """Whether the intervals of one standard error meet; not where an error is unknown."""
        if self.error is None or other.error is None:
            return False
        return abs(self.mean - other.mean) <= self.error + other.error + 1e-9


@dataclass(frozen=True)
class Entry:
    """``source``: "paper", "literature" or "ours". ``seeds``: of our runs. ``relative_time``: percent of :data:`FULL_BATCH`."""

    hparam: str
    estimator: str
    label: str
    source: str
    values: Mapping[str, Value] = field(default_factory=dict)  # by the names in METRICS
    relative_time: float | None = None
    seconds: float | None = None  # of a run, without the evaluations
    seeds: tuple[int, ...] = ()
    certified: bool | None = None
    note: str = ""


def bold(entry: Entry, metric: str, others: Iterable[Entry]) -> bool:
    """The paper's rule, as we read it: the interval of one standard error meets that of the best of its category.

    A category are the entries of one source that learn the same. Where an error is unknown (one seed) nothing is bold.
    """
    value = entry.values.get(metric)
    rivals = [other.values[metric] for other in others if metric in other.values]
    return value is not None and value.overlaps(max(rivals, key=lambda rival: rival.mean))


def published(table: str, dataset: str) -> list[Entry]:
    """The numbers of the paper's table, the literature's among them, from ``experiments/published-tables.csv``."""
    return [
        Entry(
            hparam=row["hparam"],
            estimator=row["estimator"],
            label=row["label"],
            source=row["source"],
            values={
                name: Value(float(row[name]), float(row[f"{name}_error"])) for name in METRICS.values() if row[name]
            },
            relative_time=float(row["relative_time"]) if row["relative_time"] else None,
            note=row["note"],
        )
        for row in _published_rows(table)
        if row["dataset"] == dataset
    ]


def published_datasets(table: str) -> list[str]:
    """The data sets of the paper's table, in its order."""
    return list(dict.fromkeys(row["dataset"] for row in _published_rows(table)))


def _published_rows(table: str) -> list[dict[str, str]]:
    text = experiments_folder().joinpath("published-tables.csv").read_text(encoding="utf-8")
    return [row for row in csv.DictReader(text.splitlines()) if row["table"] == table]


def entry_of(runs: Sequence[pandas.DataFrame]) -> Entry:
    """Mean and standard error over the runs of one estimator, one frame of rows for each seed.

    The log marginal likelihood is the last estimate that a run recorded, the test values are those of its last epoch.
    """
    first = runs[0].iloc[0]
    values = {}
    for column, name in METRICS.items():
        scale = 100.0 if column == "test_accuracy" else 1.0
        recorded = [run.sort_values("epoch")[column].dropna() for run in runs]
        if all(len(one) for one in recorded):
            values[name] = _mean([scale * float(one.iloc[-1]) for one in recorded])
    seconds = [float((run["seconds_weights"] + run["seconds_hyper"]).sum()) for run in runs]
    certified = first["certified"]
    return Entry(
        hparam=str(first["hparam"]),
        estimator=str(first["estimator"]),
        label=str(first["estimator"]),
        source="ours",
        values=values,
        seconds=math.fsum(seconds) / len(seconds),
        seeds=tuple(sorted(int(run["seed"].iloc[0]) for run in runs)),
        certified=None if pandas.isna(certified) else bool(certified),
    )


def _mean(values: Sequence[float]) -> Value:
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Value(mean)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return Value(mean, deviation / math.sqrt(count))
