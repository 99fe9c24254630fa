"""The panels of a table: our runs of one data set and one setting, beside the numbers that the paper published.

No settings are mixed. A panel holds the runs that changed the same settings of one protocol in the same way, and are of one
data set; estimators and seeds are all that differ in it. The whole protocol has a panel for each data set of the paper,
filled or not; a reduced protocol, changed settings and other data sets have panels of their own, which say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas

from ntkml.protocols.run_settings import RunSettings, settings_of, versions_of
from ntkml.protocols.sweep import load_sweep
from ntkml.protocols.train import load_train
from ntkml.records import train as train_records
from ntkml.records.finished_runs import Run, finished_runs
from ntkml.tables.entries import FULL_BATCH, Entry, entry_of, published, published_datasets

#: Names of data sets in headings.
TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tinyimagenet": "TinyImageNet"}


@dataclass(frozen=True)
class Panel:
    """``rows`` are (hparam, estimator) in order; ``beside``: the data set of the published numbers, None for none."""

    table: str
    dataset: str
    settings: RunSettings
    rows: tuple[tuple[str, str], ...]
    ours: Mapping[tuple[str, str], Entry]
    theirs: Mapping[tuple[str, str], Entry]
    beside: str | None
    notes: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether ours are of the paper's protocol and data."""
        return self.settings == RunSettings(self.table, "paper", ()) and self.dataset == self.beside

    @property
    def title(self) -> str:
        data = TITLES.get(self.dataset, self.dataset)
        if self.whole:
            return data
        kind = "" if self.settings.variant == "paper" else ", settings of the authors' code"
        kind += ", changed settings" if self.settings.changes else ""
        return f"{data}, protocol {self.settings.protocol}{kind}"


def panels(table: str, results: Path) -> list[Panel]:
    """The panels of ``table`` ("table-1" or "table-2") from the finished runs below ``results``."""
    groups: dict[tuple[str, RunSettings], list[Run]] = {}
    for run in finished_runs(results, "train"):  # newest first
        settings = settings_of(run.manifest)
        if settings is not None and settings.protocol in versions_of(table):
            groups.setdefault((str(run.settings["dataset"]), settings), []).append(run)
    known = published_datasets(table)
    whole = RunSettings(table, "paper", ())
    keys = [(dataset, whole) for dataset in known]
    others = sorted((key for key in groups if key not in keys), key=lambda key: (key[1].protocol, key[0], str(key[1])))
    return [_panel(table, *key, groups.get(key, []), known) for key in [*keys, *others]]


def _panel(table: str, dataset: str, settings: RunSettings, runs: Sequence[Run], known: Sequence[str]) -> Panel:
    beside = max((name for name in known if dataset.startswith(name)), key=len, default=None)
    theirs = {(entry.hparam, entry.estimator): entry for entry in (published(table, beside) if beside else [])}
    cells = _newest_of_each_seed(runs)
    ours = {cell: entry_of(list(frames.values())) for cell, frames in cells.items()}
    return Panel(
        table=table,
        dataset=dataset,
        settings=settings,
        rows=_rows(settings, dataset, theirs, ours),
        ours=_with_times(
            ours, {device for frames in cells.values() for f in frames.values() for device in f["device"]}
        ),
        theirs=theirs,
        beside=beside,
        notes=_notes(runs),
    )


def _newest_of_each_seed(runs: Iterable[Run]) -> dict[tuple[str, str], dict[int, pandas.DataFrame]]:
    """The rows of the runs by (hparam, estimator) and seed."""
    cells: dict[tuple[str, str], dict[int, pandas.DataFrame]] = {}
    for run in runs:
        cell = (run.settings["hparam"], run.settings["estimator"])
        if run.settings["seed"] not in cells.setdefault(cell, {}):
            rows = train_records.read_finished(run.rows, run.settings["epochs"], run.manifest.get("run_id"))
            cells[cell][run.settings["seed"]] = rows
    return cells


def _rows(
    settings: RunSettings, dataset: str, theirs: Iterable[tuple[str, str]], ours: Iterable[tuple[str, str]]
) -> tuple[tuple[str, str], ...]:
    """What the protocol asks for on the data set, else on its own one; published rows and other runs after these."""
    cells = [cell.protocol for cell in load_sweep(settings.protocol).cells]
    own = [cell for cell in cells if cell.dataset == dataset]
    if not own:
        own = [cell for cell in cells if cell.dataset == load_train(settings.protocol, cell.hparam).dataset]
    asked = [(cell.hparam, cell.estimator) for cell in own]
    rows = dict.fromkeys([*asked, *theirs, *ours])
    # The literature's rows stand before ours, as in the paper.
    return tuple(sorted(rows, key=lambda row: (row[0] != "prior", row[1] not in ("none", "augerino", "partitioned"))))


def _with_times(ours: Mapping[tuple[str, str], Entry], devices: set[str]) -> dict[tuple[str, str], Entry]:
    """Seconds relative to the full batch of the same hyperparameter; none where devices are mixed."""
    timed = {}
    for (hparam, name), entry in ours.items():
        full = ours.get((hparam, FULL_BATCH))
        known = full is not None and full.seconds and entry.seconds is not None and len(devices) == 1
        share = 100.0 * entry.seconds / full.seconds if known else None  # type: ignore[operator, union-attr]
        timed[hparam, name] = replace(entry, relative_time=share)
    return timed


def _notes(runs: Sequence[Run]) -> tuple[str, ...]:
    """What the runs' manifests say, with the rows that a sentence is about."""
    about: dict[str, list[tuple[str, str]]] = {}
    for run in runs:
        for note in run.manifest.get("notes", []):
            about.setdefault(note, []).append((run.settings["hparam"], run.settings["estimator"]))
    everything = {(run.settings["hparam"], run.settings["estimator"]) for run in runs}
    return tuple(
        note if set(rows) == everything else f"{_named(sorted(set(rows)))}: {note}" for note, rows in about.items()
    )


def _named(rows: Sequence[tuple[str, str]]) -> str:
    by_hparam: dict[str, list[str]] = {}
    for hparam, estimator in rows:
        by_hparam.setdefault(hparam, []).append(estimator)
    return "; ".join(f"{hparam} ({', '.join(names)})" for hparam, names in by_hparam.items())
