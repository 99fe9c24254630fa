"""The input of a layer at every position (im2col), and its pairing with given filters, one layer's patches at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Patches:
    """``taken``: what a layer was given, (n * S, ...), as its input at every position, (n, S, q, d, T).

    ``added``: the transpose, which adds up such values where they come from: (n, S, q, d, T) and the shape to return.
    """

    taken: Callable[[Tensor], Tensor]
    added: Callable[[Tensor, torch.Size], Tensor]


def paired(source: Tensor, gradients: Tensor, filters: Tensor, patches: Patches) -> Tensor:
    """sum over inputs, views and positions of <g, V a> with a = patches(source). Scalar, with its graph.

    source: (n * S, ...); gradients: g, (n, S, k, q, o, T); filters: V, (n, q, k * o, d), a constant.
    """
    total: Tensor = _Paired.apply(source, gradients, filters, patches)
    return total


def side_by_side(values: Tensor) -> Tensor:
    """Views as positions. (n, S, q, m, T) -> (n, q, m, S * T)."""
    return values.movedim(1, -2).flatten(-2)


class _Paired(torch.autograd.Function):
    """The gradients are V a in g and V^T g in a: neither needs the patches, which autograd would keep for every layer."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, gradients: Tensor, filters: Tensor, patches: Patches) -> Tensor:
        mapped = _product(filters, patches.taken(source), by_view(gradients))
        mapped = mapped.unflatten(3, gradients.shape[2:5:2])  # (n, S, q, k, o, T)
        ctx.save_for_backward(source, gradients, filters, mapped)
        ctx.patches = patches
        return (mapped * gradients.transpose(2, 3)).sum()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        if torch.is_grad_enabled():  # what is saved does not know the patches it comes from
            raise RuntimeError("a pairing has no second derivative: leave out create_graph")
        source, gradients, filters, mapped = ctx.saved_tensors
        to_gradients = scale * mapped.transpose(2, 3) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, to_gradients, None, None
        pulled = gradients.transpose(2, 3).flatten(3, 4)  # (n, S, q, k * o, T)
        to_inputs = _product((scale * filters).transpose(-1, -2), pulled, by_view(gradients))
        return ctx.patches.added(to_inputs, source.shape), to_gradients, None, None


def by_view(gradients: Tensor) -> bool:
    """Whether a view has so many positions that its products are better taken alone: on a CPU, where copies cost most."""
    _, _, k, _, o, num_positions = gradients.shape
    return num_positions >= k * o and gradients.device.type == "cpu"


def _product(matrices: Tensor, values: Tensor, view_by_view: bool) -> Tensor:
    """Every input's matrix times its values. matrices: (n, q, m, d), values: (n, S, q, d, T) -> (n, S, q, m, T).

    Not view by view the views are positions: a product for each would copy the matrices, the larger ones then.
    """
    if view_by_view:
        return matrices.unsqueeze(1) @ values
    num_views, num_positions = values.shape[1], values.shape[4]
    return (matrices @ side_by_side(values)).unflatten(-1, (num_views, num_positions)).movedim(-2, 1)
