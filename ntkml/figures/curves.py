"""Aggregate rows of a bound grid as curves: mean over seeds and one standard error over blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy
import pandas

from ntkml.records.notes import first_few


@dataclass(frozen=True)
class Curve:
    """One estimator over the grid of one hyperparameter, or over epochs; ``y`` and ``error`` are nats per datum."""

    estimator: str
    structure: str
    size: int  # inputs per block
    certified: bool
    x: numpy.ndarray  # (points,), rising
    y: numpy.ndarray  # (points,)
    error: numpy.ndarray  # (points,), NaN where the partition has one block only
    exceeding: int = 0  # grid points and seeds at which the estimate lies above the exact value
    compared: int = 0  # ... of so many where that is known

    @classmethod
    def of(cls, group: pandas.DataFrame, y: pandas.Series[float], error: Any, **counts: int) -> Curve:
        """The curve of the rows of one estimator: values ``y`` by their x."""
        first = group.iloc[0]
        return cls(
            estimator=str(first["estimator"]),
            structure=first["structure"],
            size=int(first["num_data"]) if first["inputs"] == "N" else int(first["inputs"]),
            certified=bool(group["certified"].all()),
            x=y.index.to_numpy(float),
            y=y.to_numpy(float),
            error=numpy.asarray(error, float),
            **counts,
        )


def hparams_of(rows: pandas.DataFrame) -> list[str]:
    """Hyperparameters that have aggregate rows, in the order of their first row."""
    return list(dict.fromkeys(rows.loc[rows["block"].isna(), "hparam"]))


def curves_of(rows: pandas.DataFrame, hparam: str) -> dict[str, Curve]:
    """Curves by the name of their estimator.

    With several seeds ``y`` is the mean over them and ``error`` that mean's standard error, sqrt(sum of squares) / seeds.

    Raises:
        ValueError: the rows mix data sets, models or sizes, repeat a point, or the seeds have different grids.
    """
    chosen = rows[rows["block"].isna() & (rows["hparam"] == hparam)]
    refuse_mixtures(chosen, hparam, "give files of one setting, or draw one run with the figure bound-grid")
    return {str(name): _curve(group, str(name), hparam) for name, group in chosen.groupby("estimator", sort=False)}


def refuse_mixtures(rows: pandas.DataFrame, whose: str, advice: str) -> None:
    """Raise ValueError where the rows, named ``whose`` in the message, are not all on the same data and network."""
    for column in ("dataset", "model", "num_data", "num_params"):
        values = list(dict.fromkeys(rows[column]))
        if len(values) > 1:
            raise ValueError(f"the {whose} rows mix several values of {column} ({first_few(values)}); {advice}")


def _curve(group: pandas.DataFrame, estimator: str, hparam: str) -> Curve:
    if group.duplicated(["hparam_value", "seed"]).any():
        raise ValueError(
            f"{estimator} has several {hparam} rows for one value and seed; give the files of one run per seed"
        )
    values = group.pivot(index="hparam_value", columns="seed", values="log_marginal_likelihood").sort_index()
    if values.isna().to_numpy().any():
        raise ValueError(f"the seeds of {estimator} have different grids of {hparam}; a mean over them would jump")
    errors = group.pivot(index="hparam_value", columns="seed", values="standard_error").loc[values.index]
    return Curve.of(
        group,
        values.mean(axis=1),
        numpy.sqrt((errors.to_numpy(float) ** 2).sum(axis=1)) / values.shape[1],
        exceeding=int(group["exceeds_exact"].fillna(False).sum()),
        compared=int(group["exceeds_exact"].notna().sum()),
    )
