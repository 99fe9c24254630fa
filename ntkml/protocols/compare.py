"""What ``ntkml compare`` compares, read from ``experiments/*.toml`` of kind "comparison".

A file names the training protocol that all cells start from (``base``), what they change (``[settings]``), the ``seeds``
and, under ``[prior]`` and ``[invariance]``, the ``systems`` that learn it and settings of its own. What one system alone needs
stands under ``own`` and its family's name (``[invariance.own.augerino]``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ntkml.protocols.tables import merge_tables, names_of, read_tables
from ntkml.protocols.train import TrainProtocol, departures, load_train, with_own_steps
from ntkml.records.notes import merged
from ntkml.system_specs import canonical_name, is_bound, parse_system


@dataclass(frozen=True, kw_only=True)
class CompareProtocol:
    """The cells, one training run each; ``asked`` is the protocol that they start from."""

    name: str
    title: str
    hparam: str
    asked: TrainProtocol
    cells: tuple[TrainProtocol, ...]

    @property
    def notes(self) -> list[str]:
        """Sentences that a caption must show, with the systems that they are about."""
        return merged((cell.estimator, departures(cell, self.asked)) for cell in self.cells)


def compare_names() -> list[str]:
    """Names that :func:`load_compare` knows."""
    return names_of("comparison")


def load_compare(
    name: str,
    hparam: str,
    systems: tuple[str, ...] | None = None,
    seeds: tuple[int, ...] | None = None,
    settings: dict[str, Any] | None = None,
) -> CompareProtocol:
    """The comparison ``name`` when ``hparam`` is learned, with other systems, seeds and settings where they are given.

    Raises:
        ValueError: unknown name, hyperparameter or system.
    """
    table = read_tables(name, compare_names())
    asked = load_train(table["base"], hparam)
    of_hparam = table[hparam]
    changes = merge_tables(table.get("settings", {}), of_hparam.get("settings", {}))
    names = dict.fromkeys(canonical_name(system) for system in systems or of_hparam["systems"])
    cells = []
    for seed in seeds or tuple(table["seeds"]):
        for system in names:
            family = system if is_bound(system) else parse_system(system).family
            own = changes | of_hparam.get("own", {}).get(family, {}) | (settings or {})
            cells.append(with_own_steps(replace(asked, **own, estimator=system, seed=seed)))
    return CompareProtocol(name=name, title=table["title"], hparam=hparam, asked=asked, cells=tuple(cells))
