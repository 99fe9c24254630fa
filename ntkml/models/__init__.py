"""The networks of the experiments: ``build_model(name, input_shape, num_classes, generator)``."""

from __future__ import annotations

import torch
from torch import nn

from ntkml import registry


def build_model(
    name: str, input_shape: tuple[int, int, int], num_classes: int, generator: torch.Generator | None = None
) -> nn.Module:
    """A freshly initialised network by name (``registry.MODELS``), on the CPU in float32.

    Args:
        name: for example ``mininet``.
        input_shape: (channels, height, width) of one input.
        num_classes: C, the number of outputs (logits).
        generator: where the initial weights are drawn from; None is torch's global generator.

    Raises:
        ValueError: the name is unknown, or the model does not take this input shape or number of classes.
    """
    return registry.resolve(registry.MODELS, name, "model")(input_shape, num_classes, generator)
