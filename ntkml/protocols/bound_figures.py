"""Figures of bound grids, read from ``experiments/figure-*.toml``.

A file with ``[[facets]]`` says which estimators are drawn together, in panels whose axes stand under ``[prior.axes]`` and
``[rotation.axes]``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

from ntkml.protocols.tables import BOUNDS, names_of, read_tables
from ntkml.records.bound_grid import HPARAMS
from ntkml.registry import unknown_name
from ntkml.specs import in_one_spelling, parse_estimator


@dataclass(frozen=True, kw_only=True)
class PanelAxes:
    """Axes of one panel; limits left out follow the data. ``broken`` cuts the y-axis at a wide gap between curves."""

    xlim: tuple[float, float] | None = None
    ylim: tuple[float, float] | None = None
    xscale: str = "linear"
    xlabel: str
    broken: bool = False


@dataclass(frozen=True, kw_only=True)
class Facet:
    """Estimators that share a panel; an ``optional`` one is drawn where its rows exist and is not asked for."""

    title: str
    estimators: tuple[str, ...]
    optional: bool = False

    def on(self, num_data: int) -> Self:
        """The facet of runs on ``num_data`` inputs."""
        return replace(self, estimators=names_on(self.estimators, num_data))


@dataclass(frozen=True, kw_only=True)
class FigureProtocol:
    """A figure: one panel per facet and hyperparameter; facets lie along "rows" or "columns"."""

    name: str
    title: str
    facets: tuple[Facet, ...]
    axes: dict[str, PanelAxes]
    facets_along: str = "rows"
    labels: str = "pairs"  # what the legend names: "pairs" or "inputs" of a block, the "structure" or the "name"
    legend_title: str = ""
    width: float = 3.25  # inches; a column of the ICML style is 3.25, the page 6.75
    datasets: dict[str, str]  # of each hyperparameter; on others the y-limits follow the data
    num_outputs: dict[str, int]  # C of each plain dataset, for sizes in index pairs

    @property
    def estimators(self) -> tuple[str, ...]:
        """What a run must hold to draw this figure, each once."""
        return tuple(dict.fromkeys(name for facet in self.facets if not facet.optional for name in facet.estimators))

    def on(self, num_data: int) -> FigureProtocol:
        """The figure of runs on ``num_data`` inputs."""
        return replace(self, facets=tuple(facet.on(num_data) for facet in self.facets))


def figure_names() -> list[str]:
    """Names that ``load_figure`` knows: protocols that say what is drawn together."""
    return [name for name in names_of(BOUNDS) if "facets" in read_tables(name)]


def load_figure(name: str) -> FigureProtocol:
    """Facets and axes of the bound-grid figure ``name``.

    Raises:
        ValueError: no protocol of that name describes a figure.
    """
    if name not in figure_names():
        raise ValueError(unknown_name("figure of a bound grid", name, figure_names()))
    return figure_of(name, read_tables(name))


def figure_of(name: str, table: dict[str, Any]) -> FigureProtocol:
    """The figure ``name`` that the tables of a protocol describe."""
    return FigureProtocol(
        name=name,
        title=table["title"],
        facets=tuple(Facet(**with_tuples(facet)) for facet in table["facets"]),
        axes={hparam: PanelAxes(**with_tuples(table[hparam]["axes"])) for hparam in HPARAMS},
        datasets={hparam: table[hparam]["dataset"] for hparam in HPARAMS},
        num_outputs=table["num_outputs"],
        **table.get("figure", {}),
    )


def names_on(estimators: Iterable[str], num_data: int) -> tuple[str, ...]:
    """Estimators as rows of runs on ``num_data`` inputs name them, each once: a block of so many is one of all inputs."""
    return tuple(dict.fromkeys(str(in_one_spelling(parse_estimator(name), num_data)) for name in estimators))


def with_tuples(table: dict[str, Any]) -> dict[str, Any]:
    """The table, its lists as tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
