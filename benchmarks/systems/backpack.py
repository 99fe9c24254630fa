"""BackPACK: the exact diagonal of the generalised Gauss-Newton matrix in one extended backward pass."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.cases import Problem


def diagonal(problem: Problem) -> Callable[[], tuple[float, Tensor]]:
    package = importlib.import_module("backpack")
    extension = importlib.import_module("backpack.extensions").DiagGGNExact
    model = package.extend(copy.deepcopy(problem.model))  # its hooks stay on the network
    loss_of = package.extend(nn.CrossEntropyLoss(reduction="sum"))

    def step() -> tuple[float, Tensor]:
        model.zero_grad()
        loss = loss_of(model(problem.x), problem.y)
        with package.backpack(extension()):
            loss.backward()
        weights = list(model.parameters())
        log_precision = torch.zeros(len(weights), requires_grad=True)
        terms = []
        for precision, weight in zip(log_precision.exp(), weights, strict=True):
            log_det = (weight.diag_ggn_exact / precision).log1p().sum()
            terms.append(log_det + precision * weight.detach().square().sum())
        value = -loss.detach() - 0.5 * torch.stack(terms).sum()
        (gradient,) = torch.autograd.grad(-value / len(problem.x), log_precision)
        return float(value.detach()), gradient

    return step
