"""The finished runs below a folder of results, by their manifests; figures and tables are made from nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntkml.dataset_names import split_name
from ntkml.records.manifests import check_type, damaged, read_manifest

#: The folder of a search's fits, within its own.
FITS = "fits"

#: Behind the name of a run's folder: one that a forced run is computed in, and one that it replaces. A kill leaves them.
NEW, OLD = ".new", ".old"

#: Settings that every run has, and those that runs of a command have beside them.
_SETTINGS: dict[str, type] = {"hparam": str, "dataset": str, "model": str, "num_data": int}
_MORE_SETTINGS: dict[str, dict[str, type]] = {
    "bound-grid": {"seed": int},
    "train": {"seed": int, "estimator": str, "epochs": int},
}


@dataclass(frozen=True)
class Run:
    """A finished run: its rows and what its manifest says."""

    rows: Path
    manifest: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        return self.manifest["settings"]

    @property
    def setup(self) -> tuple[Any, ...]:
        """What the panels of one bound figure must have in common; ``mnist_r180`` belongs to ``mnist``."""
        return (
            split_name(str(self.settings["dataset"]))[0],
            self.settings["model"],
            self.settings["num_data"],
        )


def finished_runs(results: Path, command: str) -> list[Run]:
    """All finished runs of ``command`` below ``results``, newest first; a copy counts once.

    Links to folders are followed.

    Raises:
        ValueError: a manifest that cannot be read or lacks a setting; names the file and what to remove.
    """
    runs = []
    for path in _manifests(results):
        try:
            run = _run_of(path, command)
        except ValueError as error:
            raise damaged(path.parent, error) from None
        runs += [run] if run else []
    once: dict[object, Run] = {}  # settings on another device have the same id, and finished at another time
    for run in runs:
        once.setdefault((_id(run), _finished_at(run)), run)
    newest_first = sorted(once.values(), key=_finished_at, reverse=True)
    kept: list[Run] = []
    for run in sorted(newest_first, key=_aside):  # what lies aside stands in where nothing else has its id
        if not _aside(run) or _id(run) not in map(_id, kept):
            kept.append(run)
    return sorted(kept, key=_finished_at, reverse=True)


def left_out(results: Path) -> list[tuple[Path, str]]:
    """Folders of runs below ``results`` that are in no figure or table, and why: stopped runs, and those that lost their rows.

    Raises:
        ValueError: a manifest that cannot be read; names the file and what to remove.
    """
    found = []
    for path in _manifests(results):
        if path.parent.name.endswith((NEW, OLD)):  # beside a run that stands for both
            continue
        try:
            manifest = read_manifest(path)
        except ValueError as error:
            raise damaged(path.parent, error) from None
        if not manifest.get("finished_at"):
            found.append((path.parent, "not finished: the command that began it continues it"))
        elif _rows_beside(path) is None:
            found.append((path.parent, "finished, but its rows.csv is missing: remove the folder and compute it again"))
    return found


def _run_of(path: Path, command: str) -> Run | None:
    """The run whose manifest lies at ``path``; None where it is not finished, of another command, or without rows."""
    manifest = read_manifest(path)
    # MAP has no estimators.
    whole = manifest.get("settings") and manifest.get("finished_at") and "estimators" in manifest
    rows = _rows_beside(path)
    if manifest.get("command") != command or not whole or rows is None:
        return None
    _check_settings(manifest["settings"], command, path)
    return Run(rows, manifest)


def _id(run: Run) -> object:
    return run.manifest.get("run_id", run.rows)


def _aside(run: Run) -> bool:
    return run.rows.parent.name.endswith((NEW, OLD))


def _finished_at(run: Run) -> str:
    return str(run.manifest["finished_at"])


def _manifests(results: Path) -> list[Path]:
    """Every manifest below ``results`` but those of a search's fits, whose test values are of held out training data."""
    found, seen = [], set()
    for name, folders, names in os.walk(results, followlinks=True):
        folder = Path(name)
        if (there := folder.resolve()) in seen:  # links may lead round
            folders.clear()
            continue
        seen.add(there)
        folders.sort()
        if "manifest.json" in names and (folder.parent.name != FITS or results in (folder, folder.parent)):
            found.append(folder / "manifest.json")
    return sorted(found)


def _check_settings(settings: dict[str, Any], command: str, path: Path) -> None:
    for name, kind in (_SETTINGS | _MORE_SETTINGS.get(command, {})).items():
        if name not in settings:
            raise ValueError(f"{path}: settings lack {name}")
        check_type(settings[name], (kind,), path, f"settings.{name}")
    if command == "train":  # which runs belong together is decided by their values
        for name, value in settings.items():
            if isinstance(value, list | dict):
                raise ValueError(f"{path}: settings.{name} should be one value, got {value}")


def _rows_beside(manifest: Path) -> Path | None:
    candidates = (manifest.with_name("rows.csv"), manifest.with_name("rows.csv.gz"))
    return next((path for path in candidates if path.is_file()), None)
