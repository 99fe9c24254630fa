"""nn.Conv2d: one position per output pixel, with the input patch under it (im2col)."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F


def unsupported(module: nn.Conv2d) -> str | None:
    """Padding that im2col does not reproduce."""
    if module.padding_mode != "zeros" and any(module._reversed_padding_repeated_twice):
        return f"it pads with {module.padding_mode!r}"
    if module.padding == "same" and any(total % 2 for total in _same_padding(module)):
        return "it has padding='same' with an even kernel"
    return None


def fan_in(module: nn.Conv2d) -> int:
    """Entries of one filter; of its settings, because a parametrised weight is computed when it is read."""
    return module.in_channels // module.groups * math.prod(module.kernel_size)


def patches(module: nn.Conv2d, inputs: Tensor, num_views: int) -> Tensor:
    """inputs: (n * S, channels, height, width) -> (n, S, q, d, T)."""
    columns = F.unfold(
        inputs, module.kernel_size, dilation=module.dilation, padding=padding(module), stride=module.stride
    )  # (n * S, channels * kh * kw, T), channel-major like the weight
    return columns.reshape(-1, num_views, module.groups, columns.shape[1] // module.groups, columns.shape[2])


def gradients(module: nn.Conv2d, pulled: Tensor, num_views: int) -> Tensor:
    """pulled: (n * S, k, out, height, width) -> (n, S, k, q, o, T)."""
    fan_out = module.out_channels // module.groups
    return pulled.reshape(-1, num_views, pulled.shape[1], module.groups, fan_out, pulled.shape[-2:].numel())


def padding(module: nn.Conv2d) -> tuple[int, ...]:
    """Zeros at either side, by dimension."""
    if not isinstance(module.padding, str):
        return tuple(module.padding)
    return (0, 0) if module.padding == "valid" else tuple(total // 2 for total in _same_padding(module))


def _same_padding(module: nn.Conv2d) -> list[int]:
    """Both sides together, by dimension."""
    return [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
