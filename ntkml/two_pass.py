"""One block's log-determinant and its gradient in whatever enters the forward pass, in memory that one chunk needs.

    pass 1, without a graph, chunk by chunk: rows -> log-determinant and its adjoint V,
    pass 2, chunk by chunk with a graph: d/dh [ rho(chunk) - 1/2 <V, R(chunk)> ], V fixed, R = L(f)^T J.

Only one chunk's graph is alive at a time; beyond it a block costs the rows that a structure keeps: none for kfac, those of
one group of parameter tensors for the others, for which both passes are repeated where the groups are several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ntkml.capture import Capture, capture
from ntkml.chunking import row_groups
from ntkml.exact_rows import RowPlan
from ntkml.layers.layer_rows import LayerRows
from ntkml.likelihoods import Likelihood
from ntkml.partitions import Block
from ntkml.priors import PriorPrecision, Shapes
from ntkml.rows import ChunkedRows, rows_by_layer
from ntkml.structures import Structure, structure_named


@dataclass(frozen=True)
class BlockData:
    """One block of a partition with its data and the views of its inputs.

    ``inputs``: (n, ...), ``targets``: (n, ...); ``views(part)`` gives the views (n * S, ...) of a slice of the inputs,
    always the same ones, differentiable in the augmentation. ``share``: of the likelihood of these inputs, the block's.
    """

    block: Block
    inputs: Tensor
    targets: Tensor
    views: Callable[[slice], Tensor]
    num_views: int
    share: float


@dataclass(frozen=True)
class TwoPass:
    """How blocks are captured: the network and its plan, the likelihood at fixed noise, and ``factor``, columns of L.

    ``factor(outputs)`` gives all columns (n, C, R) of a likelihood's factor; ``chunk`` inputs are captured at a time.
    """

    model: nn.Module
    plan: RowPlan | None
    shapes: Shapes
    structure: str
    likelihood: Likelihood
    factor: Callable[[Tensor], Tensor]
    chunk: int

    def first(self, data: BlockData) -> FirstPass:
        """Rows of one block, without a graph, as its structure."""
        kind = structure_named(self.structure)
        seen = _Outputs()

        def rows_of_chunks() -> Iterator[dict[str, LayerRows]]:
            seen.parts.clear()
            for part in chunks(len(data.inputs), self.chunk):
                with torch.no_grad():
                    views = data.views(part)
                captured = capture(self.model, views, data.num_views, plan=self.plan)
                seen.parts.append(captured.outputs.detach())
                self.likelihood.check_targets(seen.parts[-1], data.targets[part])
                yield rows_by_layer(captured, self._columns(seen.parts[-1], data, part), keep_graph=False)

        entry_bytes = next(self.model.parameters()).element_size()
        groups = row_groups(self.shapes, data.block.num_pairs, entry_bytes)
        structure = kind(ChunkedRows(rows_of_chunks, self.shapes, kind.factored, groups))
        return FirstPass(structure, torch.cat(seen.parts))

    def second(
        self, data: BlockData, first: FirstPass, prior: PriorPrecision, targets: Sequence[nn.Parameter]
    ) -> list[Tensor | None]:
        """Gradient of rho - 1/2 log-determinant in ``targets``, None where it does not depend on one."""
        total: list[Tensor | None] = [None] * len(targets)
        adjoint = first.structure.adjoint(prior)
        for index, names in enumerate(adjoint.groups):
            pairing = adjoint.of(names)
            for part in chunks(len(data.inputs), self.chunk):
                captured = capture(self.model, data.views(part), data.num_views, differentiable=True, plan=self.plan)
                layers = rows_by_layer(captured, self._columns(captured.outputs, data, part), keep_graph=True)
                value = -0.5 * pairing.pair(layers, part)
                if index == 0:
                    value = value + data.share * self._log_prob(captured, data.targets[part])
                gradients = torch.autograd.grad(value, targets, allow_unused=True)
                total = [_sum(old, new) for old, new in zip(total, gradients, strict=True)]
        return total

    def _log_prob(self, captured: Capture, targets: Tensor) -> Tensor:
        return self.likelihood.log_prob(captured.outputs, targets).double().sum()

    def _columns(self, outputs: Tensor, data: BlockData, part: slice) -> Tensor:
        """The block's columns of L for one chunk. Shape (n, C, k)."""
        block = data.block
        columns = block.columns if block.columns.ndim == 1 else block.columns[part]
        return Block(block.inputs[part], columns).select(self.factor(outputs))


@dataclass(frozen=True)
class FirstPass:
    """One block after the pass without a graph: its structure and outputs (n, C)."""

    structure: Structure
    outputs: Tensor


@dataclass(frozen=True)
class _Outputs:
    """Outputs of the chunks as they are captured."""

    parts: list[Tensor] = field(default_factory=list)


def chunks(num_inputs: int, size: int) -> list[slice]:
    """Slices of at most ``size`` inputs."""
    return [slice(start, min(start + size, num_inputs)) for start in range(0, num_inputs, size)]


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    if old is None or new is None:
        return new if old is None else old
    return old + new
