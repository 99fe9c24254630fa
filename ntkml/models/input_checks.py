"""What a network says of images that it does not take."""

from __future__ import annotations

from ntkml.machine.messages import counted


def wrong_size(model: str, takes: str, input_shape: tuple[int, int, int]) -> ValueError:
    """The error for images of another size; ``takes`` words the sizes that the model takes."""
    channels, height, width = input_shape
    return ValueError(
        f"{model} takes images of {takes}, got {height}x{width} with {counted(channels, 'channel')}: choose --model mlp (any "
        "size) or resnet18-16 (from 8x8 on), or resize the images (folder:PATH@28)"
    )


def check_counts(model: str, input_shape: tuple[int, int, int], num_classes: int) -> None:
    """Raise ValueError where there is no channel or no class."""
    if input_shape[0] < 1 or num_classes < 1:
        raise ValueError(
            f"{model} needs at least one channel and one class, got {input_shape[0]} and {num_classes}: check the data set"
        )
