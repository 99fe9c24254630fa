"""The positions of one layer: layer inputs a and output gradients g, from which everything else follows.

J[n, k] = sum over views v and positions t of g[n, v, k, :, t] a[n, v, :, t]^T        (weight)
J[n, k] = sum over views v and positions t of g[n, v, k, :, t]                        (bias)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ntkml.layers.grouped_convolution import GroupedConvolution
from ntkml.layers.kronecker import KroneckerInputs
from ntkml.layers.layer_rows import squares_of
from ntkml.layers.patches import Patches, paired, side_by_side
from ntkml.linalg import gram

#: Float64 entries of one tile of the direct route (256 MiB).
_DIRECT_TILE_ENTRIES = 32 * 2**20

#: What the direct route does with every pair of positions beside its products (making, mirroring, multiplying and adding up
#: matrices), in multiplications of a Gram: 6 to 12 ns and 0.1 ns were measured on a CPU.
_PAIR = 64


@dataclass(frozen=True)
class Positions:
    """One layer on n inputs with k cotangents each.

    Shapes: ``inputs`` (n, S, q, d, T), ``gradients`` (n, S, k, q, o, T), with S views, q groups of channels, fan-in d,
    fan-out o and T positions. ``patches`` takes the inputs of every position, where they are asked for, from ``source``, what
    the layer was given; ``weight`` and ``bias`` are the names of the two parameters, "" of one that does not exist or is not
    trainable; ``grouped`` is the shorter way to the rows of a convolution, where there is one.
    """

    source: Tensor
    patches: Patches
    fan_in: int
    gradients: Tensor
    weight: str
    bias: str
    grouped: GroupedConvolution | None = None

    @property
    def inputs(self) -> Tensor:
        """The layer's input at every position, made anew: nine times the layer's input at 3 x 3. (n, S, q, d, T)."""
        return self.patches.taken(self.source)

    @cached_property
    def summed_gradients(self) -> Tensor:
        """Gradients summed over the views. Shape (n, k, q, o, T)."""
        return self.gradients.squeeze(1) if self.gradients.shape[1] == 1 else self.gradients.sum(1)

    @property
    def counts(self) -> tuple[int, int]:
        """(n, k): inputs and cotangents of each."""
        return self.gradients.shape[0], self.gradients.shape[2]

    def rows(self) -> dict[str, Tensor]:
        """Explicit Jacobian rows by parameter. Shape (n, k, size) each."""
        return {key: self.row(key) for key in (self.weight, self.bias) if key}

    def row(self, key: str) -> Tensor:
        """Explicit Jacobian rows of one parameter. Shape (n, k, size)."""
        return self._weight_rows() if key == self.weight else self._bias_rows()

    def _bias_rows(self) -> Tensor:
        """(n, k, q * o)."""
        return self.summed_gradients.sum(-1).flatten(2)

    @property
    def num_positions(self) -> int:
        """Positions that a row sums over, those of all views."""
        return self.gradients.shape[1] * self.gradients.shape[5]

    def squares(self) -> dict[str, Tensor]:
        """Sums of squares of the rows' columns by parameter, float64. Shape (size,) each."""
        if not self.weight or self.num_positions > 1:
            return squares_of(self.rows())
        # One position: (g a^T)^2 = g^2 (a^2)^T entry by entry, summed over inputs and cotangents without any row.
        g = self.gradients.square().sum((1, 2, 5)).double()  # (n, q, o)
        a = self.inputs.square().sum((1, 4)).double()  # (n, q, d)
        squares = {self.weight: torch.einsum("nqo,nqd->qod", g, a).flatten()}
        return squares | (squares_of({self.bias: self._bias_rows()}) if self.bias else {})

    def pair(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """See :class:`~ntkml.layers.layer_rows.LayerRows`; <V, g a^T> is taken as <V a, g>, so that no row is made."""
        total = self.gradients.new_zeros(())
        if self.weight:
            total = total + self._paired_weight(gradients[self.weight])
        if self.bias:
            total = total + (gradients[self.bias] * self._bias_rows()).sum()
        return total

    def _paired_weight(self, gradient: Tensor) -> Tensor:
        if self.grouped is not None:
            return self.grouped.pair(gradient)
        n, _, k, q, o, _ = self.gradients.shape
        filters = gradient.reshape(n, k, q, o, self.fan_in).transpose(1, 2).reshape(n, q, k * o, self.fan_in)
        return paired(self.source, self.gradients, filters, self.patches)

    def _weight_rows(self) -> Tensor:
        if self.grouped is not None:
            return self.grouped.rows()
        n, views, k, q, o, t = self.gradients.shape
        d = self.fan_in
        if d <= t and self.source.device.type == "cpu":
            # Many positions: multiply per view, then add the small products up; the large factors are never copied.
            g = self.gradients.transpose(2, 3).reshape(n * views, q, k * o, t)
            product = g @ self.inputs.reshape(n * views, q, d, t).transpose(2, 3)
            product = product.reshape(n, views, q, k, o, d).sum(1)
        else:
            g = self.gradients.permute(0, 3, 2, 4, 1, 5).reshape(n, q, k * o, views * t)
            product = (g @ side_by_side(self.inputs).transpose(-1, -2)).reshape(n, q, k, o, d)
        return product.transpose(1, 2).reshape(n, k, q * o * d)

    def gram(self, key: str) -> Tensor:
        """Float64 Gram matrix of one parameter over all (input, cotangent) pairs by the direct route, without rows.

        <J[n,k], J[m,j]> = sum over pairs of positions of <a[n,v,t], a[m,w,s]> <g[n,k,v,t], g[m,j,w,s]>.
        Shape (n * k, n * k), index order (input, cotangent).
        """
        return self._weight_gram() if key == self.weight else gram(self._bias_rows().flatten(0, 1))

    def _weight_gram(self) -> Tensor:
        n, views, k, q, o, t = self.gradients.shape
        p = views * t
        if p == 1:
            return self._one_position_gram()
        g = self.gradients.double().permute(3, 0, 2, 1, 5, 4).reshape(q, n, k * p, o)
        a = self.inputs.double().permute(2, 0, 1, 4, 3).reshape(q, n, p, -1)
        total = torch.zeros(n, k, n, k, dtype=torch.float64, device=g.device)
        step = max(1, _DIRECT_TILE_ENTRIES // (n * (k * p) ** 2))
        for group in range(q):
            for i in range(0, n, step):
                rows = slice(i, i + step)
                outer = (g[group, rows].flatten(0, 1) @ g[group].flatten(0, 1).T).reshape(-1, k, p, n, k, p)
                inner = a[group, rows].flatten(0, 1) @ a[group].flatten(0, 1).T
                outer.mul_(inner.reshape(-1, 1, p, n, 1, p))
                total[rows] += outer.sum((2, 5))
        return total.reshape(n * k, n * k)

    def _one_position_gram(self) -> Tensor:
        """<a[n], a[m]> <g[n,k], g[m,j]>: two symmetric Grams, multiplied entry by entry."""
        n, _, k, q, _, _ = self.gradients.shape
        inputs = self.inputs
        total = torch.zeros(n, k, n, k, dtype=torch.float64, device=self.gradients.device)
        for group in range(q):
            outer = gram(self.gradients[:, 0, :, group, :, 0].flatten(0, 1)).reshape(n, k, n, k)
            total += outer.mul_(gram(inputs[:, 0, group, :, 0]).reshape(n, 1, n, 1))
        return total.reshape(n * k, n * k)

    def direct_is_cheaper(self) -> bool:
        """Whether the direct route costs less than explicit rows followed by their Gram matrix, as it does for wide layers.

        Of a depthwise convolution every channel would take a matrix over all pairs, for a filter of nine numbers.
        """
        n, views, k, q, o, t = self.gradients.shape
        d = self.fan_in
        p = views * t
        explicit = n * k * q * p * o * d + (n * k) ** 2 * q * o * d
        direct = q * ((n * p) ** 2 * d + (n * k * p) ** 2 * (o + _PAIR))
        return 0 < direct < explicit  # without positions there is nothing to multiply, and rows of zeros do

    def rows_are_larger(self) -> bool:
        n, views, k, q, o, t = self.gradients.shape
        return bool(self.weight) and n * k * q * o * self.fan_in > self.source.numel() + self.gradients.numel()

    def joined(self, others: Sequence[Positions]) -> Positions | None:
        if any(other.source.shape[1:] != self.source.shape[1:] for other in others):
            return None
        source = torch.cat([self.source, *(other.source for other in others)])
        gradients = torch.cat([self.gradients, *(other.gradients for other in others)])
        return Positions(source, self.patches, self.fan_in, gradients, self.weight, self.bias)

    def reduced(self) -> KroneckerInputs:
        """Inputs averaged and gradients summed over the views, before KFAC takes outer products.

        The gradients are of the averaged outputs and carry 1/S already, so their sum is the mean of the views' own.
        """
        return KroneckerInputs(self._averaged_inputs, self.summed_gradients, self.weight, self.bias)

    def _averaged_inputs(self) -> Tensor:
        inputs = self.inputs
        return inputs.squeeze(1) if inputs.shape[1] == 1 else inputs.mean(1)
