"""Fixup's scalar bias and scale, which stand around the layers of a network without normalisation.

Zhang, Dauphin, Ma, Fixup Initialization (2019). Their rows are those of any elementwise layer
(:mod:`ntkml.layers.elementwise`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Bias(nn.Module):
    """x + bias, with one trainable scalar, or a ``shape`` that broadcasts against one input."""

    def __init__(self, shape: Sequence[int] = (1,)):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(tuple(shape)))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.bias


class Scale(nn.Module):
    """x * weight, with one trainable scalar, initially 1, or a ``shape`` that broadcasts against one input."""

    def __init__(self, shape: Sequence[int] = (1,)):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(tuple(shape)))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.weight
