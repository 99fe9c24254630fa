"""Variants of a data set that its name asks for (:mod:`ntkml.dataset_names`): every image moved, once and for all.

Each image has its own draw. Interpolation is bilinear with zeros outside the image and pixel centres inside the grid
(``align_corners=False``). The draws come from fixed seeds, so the variant is one data set, not a distribution: the same
file gives the same images on every run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from ntkml.datasets import ImageDataset

#: Variant -> largest rotation in degrees.
ROTATIONS = {"r90": 90.0, "r180": 180.0}

MAX_SHIFT = 8.0  # pixels
MAX_LOG_FACTOR = math.log(2.0)

TRAIN_SEED, TEST_SEED = 1, 0
_CHUNK = 8192  # images moved at a time: the sampling grid takes two floats a pixel


def apply(dataset: ImageDataset, variant: str) -> ImageDataset:
    """The data set with every training and test image moved as ``variant`` says; its name is left to the caller.

    Raises:
        ValueError: shifts that would empty images as small as these.
    """
    size = min(dataset.input_shape[1:])
    if variant == "translated" and size < 2 * MAX_SHIFT:
        raise ValueError(
            f"translated_{dataset.name}: shifts of up to {MAX_SHIFT:g} pixels need images of {2 * MAX_SHIFT:g} or more, got "
            f"{size}; take scaled_{dataset.name} or {dataset.name}_r90"
        )
    move = VARIANTS[variant]
    return replace(
        dataset,
        train_inputs=move(dataset.train_inputs, torch.Generator().manual_seed(TRAIN_SEED)),
        test_inputs=move(dataset.test_inputs, torch.Generator().manual_seed(TEST_SEED)),
    )


def rotate_randomly(images: Tensor, generator: torch.Generator, limit: float) -> Tensor:
    """Rotate each of ``images`` (n, channels, height, width) by an angle uniform in [-limit, limit] degrees."""
    return _in_chunks(rotate, images, (2 * torch.rand(len(images), generator=generator) - 1) * limit)


def translate_randomly(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each of ``images`` to the right and down by distances uniform in [-8, 8] pixels."""
    return _in_chunks(translate, images, (2 * torch.rand(len(images), 2, generator=generator) - 1) * MAX_SHIFT)


def scale_randomly(images: Tensor, generator: torch.Generator) -> Tensor:
    """Magnify each of ``images`` about its centre by exp(u), u uniform in [-ln 2, ln 2]."""
    logs = (2 * torch.rand(len(images), generator=generator) - 1) * MAX_LOG_FACTOR
    return _in_chunks(scale, images, logs.exp())


VARIANTS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    **{name: partial(rotate_randomly, limit=limit) for name, limit in ROTATIONS.items()},
    "translated": translate_randomly,
    "scaled": scale_randomly,
}


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate image i of ``images`` (n, channels, height, width), values in [0, 1], counter-clockwise by ``degrees[i]``."""
    radians = degrees * (math.pi / 180)
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    tall = images.shape[2] / images.shape[3]  # the grid is in units of half the image's height and width
    # The matrix maps output to input positions, and image rows run downward: this one turns the picture to the left.
    return _warp(images, torch.stack([cos, -sin * tall, zero, sin / tall, cos, zero], dim=1))


def translate(images: Tensor, pixels: Tensor) -> Tensor:
    """Shift image i of ``images`` by ``pixels[i]`` = (to the right, down)."""
    height, width = images.shape[2:]
    zero, one = torch.zeros(len(pixels)), torch.ones(len(pixels))
    right, down = pixels.unbind(dim=1)
    return _warp(images, torch.stack([one, zero, -2 * right / width, zero, one, -2 * down / height], dim=1))


def scale(images: Tensor, factors: Tensor) -> Tensor:
    """Magnify image i of ``images`` about its centre by ``factors[i]``."""
    zero = torch.zeros_like(factors)
    return _warp(images, torch.stack([1 / factors, zero, zero, zero, 1 / factors, zero], dim=1))


def _warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Every image sampled at the positions that its matrix (n, 6), rows (x, y, 1), maps the output's positions to."""
    grid = functional.affine_grid(matrices.view(-1, 2, 3).to(images), list(images.shape), align_corners=False)
    warped = functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return warped.clamp(0, 1)  # the four weights of a pixel may sum to 1 + 1e-7


def _in_chunks(move: Callable[[Tensor, Tensor], Tensor], images: Tensor, amounts: Tensor) -> Tensor:
    moved = torch.empty_like(images)
    for part in range(0, len(images), _CHUNK):
        chunk = slice(part, part + _CHUNK)
        moved[chunk] = move(images[chunk], amounts[chunk])
    return moved
