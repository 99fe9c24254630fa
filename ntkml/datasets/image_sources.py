"""The files of a folder or of an archive (tar, zip), one after the other, without unpacking anything onto the disk."""

from __future__ import annotations

import hashlib
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ARCHIVE_SUFFIXES = (*TAR_SUFFIXES, ".zip")


@dataclass(frozen=True)
class Entry:
    """A file or a folder by its name relative to the source, parts separated by ``/``.

    ``content``: the bytes of a file that was wanted, else None.
    """

    name: str
    is_folder: bool
    content: bytes | None = None


def archive_suffix(path: Path) -> str:
    """The suffix that makes ``path`` an archive (``.tar.xz``), or nothing."""
    return max((suffix for suffix in ARCHIVE_SUFFIXES if path.name.lower().endswith(suffix)), key=len, default="")


def read_entries(path: Path, wanted: Callable[[str], bool]) -> Iterator[Entry]:
    """Every file and folder of ``path``; hidden ones are left out. Only files that are ``wanted`` by name are read.

    Raises:
        ValueError: ``path`` is missing, neither a folder nor an archive, damaged, or a file of it cannot be read.
    """
    if path.is_dir():
        reader = _folder
    elif not path.exists():
        raise ValueError(f"{path}: no such folder or archive")
    else:
        suffix = archive_suffix(path)
        if not suffix:
            known = ", ".join(ARCHIVE_SUFFIXES)
            raise ValueError(f"{path} is neither a folder nor an archive ({known})")
        reader = _zip if suffix == ".zip" else _tar
    with _named_damage(path):
        for entry in reader(path, wanted):
            if entry.name and not _is_hidden(entry.name):
                yield entry


def fingerprint(path: Path) -> str:
    """A short hash that changes when files are added, removed or written: of their names, sizes and times of change.

    Cheap, so that a cache can be compared with its source on every start; contents are not read.
    """
    files = [path]
    if path.is_dir():
        files = sorted(Path(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names)
    digest = hashlib.sha256()
    for file in files:
        if not _is_hidden(file.relative_to(path).as_posix()):
            status = file.stat()
            line = f"{file.relative_to(path).as_posix()}\0{status.st_size}\0{status.st_mtime_ns}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _folder(path: Path, wanted: Callable[[str], bool]) -> Iterator[Entry]:
    for folder, folders, files in os.walk(path, followlinks=True):
        folders.sort()
        relative = PurePosixPath(Path(folder).relative_to(path).as_posix())
        for name in folders:
            yield Entry(str(relative / name), True)
        for name in sorted(files):
            inside = str(relative / name)
            yield Entry(inside, False, Path(folder, name).read_bytes() if wanted(inside) else None)


def _tar(path: Path, wanted: Callable[[str], bool]) -> Iterator[Entry]:
    if path.suffix.lower() == ".tar":
        _check_end(path)
    with tarfile.open(path, "r|*") as archive:  # as a stream: a compressed archive cannot be entered in its middle
        for member in archive:
            name = _clean(member.name)
            if member.isdir():
                yield Entry(name, True)
            elif member.isfile():  # links and devices are none of ours
                file = archive.extractfile(member) if wanted(name) else None
                yield Entry(name, False, None if file is None else file.read())


def _check_end(path: Path) -> None:
    """Raise where a tar file does not end in zeros: one that was cut between two members looks whole to a reader."""
    with path.open("rb") as file:
        file.seek(-min(tarfile.BLOCKSIZE, path.stat().st_size), os.SEEK_END)
        if any(file.read()):
            raise tarfile.ReadError("its end is missing")


def _zip(path: Path, wanted: Callable[[str], bool]) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = _clean(member.filename)
            if member.is_dir():
                yield Entry(name, True)
            else:
                yield Entry(name, False, archive.read(member) if wanted(name) else None)


@contextmanager
def _named_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path} is not a whole archive ({error}): fetch or pack it again") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a zip file with a password
        raise ValueError(f"{path} cannot be read: {error}") from error


def _clean(name: str) -> str:
    """``./train/cat/`` -> ``train/cat``; the archive's own top folder is ``""``."""
    cleaned = str(PurePosixPath(name))
    return "" if cleaned == "." else cleaned


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) and part != "." for part in name.split("/"))
