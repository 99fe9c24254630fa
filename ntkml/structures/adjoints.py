"""Adjoints of a block's log-determinant: what turns its gradient in the rows into a sum over chunks of the batch.

With V the gradient of log|K_B + I| in the rows (or in the Kronecker factors), the derivative in anything that enters the
forward pass is that of <V, R(chunk)> summed over chunks, V fixed. The graph of one chunk is alive at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ntkml.layers.layer_rows import LayerRows, qualified
from ntkml.linalg import log_det_row_gradient
from ntkml.priors import PriorPrecision
from ntkml.rows import Rows


class Adjoint(Protocol):
    """The gradient of a log-determinant in what its structure is made of."""

    def pair(self, layers: Mapping[str, LayerRows], inputs: slice) -> Tensor:
        """<V, R(chunk)> for the chunk ``inputs`` of the block, its graph kept. Scalar."""


@dataclass(frozen=True)
class RowAdjoint:
    """V by parameter, (n, k, size) each."""

    rows: Mapping[str, Tensor]

    def pair(self, layers: Mapping[str, LayerRows], inputs: slice) -> Tensor:
        terms = [
            (self.rows[qualified(name, key)][inputs] * row).sum()
            for name, layer in layers.items()
            for key, row in layer.rows().items()
        ]
        return torch.stack(terms).sum()


@dataclass(frozen=True)
class KroneckerAdjoint:
    """Gradients in the factors by parameter, shaped like them; ``num_inputs`` is that of the whole block."""

    factors: Mapping[str, tuple[Tensor, ...]]
    num_inputs: int

    def pair(self, layers: Mapping[str, LayerRows], inputs: slice) -> Tensor:
        terms = [layer.reduced().pair(self._of(name), self.num_inputs) for name, layer in layers.items()]
        return torch.stack(terms).sum()

    def _of(self, layer: str) -> dict[str, tuple[Tensor, ...]]:
        """The gradients of one layer's factors by its own names."""
        split = {name.rpartition(".")[::2]: gradients for name, gradients in self.factors.items()}
        return {key: gradients for (owner, key), gradients in split.items() if owner == layer}


def whole_row_adjoint(rows: Rows, prior: PriorPrecision) -> RowAdjoint:
    """V of ntk and ggn, which treat all parameters together."""
    shapes = rows.shapes
    explicit = torch.cat([rows.explicit(name) for name in shapes], dim=1)  # (b, P)
    precision = torch.cat([value.detach().expand(shapes[name].numel()) for name, value in prior.of(shapes).items()])
    gradient = log_det_row_gradient(explicit, precision).to(explicit.dtype)
    sizes = [shape.numel() for shape in shapes.values()]
    return RowAdjoint(_by_input(dict(zip(shapes, gradient.split(sizes, dim=1), strict=True)), rows.num_inputs))


def tensor_row_adjoint(rows: Rows, prior: PriorPrecision) -> RowAdjoint:
    """V of blockdiag, one parameter tensor at a time."""
    gradients = {}
    for name, precision in prior.of(rows.shapes).items():
        explicit = rows.explicit(name)
        gradients[name] = log_det_row_gradient(explicit, precision.detach()).to(explicit.dtype)
    return RowAdjoint(_by_input(gradients, rows.num_inputs))


def diagonal_row_adjoint(rows: Rows, prior: PriorPrecision) -> RowAdjoint:
    """V of diag: 2 R / (delta + h), with h the sums of squares of the columns."""
    gradients = {}
    for name, precision in prior.of(rows.shapes).items():
        explicit = rows.explicit(name)
        total = precision.detach() + explicit.double().square().sum(0)
        gradients[name] = 2.0 * explicit / total.to(explicit)
    return RowAdjoint(_by_input(gradients, rows.num_inputs))


def _by_input(gradients: Mapping[str, Tensor], num_inputs: int) -> dict[str, Tensor]:
    return {name: gradient.reshape(num_inputs, -1, gradient.shape[1]) for name, gradient in gradients.items()}
