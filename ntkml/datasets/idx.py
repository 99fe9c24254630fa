"""Read the idx files of MNIST and FashionMNIST (plain or gzip) with numpy.

An idx file is a big-endian header -- a 32-bit magic number (type 0x08 for unsigned bytes, then the number of
dimensions), one 32-bit length for each dimension -- and the bytes, last dimension fastest.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

IMAGES_MAGIC, LABELS_MAGIC = 0x00000803, 0x00000801


def find(folder: Path, stem: str) -> Path | None:
    """The file ``stem`` or ``stem.gz`` in ``folder``, the unpacked one first; None where neither is there."""
    return next((path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()), None)


def read_bytes(path: Path) -> bytes:
    """The uncompressed content of an idx file.

    Raises:
        ValueError: a ``.gz`` file is cut off or damaged, or the file cannot be read.
    """
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}); delete it and fetch it again") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def parse(content: bytes, magic: int, path: Path) -> np.ndarray:
    """The array in an idx file: (n, height, width) uint8 for images, (n,) uint8 for labels.

    Args:
        content: the uncompressed file.
        magic: IMAGES_MAGIC or LABELS_MAGIC, what the file must begin with.
        path: where ``content`` came from, for the messages.

    Raises:
        ValueError: another magic number, or more or fewer bytes than the header announces.
    """
    num_dims = magic & 0xFF
    header = struct.calcsize(f">{num_dims + 1}I")
    if len(content) < header:
        raise ValueError(f"{path} is truncated: {len(content)} bytes, not even the header of {header}; fetch it again")
    found, *shape = struct.unpack_from(f">{num_dims + 1}I", content)
    if found != magic:
        raise ValueError(f"{path} is not the idx file it should be: magic number {found:#010x}, expected {magic:#010x}")
    expected = header + math.prod(shape)
    if len(content) != expected:
        fault = "is truncated" if len(content) < expected else "has surplus bytes"
        raise ValueError(f"{path} {fault}: {len(content)} bytes, its header announces {expected}; fetch it again")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
