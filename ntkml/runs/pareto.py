"""A Pareto run: what every estimator reaches when it is optimised, against the seconds of one estimate and its gradient.

The training cells are ordinary runs of ``ntkml train`` under the same results folder: finished ones are reused, stopped ones
go on, missing ones are run. Then every estimator is timed on the state in which its training ended, and the exact log
marginal likelihood is computed there. ``parts/`` keeps what is measured, one file per estimator, until the run is finished.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ntkml.datasets import ImageDataset
from ntkml.learning.state import Learner
from ntkml.machine import files
from ntkml.machine.clock import clock
from ntkml.machine.peak_memory import begin_peak, peak_bytes
from ntkml.objective import MarginalLikelihood
from ntkml.protocols.cells import Cell
from ntkml.protocols.pareto import ParetoProtocol
from ntkml.protocols.train import TrainProtocol
from ntkml.randomness import generator_for
from ntkml.records import pareto as pareto_records
from ntkml.records import train as train_records
from ntkml.records.manifests import read_manifest, settings_id, write_manifest
from ntkml.records.provenance import now
from ntkml.records.tables import as_rows, write_rows
from ntkml.runs import surroundings
from ntkml.runs.cells import train_cell
from ntkml.runs.folders import finished
from ntkml.runs.locks import exclusive
from ntkml.runs.pareto_rows import is_whole, pareto_rows
from ntkml.runs.progress import Track
from ntkml.runs.stopping import Stopped, StopRequest
from ntkml.runs.train import TrainRun, finished_learner
from ntkml.runs.train_checks import resolve_protocol
from ntkml.specs import EXACT, index_pairs, parse_estimator

if TYPE_CHECKING:
    import pandas

#: Timing of one estimator stops after this many seconds, though not before three estimates.
TIMING_BUDGET_SECONDS = 90.0


@dataclass(frozen=True)
class ParetoRun:
    """What is to be compared (see :func:`resolve_cells`), where, and whether the exact value is computed at the ends.

    ``data``: every data set of a cell, by its own name. ``notes``: sentences for the caption beside those of the cells.
    """

    protocol: ParetoProtocol
    data: Mapping[str, ImageDataset]
    device: torch.device
    chunk: int | None = None
    exact: bool = True
    notes: tuple[str, ...] = ()

    def cell(self, cell: Cell) -> TrainRun:
        return TrainRun(cell.protocol, self.data[cell.protocol.dataset], self.device, self.chunk, cell.notes)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that changes a number in the rows; timings belong to a device and a number of threads."""
        first = asdict(self.protocol.cells[0].protocol)
        shared = {key: first[key] for key in ("hparam", "dataset", "model", "num_data", "samples", "epochs")}
        cells = [self.cell(cell).run_id for cell in self.protocol.cells]
        conditions = {"device": self.device.type, "threads": torch.get_num_threads(), "chunk": self.chunk}
        return shared | conditions | {"cells": cells, "repeats": self.protocol.repeats, "exact": self.exact}

    @property
    def run_id(self) -> str:
        return settings_id(self.settings)

    def folder(self, results: Path) -> Path:
        """Where the run lives below ``results``."""
        return results / "pareto" / f"{self.protocol.hparam}-{self.protocol.dataset}-{self.run_id}"


def resolve_cells(protocol: ParetoProtocol, data: Mapping[str, ImageDataset]) -> ParetoProtocol:
    """The comparison with every estimator resolved on its data; cells that turn out equal stay once.

    Raises:
        ValueError: more data than there are, or an estimator that cannot be built on them.
    """
    once: dict[TrainProtocol, Cell] = {}
    for cell in protocol.cells:
        ours = resolve_protocol(cell.protocol, data[cell.protocol.dataset])
        once.setdefault(ours, replace(cell, protocol=ours))
    return replace(protocol, cells=tuple(once.values()))


def only_finished(run: ParetoRun, results: Path) -> ParetoRun:
    """The comparison without the cells whose training is missing or unfinished, which its notes then count.

    Raises:
        ValueError: no cell to compare is finished.
    """
    cells = run.protocol.cells
    kept = tuple(cell for cell in cells if finished(run.cell(cell).folder(results)))
    protocol = replace(run.protocol, cells=kept)
    if not kept or protocol.dataset != run.protocol.dataset or not protocol.compared:
        raise ValueError(f"no training cell of {run.protocol.name} is finished under {results}: leave out --finished")
    without = [name for name in run.protocol.compared if name not in protocol.compared]
    note = f"{len(kept)} of {len(cells)} training cells of protocol {run.protocol.name} were run"
    note += f", none of {', '.join(without)}." if without else "."
    return replace(run, protocol=protocol, notes=(*run.notes, note)) if len(kept) < len(cells) else run


