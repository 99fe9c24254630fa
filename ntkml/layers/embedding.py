"""nn.Embedding: a linear map of one-hot inputs, whose rows are scattered gradients and whose kernel compares indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ntkml.layers.kronecker import KroneckerPart
from ntkml.layers.layer_rows import no_factors, squares_of

#: Float64 entries of one tile of the direct route (256 MiB).
_DIRECT_TILE_ENTRIES = 32 * 2**20


@dataclass(frozen=True)
class EmbeddingRows:
    """Indices (n, S * T) and gradients (n, k, S * T, d) of a table of ``num_entries`` vectors.

    J[n, k, e] = sum over positions t with index e of g[n, k, t]; the gradients at ``padding_idx`` are zero already.
    """

    layer: str
    indices: Tensor
    gradients: Tensor
    num_entries: int

    @property
    def counts(self) -> tuple[int, int]:
        return self.gradients.shape[0], self.gradients.shape[1]

    def rows(self) -> dict[str, Tensor]:
        return {"weight": self.row("weight")}

    def row(self, key: str) -> Tensor:
        n, k, _, d = self.gradients.shape
        table = self.gradients.new_zeros(n, k, self.num_entries, d)
        where = self.indices[:, None, :, None].expand_as(self.gradients)
        return table.scatter_add(2, where, self.gradients).flatten(2)

    def pair(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """See :class:`~ntkml.layers.layer_rows.LayerRows`; V is read at the indices, and no row is made."""
        n, k, _, d = self.gradients.shape
        where = self.indices[:, None, :, None].expand_as(self.gradients)
        return (gradients["weight"].reshape(n, k, self.num_entries, d).gather(2, where) * self.gradients).sum()

    def squares(self) -> dict[str, Tensor]:
        return squares_of(self.rows())

    def gram(self, key: str) -> Tensor:
        """<J[n,k], J[m,j]> = sum over pairs of positions with one index of <g[n,k,t], g[m,j,s]>."""
        n, k, t, _ = self.gradients.shape
        g = self.gradients.double().flatten(0, 2)
        total = torch.zeros(n, k, n, k, dtype=torch.float64, device=g.device)
        step = max(1, _DIRECT_TILE_ENTRIES // (n * (k * t) ** 2))
        for i in range(0, n, step):
            part = self.indices[i : i + step]
            products = (g[i * k * t : (i + step) * k * t] @ g.T).reshape(len(part), k, t, n, k, t)
            same = part[:, None, :, None, None, None] == self.indices[None, None, None, :, None, :]
            total[i : i + step] = (products * same).sum((2, 5))
        return total.reshape(n * k, n * k)

    def direct_is_cheaper(self) -> bool:
        n, k, t, d = self.gradients.shape
        return t**2 * (d + 2) < self.num_entries * d

    def rows_are_larger(self) -> bool:
        n, k, t, d = self.gradients.shape
        return k * self.num_entries * d > t + k * t * d

    def joined(self, others: Sequence[EmbeddingRows]) -> EmbeddingRows:
        indices = torch.cat([self.indices, *(other.indices for other in others)])
        gradients = torch.cat([self.gradients, *(other.gradients for other in others)])
        return EmbeddingRows(self.layer, indices, gradients, self.num_entries)

    def reduced(self) -> KroneckerPart:
        return no_factors(self.layer, ("weight",), "an embedding has no Kronecker factors of moderate size")


def embedding_rows(layer: str, module: nn.Embedding, inputs: Tensor, pulled: Tensor, num_views: int) -> EmbeddingRows:
    """inputs: (n * S, ...) indices; pulled: (n * S, k, ..., d)."""
    indices = inputs.reshape(-1, num_views * inputs.shape[1:].numel()).long()
    n, k = len(indices), pulled.shape[1]
    gradients = pulled.reshape(n, num_views, k, -1, module.embedding_dim).transpose(1, 2).flatten(2, 3)
    if module.padding_idx is not None:
        gradients = gradients * (indices != module.padding_idx)[:, None, :, None]
    return EmbeddingRows(layer, indices, gradients, module.num_embeddings)
