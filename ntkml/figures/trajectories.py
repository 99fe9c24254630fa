"""Figures 8 to 11: what training runs estimate and how well they predict, over epochs.

A row of panels for every facet: on the left the runs' own estimates of log q / N, on the right the test log likelihood.
Nothing is drawn that is not in the rows: a facet without runs says so, and the caption names what is missing, hidden, not
a proven bound or reduced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ntkml.dataset_names import split_name
from ntkml.figures import captions, style
from ntkml.figures.curves import Curve, refuse_mixtures
from ntkml.figures.layout import Sheet
from ntkml.figures.looks import handles_of, looks_of
from ntkml.figures.panels import SHOWN_HEIGHT, Limits, draw_empty, draw_panel, hidden_curves, padded
from ntkml.figures.training_curves import WINDOW, seeds_by_estimator, trajectories_of
from ntkml.protocols.bound_figures import PanelAxes
from ntkml.protocols.training_figures import TrajectoryFacet, TrajectoryFigure, load_trajectory_figure, pareto_command
from ntkml.specs import EXACT

PANEL_HEIGHT = 1.15  # inches
AXES = PanelAxes(xlabel="epoch")
#: Column of the rows -> (words beside it, words where it is empty).
QUANTITIES = {
    "log_marginal_likelihood": (r"$\log q(\mathcal{D}\,|\,\mathbf{h})\,/\,N$  [nats]", "no estimates"),
    "test_log_likelihood": ("test log likelihood [nats]", "no test values"),
}

Curves = Mapping[str, Mapping[str, Curve]]  # column -> estimator -> curve


def draw(name: str, rows: pandas.DataFrame, notes: Iterable[str] = ()) -> Figure:
    """Figure ``name`` from the rows of its training runs; ``notes`` are sentences for the caption.

    Raises:
        ValueError: the rows hold no run of the figure's estimators, or mix settings.
    """
    figure, sizes = load_trajectory_figure(name), rows["num_data"].unique()
    if len(sizes) == 1:
        figure = figure.on(int(sizes[0]))
    chosen = rows[(rows["hparam"] == figure.hparam) & rows["estimator"].isin(figure.estimators)]
    if chosen.empty:
        raise ValueError(f"these rows hold no run of {name}; run: {pareto_command(figure.hparam)}")
    refuse_mixtures(chosen, figure.hparam, "give files of one setting")
    curves = {column: trajectories_of(chosen, column) for column in QUANTITIES}
    limits = {column: _limits(panel.values(), int(chosen["epoch"].max())) for column, panel in curves.items()}
    sentences = [f"{figure.title}.", *_caption(figure, chosen, curves, limits), *notes]
    num_outputs = figure.num_outputs.get(split_name(str(chosen["dataset"].iloc[0]))[0], 0)
    panels = [_present(facet, curves) for facet in figure.facets]
    with style.context():
        legends = [_legend(facet, present, num_outputs) for facet, present in zip(figure.facets, panels, strict=True)]
        sheet = Sheet(
            width=figure.width, shape=(len(panels), len(QUANTITIES)), panel_height=PANEL_HEIGHT, titles=True,
            legend=(), legend_title="", caption=captions.wrap(sentences, figure.width),
            shared_x=True, labelled_columns=True, row_legends=legends,
        )  # fmt: skip
        for row, (facet, present) in enumerate(zip(figure.facets, panels, strict=True)):
            sheet.head_row(row, _heading(facet, present, _labels(facet, num_outputs)), legends[row])
            _fill_row(sheet, row, facet, present, limits, _labels(facet, num_outputs))
    return sheet.figure


def _legend(facet: TrajectoryFacet, panels: Curves, num_outputs: int) -> list[Line2D]:
    labels = _labels(facet, num_outputs)
    return handles_of(list(panels.values()), looks_of([facet], labels), labels, num_outputs)


def _labels(facet: TrajectoryFacet, num_outputs: int) -> str:
    """What the facet's legend counts: inputs instead of index pairs where C is not known (0)."""
    return "inputs" if facet.labels == "pairs" and not num_outputs else facet.labels


