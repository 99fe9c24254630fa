"""What ``ntkml pareto`` compares, read from ``experiments/*.toml`` of kind "pareto": training cells of many estimators.

The cells are those of :mod:`ntkml.protocols.cells`. All of them learn one hyperparameter; a file for one only says ``hparam``.
A cell on another data set than the first one is a control: it is trained and kept, and not compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ntkml.protocols.cells import Cell, changed, expanded, with_estimators, with_seeds
from ntkml.protocols.tables import merge_tables, names_of, read_tables
from ntkml.registry import unknown_name
from ntkml.specs import NO_ESTIMATOR
from ntkml.system_specs import TRAIN_HPARAMS


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
    return names_of("pareto")


def load_pareto(name: str, hparam: str) -> ParetoProtocol:
    """The comparison ``name`` when ``hparam`` ("prior" or "invariance") is learned.

    Raises:
        ValueError: unknown name or hyperparameter, or a protocol of the other hyperparameter.
    """
    table = read_tables(name, pareto_names())
    if table.get("hparam", hparam) != hparam:
        raise ValueError(f"{name} learns the {table['hparam']}: write --hparam {table['hparam']}")
    if hparam not in TRAIN_HPARAMS:
        raise ValueError(unknown_name("hyperparameter", hparam, list(TRAIN_HPARAMS)))
    table = merge_tables(table, table.get(hparam, {}))
    cells = expanded(name, table, hparam)
    return ParetoProtocol(name=name, title=table["title"], hparam=hparam, cells=cells, repeats=table["repeats"])


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
        cells = with_estimators(cells, estimators)
    if seeds is not None:
        cells = with_seeds(cells, seeds)
    cells = [changed(cell, settings) for cell in cells]
    protocol = replace(protocol, cells=tuple(cells))
    if not cells or not protocol.compared:
        raise ValueError("nothing is left to compare: name at least one estimator and one seed")
    for cell in cells:
        if cell.protocol.estimator != NO_ESTIMATOR and not cell.protocol.num_updates(cell.protocol.epochs):
            raise ValueError(
                f"in {cell.protocol.epochs} epochs no hyperparameter is updated: take --epochs {cell.protocol.burn_in} or more"
            )
    return protocol
