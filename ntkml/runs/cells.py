"""One training cell of a comparison: a finished one is reused, a stopped one goes on, a missing one is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import sleep

from ntkml.runs.any_run import run_any
from ntkml.runs.folders import complete_replacement, finished
from ntkml.runs.locks import BusyError
from ntkml.runs.progress import TrackEpochs
from ntkml.runs.stopping import Stopped, StopRequest
from ntkml.runs.train import TrainRun
from ntkml.runs.train_journal import Pace

#: Seconds between looks at a cell that another process trains.
LOOK_ELSEWHERE = 1.0


def train_cell(run: TrainRun, folder: Path, track: TrackEpochs, warn: Callable[[str], None], stop: StopRequest) -> None:
    """Train what is missing of a cell; while another process trains it, wait until that one finishes or leaves it.

    Raises:
        Stopped: ``stop`` asked for it.
        ValueError: see :func:`ntkml.runs.train.run_train`.
    """
    waiting = False
    while True:
        try:
            complete_replacement(folder)
            if finished(folder):
                return
            run_any(run, folder, track, Pace(), warn, stop)
        except BusyError:
            if not waiting:
                warn(f"Waiting for another process, which trains {folder}")
            waiting = True
            if reason := stop():
                raise Stopped(reason, 0, 0) from None
            sleep(LOOK_ELSEWHERE)
