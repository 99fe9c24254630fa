"""How each curve of a figure looks and what the legend calls it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.lines import Line2D

from ntkml.figures.captions import grouped
from ntkml.figures.curves import Curve
from ntkml.figures.style import FULL, LineLook, sequence
from ntkml.protocols.bound_figures import Facet
from ntkml.specs import EXACT, index_pairs, parse_estimator

STRUCTURE_NAMES = {"ntk": "full", "kfac": "KFAC"}


def looks_of(facets: Sequence[Facet], labels: str) -> dict[str, LineLook]:
    """A look for every estimator: by the size of its blocks where labels count them, else by its place in the list."""
    names = list(dict.fromkeys(name for facet in facets for name in facet.estimators if name != EXACT))
    if labels in ("pairs", "inputs"):
        names = sorted(names, key=_size, reverse=True)
        sizes = list(dict.fromkeys(_size(name) for name in names))
        by_size = dict(zip(sizes, sequence(len(sizes)), strict=True))
        return {EXACT: FULL, **{name: by_size[_size(name)] for name in names}}
    return {EXACT: FULL, **dict(zip(names, sequence(len(names)), strict=True))}


def label_of(curve: Curve, labels: str, num_outputs: int) -> str:
    """What the legend calls a curve; the exact value is "full", as in the paper."""
    if labels == "structure":
        return STRUCTURE_NAMES.get(curve.structure, curve.structure)
    if labels == "name":
        return f"{curve.estimator} (full)" if curve.estimator == EXACT else curve.estimator
    if labels == "inputs":
        return "full" if curve.estimator == EXACT else grouped(curve.size)
    pairs = grouped(index_pairs(parse_estimator(curve.estimator), curve.size, num_outputs))
    return f"full ({pairs})" if curve.estimator == EXACT else pairs


def handles_of(
    panels: Sequence[Mapping[str, Curve]], looks: Mapping[str, LineLook], labels: str, num_outputs: int
) -> list[Line2D]:
    """One legend entry per label, in the order of the looks; filled where any curve of that label is a proven bound."""
    curves: dict[str, Curve] = {}
    order = {name: place for place, name in enumerate(looks)}
    for curve in sorted(
        (c for panel in panels for c in panel.values()), key=lambda c: (not c.certified, order[c.estimator])
    ):
        curves.setdefault(label_of(curve, labels, num_outputs), curve)
    by_place = sorted(curves.items(), key=lambda item: _place(item[1], looks))
    return [
        Line2D([], [], label=label, **line_style(looks[curve.estimator], curve.certified)) for label, curve in by_place
    ]


def line_style(look: LineLook, certified: bool) -> dict[str, object]:
    """Keywords for a line: markers are open where the curve is not a proven bound."""
    return {
        "color": look.color,
        "linestyle": look.linestyle,
        "linewidth": 1.1 if look is FULL else 0.9,
        "marker": look.marker or None,
        "markerfacecolor": look.color if certified else "white",
        "markeredgecolor": look.color,
    }


def _place(curve: Curve, looks: Mapping[str, LineLook]) -> int:
    """Place of a look among the distinct ones, so that equal sizes of two facets fall together."""
    return list(dict.fromkeys(looks.values())).index(looks[curve.estimator])


def _size(estimator: str) -> float:
    """Inputs per block, infinite for all of them: what a name alone can tell."""
    inputs = parse_estimator(estimator).inputs
    return float("inf") if inputs is None else float(inputs)
