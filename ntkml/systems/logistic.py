"""l2-regularised logistic regression as a bilevel problem: the experiment of the HOAG paper."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ntkml.systems.hoag import Bilevel


def logistic_regression(train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]) -> Bilevel:
    """The regularisation of a linear classifier without intercept, chosen on validation data.

    h(x, lambda) = sum over train of log(1 + exp(-b_i a_i^T x)) + 1/2 e^lambda ||x||^2, g = the same sum over validation
    without the penalty. Each part: features a (n, P) and labels b (n,) in {-1, 1}, in float64. lambda: (1,).

    Raises:
        ValueError: labels other than -1 and 1.
    """
    for _, labels in (train, validation):
        if not bool((labels.abs() == 1).all()):
            raise ValueError("labels of logistic regression are -1 or 1; got others: write 2 * label - 1")

    def loss(part: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
        return F.softplus(-part[1] * (part[0] @ x)).sum()

    return Bilevel(
        inner=lambda x, lam: loss(train, x) + 0.5 * (lam.exp() * x.square().sum()).sum(),
        outer=lambda x, lam: loss(validation, x),
    )


def standardised(train: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Features with mean 0 and variance 1 on ``train``; the others are moved alike. Constant features become 0 there."""
    mean, deviation = train.mean(0), train.std(0, correction=0)
    scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    return tuple((part - mean) / scale for part in (train, *others))
