"""nn.Linear: one position, or one per entry of the middle dimensions of (n, ..., d) inputs."""

from __future__ import annotations

from torch import Tensor, nn


def fan_in(module: nn.Linear) -> int:
    """Entries of one row of the weight."""
    return module.in_features


def patches(module: nn.Linear, inputs: Tensor, num_views: int) -> Tensor:
    """inputs: (n * S, ..., d) -> (n, S, 1, d, T)."""
    middle = inputs.shape[1:-1].numel()
    return inputs.reshape(-1, num_views, 1, middle, inputs.shape[-1]).transpose(-1, -2)


def gradients(module: nn.Linear, pulled: Tensor, num_views: int) -> Tensor:
    """pulled: (n * S, k, ..., o) -> (n, S, k, 1, o, T)."""
    middle = pulled.shape[2:-1].numel()
    return pulled.reshape(-1, num_views, pulled.shape[1], 1, middle, pulled.shape[-1]).transpose(-1, -2)
