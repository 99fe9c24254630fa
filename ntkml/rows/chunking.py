"""How much of a block is held at a time: inputs per chunk, and groups of parameter tensors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import nn

from ntkml.layers.layer_rows import layer_of
from ntkml.machine.devices import suited
from ntkml.machine.memory import is_out_of_memory
from ntkml.rows.capture import capture
from ntkml.rows.exact import RowPlan

#: Graph of one chunk, in bytes, that an automatic chunk aims at: a CPU's chunks should also stay near its caches. On a GPU small ones
#: leave it idle: with 4, 8 and 16 GiB ntk with eta took 5.9, 4.1 and 3.8 times plain training (WRN-16-4, 50 inputs, S = 20, an H100).
CHUNK_BYTES = {"cpu": 512 * 2**20, "cuda": 8 * 2**30}

#: Network inputs (views included) of an automatic chunk on a CPU: on MiniNet 512 were slower (1000 inputs, times of plain
#: training: kfac-N-1 2.11 and 1.91, diag-N-C 4.67 and 4.22) or not faster (eta), and took twice the memory; 128 were slower too.
MAX_CPU_INPUTS = 256

#: Explicit rows of the largest tensor, in bytes, whose squares are added up at a time. 100 inputs of MiniNet on a CPU: 5.4 times plain
#: training and 31 MiB with 16 MiB, 4.9 to 5.2 times (noise 10%) and 62 MiB with all nine columns.
SQUARED_BYTES = {"cpu": 16 * 2**20, "cuda": 2**30}

#: Explicit rows of one block, or their gradient, in bytes, that are held at a time; beyond it the parameter tensors take turns, and
#: every turn captures all chunks again.
ROWS_BYTES = 8 * 2**30

_LOG = logging.getLogger("ntkml")
Result = TypeVar("Result")


class BlockMemoryError(ValueError):
    """A block of a partition does not fit into memory, not even one input at a time."""


def chunks(num_inputs: int, size: int) -> list[slice]:
    """Slices of at most ``size`` inputs."""
    return [slice(start, min(start + size, num_inputs)) for start in range(0, num_inputs, size)]


def automatic_chunk(
    model: nn.Module,
    plan: RowPlan,
    example: torch.Tensor,
    num_columns: int,
    factors: bool = False,
    second_pass: bool = True,
) -> int:
    """Inputs per chunk so that the graph of a chunk takes about :data:`CHUNK_BYTES`.

    What rows are made from is held about three times (forward, gradient, copies), so are the patches of one layer at a time, the
    output gradients four times for each of the ``num_columns`` cotangents: what the second pass was measured to need.

    Args:
        example: the views of one input, (S, ...).
        factors: whether Kronecker factors are all that is asked for.
        second_pass: whether a gradient in the forward pass follows. Without it factors take the columns one at a time, and
            the patches of one layer at a time.
    """
    in_turn = factors and not second_pass
    num_columns = 1 if in_turn else num_columns
    largest_patches = 0
    captured = capture(model, example, len(example), plan=plan)
    pulled = captured.pull_back(torch.ones_like(captured.outputs), keep_graph=False)
    exact = sum(model.get_parameter(name).numel() for name in plan.exact)
    numbers = 4 * (num_columns + 1) * exact + 1  # exact rows of an input have every parameter, once for all its views
    for layer, edges in zip(captured.layers, pulled, strict=True):
        for one in layer.maps:
            made = one.over_views() if factors else one
            gradient = edges[layer.edges.index(one.edges[0])]
            patches = 0 if one.grouped(_columns(gradient, num_columns)) and not factors else made.num_patches()
            largest_patches = max(largest_patches, patches)
            # Factors of a second pass keep the patches of all layers, averaged over the views.
            numbers += 3 * (patches if factors and second_pass else one.inputs.numel())
        numbers += sum(4 * (num_columns + 1) * edge.numel() for edge in edges)
    numbers += 0 if factors and second_pass else 3 * largest_patches
    size = suited(CHUNK_BYTES, example.device) // (numbers * example.element_size())
    return max(1, min(size, MAX_CPU_INPUTS // len(example)) if example.device.type == "cpu" else size)


def _columns(gradient: torch.Tensor, count: int) -> torch.Tensor:
    """The shape of ``count`` such gradients side by side, without their memory."""
    return gradient.unsqueeze(1).expand(-1, count, *gradient.shape[1:])


def columns_squared(shapes: Mapping[str, torch.Size], num_inputs: int, example: torch.Tensor) -> int:
    """Columns of the rows of ``num_inputs`` that are squared together; ``example``: any tensor of their kind."""
    largest = num_inputs * max(shape.numel() for shape in shapes.values()) * example.element_size()
    return max(1, suited(SQUARED_BYTES, example.device) // largest)


def row_groups(shapes: Mapping[str, torch.Size], num_rows: int, entry_bytes: int) -> list[tuple[str, ...]]:
    """Parameter tensors whose explicit rows are held together: as many layers as fit into :data:`ROWS_BYTES`."""
    layers: dict[str, list[str]] = {}
    for name in shapes:
        layers.setdefault(layer_of(name), []).append(name)
    groups: list[list[str]] = [[]]
    held = 0
    for names in layers.values():
        needed = num_rows * entry_bytes * sum(shapes[name].numel() for name in names)
        if groups[-1] and held + needed > ROWS_BYTES:
            groups.append([])
            held = 0
        groups[-1] += names
        held += needed
    return [tuple(group) for group in groups]


def in_memory(compute: Callable[[int], Result], chunk: int, num_inputs: int, described: str) -> tuple[Result, int]:
    """``compute(chunk)`` of one block, and the chunk that it took: where memory runs out it is halved, never the block.

    Args:
        num_inputs: of the block; ``described``: the block in the words of the error.

    Raises:
        BlockMemoryError: memory runs out with one input at a time.
    """
    while True:
        try:
            return compute(chunk), chunk
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            held = min(chunk, num_inputs)
            if held == 1:
                raise BlockMemoryError(
                    f"out of memory: a block of {described} does not fit, one input at a time: choose an estimator with "
                    "fewer inputs or outputs in a block, or kfac"
                ) from error
        chunk = held // 2  # outside of the handler, which would keep what failed alive
        _LOG.warning("out of memory with chunks of %d inputs: continuing with %d", held, chunk)
