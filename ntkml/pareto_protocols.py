"""What ``ntkml pareto`` compares, read from ``experiments/*.toml`` of kind "pareto": training cells of many estimators.

A file names the training protocol that its cells start from (``base``, ``variant``) and what all of them change
(``[settings]``); every ``[[cells]]`` table lists ``estimators`` and ``seeds``, and may change more settings. Tables that
hold for one hyperparameter alone stand under ``[prior]`` or ``[invariance]``; a file for one only says ``hparam``. A cell
on another data set than the first one is a control: it is trained and kept, and not compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ntkml.protocols import kind_of, merge_tables, protocol_names, read_tables
from ntkml.specs import NO_ESTIMATOR
from ntkml.train_protocols import TRAIN_HPARAMS, TrainProtocol, departures, load_train


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training run, and the ``variant`` of the training protocol that it started from."""

    protocol: TrainProtocol
    asked: TrainProtocol
    variant: str

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that every caption must show."""
        return tuple(departures(self.protocol, self.asked, self.variant))


@dataclass(frozen=True, kw_only=True)
class ParetoProtocol:
    """All cells of a comparison, in the order of the file; ``repeats``: timed estimates of every estimator."""

    name: str
    title: str
    hparam: str
    cells: tuple[Cell, ...]
    repeats: int

    @property
    def dataset(self) -> str:
        """The data set of the comparison; cells on others are controls."""
        return self.cells[0].protocol.dataset

    @property
    def compared(self) -> dict[str, list[Cell]]:
        """The cells of every estimator that is compared, its seeds in rising order."""
        chosen: dict[str, list[Cell]] = {}
        for cell in sorted(self.cells, key=lambda cell: cell.protocol.seed):
            protocol = cell.protocol
            if protocol.dataset == self.dataset and protocol.estimator != NO_ESTIMATOR:
                chosen.setdefault(protocol.estimator, []).append(cell)
        order = list(dict.fromkeys(cell.protocol.estimator for cell in self.cells))
        return {name: chosen[name] for name in order if name in chosen}


def pareto_names() -> list[str]:
    """Names that :func:`load_pareto` knows."""
    return [name for name in protocol_names() if kind_of(name) == "pareto"]


def load_pareto(name: str, hparam: str) -> ParetoProtocol:
    """The comparison ``name`` when ``hparam`` ("prior" or "invariance") is learned.

    Raises:
        ValueError: unknown name or hyperparameter, or a protocol of the other hyperparameter.
    """
    table = read_tables(name, pareto_names())
    if table.get("hparam", hparam) != hparam:
        raise ValueError(f"{name} learns the {table['hparam']}: write --hparam {table['hparam']}")
    if hparam not in TRAIN_HPARAMS:
        raise ValueError(f"unknown hyperparameter {hparam!r}; known: {', '.join(TRAIN_HPARAMS)}")
    table = merge_tables(table, table.get(hparam, {}))
    base = load_train(table["base"], hparam, table.get("variant", "paper"))
    cells = [cell for row in table["cells"] for cell in _cells(base, table, row)]
    return ParetoProtocol(name=name, title=table["title"], hparam=hparam, cells=tuple(cells), repeats=table["repeats"])


def restricted(
    protocol: ParetoProtocol,
    estimators: tuple[str, ...] | None,
    seeds: tuple[int, ...] | None,
    settings: dict[str, Any],
) -> ParetoProtocol:
    """The comparison with fewer (or other) estimators and seeds and with changed settings, which its notes then say.

    Raises:
        ValueError: nothing is left to compare.
    """
    cells = list(protocol.cells)
    if estimators is not None:
        known = {cell.protocol.estimator for cell in cells}
        like_first = [
            cell for cell in cells if replace(cell.protocol, seed=cells[0].protocol.seed) == cells[0].protocol
        ]
        cells = [cell for cell in cells if cell.protocol.estimator in estimators]
        added = [name for name in estimators if name not in known]
        cells += [_changed(cell, {"estimator": name}) for name in added for cell in like_first]
    if seeds is not None:
        plain = dict.fromkeys(_changed(cell, {"seed": 0}) for cell in cells)
        cells = [_changed(cell, {"seed": seed}) for cell in plain for seed in seeds]
    cells = [_changed(cell, settings) for cell in cells]
    protocol = replace(protocol, cells=tuple(cells))
    if not cells or not protocol.compared:
        raise ValueError("nothing is left to compare: name at least one estimator and one seed")
    for cell in cells:
        if cell.protocol.estimator != NO_ESTIMATOR and not cell.protocol.num_updates(cell.protocol.epochs):
            raise ValueError(
                f"in {cell.protocol.epochs} epochs no hyperparameter is updated: take --epochs {cell.protocol.burn_in} or more"
            )
    return protocol


def _cells(base: TrainProtocol, table: dict[str, Any], row: dict[str, Any]) -> list[Cell]:
    changes = {**table.get("settings", {}), **{key: row[key] for key in row if key not in ("estimators", "seeds")}}
    variant = table.get("variant", "paper")
    return [
        Cell(protocol=replace(base, **changes, estimator=estimator, seed=seed), asked=base, variant=variant)
        for seed in row["seeds"]
        for estimator in row["estimators"]
    ]


def _changed(cell: Cell, settings: dict[str, Any]) -> Cell:
    return replace(cell, protocol=replace(cell.protocol, **settings))
