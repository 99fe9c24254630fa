"""Checkpoints: one file that appears whole or not at all, carries its own checksum, and keeps its predecessor.

A file is one line, ``ntkml-checkpoint <sha256 of the rest>``, and what ``torch.save`` makes of a tree of dictionaries,
lists, tensors, numbers and strings. It is loaded with ``weights_only=True`` after the checksum: nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ntkml.machine import files

_MAGIC = b"ntkml-checkpoint "


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> Path:
    """Write ``state`` to ``path``; the checkpoint that was there becomes :func:`previous`.

    A kill at any moment leaves one of the two whole: both are renamed when the new one is written. A full disk leaves both.

    Raises:
        OSError: see :func:`ntkml.machine.files.write_atomically`.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    payload = buffer.getvalue()
    sealed = _MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload
    return files.write_atomically(path, sealed, keep=previous(path))


def read_checkpoint(path: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest whole checkpoint: ``path``, else its predecessor with one line to ``warn``, else None where none is.

    A damaged file is removed once the predecessor was read, or the next write would put it in the place of the good one.

    Raises:
        ValueError: files are there and none of them is whole.
    """
    older = previous(path)
    if not path.exists() and not older.exists():
        return None
    try:
        return _read_one(path)
    except ValueError as error:
        if not older.exists():
            raise ValueError(f"{error}; there is no earlier checkpoint: remove {path.parent} and start again") from None
        damage = str(error)
    try:
        state = _read_one(older)
    except ValueError as error:
        raise ValueError(f"{damage}, and {error}: remove {path.parent} and start again") from None
    path.unlink(missing_ok=True)
    warn(f"Warning: {damage}; continuing from {older.name}")
    return state


def previous(path: Path) -> Path:
    """Where the predecessor of a checkpoint lies: ``checkpoint.previous.pt`` beside ``checkpoint.pt``."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _read_one(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    head, _, payload = path.read_bytes().partition(b"\n")
    if not head.startswith(_MAGIC):
        raise ValueError(f"{path} is not a checkpoint")
    if head.removeprefix(_MAGIC) != hashlib.sha256(payload).hexdigest().encode():
        raise ValueError(f"{path} is damaged (its checksum does not fit)")
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # written by something else, with a fitting checksum
        raise ValueError(f"{path} cannot be loaded ({type(error).__name__})") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no state")
    return state
