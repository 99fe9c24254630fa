"""MiniNet: three convolutions and a linear layer, for small single-digit images; no normalisation layers.

28x28 inputs (the paper's MNIST network; 14 538 parameters with 1 channel and 10 classes):

    conv 1-8 k5, relu, maxpool 2, conv 8-16 k3, relu, maxpool 2, conv 16-32 k5, flatten, relu, linear 32-C

8x8 inputs (ours, for the digits inside the package; 3 658 parameters with 1 channel and 10 classes):

    conv 1-8 k3 padding 1, relu, maxpool 2, conv 8-16 k3 padding 1, relu, maxpool 2, conv 16-32 k2, flatten, relu,
    linear 32-C
"""

from __future__ import annotations

import torch
from torch import nn

from ntkml.models.initial_weights import conv2d, linear
from ntkml.models.input_checks import check_counts, wrong_size

_CONVOLUTIONS: dict[tuple[int, int], list[dict[str, int]]] = {
    (28, 28): [{"kernel_size": 5}, {"kernel_size": 3}, {"kernel_size": 5}],
    (8, 8): [{"kernel_size": 3, "padding": 1}, {"kernel_size": 3, "padding": 1}, {"kernel_size": 2}],
}


def mininet(
    input_shape: tuple[int, int, int], num_classes: int, generator: torch.Generator | None = None
) -> nn.Sequential:
    """MiniNet for inputs (n, channels, 28, 28) or (n, channels, 8, 8), giving logits (n, num_classes).

    Raises:
        ValueError: another image size, or fewer than one channel or class.
    """
    channels, height, width = input_shape
    if (height, width) not in _CONVOLUTIONS:
        sizes = " and ".join(f"{h}x{w}" for h, w in _CONVOLUTIONS)
        raise wrong_size("mininet", f"{sizes} pixels", input_shape)
    check_counts("mininet", input_shape, num_classes)
    first, second, third = _CONVOLUTIONS[height, width]
    return nn.Sequential(
        conv2d(channels, 8, generator, **first),
        nn.ReLU(),
        nn.MaxPool2d(2),
        conv2d(8, 16, generator, **second),
        nn.ReLU(),
        nn.MaxPool2d(2),
        conv2d(16, 32, generator, **third),
        nn.Flatten(),
        nn.ReLU(),
        linear(32, num_classes, generator),
    )
