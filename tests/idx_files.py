"""Small idx files in torchvision's layout, for tests that read data from disk."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np


def write_idx_files(folder: Path, num_train: int = 5, num_test: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Write the four files of random 28x28 images into ``folder``; returns all images and labels, training part first."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_train + num_test, 28, 28), dtype=np.uint8)
    labels = rng.integers(0, 10, num_train + num_test, dtype=np.uint8)
    folder.mkdir(parents=True)
    for prefix, part in (("train", slice(None, num_train)), ("t10k", slice(num_train, None))):
        for kind, array in (("images-idx3", images[part]), ("labels-idx1", labels[part])):
            header = struct.pack(f">{array.ndim + 1}I", 0x0800 | array.ndim, *array.shape)
            (folder / f"{prefix}-{kind}-ubyte").write_bytes(header + array.tobytes())
    return images, labels
