"""A comparison of systems: one training run per system and seed, under the same results folder, and one row for each.

Finished runs are reused, stopped ones go on, missing ones are run: a comparison that was stopped loses the steps since the
last checkpoint of one run at most. The rows are written after every run; the manifest says when all are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ntkml.datasets import ImageDataset
from ntkml.protocols.compare import CompareProtocol
from ntkml.protocols.train import TrainProtocol, departures
from ntkml.records import compare as compare_records
from ntkml.records import train as train_records
from ntkml.records.manifests import read_manifest, settings_id, write_manifest
from ntkml.records.provenance import now
from ntkml.records.tables import as_rows, write_rows
from ntkml.runs.cells import train_cell
from ntkml.runs.locks import exclusive
from ntkml.runs.progress import Track
from ntkml.runs.stopping import StopRequest
from ntkml.runs.surroundings import environment
from ntkml.runs.train import TrainRun
from ntkml.runs.train_checks import resolve_protocol
from ntkml.system_specs import family_of, is_bound, parse_system

_FROM_ROWS = (
    "dataset", "model", "seed", "num_data", "num_params", "hparam", "test_log_likelihood", "test_accuracy", "test_ece",
    "prior_precision_median", "eta_2", "device",
)  # fmt: skip
_FROM_BUDGET = ("fits", "data_passes", "seconds")


@dataclass(frozen=True)
class CompareRun:
    """What is compared, its data, and where."""

    protocol: CompareProtocol
    data: ImageDataset
    device: torch.device
    chunk: int | None = None

    @property
    def runs(self) -> list[TrainRun]:
        """The cells in order, resolved on the data; those that turn out equal stay once.

        Raises:
            ValueError: a system that cannot learn what is asked.
        """
        cells = dict.fromkeys(resolve_protocol(cell, self.data) for cell in self.protocol.cells)
        notes = {cell: tuple(departures(cell, self.protocol.asked)) for cell in cells}
        return [TrainRun(cell, self.data, self.device, self.chunk, notes[cell]) for cell in cells]

    @property
    def settings(self) -> dict[str, Any]:
        """What the cells have in common, and the ids of their runs."""
        first = asdict(self.protocol.cells[0])
        shared = {key: first[key] for key in ("hparam", "dataset", "model", "num_data", "samples", "epochs")}
        threads = torch.get_num_threads()
        return shared | {"device": self.device.type, "threads": threads, "cells": [run.run_id for run in self.runs]}

    @property
    def run_id(self) -> str:
        return settings_id(self.settings)

    def folder(self, results: Path) -> Path:
        """Where the comparison lives below ``results``."""
        first = self.protocol.cells[0]
        return results / "compare" / f"{first.hparam}-{first.dataset}-{self.run_id}"


def run_compare(
    run: CompareRun, results: Path, folder: Path, track: Track, warn: Callable[[str], None], stop: StopRequest
) -> Path:
    """Run what is missing and return the path of the finished ``rows.csv``; the runs live under ``results``.

    Raises:
        Stopped: ``stop`` asked for it; the same comparison goes on from there.
        ValueError: see :func:`ntkml.runs.train.run_train`.
    """
    with exclusive(folder):
        manifest = _manifest(run)
        rows: list[dict[str, Any]] = []
        for cell in track(run.runs, len(run.runs), "systems"):
            where = cell.folder(results)
            train_cell(cell, where, _quiet_track, warn, stop)
            rows.append(compared_row(run.run_id, cell.protocol, where))
            path = write_rows(folder / "rows.csv", rows, compare_records.COLUMNS)
        write_manifest(folder / "manifest.json", manifest | {"finished_at": now()})
    return path


def compared_row(run_id: str, protocol: TrainProtocol, where: Path) -> dict[str, Any]:
    """The row of one finished run in the folder ``where``.

    Raises:
        ValueError: its rows or its costs are not whole; says what to remove.
    """
    last = as_rows(train_records.read_finished(where / "rows.csv", protocol.epochs))[-1]
    budget: Mapping[str, Any] = read_manifest(where / "manifest.json").get("budget", {})
    if not budget.keys() >= set(_FROM_BUDGET):
        raise ValueError(f"{where} was run before costs were counted: remove it and compute it again")
    name = protocol.estimator
    return {
        "run_id": run_id,
        "command": "compare",
        "system": name,
        "family": "bound" if is_bound(name) else parse_system(name).family,
        "learns_from": family_of(name).data,
        "epochs": protocol.epochs,
        **{key: last[key] for key in _FROM_ROWS},
        **{key: budget[key] for key in _FROM_BUDGET},
    }


def _quiet_track(rows: Iterable[dict[str, Any]], total: int, done: int) -> Iterable[dict[str, Any]]:
    return rows


def _manifest(run: CompareRun) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "command": "compare",
        "settings": run.settings,
        "environment": environment(run.device),
        "data_checksum": run.data.checksum,
        "estimators": {cell.protocol.estimator: {"run_id": cell.run_id} for cell in run.runs},
        "notes": run.protocol.notes,
    }
