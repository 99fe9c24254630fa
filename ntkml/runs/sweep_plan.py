"""The cells of a sweep as folders: which training run each of them is, and what its folder says about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ntkml.datasets import ImageDataset
from ntkml.protocols.cells import Cell
from ntkml.protocols.train import SETTINGS, TrainProtocol
from ntkml.records.finished_runs import FITS
from ntkml.records.manifests import read_manifest
from ntkml.runs.any_run import begun
from ntkml.runs.folders import finished
from ntkml.runs.locks import held
from ntkml.runs.sweep_states import DAMAGED, DONE, MISSING, RUNNING, STOPPED
from ntkml.runs.train import TrainRun
from ntkml.runs.train_checks import resolve_protocol


@dataclass(frozen=True)
class PlannedCell:
    """One training run of a sweep, in its ``folder``; ``rows`` of a table that it fills, ``notes`` for captions.

    ``data``: what its data set is read by, such as ``folder:photos``, where the protocol and the results say ``photos``.
    ``also``: settings beside those that every label has, where cells of the sweep differ in them.
    """

    protocol: TrainProtocol
    data: str
    notes: tuple[str, ...]
    folder: Path
    run_id: str
    rows: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What tells it from the other cells, in a few words."""
        protocol = self.protocol
        words = [
            protocol.hparam,
            protocol.estimator,
            protocol.dataset,
            f"N={protocol.num_data}",
            f"seed {protocol.seed}",
        ]
        return " ".join([*words, *(f"{name}={getattr(protocol, name)}" for name in self.also)])

    def as_json(self) -> dict[str, Any]:
        """The cell for another process."""
        return asdict(self) | {"folder": str(self.folder)}

    @classmethod
    def from_json(cls, cell: Mapping[str, Any]) -> PlannedCell:
        texts = {name: tuple(cell[name]) for name in ("notes", "rows", "also")}
        return cls(
            **dict(cell) | texts | {"protocol": TrainProtocol(**cell["protocol"]), "folder": Path(cell["folder"])}
        )


def planned(cells: Sequence[Cell], load: Callable[[str], ImageDataset], results: Path) -> list[PlannedCell]:
    """The cells with estimators resolved on their data; cells that are the same run stand once, with all their rows.

    ``load`` reads a data set by its name. One is held at a time, and none in the end: those of a table take some GB.

    Raises:
        ValueError: see :func:`ntkml.runs.train_checks.resolve_protocol`.
    """
    resolved: dict[Cell, PlannedCell] = {}
    for name in dict.fromkeys(cell.protocol.dataset for cell in cells):
        resolved |= _resolved(load(name), [cell for cell in cells if cell.protocol.dataset == name], results)
    found: dict[Path, PlannedCell] = {}
    for cell in cells:
        folder = resolved[cell].folder
        before = found.get(folder, resolved[cell])
        rows = dict.fromkeys([*before.rows, cell.row]) if cell.row else before.rows
        found[folder] = replace(before, rows=tuple(rows))
    also = _differing([cell.protocol for cell in found.values()])
    return [replace(cell, also=also) for cell in found.values()]


def _resolved(data: ImageDataset, cells: Iterable[Cell], results: Path) -> dict[Cell, PlannedCell]:
    """The runs of cells on one data set."""
    found = {}
    for cell in cells:
        protocol = resolve_protocol(cell.protocol, data)
        run = TrainRun(protocol, data, torch.device("cpu"), None, replace(cell, protocol=protocol).notes)
        found[cell] = PlannedCell(run.protocol, cell.protocol.dataset, run.notes, run.folder(results), run.run_id)
    return found


def _differing(protocols: Sequence[TrainProtocol]) -> tuple[str, ...]:
    """The settings, beside those that every label has, in which runs that learn the same hyperparameter differ."""
    names = [name for name in SETTINGS if name not in ("dataset", "num_data")]
    seen = {(one.hparam, name, getattr(one, name)) for one in protocols for name in names}
    counts = Counter((hparam, name) for hparam, name, _ in seen)
    return tuple(name for name in names if any(count > 1 for (_, own), count in counts.items() if own == name))


def state_of(folder: Path) -> str:
    """What lies in the folder of a run: one of ``DONE``, ``RUNNING``, ``STOPPED``, ``MISSING``, ``DAMAGED``."""
    try:
        if finished(folder):
            return DONE
    except ValueError:
        return DAMAGED
    if held(folder):
        return RUNNING
    return STOPPED if begun(folder) else MISSING


def epochs_kept(folder: Path) -> int:
    """How many epochs the rows of a run hold, as of its last checkpoint."""
    try:
        lines = (folder / "rows.csv").read_text(encoding="utf-8").count("\n")
    except OSError:
        return 0
    return max(lines - 1, 0)


def threads_of(folder: Path, default: int) -> int:
    """The threads that a stopped run was begun with and goes on with, bit by bit; ``default`` where it was not begun.

    A search goes on with those of the fit that it was stopped in, or else of a finished one.
    """
    threads = default
    for path in [folder / "manifest.json", *sorted((folder / FITS).glob("*/manifest.json"))]:
        with suppress(ValueError):  # missing or damaged
            manifest = read_manifest(path)
            threads = int(manifest.get("conditions", {}).get("threads", threads))
            if not manifest.get("finished_at"):
                break
    return threads
