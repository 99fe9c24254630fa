"""nn.Conv2d: one position per output pixel, with the input patch under it (im2col). nn.Conv1d: the same of images of height 1.

nn.Conv3d: the same of volumes, for which torch has no im2col; patches are copies of overlapping windows, and their transpose is autograd's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: The names of weight and bias.
PARAMETERS = ("weight", "bias")


#: Module types of this file.
TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def unsupported(module: Convolution) -> str | None:
    """Padding that im2col does not reproduce."""
    if module.padding_mode != "zeros" and any(module._reversed_padding_repeated_twice):
        return f"it pads with {module.padding_mode!r}"
    if module.padding == "same" and any(total % 2 for total in _same_padding(module)):
        return "it has padding='same' with an even kernel"
    return None


def fan_in(module: Convolution) -> int:
    """Entries of one filter; of its settings, because a parametrised weight is computed when it is read."""
    return module.in_channels // module.groups * math.prod(module.kernel_size)


def taken(module: Convolution, num_views: int, inputs: Tensor) -> Tensor:
    """inputs: (n * S, channels, [[depth,] height,] width) -> (n, S, q, d, T), channel-major like the weight."""
    groups, size, inputs = module.groups, fan_in(module), as_images(module, inputs)
    if by_im2col(module, inputs):
        columns = F.unfold(inputs, kernel_size(module), **geometry(module))  # (n * S, channels * kh * kw, T)
        return columns.reshape(-1, num_views, groups, size, columns.shape[2])
    windows = _windows(module, inputs).unflatten(0, (-1, num_views)).unflatten(2, (groups, -1))
    dimensions = len(kernel_size(module))
    of_output, of_filter = range(4, 4 + dimensions), range(4 + dimensions, 4 + 2 * dimensions)
    positions = windows.shape[4 : 4 + dimensions].numel()
    # The views of an input lie behind its channels, so that whoever wants them as positions copies nothing.
    return (
        windows.permute(0, 2, 3, *of_filter, 1, *of_output)
        .reshape(-1, groups, size, num_views, positions)
        .movedim(3, 1)
    )


def _windows(module: Convolution, inputs: Tensor) -> Tensor:
    """The patches as a view of the padded inputs. (n * S, channels, [d,] h, w) -> (n * S, channels, [d,] h, w, [kd,] kh, kw)."""
    windows = F.pad(inputs, [side for both in reversed(padding(module)) for side in (both, both)])
    steps = zip(kernel_size(module), *(geometry(module)[name] for name in ("stride", "dilation")), strict=True)
    for dimension, (size, stride, dilation) in enumerate(steps):
        windows = windows.unfold(2 + dimension, dilation * (size - 1) + 1, stride)[..., ::dilation]
    return windows


def by_im2col(module: Convolution, inputs: Tensor) -> bool:
    """Whether to copy patches by im2col, not from a view of overlapping windows.

    On a GPU im2col starts a kernel for every image: the view's one copy took a fraction of its time.
    """
    return inputs.device.type == "cpu" and not isinstance(module, nn.Conv3d)


def added(module: Convolution, positions: Tensor, shape: torch.Size) -> Tensor:
    """The transpose of :func:`taken` (col2im). positions: (n, S, q, d, T) -> ``shape``, that of the inputs."""
    if isinstance(module, nn.Conv3d):
        with torch.enable_grad():
            source = positions.new_zeros(shape, requires_grad=True)
            patches = taken(module, positions.shape[1], source)
        return torch.autograd.grad(patches, source, positions)[0]
    columns = positions.flatten(0, 1).flatten(1, 2)
    size = (shape[-2] if isinstance(module, nn.Conv2d) else 1, shape[-1])
    return F.fold(columns, size, kernel_size(module), **geometry(module)).reshape(shape)


def as_images(module: Convolution, values: Tensor) -> Tensor:
    """Inputs or outputs (..., channels, [[depth,] height,] width) with a height, 1 of what has none."""
    return values.unsqueeze(-2) if isinstance(module, nn.Conv1d) else values


def kernel_size(module: Convolution) -> tuple[int, ...]:
    """([depth,] height, width)."""
    return _with_height(module.kernel_size, 1)


def geometry(module: Convolution) -> dict[str, Any]:
    """Where the filters stand, as torch's convolutions and im2col of images take it."""
    return {
        "stride": _with_height(module.stride, 1),
        "padding": padding(module),
        "dilation": _with_height(module.dilation, 1),
    }


def gradients(module: Convolution, pulled: Tensor, num_views: int) -> Tensor:
    """pulled: (n * S, k, out, [[depth,] height,] width) -> (n, S, k, q, o, T)."""
    fan_out = module.out_channels // module.groups
    return pulled.reshape(-1, num_views, pulled.shape[1], module.groups, fan_out, pulled.shape[3:].numel())


def padding(module: Convolution) -> tuple[int, ...]:
    """Zeros at either side, ([depth,] height, width)."""
    if not isinstance(module.padding, str):
        return _with_height(module.padding, 0)
    sides = [0 if module.padding == "valid" else total // 2 for total in _same_padding(module)]
    return _with_height(sides, 0)


def _same_padding(module: Convolution) -> list[int]:
    """Both sides together, by dimension."""
    return [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]


def _with_height(values: Sequence[int], of_height: int) -> tuple[int, ...]:
    """([depth,] height, width) of settings for each dimension of a layer, which may have no height."""
    return (of_height,) * (2 - len(values)) + tuple(values)
