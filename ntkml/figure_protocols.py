"""Figures of training runs, read from ``experiments/figure-*.toml``: trajectories (8 to 11) and Pareto frontiers (1, 13).

The file's ``kind`` says which of the two it is. Of a Pareto file only the title, what is learned and the axes are read
here; the training cells in it are the business of the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ntkml.protocols import Facet, kind_of, protocol_names, read_tables
from ntkml.registry import unknown_name

TRAJECTORIES, PARETO = "trajectories", "pareto"

#: The figure that draws the newest Pareto run, whatever was learned in it.
ANY_PARETO = "pareto"


@dataclass(frozen=True, kw_only=True)
class TrajectoryFacet(Facet):
    """Estimators that share a row of panels; ``labels`` is what the legend names: "pairs" of a block, or "structure"."""

    labels: str = "pairs"


@dataclass(frozen=True, kw_only=True)
class TrajectoryFigure:
    """A figure of training runs: a row of panels per facet, over epochs."""

    name: str
    title: str
    hparam: str  # what the runs learn: "prior" or "invariance"
    dataset: str  # preferred; runs on other data are drawn where there are none on it
    facets: tuple[TrajectoryFacet, ...]
    num_outputs: dict[str, int]  # C of each plain dataset, for sizes in index pairs
    width: float = 6.75  # inches, the page

    @property
    def estimators(self) -> tuple[str, ...]:
        """Every estimator of the figure, each once."""
        return tuple(dict.fromkeys(name for facet in self.facets for name in facet.estimators))


@dataclass(frozen=True, kw_only=True)
class ParetoAxes:
    """Axes of a Pareto figure; limits left out follow the points."""

    xscale: str = "log"
    yscale: str = "linear"
    xlim: tuple[float, float] | None = None
    ylim: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class ParetoFigure:
    """A figure of one Pareto run; ``hparam`` is empty where any will do."""

    name: str
    title: str
    hparam: str = ""
    axes: ParetoAxes = field(default_factory=ParetoAxes)


def trajectory_names() -> list[str]:
    """Names that :func:`load_trajectory_figure` knows."""
    return [name for name in protocol_names() if kind_of(name) == TRAJECTORIES]


def load_trajectory_figure(name: str) -> TrajectoryFigure:
    """Facets of the trajectory figure ``name``.

    Raises:
        ValueError: no protocol of that name describes trajectories.
    """
    table = read_tables(name, trajectory_names())
    facets = [TrajectoryFacet(**{**facet, "estimators": tuple(facet["estimators"])}) for facet in table["facets"]]
    known = {key: table[key] for key in ("title", "hparam", "dataset", "num_outputs")}
    return TrajectoryFigure(name=name, facets=tuple(facets), **known, **table.get("figure", {}))


def pareto_names() -> list[str]:
    """Names that :func:`load_pareto_figure` knows: the protocols, and any run."""
    figures = [name for name in protocol_names() if name.startswith("figure-") and kind_of(name) == PARETO]
    return [*figures, ANY_PARETO]


def load_pareto_figure(name: str) -> ParetoFigure:
    """Title and axes of the Pareto figure ``name``.

    Raises:
        ValueError: no protocol of that name describes a Pareto frontier.
    """
    if name not in pareto_names():
        raise ValueError(unknown_name("Pareto figure", name, pareto_names()))
    if name == ANY_PARETO:
        return ParetoFigure(name=name, title="Tightness against the time of one estimate and its gradient")
    table = read_tables(name, [name])
    axes: dict[str, Any] = table.get("axes", {})
    axes = {key: tuple(value) if isinstance(value, list) else value for key, value in axes.items()}
    return ParetoFigure(name=name, title=table["title"], hparam=table["hparam"], axes=ParetoAxes(**axes))
