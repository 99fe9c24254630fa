"""The settings of bound grids, read from the ``experiments/*.toml`` of kind "bounds" into frozen dataclasses.

Settings at the top of a file hold for both hyperparameters, ``[prior]`` and ``[rotation]`` add to them; ``[code]`` holds what the
authors' code does otherwise than the paper's text (``variant="code"``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ntkml.protocols.bound_figures import figure_of
from ntkml.protocols.tables import BOUNDS, VARIANTS, merge_tables, names_of, read_tables
from ntkml.records.bound_grid import HPARAMS
from ntkml.registry import unknown_name


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


def bound_grid_names() -> list[str]:
    """Names that ``load_bound_grid`` knows."""
    return names_of(BOUNDS)


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
    estimators = figure_of(name, table).estimators if "facets" in table else tuple(table["estimators"])
    return BoundGridProtocol(
        name=name,
        hparam=hparam,
        estimators=estimators,
        grid=Grid(**table["grid"]),
        training=MapTraining(**table["training"]),
        notes=tuple(table["notes"]),
        **{key: table[key] for key in ("title", "dataset", "model", "num_data", "seed", "samples")},
    )


def departures(protocol: BoundGridProtocol, asked: BoundGridProtocol) -> list[str]:
    """A sentence that a caption must show: where the grid differs from the protocol ``asked`` that was named."""
    pairs = [
        ("data set", protocol.dataset, asked.dataset),
        ("model", protocol.model, asked.model),
        ("N", protocol.num_data, asked.num_data),
        ("S", protocol.samples, asked.samples),
        ("seed", protocol.seed, asked.seed),
        ("grid points", protocol.grid.points, asked.grid.points),
        ("training epochs", protocol.training.epochs, asked.training.epochs),
        ("prior precision", protocol.training.prior_precision, asked.training.prior_precision),
    ]
    changes = [f"{name} {ours} instead of {theirs}" for name, ours, theirs in pairs if ours != theirs]
    return [f"Against protocol {asked.name}: {', '.join(changes)}."] if changes else []