def run_pareto(
    run: ParetoRun, results: Path, folder: Path, track: Track, warn: Callable[[str], None], stop: StopRequest
) -> Path:
    """Run what is missing and return the path of the finished ``rows.csv``; the training cells live under ``results``.

    Raises:
        Stopped: ``stop`` asked for it; what is finished is reused when the same comparison is started again.
        ValueError: another process on this comparison; see also :func:`ntkml.runs.train.run_train`.
    """
    with exclusive(folder):
        environment = surroundings.environment(run.device)
        for cell in track(run.protocol.cells, len(run.protocol.cells), "training cells"):
            _train(run.cell(cell), results, track, warn, stop)
        parts = files.ensure_writable_folder(folder / "parts")
        compared = run.protocol.compared
        for name in track(compared, len(compared), "timed estimators"):
            if reason := stop():
                raise Stopped(reason, 0, 0)
            if not is_whole(parts / f"{name}.json"):
                write_manifest(parts / f"{name}.json", _measured(run, name, results))
        training = _training_rows(run, results)
        measured = {name: read_manifest(parts / f"{name}.json") for name in compared}
        of_cell = dict(list(training.groupby("run_id")))
        by_estimator = {name: [of_cell[run.cell(cell).run_id] for cell in cells] for name, cells in compared.items()}
        rows = pareto_rows(run.run_id, run.settings, by_estimator, measured)
        path = write_rows(folder / "rows.csv", rows, pareto_records.COLUMNS)
        write_rows(folder / "training.csv.gz", as_rows(training), train_records.COLUMNS)
        manifest = _manifest(run, results, environment, _trained_elsewhere(run, training))
        write_manifest(folder / "manifest.json", manifest)
        shutil.rmtree(parts, ignore_errors=True)
    return path


def _train(run: TrainRun, results: Path, track: Track, warn: Callable[[str], None], stop: StopRequest) -> None:
    def epochs(rows: Iterable[dict[str, Any]], total: int, done: int) -> Iterable[dict[str, Any]]:
        return track(rows, total - done, f"{run.protocol.estimator}, seed {run.protocol.seed}")

    train_cell(run, run.folder(results), epochs, warn, stop)


def _measured(run: ParetoRun, name: str, results: Path) -> dict[str, Any]:
    """Seconds and peak memory of one estimator, on the state of its first seed, and the exact value there."""
    cell = run.cell(run.protocol.compared[name][0])
    data, learner = finished_learner(cell, cell.folder(results))
    known = begin_peak(run.device)
    seconds = list(_timed(learner, data, run.protocol.repeats))
    peak = peak_bytes(run.device) if known else None
    num_pairs = index_pairs(parse_estimator(name), cell.protocol.num_data, data.num_classes)
    exact = _exact(learner, data, run.chunk) if run.exact else None
    cost = {"seconds": seconds, "peak_bytes": peak, "num_pairs": num_pairs}
    return cost | {"exact_log_marginal_likelihood": exact}


def _timed(learner: Learner, data: ImageDataset, repeats: int) -> Iterator[float]:
    """Seconds of one estimate with all its gradients, after one that is not counted."""
    objective, x, y = learner.objective, data.train_inputs, data.train_targets
    stream = generator_for(learner.protocol.seed, "timing")
    objective.resample(x, y, stream)
    objective.backward(x, y, 1, stream)
    began = time.perf_counter()
    for done in range(repeats):
        if done >= 3 and time.perf_counter() - began > TIMING_BUDGET_SECONDS:
            return
        start = clock(x.device)
        objective.backward(x, y, 1, stream)
        yield clock(x.device) - start


def _exact(learner: Learner, data: ImageDataset, chunk: int | None) -> float:
    """log q / N of all data in one block, at the weights and hyperparameters of the learner, in nats per datum."""
    ours = learner.objective
    exact = MarginalLikelihood(
        ours.model, EXACT, learner.protocol.likelihood, ours.prior_kind, 1.0, ours.augmentation, chunk
    ).to(data.train_inputs.device)
    exact.load_state_dict(ours.state_dict())
    stream = generator_for(learner.protocol.seed, "exact-views")
    return float(exact.estimate(data.train_inputs, data.train_targets, None, stream).total) / len(data.train_inputs)


def _training_rows(run: ParetoRun, results: Path) -> pandas.DataFrame:
    import pandas

    cells = [(run.cell(cell).folder(results) / "rows.csv", cell.protocol.epochs) for cell in run.protocol.cells]
    return pandas.concat([train_records.read_finished(*cell) for cell in cells], ignore_index=True)


def _trained_elsewhere(run: ParetoRun, training: pandas.DataFrame) -> list[str]:
    """Sentences for the caption on cells that were trained on another device than their estimates are timed on."""
    others = training[training["device"] != run.device.type].groupby("device", sort=True)["estimator"]
    return [f"Trained on {device}: {', '.join(dict.fromkeys(names))}." for device, names in others]


def _manifest(run: ParetoRun, results: Path, environment: dict[str, Any], elsewhere: list[str]) -> dict[str, Any]:
    runs, compared = [run.cell(cell) for cell in run.protocol.cells], run.protocol.compared
    manifests = {cell.run_id: read_manifest(cell.folder(results) / "manifest.json") for cell in runs}
    of_cells = [note for cells in compared.values() for cell in cells for note in cell.notes]
    return {
        "run_id": run.run_id,
        "command": "pareto",
        "settings": run.settings,
        "environment": environment | {"load_average": os.getloadavg()[0]},
        "estimators": {
            name: manifests[run.cell(cells[0]).run_id]["estimators"][name] for name, cells in compared.items()
        },
        "notes": list(dict.fromkeys([*of_cells, *run.notes, *elsewhere])),
        "runs": manifests,
        "finished_at": now(),
    }
