"""Layers whose initial weights come from an explicit generator, with the distribution of torch's own defaults."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


def conv2d(in_channels: int, out_channels: int, generator: torch.Generator | None, **options: Any) -> nn.Conv2d:
    """``nn.Conv2d`` with weights from ``generator``; ``options`` (``kernel_size``, ``padding``, ...) pass through."""
    return _initialise(nn.utils.skip_init(nn.Conv2d, in_channels, out_channels, **options), generator)


def linear(in_features: int, out_features: int, generator: torch.Generator | None) -> nn.Linear:
    """``nn.Linear`` with weights from ``generator``."""
    return _initialise(nn.utils.skip_init(nn.Linear, in_features, out_features), generator)


@torch.no_grad()
def _initialise(layer: Any, generator: torch.Generator | None) -> Any:
    """Draw weight, then bias, uniform in [-1/sqrt(fan_in), 1/sqrt(fan_in)].

    That is what torch's default, Kaiming-uniform with a = sqrt(5), comes to; the layer was built without drawing
    anything, so the global generator stays where it was.
    """
    limit = 1 / math.sqrt(layer.weight[0].numel())
    for parameter in layer.parameters():
        parameter.uniform_(-limit, limit, generator=generator)
    return layer
