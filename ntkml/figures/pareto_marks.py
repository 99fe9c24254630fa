"""How the points of a Pareto figure look: shape by structure, colour by outputs, size by block, black for the full batch."""

from __future__ import annotations

import math
from typing import Any

import pandas
from matplotlib.lines import Line2D

from ntkml.figures.captions import grouped, outputs_named

#: Shape and name of every structure; the kernel of all index pairs is the exact value.
SHAPES = {"ntk": "o", "blockdiag": "s", "kfac": "^", "diag": "v", "ggn": "D"}
NAMES = {"ntk": "NTK", "ggn": "GGN", "kfac": "KFAC"}
#: Colours told apart in grey too; those of groups of outputs are shared.
COLORS = {"C": "#3b528b", "1": "#d1662f", "tree": "#27a385"}
OTHER, FULL_BATCH = "#8c6bb1", "black"
_SMALLEST, _PER_DECADE = 2.3, 1.15  # points across at 10 index pairs, and more for ten times as many


def each(rows: pandas.DataFrame) -> list[Any]:
    """The rows one by one, with the columns as attributes (whose types pandas does not know)."""
    return list(rows.itertuples())


def is_full_batch(row: Any) -> bool:
    """All inputs and all outputs in one block."""
    return bool(row.inputs == "N" and row.outputs == "C")


def color_of(row: Any) -> str:
    return FULL_BATCH if is_full_batch(row) else COLORS.get(row.outputs, OTHER)


def mark_size(num_pairs: int) -> float:
    """Points across for a block of so many index pairs."""
    return _SMALLEST + _PER_DECADE * max(math.log10(max(num_pairs, 1)) - 1, 0.0)


def mark_style(row: Any) -> dict[str, Any]:
    """Keywords for the mark of a row: open where it is not a proven bound."""
    color = color_of(row)
    return {
        "marker": SHAPES.get(row.structure, "X"),
        "markersize": mark_size(row.num_pairs),
        "markerfacecolor": color if row.certified else "white",
        "markeredgecolor": color,
        "linestyle": "none",
    }


def family_of(row: Any) -> str:
    """What the legend calls the family of a row."""
    structure = NAMES.get(row.structure, row.structure)
    if is_full_batch(row):
        return "full (NTK), full batch" if row.structure == "ntk" else f"{structure}, full batch"
    return f"{structure}, {outputs_named(row.outputs)}"


def family_handles(rows: pandas.DataFrame) -> list[Line2D]:
    """Legend entries: the families that are there, full batches first."""
    order = {name: place for place, name in enumerate(SHAPES)}
    ordered = sorted(each(rows), key=lambda row: (not is_full_batch(row), order.get(row.structure, 9), row.outputs))
    families: dict[str, dict[str, Any]] = {}
    for row in ordered:
        families.setdefault(family_of(row), {**mark_style(row), "markersize": mark_size(300)})
    return [Line2D([], [], label=name, **style) for name, style in families.items()]


def scale_handles(rows: pandas.DataFrame) -> list[Line2D]:
    """Legend entries: the line of the frontier, and the mark of every power of ten among the sizes of blocks."""
    low, high = int(rows["num_pairs"].min()), int(rows["num_pairs"].max())
    decades = [10**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    grey = {"marker": "o", "linestyle": "none", "markerfacecolor": "0.75", "markeredgecolor": "0.75"}
    return [Line2D([], [], label="frontier", color="0.45", linewidth=0.8)] + [
        Line2D([], [], label=f"{grouped(size)} pairs", markersize=mark_size(size), **grey) for size in decades
    ]
