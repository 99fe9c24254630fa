"""nn.Embedding: a linear map of one-hot inputs, whose rows are scattered gradients and whose kernel is one of shared tokens.

nn.EmbeddingBag adds up or averages what it gives for the tokens of an input. torch computes both at once; its output is replaced by that
of the two operations one after the other, so that the vectors of the tokens have an edge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ntkml.layers.kronecker import KroneckerIndices
from ntkml.layers.layer_rows import squares_of
from ntkml.machine.devices import suited

TYPES = (nn.Embedding, nn.EmbeddingBag)

#: Float64 entries of one tile of the direct route, 8 MiB on a CPU and 256 MiB on a GPU, but at least what one token takes.
_TILE_ENTRIES = {"cpu": 2**20, "cuda": 2**25}

#: What adding up one entry of a product costs, in multiplications of a Gram: 11 ns and 0.1 ns were measured on a CPU.
_ADDITION = 64


@dataclass(frozen=True)
class EmbeddingRows:
    """Indices (n, S * T) of a table of ``num_entries`` vectors, and the output's gradients ``pulled`` (n, k, S * T, d).

    J[n, k, e] = sum over positions t with index e of g[n, k, t], where e is not ``padding_idx``.
    """

    indices: Tensor
    pulled: Tensor
    num_entries: int
    padding_idx: int | None = None
    num_views: int = 1

    @cached_property
    def gradients(self) -> Tensor:
        """``pulled``, zero where the index is the padding's."""
        if self.padding_idx is None:
            return self.pulled
        return self.pulled * (self.indices != self.padding_idx)[:, None, :, None]

    @property
    def counts(self) -> tuple[int, int]:
        return self.pulled.shape[0], self.pulled.shape[1]

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
        _, _, t, d = self.pulled.shape
        return t * (d + _ADDITION) < self.num_entries * d

    def rows_are_larger(self) -> bool:
        n, k, t, d = self.pulled.shape
        return k * self.num_entries * d > t + k * t * d

    def joined(self, others: Sequence[EmbeddingRows]) -> EmbeddingRows | None:
        if any(other.indices.shape[1:] != self.indices.shape[1:] for other in others):
            return None
        indices = torch.cat([self.indices, *(other.indices for other in others)])
        pulled = torch.cat([self.pulled, *(other.pulled for other in others)])
        return replace(self, indices=indices, pulled=pulled)

    def reduced(self) -> KroneckerIndices:
        """As of a linear layer whose input is zero at the padding. Raises ValueError where the views of an input have other indices."""
        indices = common_indices(self.indices.unflatten(1, (self.num_views, -1)))
        summed = self.pulled.unflatten(2, (self.num_views, -1)).sum(2)
        inputs, gradients = indices[:, None, None], summed.mT.unsqueeze(2)  # (n, 1, 1, T), (n, k, 1, d, T)
        return KroneckerIndices(lambda: inputs, gradients, "weight", "", self.num_entries, self.padding_idx)


def common_indices(indices: Tensor) -> Tensor:
    """The indices of all views of an input: only those that are the same have a mean. (n, S, ...) -> (n, ...).

    Raises:
        ValueError: they are not the same.
    """
    if indices.shape[1] > 1 and bool((indices != indices[:, :1]).any()):
        raise ValueError(
            "kfac takes an embedding only if all views of an input have the same indices: use ntk, blockdiag or diag, or freeze "
            "it with requires_grad_(False)"
        )
    return indices[:, 0]


def unsupported(module: nn.Embedding | nn.EmbeddingBag) -> str | None:
    """Settings under which it is more than a linear map of one-hot inputs."""
    if isinstance(module, nn.EmbeddingBag) and module.mode == "max":
        return "it takes the largest entries of its vectors"
    return None


def unsupported_call(module: nn.EmbeddingBag, given: tuple[Any, ...], named: Mapping[str, Any]) -> str | None:
    """Why the rows of a call would be wrong, or None."""
    if len(given) > 1 or named:
        return "it is called with offsets or weights of its inputs"
    return None if given[0].ndim == 2 else "it does not see the batch in its first dimension"


def vectors(module: nn.EmbeddingBag, indices: Tensor) -> Tensor:
    """The vector of every token. (n, T) -> (n, T, d)."""
    return F.embedding(indices, module.weight, module.padding_idx)


def bags(module: nn.EmbeddingBag, indices: Tensor, vectors: Tensor) -> Tensor:
    """Sums or means over the tokens of an input that are no padding, zeros where it has none. (n, T), (n, T, d) -> (n, d)."""
    counted = torch.ones_like(indices) if module.padding_idx is None else indices != module.padding_idx
    counted = counted.unsqueeze(-1).to(vectors.dtype)
    total = (vectors * counted).sum(1)
    return total / counted.sum(1).clamp_min(1.0) if module.mode == "mean" else total


def embedding_rows(
    module: nn.Embedding | nn.EmbeddingBag, inputs: Tensor, pulled: Tensor, num_views: int
) -> EmbeddingRows:
    """inputs: (n * S, ...) indices; pulled: (n * S, k, ..., d)."""
    n, k, t = len(inputs) // num_views, pulled.shape[1], inputs.shape[1:].numel()  # t = 0 where no token is left
    indices = inputs.reshape(n, num_views * t).long()
    gradients = pulled.reshape(n, num_views, k, t, module.embedding_dim).transpose(1, 2).flatten(2, 3)
    return EmbeddingRows(indices, gradients, module.num_embeddings, module.padding_idx, num_views)


def _range(count: int, beside: Tensor) -> Tensor:
    return torch.arange(count, device=beside.device)
