"""A worker of a sweep: a process that trains one cell after another, as lines of JSON on its standard input say.

It answers with lines of JSON on standard output (:class:`Report`). Data sets are read once. SIGTERM, SIGUSR1, SIGHUP and SIGINT
stop it after the step in progress, and so does the end of the process that started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import torch

from ntkml.datasets import ImageDataset, load_dataset
from ntkml.machine.devices import torch_device
from ntkml.machine.memory import is_out_of_memory
from ntkml.machine.messages import hide_harmless_warnings, one_line
from ntkml.runs.any_run import run_any
from ntkml.runs.locks import BusyError
from ntkml.runs.stopping import Stopped, StopRequest
from ntkml.runs.sweep_plan import PlannedCell, threads_of
from ntkml.runs.train import TrainRun
from ntkml.runs.train_journal import Pace

#: What a report says: the worker waits for a cell; a cell has begun, has finished an epoch, warns, or has ended somehow.
READY, BEGUN, EPOCH, WARNING = "ready", "begun", "epoch", "warning"
FINISHED, FAILED, BUSY, STOPPED = "finished", "failed", "busy", "stopped"
ENDS = (FINISHED, FAILED, BUSY, STOPPED)


@dataclass(frozen=True)
class Report:
    """One thing that happened: how many ``epochs`` are done, and a ``line`` of words where there is one to be read."""

    kind: str
    epochs: int = 0
    line: str = ""


@dataclass(frozen=True)
class Site:
    """Where and how cells are trained. ``device``: "auto" is a GPU where there is one; ``threads`` of a run that begins here."""

    data_root: str | None
    device: str
    chunk: int | None
    threads: int


def train_cell(cell: PlannedCell, site: Site, report: Callable[[Report], None], stop: StopRequest) -> Report:
    """Train one cell, or what is missing of it; how it ended is reported and returned. No trouble is raised."""

    def track(rows: Iterable[dict[str, Any]], total: int, done: int) -> Iterator[dict[str, Any]]:
        report(Report(BEGUN, done))
        for count, row in enumerate(rows, done + 1):
            yield row
            report(Report(EPOCH, count))

    try:
        torch.set_num_threads(threads_of(cell.folder, site.threads))
        run = _run_of(cell, site)
        run_any(run, cell.folder, track, Pace(), lambda line: report(Report(WARNING, line=line)), stop)
        end = Report(FINISHED, cell.protocol.epochs)
    except BusyError as error:
        end = Report(BUSY, line=str(error))
    except Stopped as stopped:
        end = Report(STOPPED, stopped.epochs, stopped.reason)
    except Exception as error:
        end = Report(FAILED, line=_reason(error))
    report(end)
    return end


def _run_of(cell: PlannedCell, site: Site) -> TrainRun:
    data = _data(cell.data, site.data_root)
    run = TrainRun(cell.protocol, data, torch_device(site.device), site.chunk, cell.notes)
    if run.run_id != cell.run_id:
        raise ValueError(f"data set {data.name} is not what it was when the sweep began: start the sweep again")
    return run


@lru_cache(maxsize=2)
def _data(name: str, data_root: str | None) -> ImageDataset:
    return load_dataset(name, data_root)


def _reason(error: Exception) -> str:
    """One line; trouble that the library does not know of is printed whole on standard error too."""
    if is_out_of_memory(error):
        return "out of memory: fewer --workers, or a smaller estimator"
    if isinstance(error, ValueError) or (isinstance(error, OSError) and error.strerror):
        return one_line(error)
    traceback.print_exception(error, file=sys.stderr)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def stop_by_signals() -> StopRequest:
    """Note SIGTERM, SIGUSR1, SIGHUP, SIGINT and the end of the parent from now on."""
    noted: list[str] = []
    parent = os.getppid()
    for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, frame: noted.append(signal.Signals(number).name))

    def stop() -> str | None:
        if noted:
            return noted[0]
        return "the end of the sweep's process" if os.getppid() != parent else None

    return stop


def serve(incoming: IO[str], outgoing: IO[str]) -> None:
    """Train the cells that ``incoming`` holds, one in a line behind the line with the :class:`Site`."""
    stop = stop_by_signals()
    site = Site(**json.loads(incoming.readline()))

    def report(what: Report) -> None:
        with contextlib.suppress(OSError):  # the parent is gone: the run stops after its step
            outgoing.write(json.dumps(asdict(what)) + "\n")
            outgoing.flush()

    report(Report(READY))
    for line in incoming:
        if train_cell(PlannedCell.from_json(json.loads(line)), site, report, stop).kind == STOPPED:
            return


def main() -> None:
    """Reports alone go to standard output: what a library prints there goes to standard error."""
    hide_harmless_warnings()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as outgoing, contextlib.suppress(BrokenPipeError):
        os.dup2(2, 1)
        serve(sys.stdin, outgoing)


def command_line() -> tuple[list[str], dict[str, str]]:
    """What starts a worker of this very package, and the environment for it."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return [sys.executable, "-m", __name__], os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


if __name__ == "__main__":
    main()
