"""Convolutions whose filters are constants, for passes that are differentiated twice towards their inputs alone.

The second derivative of torch's own convolution contains the gradient in the filters, whether it is asked for or not. It
was two fifths of the time of an estimate with its gradient in eta on a GPU, where the filters of that product are as large
as the images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode


class ConstantFilters(TorchFunctionMode):
    """Within it, 2-d convolutions give no gradient to weights and biases that are ``constant``; all others stay as they are.

    Their gradients in the input, and the derivatives of those, are torch's.
    """

    def __init__(self, constant: Callable[[nn.Parameter], bool]):
        super().__init__()
        self._constant = constant

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and len(args) == 7 and not kwargs:  # as nn.Conv2d calls it
            inputs, weight, bias, stride, padding, dilation, groups = args
            mine = all(isinstance(p, nn.Parameter) and self._constant(p) for p in (weight, bias) if p is not None)
            if mine and not isinstance(padding, str):
                return _Convolution.apply(inputs, weight, bias, (stride, padding, dilation, groups))
        return func(*args, **(kwargs or {}))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.geometry = inputs.shape, geometry
        return torch.conv2d(inputs, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        (weight,) = ctx.saved_tensors
        wanted = ctx.needs_input_grad[0]
        return _Turned.apply(gradient, weight, ctx.shape, ctx.geometry) if wanted else None, None, None, None


class _Turned(torch.autograd.Function):
    """The gradient in the inputs of a convolution, linear in the gradient of its output: its derivative is a convolution."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, weight: Tensor, shape: torch.Size, geometry: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.geometry = geometry
        return conv2d_input(shape, weight, gradient, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return torch.conv2d(gradient, weight, None, *ctx.geometry), None, None, None
