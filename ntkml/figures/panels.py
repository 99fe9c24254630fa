"""One panel of a bound grid: its limits, its curves with their bands, or the words that it is empty."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from ntkml.figures.curves import Curve
from ntkml.figures.looks import line_style
from ntkml.figures.style import FULL, LineLook
from ntkml.protocols.bound_figures import PanelAxes

Interval = tuple[float, float]
SHOWN_HEIGHT = 5.5  # nats per datum below the highest curve where no limits are set; the paper's panels are as high
MARKERS_PER_CURVE = 5


@dataclass(frozen=True)
class Limits:
    """What a panel shows: ``upper`` is its y-range, ``lower`` the part beneath the cut of a broken axis."""

    x: Interval
    upper: Interval
    lower: Interval | None = None


def limits_of(axes: PanelAxes, curves: Iterable[Curve]) -> Limits:
    """Limits of a panel: the protocol's where it sets them, else from the curves."""
    curves = list(curves)
    if not curves:
        return Limits(axes.xlim or (0.0, 1.0), axes.ylim or (0.0, 1.0))
    x = axes.xlim or (min(curve.x.min() for curve in curves), max(curve.x.max() for curve in curves))
    if axes.ylim:
        return Limits(x, axes.ylim)
    ranges = sorted((_range(curve, x) for curve in curves), key=lambda r: r[1], reverse=True)
    if axes.broken and (cut := _gap(ranges)):
        return Limits(x, padded(_union(ranges[:cut])), padded(_union(ranges[cut:])))
    low, high = _union(ranges)
    return Limits(x, padded((max(low, high - SHOWN_HEIGHT), high)))


def hidden_curves(limits: Limits, curves: Iterable[Curve]) -> list[Curve]:
    """Curves of which no point lies inside the limits: a caption has to name them."""
    shown = [interval for interval in (limits.upper, limits.lower) if interval]
    return [curve for curve in curves if not any(_meets(_range(curve, limits.x), interval) for interval in shown)]


def draw_panel(
    parts: list[Axes], limits: Limits, axes: PanelAxes, curves: Mapping[str, Curve], looks: Mapping[str, LineLook]
) -> None:
    """Draw the curves into a panel of one part, or of the two parts of a broken axis."""
    places = {name: place for place, name in enumerate(curves)}
    for part, y in zip(parts, (limits.upper, limits.lower), strict=False):
        part.set_xscale(axes.xscale)
        for name, curve in curves.items():
            _draw_curve(part, curve, looks[name], limits.x, y, places[name], len(places))
        if limits.x[0] < limits.x[1]:  # a grid of one point has no range
            part.set_xlim(limits.x)
        if y:
            part.set_ylim(y)
        part.yaxis.set_major_locator(MaxNLocator(5 if part is parts[0] else 2, steps=[1, 2, 5, 10], min_n_ticks=1))
        if axes.xscale == "log":
            part.xaxis.set_major_locator(FixedLocator(_decades(limits.x)))
            part.xaxis.set_minor_locator(NullLocator())
        elif math.isclose(limits.x[1], math.pi, rel_tol=1e-6):
            part.set_xticks([0, math.pi / 2, math.pi], ["0", r"$\pi/2$", r"$\pi$"])
    parts[-1].set_xlabel(axes.xlabel)


def draw_empty(part: Axes, words: str, axes: PanelAxes) -> None:
    """A panel without rows: never an invented curve, always the reason."""
    part.text(0.5, 0.5, words, transform=part.transAxes, ha="center", va="center", color="0.35", gid="empty")
    part.set(xticks=[], yticks=[], xlabel=axes.xlabel)
    for spine in part.spines.values():
        spine.set(linestyle=(0, (3, 3)), color="0.6")


def _draw_curve(
    part: Axes, curve: Curve, look: LineLook, x: Interval, y: Interval | None, place: int, count: int
) -> None:
    inside = numpy.flatnonzero(_inside(curve, x))
    step = max(1, round(len(inside) / MARKERS_PER_CURVE))
    # Shifted starts keep the markers of neighbouring curves from covering each other.
    places = inside[int(step * (place + 0.5) / count) :: step].tolist()
    # The frame cuts markers at its edges; those of a curve that has no others stay, open or filled.
    marked = [i for i in places if x[0] < curve.x[i] < x[1]] or places
    style = line_style(look, curve.certified)
    if len(inside) == 1:
        style["marker"] = look.marker or "o"  # a line of one point is none
    if len(curve.x) == 1 and (y is None or y[0] <= curve.y[0] <= y[1]):
        style["clip_on"] = False  # whole also on the frame, as where a run was evaluated at its end only
    part.plot(
        curve.x, curve.y, gid=curve.estimator, markevery=marked, zorder=3.0 if look is FULL else 2.5, **style
    )  # fmt: skip
    if (known := numpy.isfinite(curve.error)).any():
        part.fill_between(
            curve.x, curve.y - curve.error, curve.y + curve.error, where=known.tolist(), gid=curve.estimator,
            color=look.color, alpha=0.22, linewidth=0, zorder=2.0,
        )  # fmt: skip


def _range(curve: Curve, x: Interval) -> Interval:
    """Lowest and highest value inside the x-range (of the whole curve if no point lies there)."""
    inside = _inside(curve, x)
    y = curve.y[inside] if inside.any() else curve.y
    return float(y.min()), float(y.max())


def _decades(x: Interval) -> list[float]:
    """At most five powers of ten inside the interval, evenly spaced in the logarithm."""
    low, high = math.ceil(math.log10(x[0]) - 1e-9), math.floor(math.log10(x[1]) + 1e-9)
    return [10.0**power for power in range(low, high + 1, max(1, math.ceil((high - low) / 4)))]


def _gap(ranges: list[Interval]) -> int | None:
    """Where to cut a y-axis: at the widest gap between curves, if it wastes a third of the axis and half a nat or more."""
    gaps = [_union(ranges[:cut])[0] - ranges[cut][1] for cut in range(1, len(ranges))]
    low, high = _union(ranges)
    if not gaps or max(gaps) < max(0.5, (high - low) / 3):
        return None
    return gaps.index(max(gaps)) + 1


def _union(ranges: list[Interval]) -> Interval:
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def padded(interval: Interval) -> Interval:
    """Some room above and below; a tenth of a nat at least, or the tick labels would need more digits than they have room."""
    low, high = interval
    margin = max(0.06 * (high - low), (0.1 - (high - low)) / 2)
    return low - margin, high + margin


def _inside(curve: Curve, x: Interval) -> numpy.ndarray:
    """Which points lie in the x-range; rows are written with ten digits, so that an end of the grid may lie beyond by a rounding."""
    slack = 1e-8 * (x[1] - x[0])
    return (curve.x >= x[0] - slack) & (curve.x <= x[1] + slack)


def _meets(one: Interval, other: Interval) -> bool:
    return one[1] >= other[0] and one[0] <= other[1]
