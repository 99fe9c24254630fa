"""Which training runs a trajectory figure is drawn from.

Runs come from the files that the user names, or from all finished ones below the results: the rows of every ``train`` run
and the joined ``training.csv.gz`` of every ``pareto`` run. What is drawn together is decided by one rule, for both:

1. Only runs that learn what the figure shows, with one of its estimators, are looked at. A run that is there twice (the
   same id) is taken once.
2. Runs on the figure's own data set come first; those on others count only where there are none on it.
3. The newest of them says what the settings are: data, network, epochs, samples, learning rates, everything but estimator
   and seed. Runs of other settings are left out, and the caption says how many. Files without a manifest are compared by
   their rows: data, network and epochs.

Runs that are not finished, or whose rows end before their last epoch, are refused; where no manifest says how long a run
was to be, the caption says that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from ntkml.figures.captions import manifest_notes
from ntkml.machine.messages import counted
from ntkml.protocols.train import draws_blocks
from ntkml.protocols.training_figures import TrajectoryFigure, pareto_command
from ntkml.records import train as train_records
from ntkml.records.finished_runs import finished_runs
from ntkml.records.manifests import read_manifest
from ntkml.records.notes import first_few

JOINED = "training.csv.gz"  # the rows of all training runs of a Pareto run
_ROW_SETTINGS = ("hparam", "dataset", "model", "num_data", "num_params", "dtype")


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """The rows of one training run, where they came from and the run's manifest, empty where there is none."""

    rows: pandas.DataFrame
    path: Path
    manifest: Mapping[str, Any]
    notes: tuple[str, ...]  # sentences for the caption, also those of the Pareto run that holds it

    @property
    def estimator(self) -> str:
        return str(self.rows["estimator"].iloc[0])

    @property
    def num_data(self) -> int:
        return int(self.rows["num_data"].iloc[0])

    @property
    def dataset(self) -> str:
        return str(self.rows["dataset"].iloc[0])

    @property
    def finished_at(self) -> str:
        """Empty where nothing is known: such runs count as the oldest."""
        return self.manifest.get("finished_at") or ""

    def has_settings_of(self, other: TrainingRun) -> bool:
        """Whether the two differ in estimator and seed at most, and in how blocks are drawn where one has a single block."""
        rows, others = self.rows.iloc[0], other.rows.iloc[0]
        if any(rows[column] != others[column] for column in _ROW_SETTINGS):
            return False
        if self.rows["epoch"].max() != other.rows["epoch"].max():
            return False
        ours, theirs = (run.manifest.get("settings") for run in (self, other))
        free = {"estimator": None, "seed": None}
        if not (draws_blocks(self.estimator) and draws_blocks(other.estimator)):
            free["fresh_blocks"] = None
        return not ours or not theirs or {**ours, **free} == {**theirs, **free}


def training_files(figure: TrajectoryFigure, results: Path) -> list[Path]:
    """Row files of the finished runs below ``results`` that learn what the figure shows.

    Raises:
        ValueError: there is none; the message says what to run.
    """
    runs = [run for run in finished_runs(results, "train") if run.settings["hparam"] == figure.hparam]
    joined = [run for run in finished_runs(results, "pareto") if run.settings["hparam"] == figure.hparam]
    files = [run.rows for run in runs] + [run.rows.with_name(JOINED) for run in joined]
    if not (there := [path for path in files if path.is_file()]):
        raise ValueError(f"no finished training run under {results} for {figure.name}; {_what_to_run(figure)}")
    return there


def training_runs(paths: Iterable[Path]) -> list[TrainingRun]:
    """Every run in the files, the newest first; one that is in several files is taken from the first.

    Raises:
        ValueError: a run that is not finished, or damaged; see also :func:`ntkml.records.train.read_rows`.
    """
    runs: dict[str, TrainingRun] = {}
    for path in dict.fromkeys(paths):
        rows = train_records.read_rows(path)
        beside = path.with_name("manifest.json")
        manifest = read_manifest(beside) if beside.is_file() else {}
        of_cells = manifest_notes(manifest.get("runs", {}).values())
        for run_id, group in rows.groupby("run_id", sort=False):
            own = manifest if manifest.get("run_id") == run_id else manifest.get("runs", {}).get(run_id, {})
            notes = manifest_notes([own])
            if own is not manifest:  # what is said of a Pareto run's cells is not said of runs beside it
                notes += [f"Pareto run: {note}" for note in manifest.get("notes", []) if note not in of_cells]
            if own:
                _check_finished(group, path, own)
            else:
                unknown = "their settings are known from the rows alone, which may end early"
                notes = [f"No manifest of the runs in {path.name}: {unknown}.", *notes]
            runs.setdefault(str(run_id), TrainingRun(group, path, own, tuple(notes)))
    return sorted(runs.values(), key=lambda run: run.finished_at, reverse=True)


def _check_finished(rows: pandas.DataFrame, path: Path, manifest: Mapping[str, Any]) -> None:
    epochs = manifest.get("settings", {}).get("epochs")
    if not manifest.get("finished_at"):
        of = "" if epochs is None else f" of {epochs}"
        raise ValueError(
            f"{path}: the run of {rows['estimator'].iloc[0]} is not finished (epoch {rows['epoch'].max()}{of}): the "
            "same ntkml train command continues it"
        )
    if epochs is not None:
        train_records.check_end(rows, path, epochs)


def choose(figure: TrajectoryFigure, runs: Sequence[TrainingRun]) -> tuple[list[TrainingRun], list[str]]:
    """The runs to draw, by the rule above, and sentences for the caption.

    Raises:
        ValueError: no run learns what the figure shows with one of its estimators.
    """
    learned = [run for run in runs if run.rows["hparam"].iloc[0] == figure.hparam]
    known = [run for run in learned if run.estimator in figure.on(run.num_data).estimators]
    if not known:
        held = first_few(dict.fromkeys(f"{run.estimator} ({run.rows['hparam'].iloc[0]})" for run in runs))
        drawn = f"{figure.name} draws runs that learn the {figure.hparam} by {first_few(figure.estimators)}"
        raise ValueError(f"{drawn}, these are of {held}; {_what_to_run(figure)}")
    at_home = [run for run in known if run.dataset == figure.dataset] or known
    newest = next((run for run in at_home if draws_blocks(run.estimator)), at_home[0])
    chosen: dict[tuple[str, int], TrainingRun] = {}
    for run in at_home:
        if run.has_settings_of(newest):
            chosen.setdefault((run.estimator, int(run.rows["seed"].iloc[0])), run)
    notes = list(dict.fromkeys(note for run in chosen.values() for note in run.notes))
    if others := len(at_home) - len(chosen):
        notes.append(f"No settings are mixed: {counted(others, 'run')} of other settings left out.")
    return list(chosen.values()), notes


def _what_to_run(figure: TrajectoryFigure) -> str:
    return (
        f"run: {pareto_command(figure.hparam)} (all of them), or one with "
        f"ntkml train --hparam {figure.hparam} --protocol train-mnist --estimator {figure.estimators[-1]}"
    )
