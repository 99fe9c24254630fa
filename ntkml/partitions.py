"""Partitions of all index pairs into blocks, and the probabilities with which one block is drawn.

Inputs are cut into batches (at random, by class, by k-means or greedily), the columns of the factor L into groups; a
block is one batch with one group. Any fixed partition keeps the bound, one that was chosen from the data included. The
batching functions take labels, features or a kernel and know nothing of networks. All of it lies on the CPU, whatever torch's
default device is: a generator of the CPU draws it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, groupby
from numbers import Integral
from typing import overload

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """Index pairs: ``inputs`` (n,) and the columns of L each one contributes, (k,) for all or (n, 1) for ``+iid``."""

    inputs: Tensor
    columns: Tensor

    def select(self, factor: Tensor) -> Tensor:
        """The block's columns. factor: (n, C, num_columns) of the block's own inputs -> (n, C, k)."""
        # Moved before by whoever takes a block in parts: a GPU would be waited for.
        return select_columns(factor, self.columns.to(factor.device))

    def to(self, device: torch.device) -> Block:
        """The block with its indices there."""
        return Block(self.inputs.to(device), self.columns.to(device))

    @property
    def num_pairs(self) -> int:
        """|B|, the number of rows."""
        return len(self.inputs) * self.columns.shape[-1]


@dataclass(frozen=True)
class Partition:
    """Disjoint blocks that cover ``num_inputs`` x ``num_columns`` index pairs.

    ``probabilities`` (M,) is the fixed distribution a block is drawn from; it changes the variance of an estimate, never
    its mean.
    """

    blocks: Sequence[Block]
    num_inputs: int
    num_columns: int
    probabilities: Tensor

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def uniform(self) -> bool:
        return bool((self.probabilities == self.probabilities[0]).all())

    def weighted(self, weights: Tensor) -> Partition:
        """The same blocks drawn with probability proportional to ``weights`` (M,), for example earlier log-determinants.

        Raises:
            ValueError: another number of weights, or one that is not positive and finite, or nothing beside the sum of all (a
                block that is never drawn would bias the estimate).
        """
        weights = weights.detach().double().cpu()
        probabilities = weights / weights.sum()
        if weights.shape != (len(self),) or not bool(((weights > 0) & (probabilities > 0)).all()):
            raise ValueError(
                f"block weights are {len(self)} positive numbers, one per block, none lost beside their sum; got {weights.flatten().tolist()[:4]}..."
            )
        return replace(self, probabilities=probabilities)

    def share(self, block: Block) -> float:
        """The part k / R of its inputs' log likelihood that counts for a block of k of R columns."""
        return block.columns.shape[-1] / self.num_columns

    def weight(self, index: int, count: int | None) -> float:
        """What the terms of block ``index`` are multiplied by: 1 / (q_m count) as one of ``count`` drawn ones, 1 as one of all (None)."""
        return 1.0 if count is None else 1.0 / (float(self.probabilities[index]) * count)

    def draw(self, count: int, generator: torch.Generator | None) -> list[int]:
        """Indices of ``count`` blocks: without replacement where the distribution is uniform, else independent draws.

        Raises:
            ValueError: no block asked for, or more than there are to draw without replacement.
        """
        if not is_count(count) or (self.uniform and count > len(self)):
            raise ValueError(
                f"blocks={count}: write a number from 1 to {len(self)}, or None for all {len(self)} blocks"
            )
        return torch.multinomial(self.probabilities, count, replacement=not self.uniform, generator=generator).tolist()

    def by_batch(self, indices: Sequence[int] | None = None) -> Iterator[tuple[Tensor, list[int]]]:
        """Runs of blocks over the same inputs, so that one forward pass serves all of them."""
        chosen = range(len(self)) if indices is None else indices
        for _, run in groupby(chosen, key=lambda m: id(self.blocks[m].inputs)):
            members = list(run)
            yield self.blocks[members[0]].inputs, members


class _BlocksOfBatches(Sequence[Block]):
    """Every batch of inputs with every group of columns. A block is made when it is asked for: of the C in a batch few are drawn.

    orders: of a batch's columns, group after group, (num_columns,), or (n, num_columns) where inputs differ; sizes: of the groups.
    """

    def __init__(self, batches: Sequence[Tensor], orders: Sequence[Tensor], sizes: Sequence[int]):
        self._batches, self._orders = batches, orders
        self._ends = [0, *accumulate(sizes)]

    def __len__(self) -> int:
        return len(self._batches) * (len(self._ends) - 1)

    @overload
    def __getitem__(self, index: int) -> Block: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Block]: ...

    def __getitem__(self, index: int | slice) -> Block | Sequence[Block]:
        places = range(len(self))[index]
        if isinstance(places, range):
            return tuple(self[place] for place in places)
        batch, group = divmod(places, len(self._ends) - 1)
        return Block(self._batches[batch], self._orders[batch][..., self._ends[group] : self._ends[group + 1]])


def select_columns(factor: Tensor, columns: Tensor) -> Tensor:
    """factor: (n, C, num_columns), columns: (k,), or (n, k) where inputs differ, on its device -> (n, C, k)."""
    if columns.ndim == 1:
        return factor[:, :, columns]
    return factor.gather(2, columns.unsqueeze(1).expand(-1, factor.shape[1], -1))


def is_count(value: object) -> bool:
    """Whether a value is a whole number from 1 on, which True is not."""
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 1


