"""The cells of a comparison: training runs, expanded from the ``[[cells]]`` tables of ``experiments/*.toml``.

A file names the training protocol that its cells start from (``base``, ``variant``), what is learned (``hparam``) and what
all cells change (``[settings]``). What holds for one hyperparameter alone stands under ``[prior]`` or ``[invariance]``.

Every ``[[cells]]`` table lists ``estimators`` and ``seeds``, and may change any setting; a list of values stands for each of
them. It may name the row of a table that its cells fill (``row``), and another ``hparam``, ``base`` or ``variant`` than the
file's, so that prior rows and invariance rows of one table stand in one file. Cells come in the order of the tables; within
one, the seed changes slowest, then the settings that are lists, in the order in which they are written, and the estimator
fastest: a sweep that is cut short has whole seeds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ntkml.protocols.ranges import check_setting
from ntkml.protocols.tables import merge_tables
from ntkml.protocols.train import SETTINGS, TrainProtocol, departures, differing, load_train
from ntkml.registry import unknown_name
from ntkml.system_specs import TRAIN_HPARAMS

#: What a ``[[cells]]`` table says beside settings of its runs.
_OF_THE_TABLE = ("row", "hparam", "base", "variant", "estimators", "seeds")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training run, the protocol ``asked`` that it started from, and the table row that it fills."""

    protocol: TrainProtocol
    asked: TrainProtocol
    row: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that every caption must show."""
        return tuple(departures(self.protocol, self.asked))


def expanded(name: str, table: dict[str, Any], hparam: str | None = None) -> tuple[Cell, ...]:
    """The cells of the protocol file ``name``, whose tables are ``table``.

    ``hparam``: what is learned where neither the file nor a cells table says so.

    Raises:
        ValueError: unknown names, a value that no run can have, or nothing says what is learned; names the file, the cells
            table (counted from 1) and what to write.
    """
    return tuple(
        cell for number, row in enumerate(table["cells"], 1) for cell in _cells(name, number, table, row, hparam)
    )


def changed(cell: Cell, settings: dict[str, Any]) -> Cell:
    """The cell with other settings, which its notes then say."""
    return replace(cell, protocol=replace(cell.protocol, **settings))


def with_estimators(cells: Sequence[Cell], names: Iterable[str]) -> list[Cell]:
    """The cells of the estimators ``names``; one that no cell has takes the settings of the first estimator's cells."""
    known = {cell.protocol.estimator for cell in cells}
    kept = [cell for cell in cells if cell.protocol.estimator in names]
    like_first = [cell for cell in cells if cell.protocol.estimator == cells[0].protocol.estimator]
    added = [name for name in names if name not in known]
    return kept + [_with_estimator(cell, name) for name in added for cell in like_first]


def with_seeds(cells: Iterable[Cell], seeds: Sequence[int]) -> list[Cell]:
    """Every cell with each of ``seeds``, the first seed's cells first, whatever seeds the cells had."""
    plain = dict.fromkeys(changed(cell, {"seed": 0}) for cell in cells)
    return [changed(cell, {"seed": seed}) for seed in seeds for cell in plain]


def with_values(cells: Iterable[Cell], setting: str, values: Sequence[Any]) -> list[Cell]:
    """Every cell with each of ``values`` for a setting, whatever it had before; cells that become equal stand once."""
    return list(dict.fromkeys(changed(cell, {setting: value}) for value in values for cell in cells))


def _cells(name: str, number: int, table: dict[str, Any], row: Any, hparam: str | None) -> Iterator[Cell]:
    """The cells of one ``[[cells]]`` table, which is ``number`` of its file."""
    if not isinstance(row, dict):
        raise ValueError(f"{name}: cells hold {row!r}: write every one as a [[cells]] table")
    learned = row.get("hparam", table.get("hparam", hparam))
    if learned is None:
        raise ValueError(f"{name} does not say what is learned: write --hparam {' or --hparam '.join(TRAIN_HPARAMS)}")
    try:
        yield from _runs(table, row, learned)
    except ValueError as error:
        raise ValueError(f"{name}, [[cells]] table {number}: {error}") from None


def _runs(table: dict[str, Any], row: dict[str, Any], learned: Any) -> Iterator[Cell]:
    """Every run of one table that learns ``learned``.

    Raises:
        ValueError: unknown names, or a value that no run can have.
    """
    _check_text("hparam", learned)
    table = merge_tables(table, _table(table, learned))
    base, variant = row.get("base", table["base"]), row.get("variant", table.get("variant", "paper"))
    for key, value in (("base", base), ("variant", variant), ("row", row.get("row", ""))):
        _check_text(key, value)
    asked = load_train(base, learned, variant)
    settings = {**_table(table, "settings"), **{key: row[key] for key in row if key not in _OF_THE_TABLE}}
    for key in settings:
        if key not in SETTINGS:
            raise ValueError(unknown_name("setting", key, [*SETTINGS, *(_OF_THE_TABLE if key in row else ())]))
    axes = [
        _axis("seed", row.get("seeds", asked.seed), "seeds"),
        *(_axis(key, values) for key, values in settings.items()),
        _axis("estimator", row.get("estimators", asked.estimator), "estimators"),
    ]
    for values in itertools.product(*axes):
        chosen = dict(values)
        asked = load_train(base, learned, variant, chosen["estimator"], chosen.get("dataset"))
        yield Cell(protocol=replace(asked, **chosen), asked=asked, row=row.get("row", ""))


def _axis(setting: str, values: Any, written: str = "") -> list[tuple[str, Any]]:
    """The values of one setting, each with its name: a list of them, or one. ``written``: what a file calls the list."""
    if values == []:
        raise ValueError(f"{written or setting} = []: write one value or more")
    listed = values if isinstance(values, list) else [values]
    for value in listed:
        check_setting(setting, value, written or setting)
    return [(setting, value) for value in listed]


def _table(table: dict[str, Any], key: str) -> dict[str, Any]:
    """A table inside another one, empty where it is not there."""
    inner = table.get(key, {})
    if not isinstance(inner, dict):
        raise ValueError(f"{key} = {inner!r}: write a table [{key}] with settings below it")
    return inner


def _check_text(key: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{key} = {value!r}: write text in quotes")


def _with_estimator(cell: Cell, name: str) -> Cell:
    """What ``cell`` changes of its protocol, with another estimator, for which a protocol may have other settings."""
    asked = load_train(cell.asked.name, cell.asked.hparam, cell.asked.variant, name, cell.protocol.dataset)
    changes = {key: ours for key, ours, _ in differing(cell.protocol, cell.asked)}
    protocol = replace(asked, **changes, estimator=name, seed=cell.protocol.seed)
    return Cell(protocol=protocol, asked=asked)
