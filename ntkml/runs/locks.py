"""One process at a time in the folder of a run, on any machine that shares it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import sleep
from typing import IO

from ntkml.machine import files

try:
    import fcntl
except ImportError:  # not POSIX: two processes on one run are then the user's to avoid
    fcntl = None  # type: ignore[assignment]

#: Tries at a lock that another process has, and seconds between them: who only looks (:func:`held`) has it for a moment.
TRIES, PAUSE = 10, 0.02


class BusyError(ValueError):
    """Another process holds the folder."""

    def __init__(self, folder: Path):
        super().__init__(f"another process is working on {folder}: wait for it, or choose another with --out")


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
                    raise BusyError(folder)
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
