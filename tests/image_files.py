"""Small images in class folders, as files and archives, for tests that read data from disk."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (8, 8), grey: bool = False, kind: str = "PNG") -> bytes:
    """A file of random pixels, ``size`` = (height, width); PNG keeps them exactly."""
    return encoded(pixels(seed, size, grey), kind)


def pixels(seed: int, size: tuple[int, int] = (8, 8), grey: bool = False) -> np.ndarray:
    """The pixels of :func:`picture`: (height, width) where grey, else (height, width, 3)."""
    shape = size if grey else (*size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(array: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def sound_files(per_class: int = 2, **options: object) -> dict[str, bytes]:
    """Name -> content of two classes in both parts, every image another one."""
    names = [
        f"{part}/{label}/{index}.png"
        for part in ("train", "test")
        for label in ("cat", "dog")
        for index in range(per_class)
    ]
    return {name: picture(seed, **options) for seed, name in enumerate(names)}


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """The same files as a tar or zip archive, by the suffix of ``path``."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w:" + {".tar": "", ".xz": "xz", ".gz": "gz"}[path.suffix]) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
