"""nn.Conv2d: one position per output pixel, with the input patch under it (im2col)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def check(name: str, module: nn.Conv2d) -> None:
    """Raises ValueError for padding that im2col does not reproduce."""
    if module.padding_mode != "zeros" and any(module._reversed_padding_repeated_twice):
        raise ValueError(
            f"Conv2d {name!r} pads with {module.padding_mode!r}: pad explicitly in front of it and set padding=0"
        )
    _padding(name, module)


def patches(module: nn.Conv2d, inputs: Tensor, num_views: int) -> Tensor:
    """inputs: (n * S, channels, height, width) -> (n, S, q, d, T)."""
    columns = F.unfold(
        inputs, module.kernel_size, dilation=module.dilation, padding=_padding("", module), stride=module.stride
    )  # (n * S, channels * kh * kw, T), channel-major like the weight
    return columns.reshape(-1, num_views, module.groups, columns.shape[1] // module.groups, columns.shape[2])


def gradients(module: nn.Conv2d, pulled: Tensor, num_views: int) -> Tensor:
    """pulled: (n * S, k, out, height, width) -> (n, S, k, q, o, T)."""
    fan_out = module.out_channels // module.groups
    return pulled.reshape(-1, num_views, pulled.shape[1], module.groups, fan_out, pulled.shape[-2:].numel())


def _padding(name: str, module: nn.Conv2d) -> tuple[int, ...]:
    if not isinstance(module.padding, str):
        return tuple(module.padding)
    if module.padding == "valid":
        return (0, 0)
    total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    if any(t % 2 for t in total):
        raise ValueError(f"Conv2d {name!r} has padding='same' with an even kernel: pad explicitly in front of it")
    return tuple(t // 2 for t in total)
