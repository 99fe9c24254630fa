"""What a random augmentation is to the marginal likelihood: views that are determined by an input and its noise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn


class Augmentation(Protocol):
    """Random views of an input: an nn.Module with these members, such as AffineInvariance. Its parameters are hyperparameters."""

    num_views: int

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is learned."""

    def draw(self, num_inputs: int, generator: torch.Generator | None) -> Tensor:
        """Noise of ``num_inputs`` inputs, first dimension n."""

    def __call__(self, inputs: Tensor, noise: Tensor) -> Tensor:
        """Views (n * S, ...) of inputs (n, ...), differentiable in the parameters."""


def check_views(augmentation: Augmentation, inputs: Tensor) -> None:
    """Look at the views of a few inputs: what an estimate cannot be right for shows in none of its numbers.

    Raises:
        ValueError: another number of views than n * num_views, views that ``noise`` does not determine, or views of an input that depend
            on the others.
    """
    few = inputs[:3]
    with torch.no_grad(), torch.random.fork_rng([few.device] if few.is_cuda else []):
        noise = augmentation.draw(len(few), None)
        views = augmentation(few.clone(), noise)
        expected = len(few) * augmentation.num_views
        if not isinstance(views, Tensor) or len(views) != expected:
            gave = tuple(views.shape) if isinstance(views, Tensor) else type(views).__name__
            raise ValueError(
                f"an augmentation with num_views = {augmentation.num_views} makes {expected} views of {len(few)} inputs, those of one "
                f"adjacent; {type(augmentation).__name__} gave {gave}"
            )
        if not torch.allclose(augmentation(few.clone(), noise), views, rtol=1e-3, atol=1e-5, equal_nan=True):
            raise ValueError(
                f"{type(augmentation).__name__} gives other views for the same noise: draw all random numbers in draw(), or gradients "
                "would be those of other views"
            )
        alone = [augmentation(few[n : n + 1].clone(), noise[n : n + 1]) for n in range(len(few))]
    if not torch.allclose(torch.cat(alone), views, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise ValueError(
            f"the views of {type(augmentation).__name__} depend on the other inputs of the batch: make them from one input and its "
            "noise alone"
        )
