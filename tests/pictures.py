"""What a figure shows, read back from its artists."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas
import pytest

from ntkml.protocols.bound_grid import load_bound_grid
from ntkml.records import bound_grid as bound_records
from ntkml.specs import is_certified, parse_estimator
from tests.synthetic import rows_of

ALL = load_bound_grid("mnist-bounds", "prior").estimators


def few(names: Iterable[str], chosen: Iterable[str]) -> list[Any]:
    """Parameters that are slow but for ``chosen``: what one function draws need not be encoded four times for every figure."""
    chosen = set(chosen)
    assert chosen <= set(names)
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in names]


def all_rows(folder: Path) -> pandas.DataFrame:
    """Both hyperparameters, every estimator, one seed; by way of files, as figures get them."""
    paths = [
        bound_records.write_rows(folder / f"{hparam}.csv", rows_of(ALL, hparam)) for hparam in ("prior", "rotation")
    ]
    return bound_records.read_rows(*paths)


def aggregates(rows: pandas.DataFrame, hparam: str, estimator: str) -> tuple[Any, Any, Any]:
    """Values and errors over the grid, straight from the table."""
    chosen = rows[rows["block"].isna() & (rows["hparam"] == hparam) & (rows["estimator"] == estimator)].sort_values(
        "hparam_value"
    )
    return (
        chosen["hparam_value"].to_numpy(),
        chosen["log_marginal_likelihood"].to_numpy(),
        chosen["standard_error"].to_numpy(),
    )


def lines_of(figure: Any) -> list[tuple[Any, str, Any]]:
    """(panel, estimator, line) of every curve; a curve in both parts of a broken axis comes twice."""
    return [(ax, line.get_gid(), line) for ax in figure.axes for line in ax.lines if line.get_gid()]


def bands_of(figure: Any) -> dict[tuple[str, str], Any]:
    """Bands by panel and estimator."""
    return {(ax.get_label(), band.get_gid()): band for ax in figure.axes for band in ax.collections if band.get_gid()}


def caption_of(figure: Any) -> str:
    """The caption on one line, with common spaces."""
    (text,) = [
        text for text in figure.texts + [t for ax in figure.axes for t in ax.texts] if text.get_gid() == "caption"
    ]
    return text.get_text().replace("\n", " ").replace("\u00a0", " ")


def legend_labels(figure: Any) -> list[str]:
    """Of every legend, from above."""
    return [text.get_text().replace("\u00a0", " ") for legend in figure.legends for text in legend.get_texts()]


def marked_points(line: Any) -> list[float]:
    """Where on the x-axis the markers of a curve stand; nothing where it has none."""
    if line.get_marker() in ("None", None):
        return []
    return [float(line.get_xdata()[place]) for place in line.get_markevery()]


def within(box: Any, frame: Any) -> bool:
    """Whether a box lies in the frame, to one pixel."""
    return box.x0 >= frame.x0 - 1 and box.x1 <= frame.x1 + 1 and box.y0 >= frame.y0 - 1 and box.y1 <= frame.y1 + 1


def assert_open_markers_are_the_unproven(figure: Any) -> None:
    for _, estimator, line in lines_of(figure):
        proven = is_certified(parse_estimator(estimator))
        assert (line.get_markerfacecolor() == "white") == (not proven)


def assert_told_apart_without_colour(figure: Any) -> None:
    """The curves of every panel."""
    panels: dict[Any, dict[str, Any]] = {}
    for ax, estimator, line in lines_of(figure):
        panels.setdefault(ax, {})[estimator] = (line.get_marker(), str(line._unscaled_dash_pattern))
    for looks in panels.values():
        assert len(set(looks.values())) == len(looks)
