"""The networks of the benchmarks: those of the experiments, and MiniNets of more channels for the growth of cost in P."""

from __future__ import annotations

import torch
from torch import nn

from ntkml.models import build_model
from ntkml.models.initial_weights import conv2d, linear

#: Model, input shape and number of classes by name.
_KNOWN = {
    "mininet": ("mininet", (1, 28, 28), 10),
    "mininet-8": ("mininet", (1, 8, 8), 10),
    "wrn16-4": ("wrn16-4", (3, 32, 32), 10),
    "resnet50": ("resnet50", (3, 64, 64), 200),
}


def build(name: str, generator: torch.Generator) -> tuple[nn.Module, tuple[int, int, int], int]:
    """The network, its input shape and its number of classes. ``mininet-x4`` is MiniNet with four times the channels."""
    plain, _, width = name.partition("-x")
    model, shape, num_classes = _KNOWN[plain]
    if width:
        return _wide_mininet(int(width), generator), shape, num_classes
    return build_model(model, shape, num_classes, generator), shape, num_classes


def family(name: str) -> str:
    """The network without its width."""
    return name.partition("-x")[0]


def _wide_mininet(width: int, generator: torch.Generator) -> nn.Sequential:
    first, second, third = 8 * width, 16 * width, 32 * width
    return nn.Sequential(
        conv2d(1, first, generator, kernel_size=5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        conv2d(first, second, generator, kernel_size=3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        conv2d(second, third, generator, kernel_size=5),
        nn.Flatten(),
        nn.ReLU(),
        linear(third, 10, generator),
    )
