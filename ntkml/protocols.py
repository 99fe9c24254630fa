"""The settings of every figure and table, read from ``experiments/*.toml`` into frozen dataclasses.

A protocol file has settings at its top, one table per hyperparameter (``[prior]``, ``[rotation]``) that adds to them, and
``extends = "name"`` where it builds on another file. ``[code]`` holds what the authors' code does otherwise than the
paper's text (``variant="code"``). A file with ``[[facets]]`` describes a figure: which estimators are drawn together, in
panels whose axes stand under ``[prior.axes]`` and ``[rotation.axes]``. ``kind`` says what a file is about; the kinds other
than "bounds" have their own readers (:mod:`ntkml.figure_protocols`).
"""

from __future__ import annotations

import functools
import importlib.resources
import math
import tomllib
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from ntkml.records import HPARAMS as HPARAMS  # what the rows of a bound grid may hold
from ntkml.registry import unknown_name

VARIANTS = ("paper", "code")

#: The kind of files that do not name one, and that of ``ntkml train`` (:mod:`ntkml.train_protocols`).
BOUNDS, TRAIN = "bounds", "train"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Values of a hyperparameter: ``points`` of them from ``start`` to ``stop``, both included.

    ``spacing`` is "linear" or "log10"; start and stop are values in both, never exponents.
    """

    start: float
    stop: float
    points: int
    spacing: str = "linear"

    def __post_init__(self) -> None:
        if self.spacing not in ("linear", "log10"):
            raise ValueError(f"spacing of a grid must be 'linear' or 'log10', got {self.spacing!r}")
        if self.points < 1:
            raise ValueError(f"a grid needs at least 1 point, got {self.points}")
        if not self.start < self.stop:
            raise ValueError(f"a grid runs upwards: start must lie below stop, got {self.start:g} and {self.stop:g}")
        if self.spacing == "log10" and self.start <= 0:
            raise ValueError(f"a log10 grid starts above 0, got {self.start:g}")

    def values(self) -> list[float]:
        """The values in rising order; both ends are exact. One point alone is ``start``."""
        steps = [index / max(self.points - 1, 1) for index in range(self.points)]
        if self.spacing == "log10":
            low, high = math.log10(self.start), math.log10(self.stop)
            inner = [10 ** (low + (high - low) * step) for step in steps]
        else:
            inner = [self.start + (self.stop - self.start) * step for step in steps]
        return [self.start, *inner[1:-1], self.stop] if self.points > 1 else [self.start]


@dataclass(frozen=True, kw_only=True)
class MapTraining:
    """How the weights under the grid are trained: MAP at fixed hyperparameters.

    ``rotation`` is the half-width of the uniform rotation in radians (0: none), averaged over ``samples`` draws.
    """

    epochs: int
    batch_size: int
    lr: float
    lr_min: float  # end of the cosine decay
    optimizer: str = "adam"
    prior_precision: float
    rotation: float
    samples: int


@dataclass(frozen=True, kw_only=True)
class BoundGridProtocol:
    """One bound grid: which estimators, on what, over which values of ``hparam``; ``notes`` belong in every caption."""

    name: str
    title: str
    hparam: str
    dataset: str
    model: str
    num_data: int
    seed: int
    samples: int
    estimators: tuple[str, ...]
    grid: Grid
    training: MapTraining
    notes: tuple[str, ...] = ()


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


def bound_grid_names() -> list[str]:
    """Names that ``load_bound_grid`` knows."""
    return [name for name in protocol_names() if kind_of(name) == BOUNDS]


def load_bound_grid(name: str, hparam: str, variant: str = "paper") -> BoundGridProtocol:
    """Settings of the bound grid ``name`` over ``hparam``; a figure's name asks for the estimators of that figure.

    Raises:
        ValueError: unknown name, hyperparameter or variant.
    """
    if hparam not in HPARAMS:
        raise ValueError(unknown_name("hyperparameter", hparam, list(HPARAMS)))
    if variant not in VARIANTS:
        raise ValueError(unknown_name("protocol variant", variant, list(VARIANTS)))
    table = read_tables(name, bound_grid_names())
    table = merge_tables(table, table["code"] if variant == "code" else {})
    table = merge_tables(table, table[hparam])
    estimators = _figure(name, table).estimators if "facets" in table else tuple(table["estimators"])
    return BoundGridProtocol(
        name=name,
        hparam=hparam,
        estimators=estimators,
        grid=Grid(**table["grid"]),
        training=MapTraining(**table["training"]),
        notes=tuple(table["notes"]),
        **{key: table[key] for key in ("title", "dataset", "model", "num_data", "seed", "samples")},
    )


def protocol_names() -> list[str]:
    """Every protocol file, numbered ones in the order of their numbers."""
    names = [file.name.removesuffix(".toml") for file in experiments_folder().iterdir() if file.name.endswith(".toml")]
    return sorted(names, key=lambda name: [part.zfill(4) for part in name.split("-")])


def kind_of(name: str) -> str:
    """What the protocol file ``name`` is about: "bounds" where it does not say."""
    return str(read_tables(name, [name]).get("kind", BOUNDS))


def figure_names() -> list[str]:
    """Names that ``load_figure`` knows: protocols that say what is drawn together."""
    return [name for name in bound_grid_names() if "facets" in read_tables(name, [name])]


def load_figure(name: str) -> FigureProtocol:
    """Facets and axes of the bound-grid figure ``name``.

    Raises:
        ValueError: no protocol of that name describes a figure.
    """
    if name not in figure_names():
        raise ValueError(unknown_name("figure of a bound grid", name, figure_names()))
    return _figure(name, read_tables(name, [name]))


def experiments_folder() -> Traversable:
    """The folder of the protocol files: beside the package in a checkout, else in the installed package.

    The checkout comes first: ``ntkml.experiments`` may not be importable there, or be that of another checkout, which an
    editable install points to.
    """
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "setup.cfg").is_file() and (checkout / "experiments").is_dir():
        return checkout / "experiments"
    return importlib.resources.files("ntkml.experiments")


def _figure(name: str, table: dict[str, Any]) -> FigureProtocol:
    facets = [Facet(**{**facet, "estimators": tuple(facet["estimators"])}) for facet in table["facets"]]
    return FigureProtocol(
        name=name,
        title=table["title"],
        facets=tuple(facets),
        axes={hparam: PanelAxes(**_with_tuples(table[hparam]["axes"])) for hparam in HPARAMS},
        datasets={hparam: table[hparam]["dataset"] for hparam in HPARAMS},
        num_outputs=table["num_outputs"],
        **table.get("figure", {}),
    )


def read_tables(name: str, known: list[str]) -> dict[str, Any]:
    """The tables of one protocol file on top of those that it extends."""
    if name not in known:
        raise ValueError(unknown_name("protocol", name, known))
    table = dict(_parsed(experiments_folder().joinpath(f"{name}.toml").read_text(encoding="utf-8")))
    parent = table.pop("extends", None)
    return table if parent is None else merge_tables(read_tables(parent, [parent]), table)


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> dict[str, Any]:
    """The tables of a file, which nobody may change: hundreds of cells are read from the same few files."""
    return tomllib.loads(text)


def merge_tables(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` on top; tables are merged, anything else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge_tables(base[key], value) if both else value
    return merged


def _with_tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
