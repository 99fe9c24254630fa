"""Small networks on sequences of every kind that people write: embeddings, attention, recurrent layers, batches that are cut or sorted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

from tests.network_modules import CLASSES


class Bags(nn.Module):
    """All words of an input in one vector: as they are, ``weighted``, or in one row with the others' and ``offsets``."""

    def __init__(self, weighted: bool = False, offsets: bool = False, **settings: Any) -> None:
        super().__init__()
        self.bags, self.head = nn.EmbeddingBag(6, 3, **settings), nn.Linear(3, CLASSES)
        self.weighted, self.offsets = weighted, offsets

    def forward(self, x: Tensor) -> Tensor:
        if self.weighted:
            bags = self.bags(x, per_sample_weights=(x + 1.0).to(self.head.weight))
        elif self.offsets:
            bags = self.bags(x.flatten(), torch.arange(0, x.numel(), x.shape[1], device=x.device))
        else:
            bags = self.bags(x)
        return self.head(torch.tanh(bags))


class Words(nn.Module):
    """An embedding, pooled; ``padding`` is the index that learns nothing, ``tied`` puts its table in two places."""

    def __init__(self, padding: int | None = None, tied: bool = False, sparse: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4, padding_idx=padding, sparse=sparse)
        self.middle, self.head = nn.Linear(4, 6, bias=False), nn.Linear(6, CLASSES)
        if tied:
            self.middle.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(self.embedding(x))).mean(1))


class Encoder(nn.Module):
    """A transformer's encoder layer between an embedding and a head."""

    def __init__(self, norm_first: bool = False, padding: int | None = None, steps_first: bool = False) -> None:
        super().__init__()
        self.embedding, self.steps_first = nn.Embedding(5, 4, padding_idx=padding), steps_first
        self.encoder = nn.TransformerEncoderLayer(4, 2, 6, 0.1, batch_first=not steps_first, norm_first=norm_first)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if self.steps_first:
            return self.head(self.encoder(self.embedding(x.T)).mean(0))
        return self.head(self.encoder(self.embedding(x)).mean(1))


class Attending(nn.Module):
    """Attention, ``of`` kinds: to its own inputs, under masks, to others, or with the batch behind the sequence."""

    def __init__(self, of: str = "", **settings: object) -> None:
        super().__init__()
        self.of = of
        self.attention = nn.MultiheadAttention(4, 2, **{"batch_first": of != "steps first", **settings})
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.head(torch.tanh(self.attended(x)).mean(1))

    def attended(self, x: Tensor) -> Tensor:
        causal = torch.ones(x.shape[1], x.shape[1], device=x.device).triu(1).bool()
        if self.of == "causal":
            return self.attention(x, x, x, attn_mask=causal, need_weights=False, is_causal=True)[0]
        if self.of == "two masks":
            return self.attention(x, x, x, (x[..., 0] > 2.0).double().neg(), attn_mask=causal.double().mul(-0.7))[0]
        if self.of == "a mask for every head":
            near = (x[..., :2].unsqueeze(1) - x[..., :2].unsqueeze(2)).abs() < 3.0  # (n, T, T, heads)
            return self.attention(x, x, x, attn_mask=~near.permute(0, 3, 1, 2).flatten(0, 1))[0]
        if self.of == "other inputs":
            return self.attention(x[:, :1], x, x)[0]
        if self.of == "fewer channels":
            return self.attention(x, x[..., :3], x[..., :3])[0]
        if self.of == "steps first":
            x = x.transpose(0, 1)
            return self.attention(x, x, x)[0].transpose(0, 1)
        if self.of == "weights":
            attended, weights = self.attention(x, x, x)
            return attended + weights.sum(1).unsqueeze(-1)
        if self.of == "twice":
            x = self.attention(x, x, x)[0]
        if self.of == "keywords":
            return self.attention(query=x, key=x, value=x)[0]
        return self.attention(x, x, x)[0]


