"""All Jacobians of a small data set at once, from which the rows of any block of any estimator are cut.

A grid of hyperparameters compares dozens of estimators at every point. Capturing the N x C Jacobian rows once and cutting
every estimator from them costs one capture a point instead of one per estimator, and makes the comparison exact: the same
weights, noise and rounding for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ntkml.layers.factors import Factor
from ntkml.layers.kronecker import ExactBlocks, KroneckerInputs, KroneckerPart
from ntkml.layers.layer_rows import qualified
from ntkml.layers.several_maps import FactorsOfMaps
from ntkml.linalg import channel_gram, gram
from ntkml.machine.full_precision import full_precision
from ntkml.parameters import parameter_shapes
from ntkml.rows.block import Groups, Precisions, merge_factors, sum_of_grams
from ntkml.rows.capture import Capture, capture
from ntkml.rows.exact import RowPlan
from ntkml.rows.pulled import rows_by_layer

#: Float64 entries of one strip while a block is cut from the Gram of all rows (64 MiB).
_CUT_ENTRIES = 8 * 2**20


class JacobianTable:
    """J of all inputs and outputs by parameter tensor, and the float64 Grams that are cheaper to cut than to recompute.

    ``outputs``: (N, C). ``rows[name]``: (N, C, size). ``kept[layer]``: what KFAC needs, present if asked for.
    """

    def __init__(
        self,
        outputs: Tensor,
        rows: dict[str, Tensor],
        kept: Mapping[str, KroneckerPart],
        shapes: Mapping[str, torch.Size],
    ):
        self.outputs = outputs
        self.rows = rows
        self.kept = kept
        self.shapes = shapes
        self._grams: dict[str, Tensor] = {}
        self._total: tuple[list[float], Tensor] | None = None

    @property
    def num_pairs(self) -> int:
        """N C, the side of a full Gram matrix."""
        return self.outputs.numel()

    def wide(self, name: str) -> bool:
        """Whether a tensor has more parameters than there are pairs, so that its Gram is the smaller matrix."""
        return self.shapes[name].numel() > self.num_pairs

    def gram(self, name: str) -> Tensor:
        """J_l J_l^T over all pairs, float64, computed once. Shape (N C, N C)."""
        if name not in self._grams:
            self._grams[name] = self._gram(name)
        return self._grams[name]

    def _gram(self, name: str) -> Tensor:
        channels = self.rows[name].unflatten(2, (self.shapes[name][0] if self.shapes[name] else 1, -1))
        factored = channel_gram(channels)
        return gram(self.rows[name].flatten(0, 1)) if factored is None else factored

    def total_gram(self, precisions: Precisions = None) -> Tensor:
        """J P0^-1 J^T over all pairs and parameters, float64, kept for the last prior that was asked for. Shape (N C, N C)."""
        divisors = [1.0 if precisions is None else float(precisions[name]) for name in self.rows]
        if self._total is None or self._total[0] != divisors:
            self._total = None  # two of them would not fit
            # Each Gram is as large as the sum and not kept beside it; those of wide tensors, which take the most to make, come first.
            total: Tensor | None = None
            for name, divisor in sorted(zip(self.rows, divisors, strict=True), key=lambda pair: not self.wide(pair[0])):
                own = self._grams[name] if name in self._grams else self._gram(name)
                total = own / divisor if total is None else total.add_(own, alpha=1 / divisor)
                del own
            assert total is not None
            self._total = divisors, total
        return self._total[1]


class TabulatedRows:
    """The rows of one block, cut from a table. inputs: (n,) indices; factor: (n, C, k) columns of L for those inputs."""

    adjoint_follows = False

    def __init__(self, table: JacobianTable, inputs: Tensor, factor: Tensor):
        self.shapes = table.shapes
        self.groups: Groups = [tuple(table.shapes)]
        self.num_inputs = factor.shape[0]
        self.num_rows = factor.shape[0] * factor.shape[2]
        self._table = table
        # A column of L is zero off its classes; leaving those outputs out makes one-output blocks C^2 times cheaper.
        support = (factor != 0).any(0).any(-1).nonzero().squeeze(-1)
        self._inputs, self._outputs, self._factor = inputs, support, factor[:, support]

    def explicit(self, name: str) -> Tensor:
        rows = self._table.rows[name][self._inputs]
        rows = rows if len(self._outputs) == rows.shape[1] else rows[:, self._outputs]
        return torch.einsum("ncp,nck->nkp", rows, self._factor.to(rows)).reshape(self.num_rows, -1)

    def forget(self, name: str) -> None:
        """The table is that of all blocks and stays."""

    def gram(self, name: str) -> Tensor:
        if self._table.wide(name):
            return self._cut(self._table.gram(name))
        return gram(self.explicit(name))

    def total_gram(self, precisions: Precisions = None) -> Tensor:
        if sum(shape.numel() for shape in self.shapes.values()) > self._table.num_pairs:
            return self._cut(self._table.total_gram(precisions))
        if precisions is not None:
            return sum_of_grams(self, self.shapes, precisions)
        return gram(torch.cat([self.explicit(name) for name in self.shapes], dim=1))

    def kronecker_factors(self) -> dict[str, tuple[Factor, ...]]:
        kept = self._table.kept.items()
        cut = {layer: part.cut(self._inputs, self._outputs, self._factor) for layer, part in kept}
        return merge_factors(cut, self.num_rows)

    def column_squares(self) -> dict[str, Tensor]:
        return {name: self.explicit(name).double().square().sum(0) for name in self.shapes}

    def _cut(self, full: Tensor) -> Tensor:
        """L^T (J J^T) L on the block. full: (N C, N C) -> (n k, n k)."""
        num_outputs = self._table.outputs.shape[1]
        pairs = (self._inputs.unsqueeze(1) * num_outputs + self._outputs).reshape(-1)
        n, c, k = self._factor.shape
        factor = self._factor.double()
        block = full if _is_range(pairs, len(full)) else full[pairs.unsqueeze(1), pairs]
        if c == k == 1:
            scale = factor.reshape(-1)
            return block * scale.unsqueeze(1) * scale
        cut = full.new_empty(n * k, n * k)
        # In strips: L^T (J J^T) whole would be as large as the Gram of all rows once more.
        step = max(1, _CUT_ENTRIES // max(1, k * n * c))
        for start in range(0, n, step):
            own = factor[start : start + step]
            strip = own.transpose(1, 2) @ block[start * c : (start + step) * c].reshape(len(own), c, n * c)
            turned = strip.reshape(len(own) * k, n, c).transpose(0, 1) @ factor  # (n, len(own) * k, k)
            cut[start * k : (start + step) * k] = turned.transpose(0, 1).reshape(len(own) * k, n * k)
        return cut


def _is_range(pairs: Tensor, size: int) -> bool:
    """Whether these are all pairs in their order, so that nothing needs to be copied."""
    return len(pairs) == size and bool((pairs == torch.arange(size, device=pairs.device)).all())


@full_precision()
def tabulate(
    model: nn.Module,
    views: Callable[[int, int], Tensor],
    num_inputs: int,
    plan: RowPlan,
    num_views: int = 1,
    chunk: int = 50,
    kronecker: bool = True,
) -> JacobianTable:
    """Capture every output's Jacobian rows of ``num_inputs`` inputs, chunk by chunk.

    Args:
        views: (start, stop) -> network inputs ((stop - start) * num_views, ...) of those data.
        plan: of :func:`ntkml.rows.model_contract.check_model`.
        kronecker: keep the reduced layer inputs and gradients that KFAC needs.
    """
    shapes = parameter_shapes(model)
    filled = _EmptyTable(num_inputs, shapes)
    for start in range(0, num_inputs, chunk):
        stop = min(start + chunk, num_inputs)
        _capture_chunk(filled, slice(start, stop), capture(model, views(start, stop), num_views, plan=plan), kronecker)
    return JacobianTable(filled.outputs, filled.rows, filled.kept, shapes)


class _EmptyTable:
    """The tensors of a table, allocated at the first chunk and filled in place: no second copy is ever made."""

    outputs: Tensor

    def __init__(self, num_inputs: int, shapes: Mapping[str, torch.Size]):
        self.num_inputs = num_inputs
        self.shapes = shapes
        self.rows: dict[str, Tensor] = {}
        self.kept: dict[str, KroneckerPart] = {}

    def allocate(self, captured: Capture) -> None:
        num_outputs = captured.outputs.shape[1]
        self.outputs = captured.outputs.new_empty(self.num_inputs, num_outputs)
        for name, shape in self.shapes.items():
            self.rows[name] = captured.outputs.new_empty(self.num_inputs, num_outputs, shape.numel())

    def keep(self, name: str, chunk: slice, output: int, reduced: KroneckerPart) -> None:
        """Add one chunk and output of what KFAC keeps of a layer; exact blocks keep the table's own rows."""
        if name not in self.kept:
            self.kept[name] = self._of_all_inputs(name, reduced)
        self._fill(self.kept[name], chunk, output, reduced)

    def _of_all_inputs(self, name: str, reduced: KroneckerPart) -> KroneckerPart:
        pairs = self.outputs.shape
        if isinstance(reduced, ExactBlocks):
            by_key = {key: qualified(name, key) for key in reduced.rows}
            return ExactBlocks(
                {key: self.rows[whole].reshape(*pairs, *self.shapes[whole]) for key, whole in by_key.items()}
            )
        if isinstance(reduced, FactorsOfMaps):
            return FactorsOfMaps([self._of_all_inputs(name, part) for part in reduced.maps])
        assert isinstance(reduced, KroneckerInputs)
        own = reduced.inputs
        inputs = own.new_empty(self.num_inputs, *own.shape[1:])
        gradients = reduced.gradients.new_empty(*pairs, *reduced.gradients.shape[2:])
        return replace(reduced, made_inputs=lambda: inputs, gradients=gradients)

    def _fill(self, kept: KroneckerPart, chunk: slice, output: int, reduced: KroneckerPart) -> None:
        if isinstance(kept, FactorsOfMaps) and isinstance(reduced, FactorsOfMaps):
            for whole, part in zip(kept.maps, reduced.maps, strict=True):
                self._fill(whole, chunk, output, part)
        if isinstance(kept, KroneckerInputs) and isinstance(reduced, KroneckerInputs):
            if output == 0:
                kept.inputs[chunk] = reduced.inputs
            kept.gradients[chunk, output] = reduced.gradients[:, 0]


def _capture_chunk(table: _EmptyTable, chunk: slice, captured: Capture, kronecker: bool) -> None:
    if not table.rows:
        table.allocate(captured)
    table.outputs[chunk] = captured.outputs.detach()
    num_outputs = captured.outputs.shape[1]
    for output in range(num_outputs):  # one cotangent at a time: the positions of all C outputs would not fit at S = 30
        cotangent = torch.zeros_like(captured.outputs).detach()
        cotangent[:, output] = 1.0
        for name, layer in rows_by_layer(captured, cotangent.unsqueeze(-1), output < num_outputs - 1).items():
            for key, row in layer.rows().items():
                table.rows[qualified(name, key)][chunk, output] = row[:, 0]
            if kronecker:
                table.keep(name, chunk, output, layer.reduced())
