"""Image classification data as plain tensors: ``load_dataset(name)`` and ``subset(dataset, num_data, generator)``.

A data set is read once, whole, into float32 tensors: pixels in [0, 1], then normalised where its protocol says so
(:mod:`ntkml.datasets.normalisation`); there is no loader and no transform. Where files are looked for: the argument
``data_root``, else the environment variable ``NTKML_DATA``, else ``~/.cache/ntkml``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ntkml import registry
from ntkml.dataset_names import VARIANTS, join_name, split_name
from ntkml.datasets import normalisation, variants
from ntkml.datasets.normalisation import Normalisation

#: How a name begins that says where images lie: ``folder:PATH`` (:mod:`ntkml.datasets.folder`).
FOLDER_SCHEME = "folder:"

#: What is applied to the pixels of each data set; the others stay in [0, 1], images of a folder take their own statistics.
NORMALISATIONS = {
    "cifar10": normalisation.CIFAR,
    "cifar100": normalisation.CIFAR,
    "tinyimagenet": normalisation.IMAGENET,
}


@dataclass(frozen=True)
class ImageDataset:
    """Training and test images with their classes, as a network takes them.

    Attributes:
        name: the name it was loaded by, variant included (``mnist_r180``).
        train_inputs: (N, channels, height, width) float32; pixels in [0, 1], normalised by ``normalisation``.
        train_targets: (N,) int64 in [0, num_classes).
        test_inputs: (N_test, channels, height, width) float32, likewise.
        test_targets: (N_test,) int64 in [0, num_classes).
        num_classes: C, also where a subset holds fewer.
        checksum: sha256 (hex) of the raw, uncompressed contents of the files that were read; a variant and a subset
            keep the checksum of their source.
        normalisation: what was applied to the pixels, or None.
        notes: sentences on how the data came about that a manifest and captions must show.

    Raises:
        ValueError: shapes, counts, types or values are not as stated above (NaN included), or the parts differ in shape.
    """

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    num_classes: int
    checksum: str
    normalisation: Normalisation | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part, inputs, targets in (
            ("training", self.train_inputs, self.train_targets),
            ("test", self.test_inputs, self.test_targets),
        ):
            described = f"{part} part of data set {self.name!r}"
            _check_part(described, inputs, targets, self.num_classes)
            _check_values(described, inputs, self.normalisation)
        train, test = (tuple(inputs.shape[1:]) for inputs in (self.train_inputs, self.test_inputs))
        if train != test:
            raise ValueError(
                f"data set {self.name!r}: training and test images must have one shape, got {train} and {test}"
            )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.train_inputs.shape[1:]
        return channels, height, width


def load_dataset(name: str, data_root: str | Path | None = None, download: bool = False) -> ImageDataset:
    """Read a data set by name: one of ``registry.DATASETS`` or ``folder:PATH``, alone or as a variant
    (``mnist_r180``, ``translated_mnist``; :mod:`ntkml.datasets.variants`).

    Args:
        name: for example ``digits`` (inside the package, needs no files), ``mnist``, ``fashion-mnist_r180``,
            ``folder:photos@64``.
        data_root: folder in torchvision's layout; None means ``NTKML_DATA``, else ``~/.cache/ntkml``.
        download: fetch missing files into ``data_root`` first (never done unasked).

    Raises:
        ValueError: the name is unknown, or files are missing or damaged; the message says which and what to do.
    """
    root = resolve_data_root(data_root)
    base, variant = split_name(name)
    applied: Normalisation | None
    if base.startswith(FOLDER_SCHEME):
        from ntkml.datasets import folder

        if folder.exists(name, root):  # a folder may be called photos_r90
            base, variant = name, ""
        raw = folder.load(base, root)
        applied = normalisation.statistics(raw.train_inputs)
    elif base in registry.DATASETS:
        raw = registry.resolve(registry.DATASETS, base, "data set")(root, download)
        applied = NORMALISATIONS.get(base)
    else:
        raise ValueError(registry.unknown_name("data set", name, [*dataset_names(), f"{FOLDER_SCHEME}PATH"]))
    if variant:
        raw = replace(variants.apply(raw, variant), name=join_name(raw.name, variant))
    return raw if applied is None else _normalised(raw, applied)


def dataset_names() -> list[str]:
    """Every name that :func:`load_dataset` accepts, beside those of folders."""
    return [join_name(base, variant) for base in registry.DATASETS for variant in VARIANTS]


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


def _normalised(dataset: ImageDataset, applied: Normalisation) -> ImageDataset:
    """``dataset`` with normalised inputs; its pixels, which nobody else holds, are changed in place."""
    train, test = applied.apply_(dataset.train_inputs), applied.apply_(dataset.test_inputs)
    return replace(dataset, train_inputs=train, test_inputs=test, normalisation=applied)


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
    if targets.min() < 0 or targets.max() >= num_classes:
        raise ValueError(
            f"{part}: targets must lie in 0..{num_classes - 1}, got values from {targets.min()} to {targets.max()}"
        )


def _check_values(part: str, inputs: Tensor, applied: Normalisation | None) -> None:
    """Raise ValueError where what was normalised cannot have been pixels in [0, 1]; no copy of the inputs is made."""
    low, high = inputs.amin(dim=(0, 2, 3)), inputs.amax(dim=(0, 2, 3))  # of every channel; NaN anywhere makes both NaN
    slack = 0.0
    if applied is not None:
        if len(applied.mean) != len(low):
            raise ValueError(f"{part}: it has {len(low)} channels, its normalisation {len(applied.mean)}")
        mean, std = (values.flatten() for values in applied.as_tensors(inputs))
        low, high, slack = low * std + mean, high * std + mean, 1e-5  # rounding of float32
    if torch.isnan(low).any():
        raise ValueError(f"{part}: the inputs hold NaN")
    if low.min() < -slack or high.max() > 1 + slack:
        raise ValueError(f"{part}: pixels must lie in [0, 1], got values from {low.min():.6g} to {high.max():.6g}")
