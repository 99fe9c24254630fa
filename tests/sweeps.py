"""Cells of small sweeps, and workers that follow a script instead of training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from ntkml.protocols.train import load_train
from ntkml.records.manifests import write_manifest
from ntkml.runs.sweep_crew import Worker
from ntkml.runs.sweep_plan import PlannedCell
from ntkml.runs.sweep_worker import READY, Report, Site

SITE = Site(None, "cpu", None, 1)
ROOT = Path(__file__).parents[1]


@contextmanager
def started_sweeps(in_folder, *always, environment=os.environ):
    """What starts ``ntkml sweep ...`` in a process of its own, which the end of the block ends."""
    processes = []

    def start(*arguments, folder=in_folder, **named):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "cli.py"), "sweep", *always, *arguments],
            cwd=folder,
            env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **named,
        )
        processes.append(process)
        return process

    try:
        yield start
    finally:
        for process in processes:
            process.kill()


def planned_cells(folder, estimators=("ntk-20-1",), seeds=(0,), **settings):
    """Cells on 60 digits that nobody has begun; their run ids are their labels."""
    small = {"num_data": 60, "epochs": 12} | settings
    asked = replace(load_train("train-digits", "prior"), **small)
    cells = [replace(asked, estimator=name, seed=seed) for seed in seeds for name in estimators]
    names = [f"{cell.estimator}-{cell.seed}" for cell in cells]
    return [PlannedCell(cell, cell.dataset, (), folder / name, name) for cell, name in zip(cells, names, strict=True)]


def finish(folder):
    """Leave what a finished run of two epochs leaves, as far as a sweep looks at it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.csv").write_text("epoch\n1\n2\n")
    write_manifest(folder / "manifest.json", {"finished_at": "2024-01-01T00:00:00Z", "conditions": {"threads": 3}})


def written(folder):
    """When the weights of every finished training run were written, by folder."""
    return {path.parent.name: path.stat().st_mtime_ns for path in (folder / "results" / "train").glob("*/weights.pt")}


def wait_for(condition, seconds=120):
    """Look until ``condition()`` is true, and return what it found."""
    ends = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < ends, "waited for too long"
        time.sleep(0.05)
    return found


class ScriptedWorker(Worker):
    """``script(cell)`` gives the reports on a cell; an integer among them is the exit code with which it dies there."""

    def __init__(self, site, reports, script):
        super().__init__(site, SimpleNamespace(returncode=0, kill=lambda: None, send_signal=self._signalled))
        self.reports, self.script, self.signals = reports, script, []
        reports.put((self, Report(READY)))

    def give(self, cell):
        self.cell, self.state = cell, "busy"
        for report in self.script(cell.cell):
            if isinstance(report, int):
                self._die(report)
                return
            self.reports.put((self, report))

    def let_go(self):
        self.state = "leaving"
        self._die(0)

    def _die(self, code):
        self.process.returncode = code
        self.reports.put((self, None))

    def _signalled(self, number):
        self.signals.append(signal.Signals(number).name)
