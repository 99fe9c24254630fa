"""What ``ntkml sweep`` trains, read from ``experiments/*.toml`` of kind "sweep": the cells of a table or a comparison.

The cells are those of :mod:`ntkml.protocols.cells`; they may learn different hyperparameters. A "pareto" protocol is a sweep
of its training cells, a training protocol one of the ``[[cells]]`` in its own file, or of one cell where it has none.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntkml.protocols.cells import Cell, expanded
from ntkml.protocols.tables import TRAIN, kind_of, protocol_names, read_tables

SWEEP_KINDS = ("sweep", "pareto", TRAIN)


@dataclass(frozen=True, kw_only=True)
class SweepProtocol:
    """The training cells of a protocol, in the order of the file."""

    name: str
    title: str
    cells: tuple[Cell, ...]


def swept_names() -> list[str]:
    """Names that :func:`load_sweep` knows: of sweeps, of Pareto comparisons and of training protocols."""
    return [name for name in protocol_names() if kind_of(name) in SWEEP_KINDS]


def load_sweep(name: str, hparam: str | None = None) -> SweepProtocol:
    """The cells of the protocol ``name``, or those that learn ``hparam``; a name with ``.toml`` is the path of a user's file.

    Raises:
        ValueError: unknown name, setting or hyperparameter, no cell that learns it, ``hparam`` is missing where the file does
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
    missing = [key for key in ("base", "cells") if key not in table]
    if missing or not isinstance(table["cells"], list):
        raise ValueError(
            f'{path}: a sweep has base = "train-digits" (or another training protocol) and [[cells]] tables'
        )
    if not isinstance(table.setdefault("title", path.stem), str):
        raise ValueError(f'{path}: title = {table["title"]!r}: write it in quotes, such as "My sweep"')
    return table