class Pairs(nn.Module):
    """Two sentences by one encoder: the first steps of the input, and the others."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.encoder = nn.Embedding(5, 4, padding_idx=0), nn.LSTM(4, 3, batch_first=True)
        self.attention, self.head = nn.MultiheadAttention(3, 1, batch_first=True), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.encoded(x[:, :2]), self.encoded(x[:, 2:])], 1))

    def encoded(self, x: Tensor) -> Tensor:
        h, _ = self.encoder(self.embedding(x))
        return self.attention(h, h, h)[0].mean(1)


class Called(nn.Module):
    """Calls a layer on tokens (n, T, 4) in the arrangement given, or by keyword."""

    def __init__(self, arrangement: str) -> None:
        super().__init__()
        self.layer, self.head, self.arrangement = nn.Linear(4, 5), nn.Linear(5, CLASSES), arrangement

    def forward(self, x: Tensor) -> Tensor:
        if self.arrangement == "flattened":
            hidden = self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        elif self.arrangement == "steps first":
            hidden = self.layer(x.transpose(0, 1)).transpose(0, 1)
        elif self.arrangement == "steps first, overwritten":
            hidden = self.layer(x.transpose(0, 1)).cos_().transpose(0, 1)
        else:
            hidden = self.layer(input=x)
        return self.head(torch.tanh(hidden).mean(1))


class SortedByLength(nn.Module):
    """Works on its batch in another order, as before packed sequences, and puts it back; 0 stands behind a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.middle, self.head = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        order = (x > 0).sum(1).argsort(descending=True, stable=True)
        h = torch.tanh(self.middle(self.embedding(x[order]))) * (x[order] > 0).unsqueeze(-1)
        return self.head(h.sum(1)[order.argsort()])


class Trimmed(nn.Module):
    """Cuts its batch to the longest sequence in it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.middle, self.head = nn.Embedding(3, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        used = (x > 0).any(0).nonzero()
        x = x[:, : int(used[-1]) + 1] if len(used) else x[:, :1]
        return self.head((torch.tanh(self.middle(self.embedding(x))) * (x > 0).unsqueeze(-1)).sum(1))


class PaddedTable(nn.Module):
    """A raw table that is looked up with a padding index."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Parameter(torch.ones(6, 4)), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(nn.functional.embedding(x, self.table, padding_idx=1)).mean(1))


class Recurrent(nn.Module):
    """All steps and all last states of a recurrent layer, ``of`` kinds: with first states, packed, or with the batch behind the steps."""

    def __init__(self, kind: type[nn.RNNBase] = nn.GRU, of: str = "", **settings: object) -> None:
        super().__init__()
        self.of = of
        self.cell = kind(2, 3, **{"batch_first": of != "steps first", **settings})
        width = 2 * (self.cell.proj_size or 3) if self.cell.bidirectional else self.cell.proj_size or 3
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        steps, last = self.called(x)
        for states in last if isinstance(last, tuple) else (last,):
            steps = steps + states.sum((0, 2))[:, None, None]
        return self.head(steps.mean(1))

    def called(self, x: Tensor) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        cell = self.cell
        if self.of == "steps first":
            steps, last = cell(x.transpose(0, 1))
            return steps.transpose(0, 1), last
        if self.of == "packed":
            lengths = 1 + (x[:, 0, 0] > 0).long().cpu()
            steps, last = cell(rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
            return rnn.pad_packed_sequence(steps, batch_first=True, total_length=x.shape[1])[0], last
        if self.of == "first states":
            count = cell.num_layers * (2 if cell.bidirectional else 1)
            first = torch.stack([(i + 1.0) * x[:, 0].mean(1, keepdim=True).expand(-1, 3) for i in range(count)])
            return cell(x, (first, first.cos()) if isinstance(cell, nn.LSTM) else first)
        if self.of == "written over":
            steps, last = cell(x)
            return steps.tanh_(), tuple(states.mul_(2.0) for states in last)
        return cell(input=x) if self.of == "keywords" else cell(x)


class Stepwise(nn.Module):
    """A recurrent cell, called at every step."""

    def __init__(self, kind: type[nn.RNNCellBase], **settings: object) -> None:
        super().__init__()
        self.cell, self.head = kind(2, 3, **settings), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        last = None
        for step in x.unbind(1):
            last = self.cell(step, last)
        return self.head(sum(last) if isinstance(last, tuple) else last)
