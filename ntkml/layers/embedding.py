"""nn.Embedding: a linear map of one-hot inputs, whose rows are scattered gradients and whose kernel is one of shared tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ntkml.layers.kronecker import KroneckerPart
from ntkml.layers.layer_rows import no_factors, squares_of
from ntkml.machine.devices import suited

#: Float64 entries of one tile of the direct route, 8 MiB on a CPU and 256 MiB on a GPU, but at least what one token takes.
_TILE_ENTRIES = {"cpu": 2**20, "cuda": 2**25}

#: What adding up one entry of a product costs, in multiplications of a Gram: 11 ns and 0.1 ns were measured on a CPU.
_ADDITION = 64


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
        """<J[n,k], J[m,j]> = sum over the tokens that inputs n and m share of <g[n,k], g[m,j]>, g summed over a token's positions.

        Tokens that as many inputs hold are multiplied together, in tiles.
        """
        n, k, t, d = self.gradients.shape
        held, place = (self.indices * n + _range(n, self.indices).unsqueeze(1)).unique(return_inverse=True)
        sums = self.gradients.new_zeros(len(held), k, d)  # of every token of every input, by token
        sums.index_add_(0, place.flatten(), self.gradients.transpose(1, 2).reshape(n * t, k, d))
        counts = (held // n).unique_consecutive(return_counts=True)[1]
        first = counts.cumsum(0) - counts
        total = torch.zeros(n * n, k, k, dtype=torch.float64, device=sums.device)
        tile = suited(_TILE_ENTRIES, sums.device)
        for count in counts.unique().tolist():
            step = max(1, tile // (count * k * max(count * k, d)))
            for tokens in first[counts == count].split(step):
                members = tokens.unsqueeze(1) + _range(count, tokens)  # (tokens, count)
                g, inputs = sums[members].double().flatten(1, 2), held[members] % n
                products = (g @ g.mT).unflatten(2, (count, k)).unflatten(1, (count, k)).transpose(2, 3)
                pairs = inputs.unsqueeze(2) * n + inputs.unsqueeze(1)
                total.index_add_(0, pairs.flatten(), products.reshape(-1, k, k))
        return total.reshape(n, n, k, k).transpose(1, 2).reshape(n * k, n * k)

    def direct_is_cheaper(self) -> bool:
        """For a pair of rows, at most t shared tokens are multiplied and added up in the place of the whole table."""
        _, _, t, d = self.gradients.shape
        return t * (d + _ADDITION) < self.num_entries * d

    def rows_are_larger(self) -> bool:
        n, k, t, d = self.gradients.shape
        return k * self.num_entries * d > t + k * t * d

    def joined(self, others: Sequence[EmbeddingRows]) -> EmbeddingRows | None:
        if any(other.indices.shape[1:] != self.indices.shape[1:] for other in others):
            return None
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


def _range(count: int, beside: Tensor) -> Tensor:
    return torch.arange(count, device=beside.device)
