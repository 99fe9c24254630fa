"""Two small classics for any image size: a multilayer perceptron and LeNet-5 with ReLU and max pooling."""

from __future__ import annotations

import torch
from torch import nn

from ntkml.models.initial_weights import conv2d, linear
from ntkml.models.input_checks import check_counts, wrong_size

MLP_WIDTH = 100


def mlp(input_shape: tuple[int, int, int], num_classes: int, generator: torch.Generator | None = None) -> nn.Sequential:
    """Flatten, two hidden layers of 100 units with ReLU, linear to C: 89 610 parameters for 28 x 28 and ten classes."""
    check_counts("mlp", input_shape, num_classes)
    return nn.Sequential(
        nn.Flatten(),
        linear(input_shape[0] * input_shape[1] * input_shape[2], MLP_WIDTH, generator),
        nn.ReLU(),
        linear(MLP_WIDTH, MLP_WIDTH, generator),
        nn.ReLU(),
        linear(MLP_WIDTH, num_classes, generator),
    )


def lenet(
    input_shape: tuple[int, int, int], num_classes: int, generator: torch.Generator | None = None
) -> nn.Sequential:
    """LeNet-5: conv c-6 k5 (padded to 32 x 32 where images are 28 x 28), pool 2, conv 6-16 k5, pool 2, 120, 84, C.

    61 706 parameters for 28 x 28 and ten classes.

    Raises:
        ValueError: images other than 28 x 28 or 32 x 32.
    """
    channels, height, width = input_shape
    if (height, width) not in ((28, 28), (32, 32)):
        raise wrong_size("lenet", "28x28 and 32x32 pixels", input_shape)
    check_counts("lenet", input_shape, num_classes)
    return nn.Sequential(
        conv2d(channels, 6, generator, kernel_size=5, padding=2 if height == 28 else 0),
        nn.ReLU(),
        nn.MaxPool2d(2),
        conv2d(6, 16, generator, kernel_size=5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        linear(400, 120, generator),
        nn.ReLU(),
        linear(120, 84, generator),
        nn.ReLU(),
        linear(84, num_classes, generator),
    )
