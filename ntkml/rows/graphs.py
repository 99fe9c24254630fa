"""What the graph behind a network's outputs says of its parameters, where numbers may say nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

#: What rows are computed in.
ROW_TYPES = (torch.float32, torch.float64)

#: From here on, torch's index of no padding (-1) without its sign.
_NO_PADDING = 2**63


def uses_of(outputs: Tensor, weights: Mapping[str, nn.Parameter]) -> dict[str, int]:
    """How many operations of the graph behind the outputs take a parameter."""
    names = {id(weight): name for name, weight in weights.items()}
    counts = dict.fromkeys(weights, 0)
    for node in _nodes(_root(outputs)):
        name = names.get(id(getattr(node, "variable", None)))
        if name is not None:
            counts[name] += 1
    return counts


def fewer_digits(outputs: Tensor) -> torch.dtype | None:
    """A real type other than float32 and float64 that an operation of the graph behind the outputs computes in, or None."""
    for node in _nodes(_root(outputs)):
        for made in getattr(node, "_input_metadata", ()):  # of the gradients that it takes: as its own results are
            if made.dtype.is_floating_point and made.dtype not in ROW_TYPES:
                return made.dtype
    return None


def vmap_forgets_padding(outputs: Tensor, parameters: Sequence[nn.Parameter]) -> bool:
    """Whether one of the parameters is looked up, or what it is made into, by an embedding with a padding index.

    vmap forgets that index of an embedding that it has several copies of.
    """
    copied = {id(parameter) for parameter in parameters}
    embeddings = (node for node in _nodes(_root(outputs)) if 0 <= getattr(node, "_saved_padding_idx", -1) < _NO_PADDING)
    return any(id(getattr(node, "variable", None)) in copied for one in embeddings for node in _nodes(one))


def _root(outputs: Tensor) -> Node:
    assert outputs.grad_fn is not None  # a survey refuses outputs without a graph
    return outputs.grad_fn


def _nodes(start: Node) -> Iterator[Node]:
    """The operations of the graph behind one, and its leaves as often as they are used."""
    seen, waiting = {start}, [start]
    while waiting:
        node = waiting.pop()
        yield node
        for before, _ in node.next_functions:
            if before is not None and (hasattr(before, "variable") or before not in seen):
                seen.add(before)
                waiting.append(before)
