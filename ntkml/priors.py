"""Gaussian priors p(w) = N(0, P0^-1) with a diagonal precision P0: one value, one per tensor, or one per parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ntkml.arguments import as_numbers

#: Shapes by parameter name, in the order of the network; what "layerwise" counts.
Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True)
class PriorPrecision:
    """The diagonal of P0, in 1 / (units of a weight)^2.

    ``values`` holds one precision (``kind`` "scalar"), one per parameter tensor, weight and bias apart ("layerwise"), or
    one per parameter in the network's order ("diagonal"); numbers become a float64 tensor. It may require a gradient:
    every result is differentiable in it.
    """

    values: Tensor
    kind: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", as_values(self.values))

    def __str__(self) -> str:
        low, high = float(self.values.detach().min()), float(self.values.detach().max())
        return f"{self.kind} prior precision {low:g}" + (f" to {high:g}" if high > low else "")

    def of(self, shapes: Shapes) -> dict[str, Tensor]:
        """float64 precision by parameter name: a scalar tensor, or (size,) for a diagonal prior."""
        values = self.values.double()
        if self.kind == "scalar":
            return {name: values.reshape(()) for name in shapes}
        if self.kind == "layerwise":
            return dict(zip(shapes, values.unbind(), strict=True))
        sizes = [shape.numel() for shape in shapes.values()]
        return dict(zip(shapes, values.split(sizes), strict=True))

    def diagonal(self, shapes: Shapes) -> Tensor:
        """All of the diagonal in the network's order, (P,), float64."""
        return torch.cat([precision.expand(shapes[name].numel()) for name, precision in self.of(shapes).items()])

    def scaled(self, factor: Tensor | float) -> PriorPrecision:
        """The prior with every precision times ``factor`` (Gaussian noise enters a log-determinant only this way)."""
        return PriorPrecision(self.values.double() * factor, self.kind)

    def to(self, device: torch.device) -> PriorPrecision:
        """The prior on another device; gradients flow back to the original values."""
        return PriorPrecision(self.values.to(device), self.kind)

    def squares(self, weights: Mapping[str, Tensor]) -> Tensor:
        """What the precisions multiply in w^T P0 w: squared weights, summed over those that share one.

        float64, shaped like ``values`` and on their device, wherever the weights are.
        """
        if self.kind == "diagonal":
            squares = torch.cat([weight.detach().double().reshape(-1) for weight in weights.values()]).square()
        else:
            norms = [torch.linalg.vector_norm(weight.detach(), dtype=torch.float64) for weight in weights.values()]
            squares = torch.stack(norms).square()
        squares = squares.sum(0, keepdim=True) if self.kind == "scalar" else squares
        return squares.to(self.values.device)

    def energy(self, weights: Mapping[str, Tensor]) -> Tensor:
        """1/2 w^T P0 w, scalar, in the weights' own type and differentiable in the weights alone, for their loss."""
        dtype = reduce(torch.promote_types, {weight.dtype for weight in weights.values()})
        values = self.values.detach().to(next(iter(weights.values())).device, dtype)
        if self.kind == "diagonal":
            return 0.5 * (values * torch.cat([weight.reshape(-1) for weight in weights.values()]).square()).sum()
        energy: Tensor = _Energy.apply(values.expand(len(weights)), *weights.values())
        return energy

    def quadratic_form(self, weights: Mapping[str, Tensor]) -> Tensor:
        """w^T P0 w, scalar, in float64."""
        return self.values.double().reshape(-1) @ self.squares(weights)


def as_values(given: float | Sequence[float] | Tensor) -> Tensor:
    """Precisions as a tensor: numbers in float64, a tensor as it is. Raises ValueError for anything else."""
    return as_numbers(given, "a prior precision is a number or a tensor of numbers")


def as_prior(prior: float | Tensor | PriorPrecision, shapes: Shapes) -> PriorPrecision:
    """The prior that ``prior`` means for a network with parameters ``shapes``.

    A float or a tensor of one value is scalar; a tensor with one value per parameter tensor is layerwise; one with one
    value per parameter is diagonal.

    Raises:
        ValueError: another number of values, or a precision that is not finite and positive.
    """
    if isinstance(prior, PriorPrecision):
        values, kind = prior.values, prior.kind
    else:
        values, kind = as_values(prior), ""
    num_tensors, num_params = len(shapes), sum(shape.numel() for shape in shapes.values())
    sizes = {"scalar": 1, "layerwise": num_tensors, "diagonal": num_params}
    kind = kind or next((name for name, size in sizes.items() if values.numel() == size), "")
    if kind not in sizes or values.numel() != sizes[kind]:
        raise ValueError(
            f"a prior precision has 1 value (scalar), {num_tensors} (layerwise: one per parameter tensor) or "
            f"{num_params} (diagonal: one per parameter) for this network; got {values.numel()}"
            + (f" with kind {kind!r}" if kind else "")
        )
    bad = values.detach()[~(torch.isfinite(values.detach()) & (values.detach() > 0))]
    if bad.numel():
        raise ValueError(f"a prior precision must be positive and finite; got {bad.reshape(-1)[0].item():g}")
    return PriorPrecision(values.reshape(-1), kind)


class _Energy(torch.autograd.Function):
    """1/2 sum_l p_l |w_l|^2 with the gradient p_l w_l.

    Autograd's own would start eleven operations for every tensor, which is what a GPU's host then spends a step of the weights on.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(precisions: Tensor, *weights: Tensor) -> Tensor:
        return 0.5 * (precisions * torch.stack(torch._foreach_norm(weights)).square()).sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        precisions, *weights = ctx.saved_tensors
        return None, *torch._foreach_mul(weights, (gradients[0] * precisions).unbind())

    @staticmethod
    def jvp(ctx: Any, _: Tensor | None, *tangents: Tensor) -> Tensor:
        precisions, *weights = ctx.saved_tensors
        moved = [(weight * tangent).sum() for weight, tangent in zip(weights, tangents, strict=True)]
        return (precisions * torch.stack(moved)).sum()
