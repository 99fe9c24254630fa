"""Rows of training runs as curves over epochs: a rolling mean of every run, then mean and standard error over seeds."""

from __future__ import annotations

import pandas

from ntkml.figures.curves import Curve

WINDOW = 5  # recorded values that a rolling mean is taken over; the first ones of a run have fewer before them


def trajectories_of(rows: pandas.DataFrame, column: str) -> dict[str, Curve]:
    """Curves of ``column`` by estimator; an estimator without a recorded value has none.

    Epochs at which nothing was recorded are left out before the rolling mean. ``error`` is one standard error over the
    seeds, the sample standard deviation over the square root of their number, and NaN with one seed.

    Raises:
        ValueError: several runs of one estimator and seed, or seeds with values at different epochs.
    """
    recorded = rows[rows[column].notna()]
    return {str(name): _curve(group, str(name), column) for name, group in recorded.groupby("estimator", sort=False)}


def seeds_by_estimator(rows: pandas.DataFrame) -> dict[str, list[int]]:
    """The seeds of every estimator, rising."""
    return {str(name): sorted(set(group["seed"])) for name, group in rows.groupby("estimator", sort=False)}


def _curve(group: pandas.DataFrame, estimator: str, column: str) -> Curve:
    if group.groupby("seed")["run_id"].nunique().max() > 1:
        raise ValueError(f"{estimator} has several runs of one seed; give the files of one run per seed")
    values = group.pivot(index="epoch", columns="seed", values=column).sort_index()
    if values.isna().to_numpy().any():
        raise ValueError(f"the seeds of {estimator} have {column} at different epochs; a mean over them would jump")
    smooth = values.rolling(WINDOW, min_periods=1).mean()  # (epochs, seeds)
    return Curve.of(group, smooth.mean(axis=1), smooth.sem(axis=1, ddof=1))
