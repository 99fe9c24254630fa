"""What ``ntkml sweep`` trains, read from ``experiments/*.toml`` of kind "sweep": the cells of a table or a comparison.

The cells are those of :mod:`ntkml.protocols.cells`; they may learn different hyperparameters. A "pareto" protocol is a sweep
of its training cells, a training protocol one of the ``[[cells]]`` in its own file, or of one cell where it has none.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntkml.protocols.cells import Cell, expanded
from ntkml.protocols.tables import TRAIN, names_of, read_tables
from ntkml.protocols.train import SETTINGS
from ntkml.registry import unknown_name
from ntkml.system_specs import TRAIN_HPARAMS

SWEEP_KINDS = ("sweep", "pareto", TRAIN)

#: What a user's file may say at its top, and in a table that holds for one hyperparameter alone.
_KEYS = ("kind", "title", "base", "variant", "hparam", "settings", *TRAIN_HPARAMS, "cells")
_KEYS_OF_ONE = ("base", "variant", "settings")


@dataclass(frozen=True, kw_only=True)
class SweepProtocol:
    """The training cells of a protocol, in the order of the file."""

    name: str
    title: str
    cells: tuple[Cell, ...]


def swept_names() -> list[str]:
    """Names that :func:`load_sweep` knows: of sweeps, of Pareto comparisons and of training protocols."""
    return names_of(*SWEEP_KINDS)


def load_sweep(name: str, hparam: str | None = None) -> SweepProtocol:
    """The cells of the protocol ``name``, or those that learn ``hparam``; a name with ``.toml`` is the path of a user's file.

    Raises:
        ValueError: unknown name, key, setting or hyperparameter, no cell that learns it, ``hparam`` is missing where the file does
            not say what is learned, or a file that is not there or not a sweep.
    """
    table = _own_tables(Path(name)) if name.endswith(".toml") else read_tables(name, swept_names())
    if table.get("kind") == TRAIN:
        table = {"title": table["title"], "base": name, "cells": table.get("cells", [{}])}
    cells = expanded(name, table, hparam)
    if hparam is not None:
        chosen = tuple(cell for cell in cells if cell.protocol.hparam == hparam)
        if not chosen:
            learned = " and ".join(dict.fromkeys(cell.protocol.hparam for cell in cells))
            raise ValueError(
                f"no cell of {name} learns the {hparam}: leave out --hparam, its cells learn the {learned}"
            )
        cells = chosen
    return SweepProtocol(name=name, title=table["title"], cells=cells)


def _own_tables(path: Path) -> dict[str, Any]:
    """The tables of a user's file, whose title may be missing."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: not a TOML file ({error})") from None
    _check_keys(path, "", table, _KEYS)
    for hparam in TRAIN_HPARAMS:
        if isinstance(table.get(hparam), dict):
            _check_keys(path, f", [{hparam}]", table[hparam], _KEYS_OF_ONE)
    if table.get("kind", "sweep") != "sweep":
        raise ValueError(f"{path}: kind = {table['kind']!r}: a file of your own is a sweep, leave the line out")
    missing = [key for key in ("base", "cells") if key not in table]
    if missing or not isinstance(table["cells"], list) or not table["cells"]:
        raise ValueError(
            f'{path}: a sweep has base = "train-digits" (or another training protocol) and [[cells]] tables'
        )
    if not isinstance(table.setdefault("title", path.stem), str):
        raise ValueError(f'{path}: title = {table["title"]!r}: write it in quotes, such as "My sweep"')
    return table


def _check_keys(path: Path, where: str, table: dict[str, Any], known: Sequence[str]) -> None:
    """Raise ValueError where a table has a key that nobody would read."""
    for key in table:
        if key in SETTINGS and key not in known:
            raise ValueError(f"{path}{where}: {key} is a setting of runs: write it below [settings] or [[cells]]")
        if key not in known:
            raise ValueError(f"{path}{where}: {unknown_name('key', key, list(known))}")
