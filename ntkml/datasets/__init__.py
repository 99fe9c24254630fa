"""Image classification data as plain tensors: ``load_dataset(name)`` and ``subset(dataset, num_data, generator)``.

A data set is read once, whole, into float32 tensors in [0, 1]; there is no loader, no transform and no normalisation.
Where files are looked for: the argument ``data_root``, else the environment variable ``NTKML_DATA``, else
``~/.cache/ntkml``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ntkml import registry
from ntkml.datasets import variants


@dataclass(frozen=True)
class ImageDataset:
    """Training and test images with their classes, as they were read.

    Attributes:
        name: the name it was loaded by, variant included (``mnist_r180``).
        train_inputs: (N, channels, height, width) float32 in [0, 1].
        train_targets: (N,) int64 in [0, num_classes).
        test_inputs: (N_test, channels, height, width) float32 in [0, 1].
        test_targets: (N_test,) int64 in [0, num_classes).
        num_classes: C, also where a subset holds fewer.
        checksum: sha256 (hex) of the raw, uncompressed contents of the files that were read; a variant and a subset
            keep the checksum of their source.

    Raises:
        ValueError: shapes, counts, types or values are not as stated above (NaN included).
    """

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    num_classes: int
    checksum: str

    def __post_init__(self) -> None:
        for part, inputs, targets in (
            ("training", self.train_inputs, self.train_targets),
            ("test", self.test_inputs, self.test_targets),
        ):
            _check_part(f"{part} part of data set {self.name!r}", inputs, targets, self.num_classes)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.train_inputs.shape[1:]
        return channels, height, width


def load_dataset(name: str, data_root: str | Path | None = None, download: bool = False) -> ImageDataset:
    """Read a data set by name: one of ``registry.DATASETS``, alone or with a variant suffix (``_r90``, ``_r180``).

    Args:
        name: for example ``digits`` (inside the package, needs no files), ``mnist``, ``fashion-mnist_r180``.
        data_root: folder in torchvision's layout; None means ``NTKML_DATA``, else ``~/.cache/ntkml``.
        download: fetch missing files into ``data_root`` first (never done unasked).

    Raises:
        ValueError: the name is unknown, or files are missing or damaged; the message says which and what to do.
    """
    base, variant = variants.split_name(name)
    if base not in registry.DATASETS:
        raise ValueError(registry.unknown_name("data set", name, dataset_names()))
    dataset = registry.resolve(registry.DATASETS, base, "data set")(resolve_data_root(data_root), download)
    return replace(variants.apply(dataset, variant), name=name) if variant else dataset


def dataset_names() -> list[str]:
    """Every name that :func:`load_dataset` accepts."""
    return [base + suffix for base in registry.DATASETS for suffix in ("", *(f"_{v}" for v in variants.VARIANTS))]


def resolve_data_root(data_root: str | Path | None = None) -> Path:
    """The folder that holds the data: the argument, else ``NTKML_DATA``, else ``~/.cache/ntkml``."""
    chosen = data_root or os.environ.get("NTKML_DATA") or "~/.cache/ntkml"
    return Path(chosen).expanduser()


def subset(dataset: ImageDataset, num_data: int, generator: torch.Generator) -> ImageDataset:
    """The same data set with ``num_data`` training points, drawn without replacement; the test part is kept whole.

    Raises:
        ValueError: fewer than ``num_data`` training points are there, or ``num_data`` is not positive.
    """
    available = len(dataset.train_targets)
    if not 1 <= num_data <= available:
        raise ValueError(
            f"cannot take {num_data} training points of data set {dataset.name!r}: ask for 1 to {available} (--num-data)"
        )
    chosen = torch.randperm(available, generator=generator)[:num_data]
    return replace(dataset, train_inputs=dataset.train_inputs[chosen], train_targets=dataset.train_targets[chosen])


def _check_part(part: str, inputs: Tensor, targets: Tensor, num_classes: int) -> None:
    if inputs.dtype != torch.float32 or inputs.ndim != 4:
        raise ValueError(
            f"{part}: inputs must be float32 of shape (N, channels, height, width), "
            f"got {inputs.dtype} of shape {tuple(inputs.shape)}"
        )
    if targets.dtype != torch.int64 or targets.shape != inputs.shape[:1]:
        raise ValueError(
            f"{part}: targets must be int64 of shape ({len(inputs)},), got {targets.dtype} of shape {tuple(targets.shape)}"
        )
    if len(inputs) == 0:
        raise ValueError(f"{part}: it is empty")
    low, high = inputs.aminmax()  # one pass; NaN anywhere makes both NaN
    if torch.isnan(low):
        raise ValueError(f"{part}: the inputs hold NaN")
    if low < 0 or high > 1:
        raise ValueError(f"{part}: inputs must lie in [0, 1], got values from {low:.6g} to {high:.6g}")
    if targets.min() < 0 or targets.max() >= num_classes:
        raise ValueError(
            f"{part}: targets must lie in 0..{num_classes - 1}, got values from {targets.min()} to {targets.max()}"
        )
