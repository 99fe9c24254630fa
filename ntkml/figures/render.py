"""Figures as files: whole or not at all, and the same bytes for the same rows."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure

from ntkml.figures import style
from ntkml.machine.files import ensure_writable_folder, write_atomically
from ntkml.registry import unknown_name

# Metadata that differs between two runs is left out, so that a picture changes only where its rows do.
METADATA = {
    "png": {"Software": None},
    "pdf": {"Creator": "ntkml", "Producer": None, "CreationDate": None},
}


def save(figure: Figure, stem: str | Path, formats: Iterable[str] = ("png", "pdf")) -> list[Path]:
    """Write ``figure`` to ``<stem>.<format>`` for each format and return the paths; an older picture is replaced.

    Raises:
        ValueError: a format other than png and pdf, or a folder that cannot be written to.
    """
    stem, formats = Path(stem), list(dict.fromkeys(formats))
    for name in formats:
        if name not in METADATA:
            raise ValueError(unknown_name("picture format", name, list(METADATA)))
    pictures = {stem.parent / f"{stem.name}.{name}": encoded(figure, name) for name in formats}
    ensure_writable_folder(stem.parent)
    return [write_atomically(path, picture) for path, picture in pictures.items()]


def encoded(figure: Figure, name: str) -> bytes:
    """The bytes of a picture file of ``figure``; ``name``: its format, png or pdf."""
    data = io.BytesIO()
    with style.context():
        figure.savefig(data, format=name, metadata=METADATA[name])
    return data.getvalue()
