"""Layers seen as one shared linear map applied at many positions: what rows, Grams and Kronecker factors are made of.

A linear layer on vectors has one position; a convolution has one per output pixel; an average over S augmentation views
multiplies the positions by S. Every layer type gives its :class:`Positions`; everything above knows only those.
"""

from __future__ import annotations

from torch import nn

from ntkml.layers import conv, linear
from ntkml.layers.positions import Positions as Positions

_LAYERS = {nn.Linear: linear, nn.Conv2d: conv}

#: Module types whose parameters have rows.
LAYER_TYPES: tuple[type[nn.Module], ...] = tuple(_LAYERS)


def layer_for(module: nn.Module):  # type: ignore[no-untyped-def]  # a module of this package, one per layer type
    """The code for a module's type: a python module with ``check(name, module)`` and ``positions(module, a, g, S)``."""
    return next(code for kind, code in _LAYERS.items() if isinstance(module, kind))
