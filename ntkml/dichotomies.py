"""Nested dichotomies: binary trees over the classes, and the exact factor L L^T = diag(p) - p p^T that each one gives.

A node splits its classes into left and right with masses pl and pr; its column of L is
sqrt(pl pr / (pl + pr)) (p_left / pl - p_right / pr). The C - 1 columns of a tree are the rows of the ``tree`` estimators:
Fischer's inequality holds for the symmetric I + R P0^-1 R^T with R = L^T J, so every partition of them is a proven bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

#: Pairs (left classes, right classes).
Splits = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


@dataclass(frozen=True)
class NestedDichotomy:
    """A binary tree over ``num_classes`` classes as its C - 1 splits, each a pair (left classes, right classes)."""

    splits: Splits

    @property
    def num_classes(self) -> int:
        return len(self.splits) + 1

    @cached_property
    def _members(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        """By device. A cache that is asked for this tree would hash all of its splits at every step."""
        return {}

    def factor(self, log_p: Tensor, columns: Tensor | None = None) -> Tensor:
        """L with L L^T = diag(p) - p p^T, in log space so that saturated p give neither NaN nor lost columns.

        Args:
            log_p: (n, C), normalised.
            columns: the splits whose columns are wanted, (k,), or (n, k) where inputs differ; None for all of them.

        Returns:
            (n, C, C - 1), one column per split, or (n, C, k).
        """
        if log_p.device not in self._members:
            self._members[log_p.device] = members_of(self.splits, self.num_classes, log_p.device)
        left, right = self._members[log_p.device]
        return split_columns(log_p, left, right, columns)


def members_of(splits: Splits, num_classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which classes lie left and right of every split, (J, C) each; for callers to keep, so that a GPU gets them once."""
    with torch.inference_mode(False):  # also for those who come out of it later
        members = torch.zeros(2, len(splits), num_classes, dtype=torch.bool, device="cpu")
        for index, split in enumerate(splits):
            for side in (0, 1):
                members[side, index, list(split[side])] = True
        left, right = members.to(device)
        return left, right


def split_columns(log_p: Tensor, left: Tensor, right: Tensor, columns: Tensor | None) -> Tensor:
    """sqrt(pl pr / (pl + pr)) (p_left / pl - p_right / pr) of the splits ``columns``, n C numbers for each of them.

    log_p: (n, C), left, right: (J, C), columns: (k,) or (n, k), None for all J -> (n, C, k).
    """
    if columns is not None:
        left, right = left[columns], right[columns]  # (k, C) or (n, k, C)
    log_p = log_p.unsqueeze(1)
    log_left, log_right = _masked_logsumexp(log_p, left), _masked_logsumexp(log_p, right)  # (n, k, 1)
    half = 0.5 * (log_left + log_right - torch.logaddexp(log_left, log_right))
    of_left = torch.where(left, half - log_left + log_p, -torch.inf).exp()
    of_right = torch.where(right, half - log_right + log_p, -torch.inf).exp()
    return (of_left - of_right).transpose(1, 2)


def _masked_logsumexp(log_p: Tensor, members: Tensor) -> Tensor:
    """log of each node's mass. log_p: (n, 1, C), members: (k, C) or (n, k, C) -> (n, k, 1)."""
    return torch.logsumexp(log_p.masked_fill(~members, -torch.inf), dim=-1, keepdim=True)


def balanced(order: Sequence[int]) -> NestedDichotomy:
    """The tree that halves the classes in the given order, down to single classes."""
    splits: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def halve(classes: tuple[int, ...]) -> None:
        if len(classes) < 2:
            return
        middle = (len(classes) + 1) // 2
        splits.append((classes[:middle], classes[middle:]))
        halve(classes[:middle])
        halve(classes[middle:])

    halve(tuple(order))
    return NestedDichotomy(tuple(splits))


def sequential_columns(log_p: Tensor, columns: Tensor | None) -> Tensor:
    """:meth:`NestedDichotomy.factor` of the tree that splits class 0 from the rest, class 1 from what is left, and so on.

    The fallback without class weights. Its members are those of the columns that are asked for, C numbers each, and not kept.
    """
    classes = torch.arange(log_p.shape[1], device=log_p.device)
    splits = (classes[:-1] if columns is None else columns).unsqueeze(-1)
    return split_columns(log_p, classes == splits, classes > splits, None)


def average_linkage(class_weights: Tensor) -> NestedDichotomy:
    """The dendrogram of the classes by average linkage on their rows of the last layer's weight. class_weights: (C, d).

    Classes that are confused with each other are split last. Distances are cosines between rows centred over the classes:
    a softmax sees only differences of logits, so a common shift of the rows must not count.
    """
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import pdist

    num_classes = class_weights.shape[0]
    centred = class_weights.detach().double() - class_weights.detach().double().mean(0)
    unit = centred / centred.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    members: list[tuple[int, ...]] = [(c,) for c in range(num_classes)]
    splits = []
    # Twice the cosine's distance between unit vectors, so that its averages are those of cosines; defined for a zero row too.
    for left, right, *_ in linkage(pdist(unit.cpu().numpy(), "sqeuclidean"), method="average"):
        splits.append((members[int(left)], members[int(right)]))
        members.append(members[int(left)] + members[int(right)])
    return NestedDichotomy(tuple(reversed(splits)))
