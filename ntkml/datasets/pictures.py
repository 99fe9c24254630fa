"""JPEG and PNG files as uint8 arrays of one size, decoded by Pillow.

Pictures are turned as their EXIF tag says, transparency is dropped, and with a size given each is scaled to fill it and cut
evenly at both sides of what is too long. Where all are grey they keep one channel, else all get three.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageOps

from ntkml.machine.messages import counted

SUFFIXES = (".jpg", ".jpeg", ".png")
_FORMATS = ("JPEG", "PNG")
_GREY_MODES = ("1", "L", "LA")
_MOST_NAMED = 5  # of what is wrong, in a message
_MODES = (*_GREY_MODES, "P", "RGB", "RGBA", "CMYK", "YCbCr")

#: (height, width) in pixels.
Size = tuple[int, int]


@dataclass
class Pictures:
    """Decoded pictures by name, (height, width) where grey, else (3, height, width), and the sha256 of every file."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def stack(self, names: Iterable[str], channels: int) -> np.ndarray:
        """(n, channels, height, width) uint8 in the order of ``names``; those pictures are then given up."""
        names = list(names)
        stacked = np.empty((len(names), channels, *self.arrays[names[0]].shape[-2:]), dtype=np.uint8)
        for index, name in enumerate(names):
            stacked[index] = self.arrays.pop(name)
        return stacked

    @property
    def channels(self) -> int:
        """1 where every picture is grey, else 3."""
        return 1 if all(array.ndim == 2 for array in self.arrays.values()) else 3


def is_picture(name: str) -> bool:
    """Whether a file's name ends like that of a JPEG or PNG."""
    return name.lower().endswith(SUFFIXES)


def decode_all(files: Iterable[tuple[str, bytes]], size: Size | None, where: str, how_to_ask: str) -> Pictures:
    """Decode every (name, content).

    Args:
        files: names and contents.
        size: (height, width) of the result; None where the pictures must have one size of their own.
        where: what the pictures belong to, for the messages.
        how_to_ask: what to type for a size, for the messages.

    Raises:
        ValueError: pictures that cannot be decoded (all of them counted, some named), or that differ in size.
    """
    pictures, broken, sizes = Pictures(), list[str](), Counter[Size]()
    for name, content in files:
        pictures.digests[name] = hashlib.sha256(content).hexdigest()
        try:
            array = _decode(content, size)
        except Exception as error:  # a damaged file raises whatever its bytes lead Pillow to
            broken.append(f"{name} ({_reason(error)})")
            continue
        sizes[array.shape[-2], array.shape[-1]] += 1
        if len(sizes) == 1:  # once they differ only the sizes are of interest
            pictures.arrays[name] = array
    if broken:
        raise ValueError(f"{where}: {counted(len(broken), 'image')} cannot be decoded: {_some(broken)}")
    if len(sizes) > 1:
        found = _some([f"{height}x{width} ({count})" for (height, width), count in sizes.most_common()])
        raise ValueError(f"{where}: the images have {len(sizes)} sizes, {found}: {how_to_ask}")
    return pictures


def _decode(content: bytes, size: Size | None) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
        if opened.mode not in _MODES:
            raise ValueError(f"its pixels are of kind {opened.mode}, expected 8 bits a channel")
        image = ImageOps.exif_transpose(opened).convert("L" if opened.mode in _GREY_MODES else "RGB")
    if size is not None and image.size != (size[1], size[0]):
        image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)  # (height, width) or (height, width, 3)
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a JPEG or PNG"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _some(items: list[str]) -> str:
    """The first few, and how many more."""
    more = f", and {len(items) - _MOST_NAMED} more" if len(items) > _MOST_NAMED else ""
    return ", ".join(items[:_MOST_NAMED]) + more
