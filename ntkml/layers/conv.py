"""nn.Conv2d: one position per output pixel, with the input patch under it (im2col)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ntkml.layers.positions import Positions


def check(name: str, module: nn.Conv2d) -> None:
    """Raises ValueError for padding that im2col does not reproduce."""
    if module.padding_mode != "zeros" and any(module._reversed_padding_repeated_twice):
        raise ValueError(f"Conv2d {name!r} pads with {module.padding_mode!r}: pad explicitly in front of it and set padding=0")
    _padding(name, module)


def positions(module: nn.Conv2d, inputs: Tensor, gradients: Tensor, num_views: int) -> Positions:
    """inputs: (n * S, channels, height, width), gradients: (n * S, k, out, height, width)."""
    num_cotangents, q = gradients.shape[1], module.groups
    patches = F.unfold(
        inputs, module.kernel_size, dilation=module.dilation, padding=_padding("", module), stride=module.stride
    )  # (n * S, channels * kh * kw, T), channel-major like the weight
    fan_in = patches.shape[1] // q
    a = patches.reshape(-1, num_views, q, fan_in, patches.shape[2])
    g = gradients.reshape(-1, num_views, num_cotangents, q, module.out_channels // q, patches.shape[2]).transpose(1, 2)
    return Positions(a, g, module.weight.requires_grad, module.bias is not None and module.bias.requires_grad)


def _padding(name: str, module: nn.Conv2d) -> tuple[int, ...]:
    if not isinstance(module.padding, str):
        return tuple(module.padding)
    if module.padding == "valid":
        return (0, 0)
    total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    if any(t % 2 for t in total):
        raise ValueError(f"Conv2d {name!r} has padding='same' with an even kernel: pad explicitly in front of it")
    return tuple(t // 2 for t in total)
