"""laplace-torch, as its own guide uses it: fit on the batch, then the log marginal likelihood and its gradient.

Its ``curvlinops`` backend takes the Kronecker factors of the curvlinops package, its ``asdl`` backend those of asdl.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.cases import Problem
from ntkml.machine.torchvision_shim import torchvision


def kron_curvlinops(problem: Problem) -> Callable[[], tuple[float, Tensor]]:
    return _step(problem, "kron", "CurvlinopsGGN")


def kron_asdl(problem: Problem) -> Callable[[], tuple[float, Tensor]]:
    return _step(problem, "kron", "AsdlGGN")


def diag_asdl(problem: Problem) -> Callable[[], tuple[float, Tensor]]:
    return _step(problem, "diag", "AsdlGGN")


def _step(problem: Problem, structure: str, backend: str) -> Callable[[], tuple[float, Tensor]]:
    torchvision()  # its metrics import it, which fails beside a CPU-only torch unless the shim did first
    laplace = importlib.import_module("laplace")
    curvature = getattr(importlib.import_module("laplace.curvature"), backend)
    loader = DataLoader(TensorDataset(problem.x, problem.y), batch_size=len(problem.x))
    tensors = sum(p.requires_grad for p in problem.model.parameters())

    def step() -> tuple[float, Tensor]:
        options = {"subset_of_weights": "all", "hessian_structure": structure, "backend": curvature}
        fitted = laplace.Laplace(problem.model, "classification", **options)
        fitted.fit(loader)
        log_precision = torch.zeros(tensors, device=problem.x.device, requires_grad=True)
        value = fitted.log_marginal_likelihood(prior_precision=log_precision.exp())
        (gradient,) = torch.autograd.grad(-value / len(problem.x), log_precision)
        return float(value.detach()), gradient

    return step
