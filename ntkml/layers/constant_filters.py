"""Convolutions whose filters are constants, for passes that are differentiated twice towards their inputs alone.

The second derivative of torch's own convolution contains the gradient in the filters, whether it is asked for or not: a
convolution with filters as large as the images, two fifths of the kernels' time of an estimate with eta on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode

from ntkml.parameters import Hyperparameter

#: (stride, padding, dilation, groups)
Geometry = tuple[Any, Any, Any, int]


class ConstantFilters(TorchFunctionMode):
    """Within it, the 2-d convolutions of ``modules`` give no gradient to their own parameters; all others stay as they are.

    Their derivatives in the input, of any order, are torch's. A network whose activations are computed again (checkpointing)
    or kept elsewhere takes torch's convolution.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        super().__init__()
        self._filters = {
            id(m.weight): m for m in modules if isinstance(m, nn.Conv2d) and not isinstance(m.padding, str)
        }

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and len(args) == 7 and not kwargs:  # as nn.Conv2d calls it
            inputs, weight, bias, *geometry = args
            module = self._filters.get(id(weight))
            if module is not None and bias is module.bias and inputs.ndim == 4 and not _traced():
                return _Convolution.apply(inputs, weight, bias, tuple(geometry))
        return func(*args, **(kwargs or {}))


def constant_convolutions(model: nn.Module) -> Iterator[nn.Conv2d]:
    """Those whose parameters are weights, frozen or not, and neither learned as hyperparameters nor computed from others."""
    for module in model.modules():
        own = module._parameters
        learned = any(isinstance(parameter, Hyperparameter) for parameter in own.values())
        if isinstance(module, nn.Conv2d) and own.get("weight") is not None and not learned:
            yield module


def _traced() -> bool:
    """Whether what autograd keeps is that of hooks on saved tensors."""
    # Hooks of checkpointing compare what a second forward pass keeps with the first. No public function tells whether there
    # are some; a torch without this one is taken to have them.
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return hooks is None or hooks(True) is not None


class _Convolution(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(inputs: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        return torch.conv2d(inputs, weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        given, weight, _, ctx.geometry = inputs
        ctx.shape = given.shape
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        (weight,) = ctx.saved_tensors
        wanted = ctx.needs_input_grad[0]
        return _Turned.apply(gradient, weight, ctx.shape, ctx.geometry) if wanted else None, None, None, None


class _Turned(torch.autograd.Function):
    """The gradient in the inputs of a convolution, linear in the gradient of its output: its derivative is a convolution."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
        return conv2d_input(shape, weight, gradient, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, weight, _, ctx.geometry = inputs
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return _Convolution.apply(gradient, weight, None, ctx.geometry), None, None, None
