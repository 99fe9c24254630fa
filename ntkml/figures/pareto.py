"""Figures 1 and 13: how tight an estimate is against what it costs, and the frontier of the two.

A point is one estimator: across, the seconds of one estimate with its gradient; up, minus the mean of the last estimates of
the runs that learned by it. The frontier is computed here from the rows. Where rows have the exact value at the end of
training, a second panel shows it. Nothing is typed in: what is hidden, unproven, missing or reduced stands in the caption.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from ntkml.figures import captions, pareto_captions, style
from ntkml.figures.layout import Sheet
from ntkml.figures.panels import Limits
from ntkml.figures.pareto_limits import limits_of, mark_ticks, outside
from ntkml.figures.pareto_marks import color_of, each, family_handles, mark_size, mark_style, scale_handles
from ntkml.figures.point_labels import boxes_around, label_points
from ntkml.protocols.training_figures import ParetoAxes, ParetoFigure, load_pareto_figure, pareto_command
from ntkml.records.notes import first_few
from ntkml.records.pareto import frontier

PANEL_HEIGHT = 2.3  # inches
ESTIMATE, EXACT_VALUE = "log_marginal_likelihood", "exact_log_marginal_likelihood"
TITLES = {ESTIMATE: "the runs' own estimates", EXACT_VALUE: "exact value at the end of training"}
Y_LABEL = r"$-\log q(\mathcal{D}\,|\,\mathbf{h})\,/\,N$  [nats]"
X_LABEL = "seconds per estimate and gradient"


def draw(
    name: str, rows: pandas.DataFrame, notes: Iterable[str] = (), manifest: Mapping[str, Any] | None = None
) -> Figure:
    """Figure ``name`` from the rows of one Pareto run; ``notes`` are sentences for the caption.

    ``manifest`` tells the versions and the processor, and which estimators are missing.

    Raises:
        ValueError: rows of several runs, or of a run that learned something else than the figure shows.
    """
    figure = load_pareto_figure(name)
    _refuse(figure, rows)
    chosen = rows.assign(drawn=frontier(list(rows["seconds"]), list(rows[ESTIMATE])))
    panels = [ESTIMATE, EXACT_VALUE] if chosen[EXACT_VALUE].notna().any() else [ESTIMATE]
    limits = {column: limits_of(figure.axes, chosen, column) for column in panels}
    hidden = {column: outside(chosen, column, limits[column]) for column in panels}
    sentences = [
        f"{figure.title}.",
        *pareto_captions.sentences(chosen, hidden, manifest or {}, figure),
        *notes,
    ]
    with style.context():
        sheet = Sheet(
            width=style.FULL_WIDTH, shape=(1, len(panels)), panel_height=PANEL_HEIGHT, titles=len(panels) > 1,
            legend=family_handles(chosen), legend_title="", scale_legend=scale_handles(chosen),
            caption=captions.wrap(sentences, style.FULL_WIDTH),
        )  # fmt: skip
        for place, column in enumerate(panels):
            part = sheet.panel(0, place)
            _fill(part, figure.axes, limits[column], chosen, column)
            if len(panels) > 1:
                part.set_title(TITLES[column])
        sheet.label_y(sheet.figure.axes[0], Y_LABEL)
    return sheet.figure


def _fill(part: Axes, axes: ParetoAxes, limits: Limits, rows: pandas.DataFrame, column: str) -> None:
    """One panel: points and, on the estimates, the frontier with its labels."""
    part.set_label(column)
    part.set(xscale=axes.xscale, yscale=axes.yscale, xlim=limits.x, ylim=limits.upper, xlabel=X_LABEL)
    mark_ticks(part, axes)
    _draw_points(part, rows[rows[column].notna()], column)
    if column == ESTIMATE:
        _draw_frontier(part, rows)
        _label_frontier(part, rows)


def _refuse(figure: ParetoFigure, rows: pandas.DataFrame) -> None:
    """Raise ValueError where the rows are not those of one run, or not of what the figure shows."""
    if len(ids := list(dict.fromkeys(rows["run_id"]))) > 1:
        raise ValueError(
            f"a Pareto figure shows one run, these rows are of {len(ids)} ({first_few(ids)}); give one file"
        )
    hparam = rows["hparam"].iloc[0]
    if figure.hparam not in ("", hparam):
        raise ValueError(
            f"{figure.name} shows runs that learn the {figure.hparam}, these rows are of hparam {hparam}; "
            f"run: {pareto_command(figure.hparam)}, or draw any run with ntkml plot pareto"
        )


def _draw_points(part: Axes, rows: pandas.DataFrame, column: str) -> None:
    """Marks, the largest beneath; thin bars are quartiles of the seconds and, on estimates, one standard error."""
    for row in each(rows.sort_values("num_pairs", ascending=False, kind="stable")):
        value, bar = -getattr(row, column), {"color": color_of(row), "linewidth": 0.4, "alpha": 0.6, "zorder": 2.0}
        part.plot([row.seconds_low, row.seconds_high], [value, value], gid=f"quartiles {row.estimator}", **bar)
        if column == ESTIMATE and pandas.notna(row.standard_error):
            ends = [value - row.standard_error, value + row.standard_error]
            part.plot([row.seconds, row.seconds], ends, gid=f"error {row.estimator}", **bar)
        part.plot([row.seconds], [value], gid=row.estimator, zorder=3.0, **mark_style(row))


def _draw_frontier(part: Axes, rows: pandas.DataFrame) -> None:
    """The best estimate that a time affords, as steps; it ends at the edge of the panel."""
    best = rows[rows["drawn"]].sort_values("seconds")
    x, y = (
        [*best["seconds"], max(part.get_xlim()[1], best["seconds"].max())],
        [*-best[ESTIMATE], -best[ESTIMATE].iloc[-1]],
    )
    part.plot(x, y, drawstyle="steps-post", color="0.45", linewidth=0.8, zorder=1.8, gid="frontier")


def _label_frontier(part: Axes, rows: pandas.DataFrame) -> None:
    """Names of the points on the frontier; the caption has them all, also those for which there is no room."""
    points = list(zip(rows["seconds"], -rows[ESTIMATE], strict=True))
    marks = boxes_around(part, points, [mark_size(pairs) for pairs in rows["num_pairs"]])
    best = rows[rows["drawn"]].sort_values("seconds")
    (low, high), (left, right) = sorted(part.get_ylim()), part.get_xlim()
    inside = {
        row.estimator: (row.seconds, -row.log_marginal_likelihood)
        for row in each(best)
        if low <= -row.log_marginal_likelihood <= high and left <= row.seconds <= right
    }
    label_points(part, inside, [*marks, *_steps(part, best)])


def _steps(part: Axes, best: pandas.DataFrame) -> list[Bbox]:
    """The frontier as thin boxes in display coordinates."""
    corners = part.transData.transform(list(zip(best["seconds"], -best[ESTIMATE], strict=True)))
    ends = [*corners[1:, 0], part.get_window_extent().x1]
    flat = [Bbox.from_extents(x, y - 1, end, y + 1) for (x, y), end in zip(corners, ends, strict=True)]
    upright = [
        Bbox.from_extents(after[0] - 1, min(before[1], after[1]), after[0] + 1, max(before[1], after[1]))
        for before, after in zip(corners[:-1], corners[1:], strict=True)
    ]
    return flat + upright
