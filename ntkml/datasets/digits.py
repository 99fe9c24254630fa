"""The default data set: 1797 handwritten digits of 8x8 pixels, inside the package, so that nothing is downloaded.

Source: Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning Repository (1998),
https://doi.org/10.24432/C50P49, licensed CC BY 4.0; the 1797 images are its test file, as scikit-learn's
``load_digits`` ships them.

How ``digits.npz`` was packed: the images (integers 0..16) and labels of scikit-learn 1.9's ``load_digits``, both as
uint8, reordered by ``numpy.random.default_rng(0).permutation(1797)`` and written with ``numpy.savez_compressed`` under
the names ``images`` (1797, 8, 8) and ``labels`` (1797,). The permutation is the split: rows 0 to 1296 are the training
part, rows 1297 to 1796 the test part. It is stored, not recomputed, so no change of a random number generator moves it.
"""

from __future__ import annotations

import hashlib
import io
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from ntkml.datasets import ImageDataset

NUM_TRAIN = 1297
MAX_VALUE = 16


def load(data_root: Path, download: bool) -> ImageDataset:
    """The digits: 1297 training and 500 test images (1, 8, 8), values 0..16 divided by 16; the arguments are unused."""
    raw = resources.files("ntkml.datasets").joinpath("digits.npz").read_bytes()
    with np.load(io.BytesIO(raw), allow_pickle=False) as packed:
        images = torch.from_numpy(packed["images"]).unsqueeze(1).float() / MAX_VALUE  # (1797, 1, 8, 8)
        labels = torch.from_numpy(packed["labels"]).long()  # (1797,)
    return ImageDataset(
        name="digits",
        train_inputs=images[:NUM_TRAIN],
        train_targets=labels[:NUM_TRAIN],
        test_inputs=images[NUM_TRAIN:],
        test_targets=labels[NUM_TRAIN:],
        num_classes=10,
        checksum=hashlib.sha256(raw).hexdigest(),
    )
