"""CIFAR-10 and CIFAR-100, read from the pickles of torchvision's folder layout.

``<data_root>/cifar-10-batches-py/data_batch_1`` to ``5`` and ``test_batch``; ``<data_root>/cifar-100-python/train`` and
``test``. A pickle can hold any code, so these are read by an unpickler that knows plain values and numpy arrays and refuses
whatever else a file names. torchvision is imported for a download only.

Reference: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009).
"""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ntkml.datasets import ImageDataset
from ntkml.datasets.image_cache import DecodedImages
from ntkml.machine import torchvision_shim

SHAPE = (3, 32, 32)

#: What the published files name, under the two places at which numpy keeps it.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


@dataclass(frozen=True)
class Archive:
    """One data set's folder and files, the key of its labels, and what torchvision calls it."""

    name: str
    torchvision_name: str
    folder: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    label_key: str
    num_classes: int


CIFAR10 = Archive(
    "cifar10",
    "CIFAR10",
    "cifar-10-batches-py",
    tuple(f"data_batch_{number}" for number in range(1, 6)),
    ("test_batch",),
    "labels",
    10,
)
CIFAR100 = Archive("cifar100", "CIFAR100", "cifar-100-python", ("train",), ("test",), "fine_labels", 100)


def load_cifar10(data_root: Path, download: bool) -> ImageDataset:
    """CIFAR-10: 50 000 training and 10 000 test images (3, 32, 32) in [0, 1], 10 classes."""
    return _load(CIFAR10, data_root, download)


def load_cifar100(data_root: Path, download: bool) -> ImageDataset:
    """CIFAR-100: 50 000 training and 10 000 test images (3, 32, 32) in [0, 1], 100 classes."""
    return _load(CIFAR100, data_root, download)


class RefusedPickleError(pickle.UnpicklingError):
    """A pickle names something that no CIFAR file needs; it was not imported."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise RefusedPickleError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return super().find_class(module, name)


def _load(archive: Archive, data_root: Path, download: bool) -> ImageDataset:
    """Read the files of one data set.

    Raises:
        ValueError: a file is missing, damaged, refused, or does not hold what it should.
    """
    folder = data_root / archive.folder
    files = [folder / name for name in (*archive.train_files, *archive.test_files)]
    if download and not all(file.is_file() for file in files):
        torchvision_shim.download(archive.torchvision_name, data_root)
    for file in files:
        if not file.is_file():
            raise ValueError(
                f"data set {archive.name!r}: {file} is missing; name the folder that holds {archive.folder} with "
                "--data-root (or set NTKML_DATA), or fetch the files with --download"
            )
    digest = hashlib.sha256()
    batches = [_read(file, archive, digest) for file in files]
    count = len(archive.train_files)
    (train_images, train_targets), (test_images, test_targets) = map(_joined, (batches[:count], batches[count:]))
    classes = tuple(str(label) for label in range(archive.num_classes))
    return DecodedImages(
        train_images, train_targets, test_images, test_targets, classes, digest.hexdigest()
    ).as_dataset(archive.name)


def _read(file: Path, archive: Archive, digest: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, 32, 32) uint8 and labels (n,) int64 of one file, whose bytes also go into ``digest``."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    digest.update(content)
    try:
        # Written by Python 2, whose strings are bytes; latin1 takes every byte as it is, as numpy's arrays need.
        batch = _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
    except RefusedPickleError as error:
        raise ValueError(f"{file} is refused: {error}; fetch the files again from a source that you trust") from None
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        raise ValueError(f"{file} is not a whole CIFAR file ({type(error).__name__}); fetch it again") from error
    images, labels = (batch.get(key) if isinstance(batch, dict) else None for key in ("data", archive.label_key))
    pixels = int(np.prod(SHAPE))
    if not (isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[1:] == (pixels,)):
        raise ValueError(f"{file} is no file of {archive.name}: expected 'data', uint8 of shape (n, {pixels})")
    if not (isinstance(labels, list) and all(isinstance(label, int) for label in labels)):
        raise ValueError(f"{file} is no file of {archive.name}: expected {archive.label_key!r}, a list of integers")
    if len(images) != len(labels):
        raise ValueError(f"{file}: {len(images)} images but {len(labels)} labels; fetch it again")
    return images.reshape(-1, *SHAPE), np.array(labels, dtype=np.int64)


def _joined(batches: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)
