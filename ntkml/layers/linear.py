"""Linear maps: one position, or one per entry of the middle dimensions of (n, ..., d) inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ntkml.layers.recurrent import Gates

#: The names of weight and bias.
PARAMETERS = ("weight", "bias")


def fan_in(module: nn.Linear | Gates) -> int:
    """Entries of one row of the weight."""
    return module.in_features


def taken(module: nn.Linear | Gates, num_views: int, inputs: Tensor) -> Tensor:
    """inputs: (n * S, ..., d) -> (n, S, 1, d, T)."""
    middle = inputs.shape[1:-1].numel()
    return inputs.reshape(len(inputs) // num_views, num_views, 1, middle, inputs.shape[-1]).transpose(-1, -2)


def added(module: nn.Linear | Gates, positions: Tensor, shape: torch.Size) -> Tensor:
    """The transpose of :func:`taken`. positions: (n, S, 1, d, T) -> ``shape``, that of the inputs."""
    return positions.transpose(-1, -2).reshape(shape)


def gradients(module: nn.Linear | Gates, pulled: Tensor, num_views: int) -> Tensor:
    """pulled: (n * S, k, ..., o) -> (n, S, k, 1, o, T)."""
    middle = pulled.shape[2:-1].numel()
    return pulled.reshape(len(pulled) // num_views, num_views, pulled.shape[1], 1, middle, pulled.shape[-1]).transpose(
        -1, -2
    )


def tokens(values: Tensor, dim: int) -> Tensor:
    """What stands between the dimensions before ``dim`` and the last one, none or several, in one."""
    return values.reshape(*values.shape[:dim], -1, values.shape[-1])
