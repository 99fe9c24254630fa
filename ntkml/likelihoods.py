"""Likelihoods p(y | f): log-probabilities, and the rows L^T of their output Hessian Lambda that an estimator partitions.

A likelihood gives, for one way of splitting the outputs, a factor with columns L_{:, r} (one vector-Jacobian product
each) and the groups of columns that share a block. Within one group L_g L_g^T is the Hessian block the estimator uses:
all of Lambda for ``C`` and (summed over the groups) for ``tree``, only the diagonal sub-blocks Lambda_gg for ``1`` and k.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from inspect import signature
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from ntkml.arguments import as_numbers, check_members
from ntkml.dichotomies import NestedDichotomy, balanced, members_of, sequential_columns, split_columns
from ntkml.partitions import select_columns
from ntkml.registry import LIKELIHOODS, resolve

#: Groups of factor columns; the columns of one group stand in the same block.
ColumnGroups = tuple[tuple[int, ...], ...]


class Likelihood(Protocol):
    """What an estimator needs to know of p(y | f). outputs f: (n, C)."""

    #: Whether Lambda couples the outputs as a softmax does: ``tree`` rows exist, and the columns of ``1`` and k give its diagonal
    #: sub-blocks alone, which proves nothing. False where Lambda is diagonal, or where the columns of every split give all of it.
    softmax: bool

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError where the targets cannot belong to the outputs."""

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """log p(y_n | f_n) in nats. Shape (n,)."""

    def hessian(self, outputs: Tensor) -> Tensor:
        """Lambda = -d^2 log p / df^2. Shape (n, C, C)."""

    def factor(self, outputs: Tensor, split: str, tree: NestedDichotomy | None) -> Tensor:
        """Columns for the split ``1``, ``C``, ``tree`` or a group size, times sqrt(noise_variance). Shape (n, C, num_columns).

        Their number depends on C and the split alone. A block holds all of them under ``C``, one under ``1`` and ``tree``, and k
        under a group size k. With an additional parameter ``columns`` it computes the columns of one block only: see
        :func:`factor_columns`.
        """

    @property
    def noise_variance(self) -> Tensor | float:
        """Lambda is that of ``factor`` divided by this; 1 unless the likelihood has observation noise."""


@runtime_checkable
class LearnedNoise(Protocol):
    """Additional members of a likelihood whose observation noise :class:`ntkml.MarginalLikelihood` learns.

    The noise enters ``log_prob`` and ``noise_variance``, never the columns of ``factor``.
    """

    observation_noise: Tensor | float

    def with_noise(self, noise: Tensor) -> Likelihood:
        """The same likelihood at another observation noise, a positive scalar; differentiable in it."""


@lru_cache(maxsize=64)
def column_groups(split: str, num_columns: int) -> ColumnGroups:
    """Which of the ``num_columns`` of :meth:`Likelihood.factor` share a block, for ``1``, ``C``, ``tree`` or a group size."""
    size = num_columns if split == "C" else 1 if split in ("1", "tree") else int(split)
    return tuple(tuple(range(start, min(start + size, num_columns))) for start in range(0, num_columns, size))


def groups_of(likelihood: Likelihood, split: str, outputs: Tensor) -> ColumnGroups:
    """The :func:`column_groups` of a likelihood's own factor. outputs: (n, C) of any inputs."""
    return column_groups(split, num_columns(likelihood, split, outputs))


def num_columns(likelihood: Likelihood, split: str, outputs: Tensor) -> int:
    """Columns of :meth:`Likelihood.factor`: known for the factors below, counted for any other, whose C C numbers it takes.

    outputs: (n, C) of any inputs.
    """
    factor = getattr(likelihood.factor, "__func__", None)  # that of a subclass, which may have more, is another one
    if factor is Categorical.factor and split in ("C", "tree"):
        return outputs.shape[1] - 1
    if factor in (Categorical.factor, Bernoulli.factor, Gaussian.factor):
        return outputs.shape[1]
    return likelihood.factor(outputs[:1], split, None).shape[2]


