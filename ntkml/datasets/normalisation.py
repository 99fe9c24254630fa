"""Colours moved to mean 0 and deviation 1, as the networks for colour images are trained on.

Images are normalised before any view is made of them, so that what a view shows beyond an image's border, zero, is the mean
colour. The statistics are those that are usual for each data set, not computed from the images at hand: a subset and a variant
get the same ones.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ntkml.datasets import ImageDataset
from ntkml.registry import unknown_name

#: Mean and standard deviation of the channels red, green, blue over the training images.
STATISTICS = {
    "cifar": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def check_channels(data: ImageDataset, name: str) -> None:
    """Raise ValueError where the normalisation ``name`` ("none" is none) is unknown or for another number of channels."""
    if name == "none":
        return
    if name not in STATISTICS:
        raise ValueError(unknown_name("normalisation", name, ["none", *STATISTICS]))
    channels = data.input_shape[0]
    if channels != 3:
        raise ValueError(
            f"the normalisation {name!r} is for 3 channels and {data.name} has {channels}: write --normalisation none"
        )


def normalised(data: ImageDataset, name: str) -> ImageDataset:
    """``data`` with (value - mean) / deviation in every channel; as it is for "none".

    Raises:
        ValueError: see :func:`check_channels`.
    """
    check_channels(data, name)
    if name == "none":
        return data
    mean, deviation = (torch.tensor(values).reshape(3, 1, 1) for values in STATISTICS[name])
    train, test = ((inputs - mean) / deviation for inputs in (data.train_inputs, data.test_inputs))
    return replace(data, train_inputs=train, test_inputs=test, normalised=True)
