"""Layers that scale and shift what they normalise: y = weight * normalised(x) + bias, elementwise; nn.PReLU scales what is negative.

Every input is given its own copy of the parameters (a view, no memory), and the layer's output is computed with those.
Autograd's gradient at the copies is then the row of every input, summed over positions as it is made: neither the layer's
input nor the gradient at its output is kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ntkml.layers.fixup import Bias, Scale

#: Module types of this file.
TYPES: tuple[type[nn.Module], ...] = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.PReLU,
    Bias,
    Scale,
)


def copies(module: nn.Module, num_inputs: int) -> dict[str, Tensor]:
    """The module's own parameters, once per network input. Shape (n * S, *shape) each."""
    own = module.named_parameters(recurse=False)
    return {key: parameter.expand(num_inputs, *parameter.shape) for key, parameter in own}


def output(module: nn.Module, inputs: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """What the module gives for inputs (n * S, ...), each with its own parameters (n * S, *shape)."""
    by_channel = not isinstance(module, (nn.LayerNorm, nn.RMSNorm, Bias, Scale))
    if isinstance(module, nn.PReLU):
        return torch.where(inputs > 0, inputs, _aligned(parameters["weight"], inputs, by_channel) * inputs)
    result = _normalised(module, inputs)
    if "weight" in parameters:
        result = result * _aligned(parameters["weight"], inputs, by_channel)
    if "bias" in parameters:
        result = result + _aligned(parameters["bias"], inputs, by_channel)
    return result


def _normalised(module: nn.Module, inputs: Tensor) -> Tensor:
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(inputs, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.RMSNorm):
        return F.rms_norm(inputs, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(inputs, module.num_groups, eps=module.eps)
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)):
        return F.batch_norm(inputs, module.running_mean, module.running_var, training=False, eps=module.eps)
    if isinstance(module, (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)):
        own = module.training or module.running_mean is None
        kept = (None, None) if own else (module.running_mean, module.running_var)
        return F.instance_norm(inputs, *kept, use_input_stats=own, eps=module.eps)
    return inputs


def _aligned(parameter: Tensor, inputs: Tensor, by_channel: bool) -> Tensor:
    """(n * S, *shape) with ones where it broadcasts: behind the channels, or in front of the last dimensions."""
    shape = list(parameter.shape[1:])
    if by_channel:
        shape += [1] * (inputs.ndim - 1 - len(shape))
    while len(shape) >= inputs.ndim and shape[0] == 1:
        shape.pop(0)  # a parameter written with the dimension of the batch
    if len(shape) >= inputs.ndim:
        raise ValueError(
            f"a bias or scale of shape {tuple(parameter.shape[1:])} does not broadcast against one input of shape "
            f"{tuple(inputs.shape[1:])}: leave out the dimension of the batch"
        )
    return parameter.reshape(len(parameter), *[1] * (inputs.ndim - 1 - len(shape)), *shape)
