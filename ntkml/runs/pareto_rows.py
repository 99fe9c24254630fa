"""Rows of a Pareto run: what the training runs of an estimator reached, beside what one of its estimates costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from ntkml.records.manifests import read_manifest
from ntkml.records.pareto import frontier

if TYPE_CHECKING:
    import pandas

#: Own estimates at the end of a run that are averaged: one of a few blocks alone says little.
LAST_ESTIMATES = 5

#: What is measured of an estimator.
_MEASURED = ("seconds", "peak_bytes", "num_pairs", "exact_log_marginal_likelihood")

_DESCRIPTION = ("dataset", "model", "num_data", "num_params", "hparam", "estimator", "structure", "inputs", "outputs")
_END_COLUMNS = ("test_log_likelihood", "test_accuracy", "eta_2")


def pareto_rows(
    run_id: str,
    settings: Mapping[str, Any],
    training: Mapping[str, Sequence[pandas.DataFrame]],
    measured: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """One row per estimator. training: by estimator, the rows of each of its seeds; measured: see the run's parts."""
    rows = []
    for name, frames in training.items():
        first = frames[0].iloc[0]
        described = {key: first[key] for key in (*_DESCRIPTION, "grouping", "certified", "dtype")}
        shared = {key: settings[key] for key in ("epochs", "samples", "device", "threads")}  # of the timing
        row = {"run_id": run_id, "command": "pareto"} | described | shared | _reached(frames)
        row |= _cost(measured[name]["seconds"])
        row |= {key: measured[name].get(key) for key in _MEASURED if key != "seconds"}
        rows.append(row)
    chosen = frontier([row["seconds"] for row in rows], [row["log_marginal_likelihood"] for row in rows])
    return [row | {"on_frontier": on_it} for row, on_it in zip(rows, chosen, strict=True)]


def is_whole(part: Path) -> bool:
    """Whether an earlier start measured an estimator and left this part whole; a damaged one is measured again."""
    try:
        measured = read_manifest(part)
    except ValueError:
        return False
    seconds, *others = (measured.get(key) for key in _MEASURED)
    if not (isinstance(seconds, list) and seconds) or measured.get("num_pairs") is None:
        return False
    numbers = [*seconds, *(value for value in others if value is not None)]
    return all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)


def _reached(frames: Sequence[pandas.DataFrame]) -> dict[str, Any]:
    """Means over seeds of what the runs reached; of half-widths, whose sign is free, magnitudes are averaged."""
    own = [float(frame["log_marginal_likelihood"].dropna().tail(LAST_ESTIMATES).mean()) for frame in frames]
    ends = {key: [float(f[key].dropna().iloc[-1]) for f in frames if f[key].notna().any()] for key in _END_COLUMNS}
    ends["eta_2"] = [abs(eta) for eta in ends["eta_2"]]
    return {
        "num_seeds": len(frames),
        "seeds": " ".join(str(frame["seed"].iloc[0]) for frame in frames),
        "log_marginal_likelihood": statistics.fmean(own),
        "standard_error": statistics.stdev(own) / len(own) ** 0.5 if len(own) > 1 else None,
        **{key: statistics.fmean(values) if values else None for key, values in ends.items()},
    }


def _cost(seconds: Sequence[float]) -> dict[str, Any]:
    """Quartiles of the timings."""
    low, median, high = numpy.quantile(seconds, [0.25, 0.5, 0.75])
    return {
        "seconds_low": float(low),
        "seconds": float(median),
        "seconds_high": float(high),
        "repeats": len(seconds),
    }
