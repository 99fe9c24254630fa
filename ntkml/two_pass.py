"""One block's log-determinant and its gradient in whatever enters the forward pass, in memory that one chunk needs.

    pass 1, without a graph, chunk by chunk: rows -> log-determinant and its adjoint V,
    pass 2, chunk by chunk with a graph: d/dh [ rho(chunk) - 1/2 <V, R(chunk)> ], V fixed, R = L(f)^T J.

A block of one chunk goes through the network once: its graph is kept for pass 2. Only one chunk's graph is alive at a
time; beyond it a block costs the rows that a structure keeps: none for kfac and diag, those of one group of parameter tensors for
the others. Tensors whose rows do not fit together are taken in groups, and both passes are repeated for each group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ntkml.layers.layer_rows import LayerRows
from ntkml.likelihoods import Likelihood
from ntkml.partitions import Block
from ntkml.priors import PriorPrecision, Shapes
from ntkml.rows.block import Groups
from ntkml.rows.capture import Capture, capture
from ntkml.rows.chunked import ChunkedRows
from ntkml.rows.chunking import chunks, columns_squared, row_groups
from ntkml.rows.exact import RowPlan
from ntkml.rows.plain_passes import missing_derivatives_explained, plain_operations
from ntkml.rows.pulled import rows_by_columns, rows_by_layer, rows_twice
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

    ``factor(outputs, columns)`` gives some columns (n, C, k) of a likelihood's factor; ``chunk`` inputs are captured at a time.
    """

    model: nn.Module
    plan: RowPlan
    shapes: Shapes
    structure: str
    likelihood: Likelihood
    factor: Callable[[Tensor, Tensor], Tensor]
    chunk: int

    def first(self, data: BlockData, adjoint: bool = True) -> FirstPass:
        """Rows of one block as its structure; without ``adjoint`` no second pass can follow."""
        entry_bytes = next(self.model.parameters()).element_size()
        groups = row_groups(self.shapes, data.block.num_pairs, entry_bytes)
        one_chunk = len(data.inputs) <= self.chunk
        together = len(groups) == 1 or self._kind.keeps != "rows"
        if adjoint and one_chunk and together and not self.plan.exact:
            return self._only(data, groups)
        seen: list[Tensor] = []

        def rows_of_chunks() -> Iterator[Iterable[dict[str, LayerRows]]]:
            seen.clear()
            for part in chunks(len(data.inputs), self.chunk):
                outputs, layers = self._chunk_rows(data, part)
                seen.append(outputs)
                yield layers
                del layers  # or they would be alive beside the next ones

        values_only = not adjoint and (one_chunk or self._kind.keeps == "rows")
        structure = self._kind(
            ChunkedRows(
                rows_of_chunks, self.shapes, self._kind.keeps, groups, data.block.num_pairs, values_only, adjoint
            )
        )
        return FirstPass(structure, torch.cat(seen))

    def _only(self, data: BlockData, groups: Groups) -> FirstPass:
        """Rows of a block of one chunk, whose graph is kept for the second pass."""
        everything = slice(0, len(data.inputs))
        captured = self._captured(data, everything)
        self._check_targets(captured.outputs, data)
        factor = self._factor(captured.outputs, data, everything)
        layers, plain = rows_twice(captured, factor, self._over_views)
        structure = self._kind(
            ChunkedRows(
                lambda: [[plain]], self.shapes, self._kind.keeps, groups, data.block.num_pairs, adjoint_follows=True
            )
        )
        return FirstPass(structure, captured.outputs.detach(), ChunkGraph(captured.outputs, layers))

    def second(
        self, data: BlockData, first: FirstPass, prior: PriorPrecision, targets: Sequence[nn.Parameter]
    ) -> list[Tensor | None]:
        """Gradient of rho - 1/2 log-determinant in ``targets``, None where it does not depend on one."""
        total: list[Tensor | None] = [None] * len(targets)
        share = data.share
        for pairing in first.structure.adjoint(prior).pairings():
            for part in chunks(len(data.inputs), self.chunk):
                graph = first.graph or self._chunk_graph(data, part)
                value = -0.5 * pairing.pair(graph.layers, part)
                if share:
                    log_prob = self.likelihood.log_prob(graph.outputs, data.targets[part])
                    value = value + share * log_prob.double().sum()
                # Checkpointing runs parts of the network again.
                with plain_operations(), missing_derivatives_explained():
                    gradients = torch.autograd.grad(value, targets, allow_unused=True)
                del graph, value  # or they would be alive beside the next ones
                total = [_sum(old, new) for old, new in zip(total, gradients, strict=True)]
            share = 0.0  # the likelihood is counted once
            del pairing  # or V of one group would be alive beside the rows of the next
        return total

    def _check_targets(self, outputs: Tensor, data: BlockData) -> None:
        """Of the whole block at once, whichever inputs the outputs are of: reading what is found makes the host wait."""
        self.likelihood.check_targets(outputs[:1].detach().expand(len(data.targets), -1), data.targets)

    @property
    def _kind(self) -> type[Structure]:
        return structure_named(self.structure)

    def _chunk_rows(self, data: BlockData, part: slice) -> tuple[Tensor, Iterable[dict[str, LayerRows]]]:
        """Outputs (n, C) and rows of one chunk, without a graph.

        Where sums are all that is kept, the columns come one by one (factors) or a few at a time (squares): their gradients are
        used while a cache holds them.
        """
        with torch.no_grad():
            views = data.views(part)
        captured = capture(self.model, views, data.num_views, plan=self.plan)
        outputs = captured.outputs.detach()
        if part.start == 0:
            self._check_targets(outputs, data)
        factor = self._factor(outputs, data, part).detach()  # a likelihood may read a Hyperparameter
        if self._kind.keeps == "rows":
            return outputs, [rows_by_layer(captured, factor, False, self._over_views)]
        together = 1 if self._over_views else columns_squared(self.shapes, len(outputs), outputs)
        return outputs, rows_by_columns(captured, factor, together, self._over_views)

    def _chunk_graph(self, data: BlockData, part: slice) -> ChunkGraph:
        """One chunk's rows of the block's columns of L, with their graph."""
        captured = self._captured(data, part)
        factor = self._factor(captured.outputs, data, part)
        return ChunkGraph(captured.outputs, rows_by_layer(captured, factor, True, self._over_views))

    def _captured(self, data: BlockData, part: slice) -> Capture:
        """One chunk with its graph."""
        return capture(self.model, data.views(part), data.num_views, differentiable=True, plan=self.plan)

    def _factor(self, outputs: Tensor, data: BlockData, part: slice) -> Tensor:
        """The block's columns of L for one chunk, (n, C, k)."""
        columns = data.block.columns if data.block.columns.ndim == 1 else data.block.columns[part]
        return self.factor(outputs, columns)

    @property
    def _over_views(self) -> bool:
        return self._kind.keeps == "factors"


@dataclass(frozen=True)
class ChunkGraph:
    """Outputs (n, C) and rows of one chunk, with their graph."""

    outputs: Tensor
    layers: dict[str, LayerRows]


@dataclass(frozen=True)
class FirstPass:
    """One block after the first pass: its structure and outputs (n, C), and its graph where it is one chunk."""

    structure: Structure
    outputs: Tensor
    graph: ChunkGraph | None = None


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    if old is None or new is None:
        return new if old is None else old
    return old + new
