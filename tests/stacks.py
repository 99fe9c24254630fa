"""Networks of given layers, one after the other, and inputs for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.factories import generator, seeded


def network(*layers: nn.Module) -> nn.Module:
    return seeded(nn.Sequential(*layers))


def vectors(num_inputs: int = 6, width: int = 4) -> Tensor:
    return _drawn(num_inputs, width)


def images(num_inputs: int = 6, channels: int = 2) -> Tensor:
    return _drawn(num_inputs, channels, 4, 4)


def tokens(num_inputs: int = 6) -> Tensor:
    return _drawn(num_inputs, 1, 3, 4)


def _drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(1), dtype=torch.float64)
