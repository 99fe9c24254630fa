"""The folder of a run: one process at a time, and a finished run that a forced one replaces only when it is finished."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import sleep
from typing import IO

from ntkml.machine import files
from ntkml.records.finished_runs import NEW, OLD
from ntkml.records.manifests import damaged, read_manifest

try:
    import fcntl
except ImportError:  # not POSIX: two processes on one run are then the user's to avoid
    fcntl = None  # type: ignore[assignment]


#: Tries at a lock that another process has, and seconds between them: who only looks (:func:`held`) has it for a moment.
TRIES, PAUSE = 10, 0.02


class BusyError(ValueError):
    """Another process holds the folder."""


@contextmanager
def exclusive(folder: Path) -> Iterator[Path]:
    """Hold a run's folder, made if missing; the operating system releases it when the process ends, however it ends.

    A folder that stays empty, because the run was refused before it wrote anything, is removed again.

    Raises:
        BusyError: another process works on the run.
        ValueError: the folder cannot be written to.
    """
    lock, tries = folder / ".lock", 0
    while True:
        files.ensure_writable_folder(folder)
        try:
            file = lock.open("w", encoding="ascii")
        except FileNotFoundError:  # another process has just left the folder empty
            continue
        with file:
            if not _locked(file):
                tries += 1
                if tries == TRIES:
                    raise BusyError(_busy(folder))
                sleep(PAUSE)
                continue
            if not _is_file_at(file, lock):  # removed by who held it, after we had opened it: others lock a new one
                continue
            try:
                yield folder
            finally:
                if _is_file_at(file, lock):  # not that of a run which has taken the place of ours
                    lock.unlink(missing_ok=True)
                with suppress(OSError):  # not empty
                    folder.rmdir()
            return


def _busy(folder: Path) -> str:
    return f"another process is working on {folder}: wait for it, or choose another with --out"


def held(folder: Path) -> bool:
    """Whether another process holds the run's folder now; where a file system has no locks, none does."""
    try:
        with (folder / ".lock").open("r", encoding="ascii") as file:
            return not _locked(file, shared=True)
    except (OSError, ValueError):
        return False


def _locked(file: IO[str], shared: bool = False) -> bool:
    """Take the lock of an open file, which its closing releases; False where another process has it.

    ``shared``: with others who ask for that, so that looks do not see each other; on NFS it is what a file that is open
    for reading takes, and one that is open for writing takes the other.

    Raises:
        ValueError: the file system has no locks.
    """
    if fcntl is not None:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise ValueError(
                f"{file.name} cannot be locked ({error.strerror}): choose a folder on another file system with --out"
            ) from None
    return True


def _is_file_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


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
        raise BusyError(_busy(folder))
    with exclusive(folder):
        if held(_replaced(folder)):  # its owner moved the old run aside between the two checks
            raise BusyError(_busy(folder))
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
