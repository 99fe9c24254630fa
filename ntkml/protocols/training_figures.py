"""Figures of training runs, read from ``experiments/figure-*.toml``: over epochs, over the size of the data, over time.

The file's ``kind`` says which it is: trajectories (8 to 11), subsets of the data (14 to 16; Figure 7 stands in the file of the
runs that it shows, which has a ``[plot]`` table) or Pareto frontiers (1, 13). Training cells in these files are the business
of the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ntkml.dataset_names import split_name
from ntkml.protocols.bound_figures import Facet, with_tuples
from ntkml.protocols.tables import names_of, protocol_names, read_tables
from ntkml.registry import unknown_name
from ntkml.specs import NO_ESTIMATOR

TRAJECTORIES, PARETO = "trajectories", "pareto"

#: The figure that draws the newest Pareto run, whatever was learned in it.
ANY_PARETO = "pareto"


def pareto_command(hparam: str) -> str:
    """What computes the runs of the paper's figures that learn ``hparam``; with "", of any figure, on data in the package."""
    protocols = {"prior": " --protocol figure-13", "invariance": " --protocol figure-1-reduced"}
    return f"ntkml pareto --hparam {hparam or 'prior'}{protocols.get(hparam, '')}"


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

    def on(self, num_data: int) -> TrajectoryFigure:
        """The figure of runs on ``num_data`` inputs."""
        return replace(self, facets=tuple(facet.on(num_data) for facet in self.facets))


@dataclass(frozen=True, kw_only=True)
class SubsetFigure:
    """A figure of training runs on more and more data: a panel for every transformation of one data set.

    ``training`` is the protocol of the runs, ``quantity`` the column of their rows that is shown, ``plain`` the data set
    without a transformation, ``estimators`` what the protocol compares.
    """

    name: str
    title: str
    training: str
    quantity: str
    plain: str
    transformations: tuple[str, ...]  # keys of VARIANTS
    estimators: tuple[str, ...]
    width: float = 6.75  # inches, the page


@dataclass(frozen=True, kw_only=True)
class ParetoAxes:
    """Axes of a Pareto figure; limits left out follow the points."""

    xscale: str = "log"
    yscale: str = "linear"
    xlim: tuple[float, float] | None = None
    ylim: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class ParetoFigure:
    """A figure of one Pareto run; ``hparam``, ``dataset`` and ``estimators`` are empty where any will do."""

    name: str
    title: str
    hparam: str = ""
    dataset: str = ""
    axes: ParetoAxes = field(default_factory=ParetoAxes)
    estimators: tuple[str, ...] = ()


def trajectory_names() -> list[str]:
    """Names that :func:`load_trajectory_figure` knows."""
    return names_of(TRAJECTORIES)


def load_trajectory_figure(name: str) -> TrajectoryFigure:
    """Facets of the trajectory figure ``name``.

    Raises:
        ValueError: no protocol of that name describes trajectories.
    """
    table = read_tables(name, trajectory_names())
    facets = tuple(TrajectoryFacet(**with_tuples(facet)) for facet in table["facets"])
    known = {key: table[key] for key in ("title", "hparam", "dataset", "num_outputs")}
    return TrajectoryFigure(name=name, facets=facets, **known, **table.get("figure", {}))


def subset_names() -> list[str]:
    """Names that :func:`load_subset_figure` knows."""
    return [name for name in protocol_names() if _shows_subsets(name)]


def load_subset_figure(name: str) -> SubsetFigure:
    """What the subset figure ``name`` shows.

    Raises:
        ValueError: no protocol of that name describes one.
    """
    table = read_tables(name, subset_names())
    training = table.get("training", name)
    runs = read_tables(training)
    split = [split_name(dataset) for dataset in runs["datasets"]]
    return SubsetFigure(
        name=name,
        title=table["title"],
        training=training,
        quantity=table["plot"]["quantity"],
        plain=split[0][0],
        transformations=tuple(kind for _, kind in split),
        estimators=tuple(dict.fromkeys(one for cells in runs["cells"] for one in cells["estimators"])),
    )


def _shows_subsets(name: str) -> bool:
    """A reduced protocol is drawn by the figure that it reduces."""
    table = read_tables(name)
    return "plot" in table and "reduces" not in table


def pareto_names() -> list[str]:
    """Names that :func:`load_pareto_figure` knows: the protocols, and any run."""
    kept = (name for name in names_of(PARETO) if name.startswith("figure-"))
    figures = [name for name in kept if "reduces" not in read_tables(name)]
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
    table = read_tables(name)
    names = dict.fromkeys(one for cells in table["cells"] for one in cells["estimators"] if one != NO_ESTIMATOR)
    return ParetoFigure(
        name=name,
        title=table["title"],
        hparam=table["hparam"],
        dataset=read_tables(table["base"])[table["hparam"]]["dataset"],
        axes=ParetoAxes(**with_tuples(table.get("axes", {}))),
        estimators=tuple(names),
    )
