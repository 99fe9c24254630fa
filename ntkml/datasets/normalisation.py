"""Shift and scale of every channel: network inputs are (pixels - mean) / std where a data set has a normalisation.

Order of things: pixels in [0, 1] -> variant (``_r180``, ``translated_``: black outside the image, as if the files had been
made so) -> normalisation -> augmentation during training, whose views are zero outside the image, which is the mean colour.
MNIST, FashionMNIST and the digits stay in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 1024  # images whose statistics are summed at a time, in float64


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of every channel, of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply_(self, pixels: Tensor) -> Tensor:
        """Normalise ``pixels`` (n, channels, height, width) in place, which takes no second copy of the data."""
        mean, std = self.as_tensors(pixels)
        return pixels.sub_(mean).div_(std)

    def as_tensors(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std (channels, 1, 1) in the type and on the device of ``images``."""
        mean, std = (torch.tensor(values).view(-1, 1, 1).to(images) for values in (self.mean, self.std))
        return mean, std


#: What the paper takes for both CIFARs: statistics of CIFAR-10's training images.
CIFAR = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))

#: The usual statistics of ImageNet's training images.
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def statistics(pixels: Tensor) -> Normalisation:
    """Mean and standard deviation of every channel of ``pixels`` (n, channels, height, width), to four decimals.

    A channel that is constant to four decimals keeps its scale (std 1).
    """
    count = pixels.numel() / pixels.shape[1]
    total = torch.zeros(pixels.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for chunk in pixels.split(_CHUNK):
        values = chunk.double()
        total += values.sum(dim=(0, 2, 3))
        squares += values.square().sum(dim=(0, 2, 3))
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    rounded = [round(value, 4) for value in std.tolist()]
    return Normalisation(tuple(round(value, 4) for value in mean.tolist()), tuple(value or 1.0 for value in rounded))
