"""MNIST and FashionMNIST, read from the idx files of torchvision's folder layout.

``<data_root>/MNIST/raw/train-images-idx3-ubyte`` and its three companions (``.gz`` will do), likewise
``<data_root>/FashionMNIST/raw/...``. torchvision is imported for a download only.

References: Y. LeCun, C. Cortes and C. Burges, The MNIST database of handwritten digits; H. Xiao, K. Rasul and
R. Vollgraf, Fashion-MNIST (2017), arXiv:1708.07747.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ntkml.datasets import ImageDataset, idx
from ntkml.machine import torchvision_shim

FILES = (
    ("train-images-idx3-ubyte", idx.IMAGES_MAGIC),
    ("train-labels-idx1-ubyte", idx.LABELS_MAGIC),
    ("t10k-images-idx3-ubyte", idx.IMAGES_MAGIC),
    ("t10k-labels-idx1-ubyte", idx.LABELS_MAGIC),
)


def load_mnist(data_root: Path, download: bool) -> ImageDataset:
    """MNIST: 60 000 training and 10 000 test images (1, 28, 28) in [0, 1], not normalised, 10 digits."""
    return _load("mnist", "MNIST", data_root, download)


def load_fashion_mnist(data_root: Path, download: bool) -> ImageDataset:
    """FashionMNIST: 60 000 training and 10 000 test images (1, 28, 28) in [0, 1], 10 kinds of clothing."""
    return _load("fashion-mnist", "FashionMNIST", data_root, download)


def _load(name: str, torchvision_name: str, data_root: Path, download: bool) -> ImageDataset:
    """Read the four files of one data set.

    Raises:
        ValueError: a file is missing, truncated or of another kind, or images and labels differ in number.
    """
    folder = data_root / torchvision_name / "raw"
    if download and any(idx.find(folder, stem) is None for stem, _ in FILES):
        torchvision_shim.download(torchvision_name, data_root)
    digest = hashlib.sha256()
    arrays = []
    for path, magic in [(_find_or_explain(name, folder, stem), magic) for stem, magic in FILES]:
        content = idx.read_bytes(path)
        digest.update(content)
        arrays.append(idx.parse(content, magic, path))
    train_inputs, train_targets = _pair(name, "training", arrays[0], arrays[1])
    test_inputs, test_targets = _pair(name, "test", arrays[2], arrays[3])
    return ImageDataset(name, train_inputs, train_targets, test_inputs, test_targets, 10, digest.hexdigest())


def _find_or_explain(name: str, folder: Path, stem: str) -> Path:
    path = idx.find(folder, stem)
    if path is None:
        raise ValueError(
            f"data set {name!r}: found neither {folder / stem} nor {stem}.gz; name the folder that holds "
            f"{folder.parent.name}/raw with --data-root (or set NTKML_DATA), or fetch the files with --download"
        )
    return path


def _pair(name: str, part: str, images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Tensors of one part: inputs (n, 1, height, width) float32 and targets (n,) int64."""
    if len(images) != len(labels):
        raise ValueError(
            f"data set {name!r}: {len(images)} {part} images but {len(labels)} labels; the files do not belong together"
        )
    return torch.tensor(images).unsqueeze(1).float().div_(255), torch.tensor(labels).long()
