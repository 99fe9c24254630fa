"""The rows of every layer of one capture: the columns of the factor pulled back to its edges, L^T J layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ntkml.layers.layer_rows import LayerRows
from ntkml.layers.uses import LayerUse
from ntkml.rows.capture import Capture


def rows_by_layer(
    captured: Capture, factor: Tensor, keep_graph: bool, over_views: bool = False
) -> dict[str, LayerRows]:
    """The rows of every layer, its k cotangents pulled back one at a time. factor: (n, C, k).

    ``over_views``: reduced over the views at once, as KFAC asks for and nothing else may: S times less to keep.
    """
    return _rows_of(captured, _uses(captured, over_views), factor, keep_graph, over_views)


def rows_by_columns(
    captured: Capture, factor: Tensor, together: int, over_views: bool
) -> Iterator[dict[str, LayerRows]]:
    """As :func:`rows_by_layer`, ``together`` columns of the factor (n, C, k) after each other: their gradients are held.

    The graph is freed with the last one.
    """
    uses = _uses(captured, over_views)
    columns = factor.split(together, dim=-1)
    for i, column in enumerate(columns):
        yield _rows_of(captured, uses, column, i < len(columns) - 1, over_views)


def _uses(captured: Capture, over_views: bool) -> Sequence[LayerUse]:
    return [use.over_views() for use in captured.layers] if over_views else captured.layers


def rows_twice(
    captured: Capture, factor: Tensor, over_views: bool
) -> tuple[dict[str, LayerRows], dict[str, LayerRows]]:
    """As :func:`rows_by_layer` from a differentiable capture without exact rows: with their graph, and without."""
    uses = _uses(captured, over_views)
    pulled = _pulled(captured, factor, True, over_views)
    plain = (use.detached().rows([g.detach() for g in edges]) for use, edges in zip(uses, pulled, strict=True))
    return _by_name(uses, pulled), dict(zip((use.name for use in uses), plain, strict=True))


def _rows_of(
    captured: Capture, uses: Sequence[LayerUse], factor: Tensor, keep_graph: bool, over_views: bool
) -> dict[str, LayerRows]:
    layers = _by_name(uses, _pulled(captured, factor, keep_graph, over_views))
    return layers if captured.exact is None else {**layers, **captured.exact.rows_by_layer(factor)}


def _by_name(uses: Sequence[LayerUse], pulled: Sequence[Sequence[Tensor]]) -> dict[str, LayerRows]:
    return {use.name: use.rows(edges) for use, edges in zip(uses, pulled, strict=True)}


def _pulled(captured: Capture, factor: Tensor, keep_graph: bool, over_views: bool) -> list[list[Tensor]]:
    """Every column of the factor pulled back to the edges of every layer, (n, k, ...) each, or (n * S, k, ...)."""
    columns: Sequence[Tensor] = factor.unbind(-1)
    pulled = []
    for i, column in enumerate(columns):
        own = captured.pull_back(column, keep_graph or i < len(columns) - 1)
        pulled.append([_summed(gradients, captured.num_views) for gradients in own] if over_views else own)
        del own  # or it would be alive beside the next one
    return [
        [_stack(gradients) for gradients in zip(*(gradients[i] for gradients in pulled), strict=True)]
        for i in range(len(captured.layers))
    ]


def _summed(gradients: Sequence[Tensor], num_views: int) -> tuple[Tensor, ...]:
    """Sums over the S adjacent views of one datum. (n * S, ...) -> (n, ...)."""
    if num_views == 1:
        return tuple(gradients)
    return tuple(gradient.unflatten(0, (-1, num_views)).sum(1) for gradient in gradients)


def _stack(gradients: Sequence[Tensor]) -> Tensor:
    """Side by side in dimension 1; a single one is not copied."""
    return gradients[0].unsqueeze(1) if len(gradients) == 1 else torch.stack(list(gradients), dim=1)