def _fill_row(
    sheet: Sheet, row: int, facet: TrajectoryFacet, panels: Curves, limits: Mapping[str, Limits], labels: str
) -> None:
    """Both panels of a facet."""
    has_runs = any(panels.values())
    for place, (column, (words, empty)) in enumerate(QUANTITIES.items()):
        part = sheet.panel(row, place)
        part.set_label(f"{column}: {facet.title}")
        if panels[column]:
            draw_panel([part], limits[column], AXES, panels[column], looks_of([facet], labels))
        else:
            draw_empty(part, empty if has_runs else "no runs", AXES)
            part.set_xlim(limits[column].x)  # an empty last row carries the ticks of those above it
        part.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        sheet.label_y(part, words)
        if row < sheet.num_rows - 1:
            part.tick_params(labelbottom=False)
            part.set_xlabel("")


def _present(facet: TrajectoryFacet, curves: Curves) -> dict[str, dict[str, Curve]]:
    """The curves of a facet; the exact one alone, which every facet repeats, counts as none."""
    own = set(facet.estimators) - {EXACT}
    has_runs = any(own & set(panel) for panel in curves.values())
    return {
        column: {name: panel[name] for name in facet.estimators if name in panel} if has_runs else {}
        for column, panel in curves.items()
    }


def _heading(facet: TrajectoryFacet, panels: Curves, labels: str) -> str:
    curves = [curve for panel in panels.values() for curve in panel.values()]
    counted = {"pairs": ", by index pairs per block", "inputs": ", by inputs per block"}.get(labels, "")
    has_bounds = any(curve.estimator != EXACT for curve in curves)
    return f"{facet.title}{counted if has_bounds else ''}{captions.doubt(curves)}"


def _limits(curves: Iterable[Curve], last_epoch: int) -> Limits:
    """All epochs; in height what the curves cover after the first fifth of the training, as far as it can be shown.

    Hyperparameters start far from where they end, and a scale that showed the first values would show nothing else.
    """
    ends = [curve.y[curve.x >= min(last_epoch / 5, curve.x[-1])] for curve in curves]
    if not ends:
        return Limits((0.0, float(last_epoch)), (0.0, 1.0))
    high = max(float(end.max()) for end in ends)
    # What lies below all that can be shown must not stretch the scale of the others.
    low = min(float(end.min()) for end in ends if end.max() >= high - SHOWN_HEIGHT)
    return Limits((0.0, float(last_epoch)), padded((max(low, high - SHOWN_HEIGHT), high)))


def _caption(
    figure: TrajectoryFigure, rows: pandas.DataFrame, curves: Curves, limits: Mapping[str, Limits]
) -> list[str]:
    first, known = rows.iloc[0], seeds_by_estimator(rows)
    seeds = {name: known[name] for name in figure.estimators if name in known}
    elsewhere = captions.not_of_the_paper(first["dataset"], figure.dataset)
    several = max(map(len, seeds.values())) > 1
    sentences = [
        f"{first['dataset']}{elsewhere}, {captions.data_and_network(first)}, {rows['epoch'].max()} epochs, "
        f"{captions.seeds_of(seeds)}.",
        "Left: the runs' own estimates.",
        f"Lines: mean over the last {WINDOW} recorded values{_apart(rows)}{', averaged over seeds' if several else ''}.",
        "Bands: one standard error over seeds, none where there is one seed." if several else "No bands: one seed.",
    ]
    if set(rows["device"]) == {"cuda"}:
        sentences.append("Trained on cuda.")
    drawn = {name: curve for panel in curves.values() for name, curve in panel.items()}
    sentences += captions.unproven(drawn[name] for name in figure.estimators if name in drawn)
    for column, panel in curves.items():
        if hidden := [curve.estimator for curve in hidden_curves(limits[column], panel.values())]:
            sentences.append(f"Below the range shown ({column.replace('_', ' ')}): {captions.listed(hidden)}.")
    if missing := [name for name in figure.estimators if name not in seeds]:
        sentences.append(f"Missing: {captions.listed(missing)}.")
    return sentences


def _apart(rows: pandas.DataFrame) -> str:
    """How many epochs lie between values of the right panels, where more than one: a mean over several reaches far back."""
    recorded = rows.loc[rows["test_log_likelihood"].notna(), "epoch"].drop_duplicates().sort_values()
    apart = recorded.diff().max()
    return f" (right: one every {apart:.0f} epochs)" if apart > 1 else ""
