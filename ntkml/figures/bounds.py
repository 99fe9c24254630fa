"""Figures 3 to 6 and 12: bounds over the grid of a hyperparameter, and the picture of any one run.

Everything is drawn from the rows: a panel without rows stays empty and says so, a curve that is no proven bound has open
markers, and the caption names what is missing, hidden or reduced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import pandas
from matplotlib.figure import Figure

from ntkml.dataset_names import split_name
from ntkml.figures import captions, style
from ntkml.figures.curves import Curve, curves_of, hparams_of
from ntkml.figures.layout import Sheet
from ntkml.figures.looks import handles_of, looks_of
from ntkml.figures.panels import Limits, draw_empty, draw_panel, hidden_curves, limits_of
from ntkml.figures.style import LineLook
from ntkml.protocols.bound_figures import Facet, FigureProtocol, PanelAxes, load_figure
from ntkml.records.bound_grid import HPARAMS
from ntkml.specs import EXACT, parse_estimator

PANEL_HEIGHT, LONE_PANEL_HEIGHT = 1.25, 1.9  # inches
MOST_IN_ONE_PANEL = 9
COLUMNS = (3, 4)  # a long line of panels is wrapped after one of these, whichever leaves fewer places empty
GROUPING_NAMES = {"class": "by class", "kmeans": "k-means", "greedy": "greedy"}

Panels = Mapping[str, Mapping[str, Curve]]  # hyperparameter -> estimator -> curve


def draw(name: str, rows: pandas.DataFrame, notes: Iterable[str] = ()) -> Figure:
    """Figure ``name`` from the rows of its prior and rotation runs; ``notes`` are sentences for the caption.

    Raises:
        ValueError: the rows hold none of the figure's estimators, or mix settings.
    """
    protocol, sizes = load_figure(name), rows["num_data"].unique()
    if len(sizes) == 1:
        protocol = protocol.on(int(sizes[0]))
    curves = {hparam: curves_of(rows, hparam) for hparam in HPARAMS}
    wanted = {estimator for facet in protocol.facets for estimator in facet.estimators} - {EXACT}
    if not any(wanted & set(panel) for panel in curves.values()):
        raise ValueError(
            f"these rows hold none of the bounds of {name}; run: "
            f"ntkml bound-grid --hparam prior --protocol {name}, and the same with --hparam rotation"
        )
    axes = {hparam: _axes_for(protocol, rows, hparam) for hparam in HPARAMS}
    return _draw(protocol, axes, curves, rows, list(notes))


def draw_run(rows: pandas.DataFrame, notes: Iterable[str] = ()) -> Figure:
    """All estimators of one run, its seeds averaged: in one panel, or one panel for each family where they are many.

    Raises:
        ValueError: no aggregate rows, or rows of several settings.
    """
    hparams = hparams_of(rows)
    if not hparams:
        raise ValueError(
            "these rows hold single blocks only; a figure needs aggregate rows (those whose block is empty)"
        )
    curves = {hparam: curves_of(rows, hparam) for hparam in hparams}
    estimators = list(dict.fromkeys(estimator for panel in curves.values() for estimator in panel))
    few = len(estimators) <= MOST_IN_ONE_PANEL
    base = load_figure("figure-3")
    protocol = replace(
        base,
        name="bound-grid",
        title="Bounds of the linearised-Laplace log marginal likelihood",
        datasets={},  # no figure of the paper, which would have data of its own
        facets=(Facet(title="", estimators=tuple(estimators)),) if few else _families(estimators),
        facets_along="columns" if len(hparams) == 1 else "rows",
        labels="name" if few else "inputs",
        legend_title="" if few else "inputs per block",
        width=style.HALF_COLUMN if few else style.FULL_WIDTH,
    )
    axes = {hparam: PanelAxes(xscale=base.axes[hparam].xscale, xlabel=base.axes[hparam].xlabel) for hparam in hparams}
    return _draw(protocol, axes, curves, rows, list(notes))


def _draw(
    protocol: FigureProtocol, axes: Mapping[str, PanelAxes], curves: Panels, rows: pandas.DataFrame, notes: list[str]
) -> Figure:
    facets = [facet for facet in protocol.facets if not facet.optional or _is_present(facet, curves)]
    wanted = list(dict.fromkeys(estimator for facet in facets for estimator in facet.estimators))
    drawn = {hparam: {name: curves[hparam][name] for name in wanted if name in curves[hparam]} for hparam in axes}
    limits = {hparam: limits_of(axes[hparam], drawn[hparam].values()) for hparam in axes}
    hidden = {hparam: hidden_curves(limits[hparam], drawn[hparam].values()) for hparam in axes}
    sentences = [f"{protocol.title}.", captions.provenance(rows, protocol.datasets), *captions.findings(drawn, hidden)]
    sentences += [*captions.missing(wanted, drawn), *notes]
    num_outputs = _num_outputs(protocol, rows)
    # Where C is not known, blocks are counted in inputs instead of in index pairs.
    labels, legend_title = (protocol.labels, protocol.legend_title)
    if labels == "pairs" and num_outputs is None:
        labels, legend_title = "inputs", "inputs per block"
    looks = looks_of(facets, labels)
    cells = _arrange(facets, list(axes), protocol.facets_along)
    with style.context():
        sheet = Sheet(
            width=protocol.width,
            shape=(max(cell.row for cell in cells) + 1, max(cell.column for cell in cells) + 1),
            panel_height=PANEL_HEIGHT if len(cells) > 1 else LONE_PANEL_HEIGHT,
            titles=any(facet.title for facet in facets),
            legend=handles_of(list(drawn.values()), looks, labels, num_outputs or 0),
            legend_title=legend_title,
            caption=captions.wrap(sentences, protocol.width),
            shared_x=protocol.facets_along == "rows",
            shared_y=protocol.facets_along == "columns",
        )
        for cell in cells:
            _fill(sheet, cell, axes[cell.hparam], limits[cell.hparam], drawn[cell.hparam], looks)
    return sheet.figure


@dataclass(frozen=True)
class Cell:
    """Which panel lies where, and which words stand above it."""

    row: int
    column: int
    facet: Facet
    hparam: str
    titled: bool


def _arrange(facets: list[Facet], hparams: list[str], along: str) -> list[Cell]:
    """Facets along rows or columns and hyperparameters along the other; one hyperparameter alone is wrapped into lines."""
    if along == "columns" and len(hparams) == 1:
        columns = (
            min(COLUMNS, key=lambda count: (-len(facets) % count, -count))
            if len(facets) > max(COLUMNS)
            else len(facets)
        )
        return [Cell(i // columns, i % columns, facet, hparams[0], True) for i, facet in enumerate(facets)]
    pairs = [(i, facet, j, hparam) for i, facet in enumerate(facets) for j, hparam in enumerate(hparams)]
    if along == "columns":
        return [Cell(j, i, facet, hparam, j == 0) for i, facet, j, hparam in pairs]
    return [Cell(i, j, facet, hparam, j == 0) for i, facet, j, hparam in pairs]


def _fill(
    sheet: Sheet,
    cell: Cell,
    axes: PanelAxes,
    limits: Limits,
    curves: Mapping[str, Curve],
    looks: Mapping[str, LineLook],
) -> None:
    """One panel with its title and labels."""
    panel = {name: curves[name] for name in cell.facet.estimators if name in curves}
    if panel and limits.lower:
        parts = sheet.broken_panel(cell.row, cell.column)
    else:
        parts = [sheet.panel(cell.row, cell.column)]
    for part in parts:
        part.set_label(f"{cell.hparam}: {cell.facet.title}" if cell.facet.title else cell.hparam)
    if panel:
        draw_panel(parts, limits, axes, panel, looks)
    else:
        draw_empty(parts[0], f"no {cell.hparam} rows", axes)
    if cell.titled and cell.facet.title:
        parts[0].set_title(
            cell.facet.title + captions.doubt(panel.values()), loc="center" if sheet.shared_y else "left"
        )
    if cell.column == 0:
        sheet.label_y(parts[0], r"$\log q(\mathcal{D}\,|\,\mathbf{h})\,/\,N$  [nats]")
    elif sheet.shared_y:
        parts[0].tick_params(labelleft=False)
    if sheet.shared_x and cell.row < sheet.num_rows - 1:
        parts[-1].tick_params(labelbottom=False)
        parts[-1].set_xlabel("")


def _axes_for(protocol: FigureProtocol, rows: pandas.DataFrame, hparam: str) -> PanelAxes:
    """The protocol's axes; on other data than the protocol's the y-limits follow the curves."""
    same_data = protocol.datasets[hparam] in set(rows.loc[rows["hparam"] == hparam, "dataset"])
    return protocol.axes[hparam] if same_data else replace(protocol.axes[hparam], ylim=None)


def _num_outputs(protocol: FigureProtocol, rows: pandas.DataFrame) -> int | None:
    """C, where the protocol knows it for the data of all rows; ``mnist_r180`` has the outputs of ``mnist``."""
    known = {protocol.num_outputs.get(split_name(str(dataset))[0]) for dataset in rows["dataset"].unique()}
    return known.pop() if len(known) == 1 else None


def _is_present(facet: Facet, curves: Panels) -> bool:
    return any(name in panel for panel in curves.values() for name in facet.estimators if name != EXACT)


def _families(estimators: list[str]) -> tuple[Facet, ...]:
    """One facet for each structure, outputs and grouping, with the exact curve in each; whole-data ones share the first."""
    families: dict[str, list[str]] = {}
    for name in estimators:
        spec = parse_estimator(name)
        if name == EXACT:
            continue
        outputs = captions.outputs_named(spec.outputs)
        words = [spec.structure, outputs, GROUPING_NAMES.get(spec.grouping, ""), "iid" if spec.iid else ""]
        families.setdefault(", ".join(word for word in words if word), []).append(name)
    return tuple(Facet(title=title, estimators=(EXACT, *names)) for title, names in families.items())
