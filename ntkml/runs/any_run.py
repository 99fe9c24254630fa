"""A run of any kind in its folder: one training, or the search that the run's estimator names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ntkml.records.finished_runs import FITS
from ntkml.runs.folders import complete_replacement
from ntkml.runs.locks import exclusive
from ntkml.runs.progress import TrackEpochs
from ntkml.runs.search import run_search
from ntkml.runs.stopping import StopRequest
from ntkml.runs.train import TrainRun, run_train
from ntkml.runs.train_journal import Pace, holds_checkpoint
from ntkml.system_specs import family_of


def run_any(
    run: TrainRun,
    folder: Path,
    track: TrackEpochs,
    pace: Pace,
    warn: Callable[[str], None],
    stop: StopRequest,
) -> Path:
    """:func:`run_train`, or the search that the run's estimator names; both go on where they were.

    A finished forced run that a kill kept from its place is put there first.
    """
    complete_replacement(folder)
    if not family_of(run.protocol.estimator).searches:
        return run_train(run, folder, track, pace, warn, stop)
    with exclusive(folder):
        return run_search(run, folder, lambda one, into: run_train(one, into, track, pace, warn, stop))


def begun(folder: Path) -> bool:
    """Whether a run, or a search, was begun in ``folder`` and can be continued."""
    return holds_checkpoint(folder) or (folder / FITS).is_dir()
