"""Tables of a report: what the rows of each command say, in a few columns. Log columns are nats per datum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas

from ntkml.specs import EXACT


@dataclass(frozen=True)
class Cell:
    """What is shown, and a number to sort by where it is one."""

    text: str
    number: float | None = None


@dataclass(frozen=True)
class Table:
    """A table with a heading and a sentence on how to read it."""

    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


_TRAINING = {
    "data set": "dataset",
    "model": "model",
    "likelihood": "likelihood",
    "learned": "hparam",
    "estimator": "estimator",
    "proven bound": "certified",
    "seed": "seed",
    "N": "num_data",
    "epochs": "epoch",
    "log q / N": "log_marginal_likelihood",
    "test log lik.": "test_log_likelihood",
    "test accuracy": "test_accuracy",
    "test ECE": "test_ece",
    "|rotation| (rad)": "eta_2",
    "prior median": "prior_precision_median",
}
_PARETO = {
    "data set": "dataset",
    "learned": "hparam",
    "estimator": "estimator",
    "proven bound": "certified",
    "seeds": "seeds",
    "seconds": "seconds",
    "log q / N": "log_marginal_likelihood",
    "exact": "exact_log_marginal_likelihood",
    "test log lik.": "test_log_likelihood",
    "test accuracy": "test_accuracy",
    "|rotation| (rad)": "eta_2",
    "on frontier": "on_frontier",
}
_COMPARISON = {
    "data set": "dataset",
    "learned": "hparam",
    "system": "system",
    "learns from": "learns_from",
    "seed": "seed",
    "N": "num_data",
    "epochs": "epochs",
    "test log lik.": "test_log_likelihood",
    "test accuracy": "test_accuracy",
    "prior median": "prior_precision_median",
    "|rotation| (rad)": "eta_2",
    "fits": "fits",
    "data passes": "data_passes",
    "seconds": "seconds",
}


def training_table(rows: pandas.DataFrame) -> Table:
    """The last epoch of every run; its log q / N is the last one recorded. Log columns of two likelihoods do not compare."""
    last = rows.groupby("run_id", sort=False).last(skipna=True).reset_index()
    last = last.sort_values(["dataset", "hparam", "estimator", "seed"], kind="stable")
    caption = (
        "One line per training run: its last recorded values. log q / N is the run's own estimate, of single blocks; "
        "prior median: of two middle values the lower one."
    )
    if (last["likelihood"] == "categorical").all():  # which goes without saying where there is no other
        last = last.drop(columns="likelihood")
    return table("Training runs", caption, last, _TRAINING)


def pareto_table(rows: pandas.DataFrame) -> Table:
    """Tightness and cost of every estimator, the rows of all Pareto runs by their seconds."""
    caption = (
        "Seconds of one estimate with its gradient (median); log q / N: mean of the last five own estimates; "
        "exact: the log marginal likelihood where training ended."
    )
    return table("Tightness against time", caption, rows.sort_values("seconds", kind="stable"), _PARETO)


def comparison_table(rows: pandas.DataFrame) -> Table:
    """Every system of the comparisons, the best test log likelihood of each data set first."""
    order = rows.sort_values(["dataset", "hparam", "test_log_likelihood"], ascending=[True, True, False], kind="stable")
    caption = (
        "Bounds and other systems on the same data; cost in fits, data passes and seconds of all fits together; "
        "prior median: of two middle values the lower one."
    )
    return table("Systems compared", caption, order, _COMPARISON)


def bound_table(settings: Sequence[pandas.DataFrame]) -> Table:
    """Where every estimator's curve has its maximum, and its slack at the maximum of the exact curve.

    A frame of ``settings`` has the rows of runs that differ in the seed alone, over which curves are averaged.
    """
    lines = []
    for rows in settings:
        aggregate = rows[rows["block"].isna()]
        mean = aggregate.groupby(["estimator", "hparam_value"], sort=False)["log_marginal_likelihood"].mean().unstack(0)
        exact = mean.get(EXACT)
        first = rows.iloc[0]
        about = [first[column] for column in ("dataset", "model", "num_data", "hparam")]
        about += [" ".join(dict.fromkeys(rows["run_id"])), " ".join(map(str, dict.fromkeys(rows["seed"])))]
        for name in dict.fromkeys(aggregate["estimator"]):
            curve = mean[name].dropna()
            best = curve.idxmax()
            slack = None
            if exact is not None and exact.idxmax() in curve.index:
                slack = exact.max() - curve[exact.idxmax()]
            flags = aggregate.loc[aggregate["estimator"] == name, "certified"]
            lines.append((*about, name, bool(flags.all()), best, curve.max(), slack))
    columns = ["data set", "model", "N", "over", "runs", "seeds", "estimator", "proven bound"]
    columns += ["best at", "log q / N there", "slack at exact best"]
    frame = pandas.DataFrame(lines, columns=columns)
    caption = (
        "Curves are means over seeds of runs that are otherwise the same; a run has the same weights for all its estimators. "
        "slack: exact minus estimate at the grid point where the exact value is largest."
    )
    return table("Bounds over a grid", caption, frame, {name: name for name in columns})


def table(title: str, caption: str, frame: pandas.DataFrame, columns: Mapping[str, str]) -> Table:
    """``frame`` under new headings (heading -> column); a heading of which nothing is known is left out."""
    kept = {heading: column for heading, column in columns.items() if column in frame and frame[column].notna().any()}
    rows = tuple(tuple(cell(value) for value in line) for line in _lines(frame, list(kept.values())))
    return Table(title, caption, tuple(kept), rows)


def cell(value: Any) -> Cell:
    """Text of one value: four significant digits, blank where it is missing, yes and no for flags."""
    if value is None or pandas.isna(value):
        return Cell("")
    if isinstance(value, bool):
        return Cell("yes" if value else "no", float(value))
    if isinstance(value, int):
        return Cell(str(value), float(value))
    if isinstance(value, float):
        return Cell(f"{value:.4g}", value)
    return Cell(str(value))


def _lines(frame: pandas.DataFrame, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    if "eta_2" in columns:  # the sign of a half-width is free
        frame = frame.assign(eta_2=frame["eta_2"].abs())
    plain = frame[list(columns)].astype(object)  # Python's own numbers and flags
    return list(plain.itertuples(index=False, name=None))
