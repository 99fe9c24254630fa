"""Files that appear whole or not at all, and folders that can be written to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: str | Path, data: bytes, keep: Path | None = None) -> Path:
    """Write ``data`` beside ``path`` and rename: a reader sees the old file or the new one, never half of one.

    ``keep``: the name under which the old file stays; it is renamed when the new one is written whole, so that a full disk
    changes no file.

    Raises:
        OSError: the disk is full, or refuses otherwise; names the path and the size.
    """
    path = Path(path)
    try:
        with appearing_whole(path, keep) as file:
            file.write(data)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (writing {len(data)} bytes)", str(path)) from None
    return path


@contextmanager
def appearing_whole(path: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """:func:`write_atomically` for what is written piece by piece, into the file that this yields."""
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files for the owner's eyes only; a result is as readable as any other new file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    except BaseException:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise


def ensure_writable_folder(path: str | Path, option: str = "--out") -> Path:
    """Make the folder where it is missing and try a file in it; one that was made in vain is removed again.

    Raises:
        ValueError: a file lies in its place, or the folder cannot be made or written to.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file, expected a folder to write to; choose another with {option}")
    missing = _missing(path)
    try:
        try:
            _make_and_try(path)
        except FileNotFoundError:  # the check of another process removed it in between
            _make_and_try(path)
    except OSError as error:
        _remove(missing)
        raise ValueError(
            f"cannot write to the folder {path} ({error.strerror}); choose another with {option}"
        ) from None
    return path


def check_writable_folder(path: str | Path, option: str = "--out") -> None:
    """Try the folder before an hour of computing is spent on what will lie there; nothing stays of one that was missing.

    Raises:
        ValueError: see :func:`ensure_writable_folder`.
    """
    missing = _missing(Path(path))
    ensure_writable_folder(path, option)
    _remove(missing)


def _make_and_try(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
        pass


def _missing(path: Path) -> list[Path]:
    """The folders that ``mkdir`` would have to make, the innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # not there, or another process has written into it
            folder.rmdir()
