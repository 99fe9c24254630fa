"""Figures 7 and 14 to 16: what training runs reach, against the number of their training images.

A panel for each transformation of the data, a line for each estimator. Every point is the last value that runs recorded,
averaged over seeds; nothing is drawn that no run recorded, and the caption names what is missing or reduced.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from ntkml.dataset_names import VARIANTS
from ntkml.figures import captions, style
from ntkml.figures.curves import Curve
from ntkml.figures.layout import Sheet
from ntkml.figures.looks import handles_of, looks_of
from ntkml.figures.panels import Limits, draw_empty, draw_panel, padded
from ntkml.figures.subset_sources import SubsetRuns
from ntkml.figures.training_curves import seeds_by_estimator
from ntkml.protocols.bound_figures import Facet, PanelAxes
from ntkml.protocols.training_figures import load_subset_figure

PANEL_HEIGHT = 1.25  # inches
AXES = PanelAxes(xlabel="training images", xscale="log")
#: Column of the rows -> words beside the axis, and what the column is multiplied by.
QUANTITIES = {
    "log_marginal_likelihood": (r"$\log q(\mathcal{D}\,|\,\mathbf{h})\,/\,N$  [nats]", 1.0),
    "test_log_likelihood": ("test log likelihood [nats]", 1.0),
    "test_accuracy": ("test accuracy [%]", 100.0),
}


def draw(name: str, runs: SubsetRuns) -> Figure:
    """Figure ``name`` from the points of its runs."""
    figure = load_subset_figure(name)
    words, scale = QUANTITIES[figure.quantity]
    points = runs.points.dropna(subset=[figure.quantity])
    points = points.assign(**{figure.quantity: points[figure.quantity] * scale})
    panels = {
        kind: _curves(points[points["transformation"] == kind], figure.quantity) for kind in figure.transformations
    }
    facet = Facet(title="", estimators=figure.estimators)
    looks = looks_of([facet], "name")
    limits = _limits(panels)
    sentences = [f"{figure.title}.", *_caption(figure.estimators, figure.plain, runs, panels), *runs.notes]
    with style.context():
        sheet = Sheet(
            width=figure.width, shape=(1, len(panels)), panel_height=PANEL_HEIGHT, titles=True,
            legend=handles_of(list(panels.values()), looks, "name", 0), legend_title="",
            caption=captions.wrap(sentences, figure.width), shared_y=True,
        )  # fmt: skip
        for column, (kind, curves) in enumerate(panels.items()):
            part = sheet.panel(0, column)
            part.set_label(f"{figure.quantity}: {VARIANTS[kind]}")
            part.set_title(VARIANTS[kind])
            if curves:
                draw_panel([part], limits, AXES, curves, looks)
                _tick_sizes(part, sorted({int(size) for size in points["num_data"]}))
                if column:
                    part.tick_params(labelleft=False)
            else:
                draw_empty(part, "no runs", AXES)
            if not column:
                sheet.label_y(part, words)
    return sheet.figure


def _curves(points: pandas.DataFrame, quantity: str) -> dict[str, Curve]:
    """Mean and standard error over seeds at every size; NaN where there is one seed."""
    return {str(name): _curve(group, quantity) for name, group in points.groupby("estimator", sort=False)}


def _curve(group: pandas.DataFrame, quantity: str) -> Curve:
    by_size = group.groupby("num_data")[quantity]
    return Curve.of(group, by_size.mean(), by_size.sem(ddof=1))


def _limits(panels: Mapping[str, Mapping[str, Curve]]) -> Limits:
    """Common to all panels, so that transformations can be compared; bands included."""
    curves = [curve for panel in panels.values() for curve in panel.values()]
    if not curves:
        return Limits((1.0, 10.0), (0.0, 1.0))
    edges = [
        edge
        for c in curves
        for edge in (c.y - pandas.Series(c.error).fillna(0), c.y + pandas.Series(c.error).fillna(0))
    ]
    low, high = min(float(edge.min()) for edge in edges), max(float(edge.max()) for edge in edges)
    x = min(float(c.x.min()) for c in curves), max(float(c.x.max()) for c in curves)
    return Limits((x[0] / 1.15, x[1] * 1.15), padded((low, high)))


def _tick_sizes(part: Axes, sizes: list[int]) -> None:
    """Ticks at the sizes that were run; names of thousands as 5k, so that they do not touch."""
    part.xaxis.set_major_locator(FixedLocator(sizes))
    part.xaxis.set_major_formatter(FixedFormatter([f"{n // 1000}k" if n % 1000 == 0 else str(n) for n in sizes]))
    part.xaxis.set_minor_locator(NullLocator())


def _caption(
    wanted: tuple[str, ...], plain: str, runs: SubsetRuns, panels: Mapping[str, Mapping[str, Curve]]
) -> list[str]:
    points = runs.points
    seeds = seeds_by_estimator(points)
    first = points.iloc[0]
    several = max(map(len, seeds.values())) > 1
    elsewhere = captions.not_of_the_paper(runs.source, plain)
    changed = (
        f" with changed settings ({', '.join(f'{k} {v}' for k, v in runs.settings.changes)})"
        if runs.settings.changes
        else ""
    )
    sentences = [
        f"{runs.source}{elsewhere}, {captions.network(first)}, {points['epochs'].max()} epochs, "
        f"protocol {runs.settings.protocol}{changed}, {captions.seeds_of(seeds)}.",
        f"Points: the last recorded value{', averaged over seeds' if several else ' of one seed'}.",
        "Bands: one standard error over seeds, none where there is one seed." if several else "No bands: one seed.",
    ]
    drawn = {name: curve for panel in panels.values() for name, curve in panel.items()}
    sentences += captions.unproven(drawn[name] for name in wanted if name in drawn)
    for kind, panel in panels.items():
        absent = [name for name in wanted if name not in panel]
        if panel and absent:
            sentences.append(f"Missing ({VARIANTS[kind]}): {captions.listed(absent)}.")
    if empty := [VARIANTS[kind] for kind, panel in panels.items() if not panel]:
        sentences.append(f"No runs: {', '.join(empty)}.")
    return sentences
