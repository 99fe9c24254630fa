"""Numerical trouble in training by its name: where it happened, what it concerns and what to change.

Nothing is mended here. A smaller block is another estimator, so a run that finds no memory for its blocks ends and says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from ntkml.learning.scores import Scores
from ntkml.learning.state import MOMENTUM, Learner
from ntkml.linalg import NotPositiveDefiniteError
from ntkml.machine.memory import is_out_of_memory
from ntkml.parameters import parameter_shapes
from ntkml.rows.chunking import BlockMemoryError
from ntkml.specs import parse_estimator
from ntkml.system_specs import is_bound


class DivergenceError(ValueError):
    """A loss, an estimate or a hyperparameter became NaN or infinite."""


class TrainingMemoryError(ValueError):
    """There was no memory for a step; the message says for which, and what would take less."""


def check_loss(learner: Learner, loss: float, step: int, rate: float) -> None:
    """Raise DivergenceError where the loss of a batch is NaN or infinite; ``step`` counts from 0, ``rate`` was its own."""
    if not math.isfinite(loss):
        raise DivergenceError(
            f"training diverged in epoch {learner.position.epoch}, step {step + 1}: the loss is {loss} at learning rate {rate:g}: "
            f"{_lower_for_weights(learner, rate)}"
        )


def check_scores(learner: Learner, scores: Scores) -> None:
    """Raise DivergenceError where the test log likelihood is NaN or infinite, which an average over batches may hide."""
    if not math.isfinite(scores.log_likelihood):
        raise DivergenceError(
            f"training diverged in epoch {learner.position.epoch}: the test log likelihood is {scores.log_likelihood}: "
            f"{_lower_for_weights(learner, learner.protocol.lr)}"
        )


@torch.no_grad()
def check_update(learner: Learner, estimate: float) -> None:
    """Raise DivergenceError where a hyperparameter step met or left something that is NaN, infinite or no precision."""
    objective = learner.objective
    precisions, noise = objective.prior.values, objective.likelihood.noise_variance
    values = [precisions, torch.as_tensor(noise), *objective.parameters()]
    if math.isfinite(estimate) and bool((precisions > 0).all()) and all(_is_finite(value) for value in values):
        return
    wrong = [] if math.isfinite(estimate) else [f"the estimate of log q / N is {estimate}"]
    wrong += _exploded_precisions(learner)
    wrong += [] if _is_finite(torch.as_tensor(noise)) else [f"the variance of the observation noise is {float(noise)}"]
    views = [] if objective.augmentation is None else [value.tolist() for value in objective.augmentation.parameters()]
    wrong += [f"the half-widths are {eta}" for eta in views if not all(map(math.isfinite, eta))]
    raise DivergenceError(
        f"the hyperparameters diverged in {_place(learner)} ({learner.protocol.estimator}): "
        f"{', '.join(wrong) or 'one of them is not finite'}: {_lower(learner)}"
    )


@contextmanager
def named_trouble(learner: Learner, phase: str) -> Iterator[None]:
    """Turn the errors of a ``with`` block into ones that say where they happened and what to change.

    Raises:
        TrainingMemoryError: there was no memory.
        NotPositiveDefiniteError: a factorisation failed.
        ValueError: whatever else a step refuses.
    """
    protocol = learner.protocol
    described = f"{_place(learner)}, {protocol.estimator} with a {protocol.prior_kind} prior"
    try:
        yield
    except DivergenceError:
        raise
    except (NotPositiveDefiniteError, torch.linalg.LinAlgError) as error:
        reason = f"{described}, blocks of up to {_block_size(learner)} index pairs: {error}"
        weights = f"--lr (now {protocol.lr:g}) where the weights exploded"
        raise NotPositiveDefiniteError(
            f"{reason}; {_lower(learner)}, start from a larger --prior-init, or lower {weights}"
        ) from None
    except BlockMemoryError as error:
        raise TrainingMemoryError(f"out of memory in {_place(learner)}: {_smaller(learner)}") from error
    except ValueError as error:
        raise ValueError(f"{described}: {error}") from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingMemoryError(f"out of memory in {_place(learner)}: {_LESS[phase](learner)}") from error


def _place(learner: Learner) -> str:
    return f"epoch {learner.position.epoch}, step {learner.position.step + 1}"


def _lower_for_weights(learner: Learner, rate: float) -> str:
    """The weights' learning rate, or that of the prior where it is the prior's own term that cannot be descended.

    Gradient descent with momentum m at rate r on 1/2 p w^2 / N diverges where r p / N > 2 (1 + m); Adam's steps have a length of
    their own.
    """
    protocol = learner.protocol
    largest = float(learner.objective.prior.values.detach().max())
    lower = f"lower the learning rate (--lr, now {protocol.lr:g})"
    too_steep = rate * largest / protocol.num_data > 2 * (1 + MOMENTUM)
    if protocol.optimizer == "sgd" and too_steep and largest > protocol.prior_init:
        return (
            f"a prior precision has grown to {largest:g}, too much for this rate: lower --lr-hyper "
            f"(now {protocol.lr_hyper:g}), or {lower}"
        )
    return lower


def _lower(learner: Learner) -> str:
    """The learning rates of the hyperparameters, as what to change."""
    protocol = learner.protocol
    augmentation = f" or --lr-aug (now {protocol.lr_aug:g})" if protocol.learns_invariance else ""
    return f"lower --lr-hyper (now {protocol.lr_hyper:g}){augmentation}"


def _exploded_precisions(learner: Learner) -> list[str]:
    """Which prior precisions are no positive finite numbers, by parameter tensor."""
    objective = learner.objective
    shapes = parameter_shapes(objective.model)
    found = []
    for name, values in objective.prior.of(shapes).items():
        bad = values.reshape(-1)[~(torch.isfinite(values) & (values > 0)).reshape(-1)]
        if bad.numel() and objective.prior_kind == "scalar":
            return [f"the prior precision is {float(bad[0])}"]
        if bad.numel():
            found.append(f"the prior precision of {name!r} is {float(bad[0])}")
    return found


def _is_finite(value: torch.Tensor) -> bool:
    return bool(torch.isfinite(value).all())


def _block_size(learner: Learner) -> int:
    partition = learner.objective.partition
    return max(block.num_pairs for block in partition.blocks) if partition else 0


def _less_for_weights(learner: Learner) -> str:
    views = f" or --samples (now {learner.protocol.samples})" if learner.protocol.learns_invariance else ""
    return f"a batch takes too much; lower --batch-size (now {learner.protocol.batch_size}){views}"


def _less_for_blocks(learner: Learner) -> str:
    if not is_bound(learner.protocol.estimator):
        return (
            f"an update takes too much; lower --num-data (now {learner.protocol.num_data}) or choose a smaller --model"
        )
    greedy = parse_estimator(learner.protocol.estimator).grouping == "greedy"
    ungrouped = ", or another grouping than greedy, which needs the kernel of all data" * greedy
    chunk = f"--chunk, now {learner.objective.chunk or 'auto'}"
    return f"{_smaller(learner)} or fewer inputs at a time ({chunk}){ungrouped}"


def _smaller(learner: Learner) -> str:
    """A smaller estimator is named, never taken: its bound is another one."""
    protocol = learner.protocol
    spec = parse_estimator(protocol.estimator)
    inputs = spec.inputs or protocol.num_data
    smaller = replace(spec, inputs=inputs // 2) if inputs > 1 else replace(spec, outputs="1")
    size = min(inputs, protocol.num_data)
    advice = f"a smaller estimator (--estimator {smaller})" if smaller != spec else "a smaller --model"
    return f"{spec} takes blocks of {size} inputs; try {advice}"


def _less_for_scores(learner: Learner) -> str:
    protocol = learner.protocol
    less = f"lower --samples (now {protocol.samples})" if protocol.learns_invariance else "choose a smaller --model"
    return f"the test data take too much at a time; {less}"


_LESS = {"weights": _less_for_weights, "hyper": _less_for_blocks, "eval": _less_for_scores}
