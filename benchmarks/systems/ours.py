"""ntkml through its public interface, and plain training: one forward and backward pass of the same batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

import ntkml
from benchmarks.cases import Problem

WIDTHS = (0.1, 0.1, 0.5, 0.1, 0.1, 0.1)  # eta: away from zero, where every view is the image itself


def objective(problem: Problem) -> ntkml.MarginalLikelihood:
    """The objective that is measured, its partition drawn; weights of the network are left alone."""
    views = problem.case.views
    augmentation = ntkml.AffineInvariance(views, torch.tensor(WIDTHS)) if views else None
    made = ntkml.MarginalLikelihood(problem.model, problem.case.estimator, augmentation=augmentation)
    made.resample(problem.x, problem.y, torch.Generator().manual_seed(0))
    return made


def estimate(problem: Problem) -> Callable[[], tuple[float, Tensor]]:
    """Value and gradient of one block, in the prior precision and, with views, in eta."""
    own = objective(problem)

    def step() -> tuple[float, Tensor]:
        own.zero_grad()
        found = own.backward(problem.x, problem.y, 1, torch.Generator().manual_seed(1))
        return float(found.total), own.log_prior_precision.grad

    return step


def cached(problem: Problem) -> Callable[[], tuple[float, Tensor]]:
    """A further prior step on the same block: linear algebra alone."""
    own = objective(problem)
    again = own.cached_backward(problem.x, problem.y, 1, torch.Generator().manual_seed(1))
    again()  # the first one makes what the others share

    def step() -> tuple[float, Tensor]:
        own.zero_grad()
        return float(again().total), own.log_prior_precision.grad

    return step


def plain(problem: Problem) -> Callable[[], None]:
    """Cross-entropy and its gradient in the weights; the views, where there are some, are made once and reused."""
    views = problem.case.views
    x = problem.x
    if views:
        augmentation = ntkml.AffineInvariance(views, torch.tensor(WIDTHS))
        with torch.no_grad():
            x = augmentation(x, augmentation.draw(len(x), torch.Generator().manual_seed(1)))
    weights = [p for p in problem.model.parameters() if p.requires_grad]

    def step() -> None:
        outputs = problem.model(x)
        if views:
            outputs = outputs.unflatten(0, (-1, views)).mean(1)
        torch.autograd.grad(F.cross_entropy(outputs, problem.y), weights)

    return step
