"""Decoded images kept as uint8 between runs, beside the fingerprint of the files that they came from.

A cache is an uncompressed ``.npz`` under ``$NTKML_CACHE`` (else ``~/.cache/ntkml/images``): every array in it carries a
CRC-32 that is checked when it is read, and nothing in it can be code. It appears whole or not at all, and whatever is wrong
with one (damage, another version, sources that changed) only costs decoding again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ntkml.datasets import ImageDataset
from ntkml.machine.files import appearing_whole

_VERSION = 1  # of what decoding makes of a file; a change of it makes old caches stale
_LOG = logging.getLogger("ntkml")


@dataclass(frozen=True)
class DecodedImages:
    """Both parts as (n, channels, height, width) uint8 and (n,) int64, with checksum and notes of an ImageDataset."""

    train_images: np.ndarray
    train_targets: np.ndarray
    test_images: np.ndarray
    test_targets: np.ndarray
    classes: tuple[str, ...]
    checksum: str
    notes: tuple[str, ...] = ()

    def as_dataset(self, name: str) -> ImageDataset:
        """Float tensors in [0, 1]."""
        return ImageDataset(
            name=name,
            train_inputs=_pixels(self.train_images),
            train_targets=torch.from_numpy(self.train_targets),
            test_inputs=_pixels(self.test_images),
            test_targets=torch.from_numpy(self.test_targets),
            num_classes=len(self.classes),
            checksum=self.checksum,
            notes=self.notes,
        )


def cached(key: str, fingerprint: str, decode: Callable[[], DecodedImages]) -> DecodedImages:
    """What ``decode`` returns, from the cache where it holds the same sources.

    Args:
        key: names the source and how it is decoded (path, size).
        fingerprint: changes when the source does.
    """
    digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()  # a path need not be UTF-8
    path = cache_folder() / f"{digest[:20]}.npz"
    kept = _read(path, fingerprint)
    if kept is None:
        kept = decode()
        _write(path, fingerprint, kept)
    return kept


def cache_folder() -> Path:
    """``$NTKML_CACHE``, else ``~/.cache/ntkml/images``."""
    return Path(os.environ.get("NTKML_CACHE") or "~/.cache/ntkml/images").expanduser()


def _read(path: Path, fingerprint: str) -> DecodedImages | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about = json.loads(str(arrays["about"]))
            if (about["version"], about["fingerprint"]) != (_VERSION, fingerprint):
                return None
            parts = {key: arrays[key] for key in ("train_images", "train_targets", "test_images", "test_targets")}
        return DecodedImages(
            **parts, classes=tuple(about["classes"]), checksum=about["checksum"], notes=tuple(about["notes"])
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        _LOG.warning("%s is damaged (%s): the images are decoded again", path, error)
        return None


def _write(path: Path, fingerprint: str, images: DecodedImages) -> None:
    """Keep ``images``; where that is not possible the next run decodes again, which a warning says."""
    about = {
        "version": _VERSION,
        "fingerprint": fingerprint,
        "classes": images.classes,
        "checksum": images.checksum,
        "notes": images.notes,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with appearing_whole(path) as file:
            np.savez(
                file,
                about=np.array(json.dumps(about)),
                train_images=images.train_images,
                train_targets=images.train_targets,
                test_images=images.test_images,
                test_targets=images.test_targets,
            )
    except OSError as error:
        _LOG.warning("decoded images cannot be kept in %s (%s); set NTKML_CACHE to a folder", path.parent, error)


def _pixels(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).to(torch.float32).div_(255)
