"""nn.Linear: one position, or one per entry of the middle dimensions of (n, ..., d) inputs."""

from __future__ import annotations

from torch import Tensor, nn

from ntkml.layers.positions import Positions


def check(name: str, module: nn.Linear) -> None:
    """Every nn.Linear is supported."""


def positions(module: nn.Linear, inputs: Tensor, gradients: Tensor, num_views: int) -> Positions:
    """inputs: (n * S, ..., d), gradients: (n * S, k, ..., o)."""
    num_cotangents = gradients.shape[1]
    a = inputs.reshape(-1, num_views, 1, _middle(inputs, 1), inputs.shape[-1]).transpose(-1, -2)
    g = gradients.reshape(-1, num_views, num_cotangents, 1, _middle(gradients, 2), gradients.shape[-1])
    return Positions(
        a, g.transpose(-1, -2).transpose(1, 2), module.weight.requires_grad, module.bias is not None and module.bias.requires_grad
    )


def _middle(tensor: Tensor, start: int) -> int:
    return tensor.shape[start:-1].numel()
