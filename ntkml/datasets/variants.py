"""Variants of a data set that a suffix of its name asks for: ``_r90`` and ``_r180`` rotate every image.

Each image is turned by its own angle, uniform in [-90, 90] or [-180, 180] degrees, by bilinear interpolation with zeros
outside the image and pixel centres inside the grid (``align_corners=False``). The angles come from fixed seeds, so
the variant is one data set, not a distribution: the same file gives the same images on every run.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from ntkml.datasets import ImageDataset

VARIANTS = {"r90": 90.0, "r180": 180.0}
"""Suffix -> largest rotation in degrees."""

TRAIN_SEED, TEST_SEED = 1, 0
_CHUNK = 8192  # images rotated at a time: the sampling grid takes two floats a pixel


def split_name(name: str) -> tuple[str, str | None]:
    """``"mnist_r90" -> ("mnist", "r90")``; a name without a known suffix comes back whole, with None."""
    base, separator, suffix = name.rpartition("_")
    return (base, suffix) if separator and suffix in VARIANTS else (name, None)


def join_name(base: str, variant: str) -> str:
    """The inverse of :func:`split_name`."""
    return f"{base}_{variant}"


def apply(dataset: ImageDataset, variant: str) -> ImageDataset:
    """The data set with every training and test image rotated as ``variant`` says; its name is left to the caller."""
    limit = VARIANTS[variant]
    return replace(
        dataset,
        train_inputs=rotate_randomly(dataset.train_inputs, limit, torch.Generator().manual_seed(TRAIN_SEED)),
        test_inputs=rotate_randomly(dataset.test_inputs, limit, torch.Generator().manual_seed(TEST_SEED)),
    )


def rotate_randomly(images: Tensor, limit: float, generator: torch.Generator) -> Tensor:
    """Rotate each of ``images`` (n, channels, height, width) by an angle uniform in [-limit, limit] degrees."""
    degrees = (2 * torch.rand(len(images), generator=generator) - 1) * limit  # (n,)
    pairs = zip(images.split(_CHUNK), degrees.split(_CHUNK), strict=True)
    return torch.cat([rotate(chunk, angles) for chunk, angles in pairs])


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate image i of ``images`` (n, channels, height, width), values in [0, 1], counter-clockwise by ``degrees[i]``.

    The grid is in units of half the image's size, so for an image that is not square the turn is a shear as well; all
    data sets here are square.
    """
    radians = degrees * (math.pi / 180)
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    # The matrix maps output to input positions, and image rows run downward: this one turns the picture to the left.
    matrices = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3).to(images)  # (n, 2, 3)
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    rotated = functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return rotated.clamp(0, 1)  # the four weights of a pixel may sum to 1 + 1e-7
