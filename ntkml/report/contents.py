"""What a report shows: every figure that can be drawn from a results folder, tables of its rows, and its runs."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from ntkml.figures import drawing, render, sources, training_sources
from ntkml.protocols.tables import protocol_names, read_tables
from ntkml.records import bound_grid as bound_records
from ntkml.records import compare as compare_records
from ntkml.records import pareto as pareto_records
from ntkml.records.finished_runs import Run, finished_runs, left_out
from ntkml.registry import FIGURES
from ntkml.report.summaries import Cell, Table, bound_table, comparison_table, pareto_table, training_table
from ntkml.tables import render as render_table
from ntkml.tables.panels import panels

#: Figures of whatever run is the newest; a report shows every run in its tables instead.
_ANY_RUN = ("bound-grid", "pareto")

#: Tables of the paper, in its order.
PAPER_TABLES = ("table-1", "table-2")


@dataclass(frozen=True)
class Picture:
    """A figure as a PNG in base64, with the runs that it shows."""

    name: str
    title: str
    png: str
    inches: float  # width of the drawing
    files: tuple[str, ...]


@dataclass(frozen=True)
class RunEntry:
    """One finished run: what it was, and its whole manifest."""

    folder: str
    command: str
    what: str
    finished_at: str
    commit: str
    machine: str
    notes: tuple[str, ...]
    manifest: str


@dataclass(frozen=True)
class Contents:
    """Everything on the page. ``missing``: figures that cannot be drawn, and why; ``left_out``: runs that count nowhere, and why."""

    results: str
    pictures: tuple[Picture, ...]
    missing: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]
    runs: tuple[RunEntry, ...]
    left_out: tuple[tuple[str, str], ...]


def gather(results: Path) -> Contents:
    """Read all finished runs below ``results`` and draw what they allow.

    Raises:
        ValueError: no such folder, no finished run in it, or a file that is not what its name says.
    """
    if not results.is_dir():
        raise ValueError(f"no folder {results}: name one that holds runs with --results")
    runs = {command: finished_runs(results, command) for command in ("bound-grid", "train", "pareto", "compare")}
    if not any(runs.values()):
        begun = len(left_out(results))
        raise ValueError(
            f"no finished run under {results}{f' ({begun} stopped or without rows)' if begun else ''}: run ntkml train, bound-grid or pareto first, or "
            "name --results"
        )
    pictures, missing = _pictures(results)
    entries = [_entry(run, results) for kind in runs.values() for run in kind]
    others = [(str(folder.relative_to(results)), reason) for folder, reason in left_out(results)]
    return Contents(
        str(results), tuple(pictures), tuple(missing), tuple(_tables(runs, results)), tuple(entries), tuple(others)
    )


def _pictures(results: Path) -> tuple[list[Picture], list[tuple[str, str]]]:
    pictures, missing = [], []
    for name in (name for name in FIGURES if name not in _ANY_RUN):
        try:
            drawn = drawing.draw(name, (), results)
        except ValueError as error:
            missing.append((name, str(error)))
            continue
        png = base64.b64encode(render.encoded(drawn.figure, "png")).decode("ascii")
        files = tuple(str(path.relative_to(results)) for path in drawn.files)
        pictures.append(Picture(name, _title(name), png, drawn.figure.get_figwidth(), files))
    return pictures, missing


def _title(name: str) -> str:
    if name in drawing.WITHOUT_ROWS:
        return "The family of bounds"
    return str(read_tables(name)["title"]) if name in protocol_names() else "Systems that learn hyperparameters"


def _tables(runs: dict[str, list[Run]], results: Path) -> list[Table]:
    tables = []
    if runs["pareto"]:
        tables.append(pareto_table(pareto_records.read_rows(*[run.rows for run in runs["pareto"]])))
    if runs["bound-grid"]:
        groups = sources.seed_groups(runs["bound-grid"])
        tables.append(bound_table([bound_records.read_rows(*[run.rows for run in group]) for group in groups]))
    joined = [run.rows.with_name(training_sources.JOINED) for run in runs["pareto"]]
    files = [run.rows for run in runs["train"]] + [path for path in joined if path.is_file()]
    if training := training_sources.training_runs(files):
        tables.append(training_table(pandas.concat([run.rows for run in training], ignore_index=True)))
    if runs["compare"]:
        tables.append(comparison_table(compare_records.read_rows(*[run.rows for run in runs["compare"]])))
    return [*_published(results), *tables]


def _published(results: Path) -> list[Table]:
    """The paper's tables, our runs beside the published numbers."""
    tables = []
    for name in PAPER_TABLES:
        for panel in panels(name, results):
            columns, rows = render_table.plain(panel)
            lines = tuple(tuple(Cell(text) for text in row) for row in rows)
            title = f"{name.replace('-', ' ').capitalize()}: {panel.title}"
            tables.append(Table(title, " ".join(render_table.notes_of(panel)), tuple(columns), lines))
    return tables


def _entry(run: Run, results: Path) -> RunEntry:
    settings, manifest = run.settings, run.manifest
    environment: dict[str, Any] = manifest.get("environment") or {}
    git = environment.get("git") or {}
    what = ", ".join(str(settings[key]) for key in ("hparam", "dataset", "model", "estimator") if key in settings)
    commit = str(git.get("commit") or "")[:10] + (" with changes" if git.get("dirty") else "")
    return RunEntry(
        folder=str(run.rows.parent.relative_to(results)),
        command=str(manifest["command"]),
        what=what,
        finished_at=str(manifest["finished_at"]),
        commit=commit,
        machine=", ".join(str(environment[part]) for part in ("gpu", "cpu") if environment.get(part)),
        notes=tuple(manifest.get("notes", [])),
        manifest=json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False),
    )
