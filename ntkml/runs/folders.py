"""The folder of a run: whether it holds a finished one, which a forced run replaces only when that is finished."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ntkml.records.finished_runs import NEW, OLD
from ntkml.records.manifests import damaged, read_manifest
from ntkml.runs.locks import BusyError, exclusive, held


def finished(folder: Path) -> bool:
    """Whether the folder holds a finished run: rows, and a manifest that says so.

    Raises:
        ValueError: a manifest that cannot be read, or one without its rows. Not every command that reuses the run has a
            --force, so that the message says what to remove.
    """
    manifest, rows = folder / "manifest.json", folder / "rows.csv"
    if not manifest.exists():
        return False
    try:
        finished_at = read_manifest(manifest).get("finished_at")
    except ValueError as error:
        raise damaged(folder, error) from None
    if finished_at and not (rows.exists() and rows.stat().st_size):
        raise ValueError(f"{rows} of a finished run is missing or empty; remove {folder} and compute it again")
    return bool(finished_at)


def holds_whole_run(folder: Path) -> bool:
    """:func:`finished`, where a damaged run is none."""
    try:
        return finished(folder)
    except ValueError:
        return False


def replacement(folder: Path) -> Path:
    """Where a forced run is computed before it takes the place of ``folder``."""
    return folder.with_name(f"{folder.name}{NEW}")


def _replaced(folder: Path) -> Path:
    """Where a finished run lies while the forced one takes its place."""
    return folder.with_name(f"{folder.name}{OLD}")


def replace_when_finished(folder: Path, compute: Callable[[Path], object], afresh: bool = True) -> None:
    """``compute`` in a folder beside ``folder``, then put it in its place: a kill loses no finished run.

    ``afresh``: remove what an earlier call left in the folder beside it, instead of going on with it.

    Raises:
        ValueError: another process works on the run.
    """
    with exclusive(folder):
        if afresh:
            shutil.rmtree(replacement(folder), ignore_errors=True)
        compute(replacement(folder))
        _put_in_place(folder)


def complete_replacement(folder: Path) -> None:
    """Put a finished forced run in its place, where a kill came between; a damaged one is left to ``--force``.

    Where the kill came after that, what it replaced is removed.

    Raises:
        BusyError: another process works on the run, or is just putting it in its place.
    """
    if not holds_whole_run(replacement(folder)):
        _remove_replaced(folder)
        return
    if held(_replaced(folder)):
        raise BusyError(folder)
    with exclusive(folder):
        if held(_replaced(folder)):  # its owner moved the old run aside between the two checks
            raise BusyError(folder)
        if holds_whole_run(replacement(folder)):  # no other process has done it since
            _put_in_place(folder)


def _remove_replaced(folder: Path) -> None:
    """Remove what a forced run has replaced and a kill left, where that run is whole; nothing where that cannot be done now."""
    old = _replaced(folder)
    if not (old / ".lock").exists():  # a folder without one was not left by us
        return
    with suppress(ValueError), exclusive(folder):
        if holds_whole_run(folder) and not held(old):
            shutil.rmtree(old, ignore_errors=True)


def _put_in_place(folder: Path) -> None:
    old = _replaced(folder)
    shutil.rmtree(old, ignore_errors=True)
    os.replace(folder, old)
    os.replace(replacement(folder), folder)
    shutil.rmtree(old, ignore_errors=True)