def factor_columns(
    likelihood: Likelihood, outputs: Tensor, split: str, tree: NestedDichotomy | None, columns: Tensor
) -> Tensor:
    """Some columns of :meth:`Likelihood.factor`, for n C numbers each where it can compute them alone. (n, C, k).

    A ``factor(outputs, split, tree, columns)`` is asked for these; any other, that of a subclass included, for all, of which these are
    selected. columns: (k,), or (n, k) where inputs differ, on the device of the outputs.
    """
    factor: Callable[..., Tensor] = likelihood.factor
    if "columns" in signature(factor, follow_wrapped=False).parameters:
        return factor(outputs, split, tree, columns=columns)
    return select_columns(factor(outputs, split, tree), columns)


@dataclass(frozen=True)
class Categorical:
    """Softmax over C classes: Lambda = diag(p) - p p^T. targets: (n,) integers in [0, C)."""

    softmax = True
    noise_variance = 1.0

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        num_classes = outputs.shape[1]
        if targets.shape != outputs.shape[:1] or targets.is_floating_point():
            raise ValueError(
                f"categorical targets are {outputs.shape[0]} integers, one class per input; got "
                f"{targets.dtype} of shape {tuple(targets.shape)}"
            )
        low, high = torch.stack(targets.long().aminmax()).tolist() if targets.numel() else (0, 0)
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"categorical targets must lie in 0...{num_classes - 1} for a network of {num_classes} outputs; "
                f"got {low}...{high}"
            )

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return -F.cross_entropy(outputs, targets.long(), reduction="none")

    def hessian(self, outputs: Tensor) -> Tensor:
        p = outputs.softmax(-1)
        return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)

    def factor(
        self, outputs: Tensor, split: str, tree: NestedDichotomy | None, columns: Tensor | None = None
    ) -> Tensor:
        log_p = outputs.log_softmax(-1)
        num_classes = outputs.shape[1]
        if split in ("C", "tree"):
            return sequential_columns(log_p, columns) if tree is None else tree.factor(log_p, columns)
        own = _same_group(columns, int(split), num_classes, log_p.device)
        if split == "1":
            # log(1 - p_c) as the logsumexp over the other classes, exact where 1 - p_c underflows.
            log_rest = log_p.unsqueeze(1).masked_fill(own, -torch.inf).logsumexp(-1, keepdim=True)  # (n, k, 1)
            return torch.where(own, 0.5 * (log_p.unsqueeze(1) + log_rest), -torch.inf).exp().mT
        left, right = _group_members(num_classes, int(split), log_p.device)
        return torch.where(own.mT, split_columns(log_p, left, right, columns), 0.0)


def _same_group(columns: Tensor | None, size: int, num_outputs: int, device: torch.device) -> Tensor:
    """Which outputs are in the group, of ``size`` outputs, of each column. (k,) or (n, k), None for all -> (..., k, C)."""
    outputs = torch.arange(num_outputs, device=device)
    return (outputs if columns is None else columns).unsqueeze(-1) // size == outputs // size


