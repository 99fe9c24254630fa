"""What a panel of a Pareto figure shows: its ranges with room for labels, its ticks, and what lies outside."""

from __future__ import annotations

import math

import pandas
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from ntkml.figures.panels import SHOWN_HEIGHT, Interval, Limits
from ntkml.protocols.training_figures import ParetoAxes

_LEFT, _RIGHT, _BELOW, _ABOVE = 0.16, 0.05, 0.10, 0.05  # room around the points; labels stand below and to the left
_MOST_TICKS = 7
_SHORTEST = {"log": 0.5, "linear": 0.1}  # of an axis, in decades or in nats (or seconds)


def limits_of(axes: ParetoAxes, rows: pandas.DataFrame, column: str) -> Limits:
    """Limits of the panel that shows ``column``; those that the protocol sets hold for the estimates."""
    x = axes.xlim or _widened(
        (float(rows["seconds_low"].min()), float(rows["seconds_high"].max())), axes.xscale, _LEFT, _RIGHT
    )
    if axes.ylim and column == "log_marginal_likelihood":
        return Limits(x, axes.ylim)
    values = -rows[column].dropna()
    low = float(values.min())
    # The loosest estimates lie many nats above the others, and a scale that shows them shows nothing else.
    shown = values[values <= low + SHOWN_HEIGHT]
    high = float(shown.max())
    scale = axes.yscale if low > 0 else "linear"
    below, above = _widened((low, high), scale, _BELOW, _ABOVE)
    if column == "log_marginal_likelihood":  # whose bars are one standard error long
        bars = rows["standard_error"].fillna(0.0)[shown.index]
        ends = pandas.concat([shown - bars, shown + bars])
        ends = ends[ends > 0] if scale == "log" else ends
        below, above = min(below, float(ends.min())), max(above, float(ends.max()))
    return Limits(x, (below, above))


def outside(rows: pandas.DataFrame, column: str, limits: Limits) -> pandas.DataFrame:
    """The rows with a value that the limits do not show."""
    (left, right), (low, high) = limits.x, sorted(limits.upper)
    values, seconds = -rows[column], rows["seconds"]
    return rows[values.notna() & ~(values.between(low, high) & seconds.between(left, right))]


def mark_ticks(part: Axes, axes: ParetoAxes) -> None:
    """Plain numbers, at 1, 2 and 5 in every decade of a logarithmic axis, or fewer where they are many."""
    for axis, scale, limits in ((part.xaxis, axes.xscale, part.get_xlim()), (part.yaxis, axes.yscale, part.get_ylim())):
        if scale == "log":
            axis.set_major_locator(FixedLocator(_log_ticks(limits)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def _log_ticks(limits: Interval) -> list[float]:
    low, high = sorted(limits)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]
        if len(ticks) <= _MOST_TICKS:
            break
    return ticks


def _widened(interval: Interval, scale: str, below: float, above: float) -> Interval:
    """The interval with room at both ends, as shares of its length on its scale, and long enough to hold a tick."""
    low, high = map(math.log10, interval) if scale == "log" else interval
    short = max(0.0, _SHORTEST[scale] - (high - low)) / 2
    low, high = low - short, high + short
    low, high = low - below * (high - low), high + above * (high - low)
    return (10**low, 10**high) if scale == "log" else (low, high)
