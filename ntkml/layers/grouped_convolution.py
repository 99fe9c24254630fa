"""Every input's own weight gradient of a convolution, and the product of such gradients with given ones, without im2col.

The n inputs become n groups of channels of one convolution: group n has its own filters, and the S views of an input are the
batch, over which a weight gradient sums anyway. For 50 inputs of 8 views on MiniNet's first two layers rows took 12 and 4 ms
on one core where im2col and a product took 16 and 10, products with given gradients 33 and 20 ms where they took 71 and 262.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from ntkml.layers import conv


@dataclass(frozen=True)
class GroupedConvolution:
    """A convolution ``module`` with its inputs (n * S, channels, height, width) and k cotangents (n * S, k, out, h, w) each."""

    module: nn.Conv1d | nn.Conv2d
    inputs: Tensor
    pulled: Tensor
    num_views: int

    def rows(self) -> Tensor:
        """J[n, k] = sum over views and positions of g a^T. Shape (n, k, size)."""
        n, k, q, o = self._counts
        gradients = self._by_input(self.pulled.unflatten(2, (q, o)).transpose(1, 2))  # (S, n * q * k * o, h, w)
        filters = (n * q * k * o, *self._filter)
        rows = conv2d_weight(self._images, filters, gradients, **conv.geometry(self.module), groups=n * q)
        return rows.reshape(n, q, k, -1).transpose(1, 2).flatten(2)

    def pair(self, gradient: Tensor) -> Tensor:
        """<V, J> as <V * a, g>: the inputs convolved with V as filters. gradient: V, (n, k, size). Scalar, with its graph."""
        n, k, q, o = self._counts
        filters = gradient.unflatten(2, (q, -1)).transpose(1, 2).reshape(-1, *self._filter)
        convolved = F.conv2d(
            self._images, filters, **conv.geometry(self.module), groups=n * q
        )  # (S, n * q * k * o, h, w)
        convolved = convolved.unflatten(1, (n, q, k, o)).permute(1, 0, 3, 2, 4, 5, 6)  # as the cotangents are
        return (convolved * self.pulled.unflatten(0, (n, -1)).unflatten(3, (q, o))).sum()

    @property
    def _counts(self) -> tuple[int, int, int, int]:
        """Inputs n, cotangents k, groups q of channels, fan-out o."""
        groups = self.module.groups
        return len(self.pulled) // self.num_views, self.pulled.shape[1], groups, self.module.out_channels // groups

    @property
    def _filter(self) -> tuple[int, ...]:
        """Shape of one filter: (channels of a group, height, width)."""
        return self.module.in_channels // self.module.groups, *conv.kernel_size(self.module)

    @property
    def _images(self) -> Tensor:
        """(S, n * channels, height, width)."""
        return self._by_input(self.inputs)

    def _by_input(self, values: Tensor) -> Tensor:
        """Views in front, everything of one input side by side. (n * S, ..., height, width) -> (S, n * ..., height, width)."""
        return values.unflatten(0, (-1, self.num_views)).transpose(0, 1).flatten(1, -3)


def grouped_is_faster(inputs: Tensor, pulled: Tensor, num_views: int, channel_groups: int) -> bool:
    """Whether to take it: where oneDNN has such convolutions, a CPU's float32, and filters are used at many positions.

    Every input and cotangent has filters of its own. For 8 inputs of 64, 128 and 256 channels at 32 x 32, 16 x 16 and 8 x 8
    positions rows took 0.6, 0.8 and 3.5 times as long as by im2col with one cotangent, 1.2, 2.1 and 2.3 times with nine.
    """
    positions = num_views * pulled.shape[-2:].numel()
    filters = pulled.shape[1] * inputs.shape[1] // channel_groups
    on_cpu = inputs.device.type == "cpu" and inputs.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return on_cpu and positions >= 2 * filters