@lru_cache(maxsize=64)
def _group_members(num_classes: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The splits whose columns, restricted to their group g, are L_g with L_g L_g^T = diag(p_g) - p_g p_g^T. (C, C) each.

    All other classes merged into one leaf make a softmax over |g| + 1 classes whose Hessian has Lambda_gg as its leading
    block; the factor of a tree over them, restricted to the group's classes, is square and exact.
    """
    splits = []
    for group in column_groups(str(size), num_classes):
        rest = tuple(c for c in range(num_classes) if c not in group)
        for left, right in balanced((*group, -1)).splits:  # -1, the leaf of the rest, is the last one
            splits.append((left, (*right[:-1], *rest) if right[-1] == -1 else right))
    return members_of(tuple(splits), num_classes, device)


@dataclass(frozen=True)
class Bernoulli:
    """C independent binary outputs with logits f: Lambda = diag(p (1 - p)). targets: (n, C) zeros and ones, or (n,)."""

    softmax = False
    noise_variance = 1.0

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        _check_shape("bernoulli", outputs, targets)
        if not bool(((targets == 0) | (targets == 1)).all()):
            raise ValueError("bernoulli targets must be 0 or 1")

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        labels = targets.reshape(outputs.shape).to(outputs.dtype)
        return -F.binary_cross_entropy_with_logits(outputs, labels, reduction="none").sum(-1)

    def hessian(self, outputs: Tensor) -> Tensor:
        return torch.diag_embed((F.logsigmoid(outputs) + F.logsigmoid(-outputs)).exp())

    def factor(
        self, outputs: Tensor, split: str, tree: NestedDichotomy | None, columns: Tensor | None = None
    ) -> Tensor:
        deviations = (0.5 * (F.logsigmoid(outputs) + F.logsigmoid(-outputs))).exp()
        own = _same_group(columns, 1, outputs.shape[1], outputs.device)
        return torch.where(own, deviations.unsqueeze(1), 0.0).mT


@dataclass(frozen=True)
class Gaussian:
    """Regression with one observation noise for all outputs: Lambda = I / sigma^2. targets: (n, C), or (n,) for C = 1.

    ``observation_noise`` is the standard deviation sigma in the units of y; a tensor that requires a gradient is learned
    through both the likelihood and the log-determinant.
    """

    observation_noise: Tensor | float = 1.0

    softmax = False

    def with_noise(self, noise: Tensor) -> Gaussian:
        """See :class:`LearnedNoise`; a subclass whose constructor does not take its fields by name must override it."""
        return replace(self, observation_noise=noise)

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        _check_shape("gaussian", outputs, targets)
        positive_noise(self.observation_noise)
        if targets.dtype == torch.bool:
            raise ValueError(
                "gaussian targets are real numbers; got torch.bool: use bernoulli, or convert them with .float()"
            )
        if not bool(torch.isfinite(targets).all()):
            raise ValueError("gaussian targets hold NaN or infinite values")

    @property
    def noise_variance(self) -> Tensor:
        noise = self.observation_noise
        device = noise.device if isinstance(noise, Tensor) else "cpu"
        return torch.as_tensor(noise, dtype=torch.float64, device=device).square().reshape(())

    def log_prob(self, outputs: Tensor, targets: Tensor) -> Tensor:
        residual = (targets.reshape(outputs.shape) - outputs).double()
        log_density = -0.5 * (residual.square() / self.noise_variance + (2 * torch.pi * self.noise_variance).log())
        return log_density.sum(-1)

    def hessian(self, outputs: Tensor) -> Tensor:
        identity = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
        return (identity / self.noise_variance).expand(len(outputs), -1, -1)

    def factor(
        self, outputs: Tensor, split: str, tree: NestedDichotomy | None, columns: Tensor | None = None
    ) -> Tensor:
        own = _same_group(columns, 1, outputs.shape[1], outputs.device)
        return own.to(outputs.dtype).mT.expand(len(outputs), -1, -1)


def positive_noise(given: Tensor | float) -> Tensor:
    """An observation noise as a float64 scalar without a graph. Raises ValueError where it is not one positive finite number."""
    what = "observation noise is one number for all outputs"
    noise = as_numbers(given, what).detach().double()
    if noise.numel() != 1:
        raise ValueError(f"{what}; got {noise.numel()}")
    if not 0 < float(noise) < float("inf"):
        raise ValueError(f"observation noise must be positive and finite; got {float(noise):g}")
    return noise.reshape(())


def _check_shape(name: str, outputs: Tensor, targets: Tensor) -> None:
    if targets.numel() != outputs.numel() or targets.shape[:1] != outputs.shape[:1]:
        raise ValueError(
            f"{name} targets have the shape of the outputs {tuple(outputs.shape)}; got {tuple(targets.shape)}"
        )


def as_likelihood(likelihood: str | Likelihood) -> Likelihood:
    """The likelihood called ``likelihood``, or the object itself. Raises ValueError for an unknown name, or what is none."""
    if isinstance(likelihood, str):
        named: Likelihood = resolve(LIKELIHOODS, likelihood, "likelihood")()
        return named
    members = ("softmax", "check_targets", "log_prob", "factor", "noise_variance")
    check_members(likelihood, "a likelihood is a name, or an object that", members, "ntkml.Gaussian(0.1)")
    return likelihood
