"""Layers seen as one shared linear map applied at many positions: what rows, Grams and Kronecker factors are made of.

A linear layer on vectors has one position; a convolution has one per output pixel; an average over S augmentation views
multiplies the positions by S. Every layer type gives its :class:`Positions`; everything above knows only those.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from ntkml.layers import conv, linear


class LayerCode(Protocol):
    """The functions that a file of this package gives for one module type."""

    def check(self, name: str, module: nn.Module) -> None:
        """Raise ValueError, naming the layer, for a setting whose rows would be wrong."""

    def patches(self, module: nn.Module, inputs: Tensor, num_views: int) -> Tensor:
        """The layer's input at every position. (n * S, ...) -> (n, S, q, d, T)."""

    def gradients(self, module: nn.Module, pulled: Tensor, num_views: int) -> Tensor:
        """The gradients at its output, k cotangents of each. (n * S, k, ...) -> (n, S, k, q, o, T)."""


_LAYERS: dict[type[nn.Module], LayerCode] = {nn.Linear: linear, nn.Conv2d: conv}  # type: ignore[dict-item]

#: Module types whose parameters have rows.
LAYER_TYPES: tuple[type[nn.Module], ...] = tuple(_LAYERS)


def layer_for(module: nn.Module) -> LayerCode:
    """The code for a module's type."""
    return next(code for kind, code in _LAYERS.items() if isinstance(module, kind))