def make_partition(
    batches: Sequence[Tensor], groups: Sequence[Sequence[int]], iid: bool, generator: torch.Generator | None
) -> Partition:
    """Every batch of inputs with every group of columns; ``iid`` gives each input its own random order of the columns."""
    order = torch.tensor(list(chain.from_iterable(groups)), device="cpu")
    num_columns = len(order)
    if iid:  # (n, num_columns), one permutation a row
        orders = [
            torch.rand(len(batch), num_columns, generator=generator, device="cpu").argsort(1) for batch in batches
        ]
        blocks = _BlocksOfBatches(batches, orders, [1] * num_columns)
    else:
        blocks = _BlocksOfBatches(batches, [order] * len(batches), [len(group) for group in groups])
    probabilities = torch.full((len(blocks),), 1.0 / len(blocks), dtype=torch.float64, device="cpu")
    return Partition(blocks, sum(len(batch) for batch in batches), num_columns, probabilities)


def random_batches(num_inputs: int, size: int, generator: torch.Generator | None) -> list[Tensor]:
    """A random partition into batches of ``size``; the last one may be smaller."""
    return list(torch.randperm(num_inputs, generator=generator, device="cpu").split(size))


def class_batches(labels: Tensor, size: int, generator: torch.Generator | None) -> list[Tensor]:
    """The classes, shuffled inside and concatenated in random order, cut into consecutive batches of ``size``."""
    shuffled = torch.randperm(len(labels), generator=generator, device="cpu")
    classes = labels.unique()
    order = classes[torch.randperm(len(classes), generator=generator, device="cpu")]
    return list(torch.cat([shuffled[labels[shuffled] == c] for c in order]).split(size))


def kmeans_batches(
    features: Tensor, size: int, generator: torch.Generator | None, iterations: int = 20
) -> list[Tensor]:
    """Balanced k-means: clusters of ``size`` inputs with features of similar direction. features: (N, d).

    Features are scaled to unit length, which measured tighter than their raw length. Lloyd's iterations in which a cluster
    holds at most ``size`` points: every free point proposes to its nearest cluster with room, which keeps the nearest
    proposers. Cost O(N k d) an iteration, no N x N kernel.
    """
    features = torch.nn.functional.normalize(features.detach().double(), dim=1)
    num_inputs = len(features)
    num_clusters = -(-num_inputs // size)
    centres = features[torch.randperm(num_inputs, generator=generator, device="cpu")[:num_clusters]]
    room = torch.full((num_clusters,), size, device="cpu")
    room[-1] = num_inputs - size * (num_clusters - 1)
    assignment = torch.full((num_inputs,), -1, device="cpu")
    for _ in range(iterations):
        previous, assignment = assignment, _assign_with_room(torch.cdist(features, centres), room)
        if bool((assignment == previous).all()):
            break
        sums = torch.zeros_like(centres).index_add_(0, assignment, features)
        centres = sums / room.unsqueeze(1)
    return [(assignment == cluster).nonzero().squeeze(1) for cluster in range(num_clusters)]


def _assign_with_room(distances: Tensor, room: Tensor) -> Tensor:
    """Nearest cluster that still has room, contested places to the nearest proposer. distances: (N, k) -> (N,)."""
    left = room.clone()
    assignment = torch.full((len(distances),), -1, device="cpu")
    while bool((assignment < 0).any()):
        free = (assignment < 0).nonzero().squeeze(1)
        nearest, wanted = _nearest_in_turn(distances[free].masked_fill_(left == 0, torch.inf))
        for cluster in wanted.unique():
            proposers = (wanted == cluster).nonzero().squeeze(1)
            kept = proposers[nearest[proposers].argsort()[: int(left[cluster])]]
            assignment[free[kept]] = cluster
            left[cluster] -= len(kept)
    return assignment


def _nearest_in_turn(distances: Tensor) -> tuple[Tensor, Tensor]:
    """The least distance of every point and its cluster. distances: (N, k) -> (N,), (N,).

    Clusters at the same distance take turns: equal points, as behind dead units, would fill them one after the other.
    """
    nearest, first = distances.min(1)
    tied = distances == nearest.unsqueeze(1)
    counts = tied.sum(1)
    several = (counts > 1).nonzero().squeeze(1)
    turn = 1 + torch.arange(len(several), device=distances.device) % counts[several]
    first[several] = (tied[several].cumsum(1) == turn.unsqueeze(1)).byte().argmax(1)
    return nearest, first


def greedy_batches(kernel: Tensor, size: int, generator: torch.Generator | None) -> list[Tensor]:
    """Batches grown one input at a time by the largest mutual information with the batch so far. kernel: (N, N).

    The information that x shares with batch B is 1/2 log (1 + k_xx) / (1 + k_xx|B), with 1 + k_xx|B the conditional
    variance of x under I + K; it is what a block keeps and a split loses. Conditional variances follow from one pivoted Cholesky
    factorisation per batch: O(N^2 size) in all, and an N x N kernel in memory.
    """
    kernel = kernel.detach().double()
    free = torch.randperm(len(kernel), generator=generator, device="cpu")
    batches = []
    while len(free):
        members = [0]  # the first of the shuffled free inputs seeds the batch
        prior_variance = 1.0 + kernel[free, free]
        conditional = prior_variance.clone()
        # Cholesky columns of I + K over the free inputs.
        columns = torch.zeros(len(free), 0, dtype=torch.float64, device="cpu")
        taken = torch.zeros(len(free), dtype=torch.bool, device="cpu")
        taken[0] = True
        while len(members) < min(size, len(free)):
            newest = members[-1]
            column = kernel[free, free[newest]] - columns @ columns[newest]
            column = column / conditional[newest].clamp_min(1.0).sqrt()
            columns = torch.cat([columns, column.unsqueeze(1)], dim=1)
            conditional = (conditional - column.square()).clamp_min(1.0)
            shared = (prior_variance / conditional).log().masked_fill(taken, -torch.inf)
            members.append(int(shared.argmax()))
            taken[members[-1]] = True
        batches.append(free[members])
        free = free[~taken]
    return batches
