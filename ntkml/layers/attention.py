"""nn.MultiheadAttention of sequences to themselves: between its two projections, which are linear layers, nothing is learned.

torch computes all of it in one function, which calls no layer. Its output is replaced by that of the same operations one after
another, so that both projections have edges. ``out_proj`` is not called here either: torch never runs its hooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ntkml.layers.linear import added, gradients, taken

__all__ = ["added", "gradients", "taken"]  # the projection of the inputs has the positions of a linear layer

#: The names of the weight and bias that project the inputs.
PARAMETERS = ("in_proj_weight", "in_proj_bias")

_CALL = signature(nn.MultiheadAttention.forward)


def unsupported(module: nn.MultiheadAttention) -> str | None:
    """Settings under which a batch is not attended to as below."""
    if not module._qkv_same_embed_dim:
        return "its keys or values have other sizes than its queries"
    if module.bias_k is not None or module.add_zero_attn:
        return "it adds keys and values to those of its inputs"
    return None


def unsupported_call(module: nn.MultiheadAttention, given: tuple[Any, ...], named: Mapping[str, Any]) -> str | None:
    """Why the rows of a call would be wrong, or None."""
    try:
        called = _arguments(module, given, named)
    except TypeError:
        return "it is called with other arguments than nn.MultiheadAttention"
    if not (called["query"] is called["key"] is called["value"]):
        return "it attends to other inputs than its own"
    return None if called["query"].ndim == 3 else "it does not see the batch in its first dimension"


def fan_in(module: nn.MultiheadAttention) -> int:
    """Entries of one row of the weight that projects the inputs."""
    return module.embed_dim


def projected(module: nn.MultiheadAttention, inputs: Tensor) -> Tensor:
    """Queries, keys and values side by side. (n, T, E) -> (n, T, 3 E)."""
    return F.linear(inputs, module.in_proj_weight, module.in_proj_bias)


def mixed_values(
    module: nn.MultiheadAttention, projected: Tensor, given: tuple[Any, ...], named: Mapping[str, Any]
) -> Tensor:
    """The inputs of ``out_proj`` in a call with these arguments. projected: (n, T, 3 E) -> (n, T, E)."""
    called = _arguments(module, given, named)
    by_head = projected.unflatten(-1, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, n, heads, T, e)
    queries, keys, values = by_head.unbind(0)
    mask = _mask(called["attn_mask"], called["key_padding_mask"], queries)
    return F.scaled_dot_product_attention(queries, keys, values, mask).transpose(1, 2).flatten(2)


def output(module: nn.MultiheadAttention, mixed: Tensor, own: Tensor) -> Tensor:
    """What the module gives: the same as ``own``, torch's output, no number where that is none. (n, T, E) each.

    torch gives NaN for a query whose keys are all masked if it gives the weights too, and zeros otherwise.
    """
    return F.linear(mixed, module.out_proj.weight, module.out_proj.bias) + 0.0 * own.detach()


def _arguments(module: nn.MultiheadAttention, given: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    bound = _CALL.bind(module, *given, **named)
    bound.apply_defaults()
    return bound.arguments


def _mask(between: Tensor | None, padding: Tensor | None, queries: Tensor) -> Tensor | None:
    """What is added to the logits: masks (T, T) or (n * heads, T, T), and (n, T) of keys, with -inf for True."""
    masks = []
    if between is not None:
        masks.append(between if between.ndim == 2 else between.unflatten(0, queries.shape[:2]))
    if padding is not None:
        masks.append(padding[:, None, None])
    if not masks:
        return None
    added = [
        torch.zeros_like(m, dtype=queries.dtype).masked_fill(m, -torch.inf) if m.dtype == torch.bool else m
        for m in masks
    ]
    return torch.stack(torch.broadcast_tensors(*added)).sum(0)
