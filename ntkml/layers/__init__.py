"""Layers whose rows come out of one forward and backward pass of the whole network.

Linear and convolutional layers are one shared linear map applied at many positions: a linear layer on vectors has one
position, a convolution one per output pixel, and an average over S augmentation views multiplies the positions by S.
The projections of attention are linear layers, recurrent layers two such maps each, and embeddings maps of one-hot inputs;
normalisation, scale and bias layers act elementwise. Every use of a layer gives its :class:`~ntkml.layers.layer_rows.LayerRows`; everything above knows
only those.
"""

from __future__ import annotations

from torch import nn

from ntkml.layers import conv, elementwise, embedding, recurrent

#: Module types whose parameters have rows of their own; the others take exact ones (:mod:`ntkml.rows.exact`).
LAYER_TYPES: tuple[type[nn.Module], ...] = (
    nn.Linear,
    *conv.TYPES,
    *embedding.TYPES,
    nn.MultiheadAttention,
    *recurrent.TYPES,
    *elementwise.TYPES,
)


def computes_as_known(module: nn.Module) -> bool:
    """Whether a module is of one of these types and computes what that type does; a subclass may not."""
    own = type(module)
    return any(
        issubclass(own, kind)
        and all(getattr(own, name, None) is getattr(kind, name, None) for name in ("forward", "_conv_forward"))
        for kind in LAYER_TYPES
    )
