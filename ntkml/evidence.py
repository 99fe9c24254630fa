"""Algorithm 1: from the log-determinants of blocks to the log marginal likelihood, in one graph.

    log q(D|h) = log p(D|w) - 1/2 w^T P0 w - 1/2 log|I + K|                                            (Equations 5, 6)
    estimate_m = - 1/2 w^T P0 w + (1/q_m) [ rho_m - 1/2 log|I + K_m| ],   rho_m = sum over rows of m of log p(y_n) / R

The terms (P/2) log 2 pi and 1/2 log|P0| of the prior and of the Gaussian integral cancel. The mean of estimate_m over
m ~ q is the bound exactly, blocks of unequal size included. The same terms a chunk at a time, with their gradients, are those of
:mod:`ntkml.objective`; a bound grid adds them up for many estimators (:mod:`ntkml.runs.bound_rows`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from ntkml.arguments import check_generator, check_network, check_size, check_tensors, whole_numbers_explained
from ntkml.dichotomies import NestedDichotomy
from ntkml.grouping import partition_for, tree_for
from ntkml.likelihoods import Likelihood, as_likelihood, factor_columns
from ntkml.machine.full_precision import full_precision
from ntkml.parameters import parameter_shapes, trainable_parameters
from ntkml.partitions import Partition, is_count
from ntkml.priors import PriorPrecision, as_prior
from ntkml.rows.block import CapturedRows
from ntkml.rows.capture import Capture, capture
from ntkml.rows.exact import RowPlan
from ntkml.rows.model_contract import check_model
from ntkml.rows.plain_passes import outputs_of_one
from ntkml.specs import EstimatorSpec, is_certified, parse_estimator, resolve_estimator, within_batch
from ntkml.structures import structure_named


@dataclass(frozen=True)
class LogMarginalLikelihood:
    """One estimate of log q(D|h), in nats, summed over the data; every term is a float64 scalar tensor.

    ``log_prior`` is -1/2 w^T P0 w and ``log_det`` the log-determinant ratio log|H + P0| - log|P0|, scaled to the whole
    data. ``certified`` says whether the estimate's mean is a proven lower bound.
    """

    log_likelihood: Tensor
    log_prior: Tensor
    log_det: Tensor
    certified: bool
    num_blocks: int

    def __post_init__(self) -> None:
        """Log-determinants are finite where they are made; the other terms are not, where weights or outputs are not or are too large."""
        if bool(torch.isfinite(self.log_likelihood.detach() + self.log_prior.detach())):  # a GPU is waited for once
            return
        log_likelihood, log_prior = float(self.log_likelihood.detach()), float(self.log_prior.detach())
        if not isfinite(log_prior):
            raise ValueError(
                f"the log prior of the weights is {log_prior}: a weight is not finite, or its square is not"
            )
        if not isfinite(log_likelihood):
            raise ValueError(
                f"the log likelihood is {log_likelihood}: outputs of the network are not finite, or lie too far from their targets; check "
                "the data and weights"
            )

    @property
    def total(self) -> Tensor:
        """log_likelihood + log_prior - log_det / 2."""
        return self.log_likelihood + self.log_prior - 0.5 * self.log_det


@full_precision()
def log_marginal_likelihood(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    estimator: str | EstimatorSpec,
    prior: float | Tensor | PriorPrecision = 1.0,
    likelihood: str | Likelihood = "categorical",
    blocks: int | None = None,
    generator: torch.Generator | None = None,
    num_data: int | None = None,
) -> LogMarginalLikelihood:
    """A lower bound (or its unbiased estimate) of the linearised-Laplace log marginal likelihood (Algorithm 1).

    Args:
        model: maps (n, ...) to (n, C), without coupling between the inputs of a batch.
        x: all N inputs, (N, ...), on the model's device; or a random batch of them.
        y: their targets; see the likelihood.
        estimator: a name such as ``"ntk-100-C"``; see :mod:`ntkml.specs`.
        prior: precision: a float, a tensor of one value, one per parameter tensor or one per parameter, or a
            :class:`PriorPrecision`. The result is differentiable in it.
        likelihood: ``"categorical"``, ``"bernoulli"``, ``"gaussian"``, or an object such as ``Gaussian(noise)``.
        blocks: None sums the whole partition; k averages k drawn blocks, an unbiased estimate of the same bound.
        generator: randomness of the partition and the draw.
        num_data: N where x and y are a batch of n data, whose terms then count N / n times; ``N`` in the estimator's name is
            the batch. A batch that is smaller than a block is one block, and of more ``blocks`` than it has all are taken. The
            expectation over batches is a lower bound wherever ``certified`` says so (docs/mathematics.md).

    Returns:
        :class:`LogMarginalLikelihood`, in nats, summed over the data.

    Raises:
        ValueError: a name, model, prior or data that cannot be used; the message says what to do.
    """
    likelihood = as_likelihood(likelihood)
    check_network(model)
    check_data(x, y)
    check_size(len(x) if num_data is None else num_data, len(x))
    check_generator(generator)
    with whole_numbers_explained(model, x):
        plan = check_model(model, x)
    outputs = outputs_of_one(model, x)
    named = parse_estimator(str(estimator))
    spec = named if num_data is None else within_batch(named, len(x))
    spec = resolve_estimator(spec, len(x), outputs.shape[1], likelihood.softmax)
    likelihood.check_targets(outputs.expand(len(x), -1), y)
    partition = partition_for(spec, model, x, y, likelihood, generator, plan)
    blocks = blocks if num_data is None else blocks_of_batch(blocks, partition)
    drawn = None if blocks is None else partition.draw(blocks, generator)
    scale = 1.0 if num_data is None else num_data / len(x)
    return evaluate_partition(model, x, y, spec, partition, prior, likelihood, plan, drawn, scale)


@full_precision()
def evaluate_partition(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    spec: EstimatorSpec,
    partition: Partition,
    prior: float | Tensor | PriorPrecision,
    likelihood: Likelihood,
    plan: RowPlan,
    drawn: list[int] | None = None,
    scale: float = 1.0,
) -> LogMarginalLikelihood:
    """The estimate from the blocks ``drawn`` of a fixed partition, or from all of them; see log_marginal_likelihood.

    ``plan`` is that of :func:`check_model`; the targets belong to the outputs. ``scale``: N / n where these n data are a batch of N.
    """
    parameters = trainable_parameters(model)
    shapes = parameter_shapes(model)
    prior = as_prior(prior, shapes).to(x.device)
    tree: NestedDichotomy | None = None
    rho, log_det = [], []
    for inputs, members in partition.by_batch(sorted(drawn) if drawn is not None else None):
        captured = capture(model, x[inputs], plan=plan)
        outputs = captured.outputs.detach()
        if tree is None and spec.outputs == "tree":
            tree = tree_for(model, outputs.shape[1])
        columns = [partition.blocks[m].columns for m in members]
        taken = factor_columns(likelihood, outputs, spec.outputs, tree, torch.cat(columns, dim=-1).to(outputs.device))
        factors = taken.split([own.shape[-1] for own in columns], dim=2)
        log_prob = likelihood.log_prob(outputs, y[inputs]).double().sum()
        for m, factor in zip(members, factors, strict=True):
            block, weight = partition.blocks[m], scale * partition.weight(m, None if drawn is None else len(drawn))
            rho.append(weight * partition.share(block) * log_prob)
            log_det.append(weight * block_log_det(spec, captured, factor, shapes, prior, likelihood))
    certified = is_certified(spec, likelihood.softmax)
    log_prior = -0.5 * prior.quadratic_form(parameters)
    return LogMarginalLikelihood(
        torch.stack(rho).sum(), log_prior, torch.stack(log_det).sum(), certified, len(partition)
    )


def block_log_det(
    spec: EstimatorSpec,
    captured: Capture,
    factor: Tensor,
    shapes: Mapping[str, torch.Size],
    prior: PriorPrecision,
    likelihood: Likelihood,
) -> Tensor:
    """log|I + K_m| of one block of a captured batch. factor: its columns of L, (n, C, k)."""
    rows = CapturedRows(captured, factor, shapes, keep_graph=True)
    # Lambda = L L^T / sigma^2 enters K only as a product with P0^-1, so the noise scales the prior precision.
    return structure_named(spec.structure)(rows).log_det(prior.scaled(likelihood.noise_variance))


def blocks_of_batch(blocks: int | None, partition: Partition) -> int | None:
    """As many as were asked for, where a batch has them: the last one of a loader may have fewer than the others."""
    return min(blocks, len(partition)) if blocks is not None and is_count(blocks) else blocks


def check_data(x: Tensor, y: Tensor) -> None:
    """Raise ValueError where inputs and targets are no tensors or differ in number, or inputs are not finite."""
    check_tensors(x, y)
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
        raise ValueError(f"{bad} of {len(x)} inputs hold NaN or infinite values: remove or repair them")
