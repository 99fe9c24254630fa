"""Weights and hyperparameters learned together: weight epochs and stochastic steps of the marginal likelihood in turn.

Section 4 of the paper: after an initial burn-in, every k-th epoch draws a new partition of the training data and takes a
few gradient steps on the hyperparameters, each from one block of it. What such a run consists of is a :class:`Learner`;
:func:`learn` runs it, one record per epoch, and between two records :func:`state_of` is all there is to keep.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ntkml.capture import trainable_parameters
from ntkml.datasets import ImageDataset
from ntkml.dichotomies import NestedDichotomy
from ntkml.hyperparameters.affine import AffineInvariance
from ntkml.objective import MarginalLikelihood
from ntkml.randomness import generator_for
from ntkml.scores import Scores, one_hot, score
from ntkml.specs import NO_ESTIMATOR
from ntkml.train_protocols import TrainProtocol
from ntkml.two_pass import chunks

#: One random stream each: order of the batches, views of the weights' steps, partitions, drawn blocks with their views.
STREAMS = ("batches", "views", "partition", "blocks")

#: Network inputs, views included, that are evaluated at a time.
EVALUATION_INPUTS = 1024

_WEIGHT_OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}


@dataclass(frozen=True)
class Learner:
    """Everything that training changes. ``optimizers``: "weights", and "prior", "augmentation" where these are learned."""

    protocol: TrainProtocol
    objective: MarginalLikelihood
    optimizers: Mapping[str, torch.optim.Optimizer]
    streams: Mapping[str, torch.Generator]


@dataclass(frozen=True)
class LearningRecord:
    """One epoch, counted from 1. Loss and log marginal likelihood (None without an update) in nats per datum."""

    epoch: int
    train_loss: float
    log_marginal_likelihood: float | None
    test: Scores | None
    seconds_weights: float
    seconds_hyper: float
    seconds_eval: float


def new_learner(protocol: TrainProtocol, model: nn.Module, device: torch.device, chunk: int | None = None) -> Learner:
    """The learner at its start: initial weights, prior precisions ``prior_init``, half-widths zero.

    Raises:
        ValueError: an unknown optimizer, estimator or prior, or a precision that is not positive.
    """
    if protocol.optimizer not in _WEIGHT_OPTIMIZERS:
        known = ", ".join(_WEIGHT_OPTIMIZERS)
        raise ValueError(f"unknown optimizer {protocol.optimizer!r}; known: {known}")
    learned = protocol.estimator != NO_ESTIMATOR
    # MAP needs the loss and the outputs of the objective, never its estimate: any name serves.
    name = protocol.estimator if learned else "ntk-N-C"
    views = AffineInvariance(protocol.samples) if protocol.learns_invariance else None
    # Convolutions and pooling of a few channels run twice as fast on a CPU with the channels last in memory.
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    objective = MarginalLikelihood(
        model, name, protocol.likelihood, protocol.prior_kind, protocol.prior_init, views, chunk
    )
    objective.to(device)
    weights = trainable_parameters(model).values()
    optimizers = {"weights": _WEIGHT_OPTIMIZERS[protocol.optimizer](weights, lr=protocol.lr)}
    if learned:
        noise = objective.log_observation_noise
        learned_with_it = [objective.log_prior_precision, *([] if noise is None else [noise])]
        optimizers["prior"] = torch.optim.Adam(learned_with_it, lr=protocol.lr_hyper)
    if views is not None:
        optimizers["augmentation"] = torch.optim.Adam(views.parameters(), lr=protocol.lr_aug)
    return Learner(protocol, objective, optimizers, {name: generator_for(protocol.seed, name) for name in STREAMS})


def learn(learner: Learner, data: ImageDataset, first_epoch: int = 1) -> Iterator[LearningRecord]:
    """Run the epochs from ``first_epoch`` on, in place. The data lie on the learner's device.

    Raises:
        ValueError: weights or hyperparameters that became NaN or infinite, a factorisation that failed, or a network that
            cannot be captured; the message names the epoch and what to change.
    """
    protocol, x = learner.protocol, data.train_inputs
    y = data.train_targets
    if not learner.objective.likelihood.softmax:
        y = one_hot(y, data.num_classes)
    for epoch in range(first_epoch, protocol.epochs + 1):
        times = [time.perf_counter()]
        loss = _weight_epoch(learner, x, y, epoch)
        times.append(time.perf_counter())
        updates = protocol.updates_at(epoch)
        estimate = _update(learner, x, y, epoch) if updates else None
        times.append(time.perf_counter())
        evaluates = epoch % protocol.eval_every == 0 or epoch == protocol.epochs
        test = evaluate(learner, data) if evaluates else None
        times.append(time.perf_counter())
        seconds = [after - before for before, after in zip(times, times[1:], strict=False)]
        yield LearningRecord(epoch, loss, estimate, test, *seconds)


def cosine(step: int, num_steps: int, start: float, end: float) -> float:
    """The learning rate of step 0 ... num_steps - 1: end + (start - end) (1 + cos(pi step / num_steps)) / 2."""
    return end + (start - end) * (1.0 + math.cos(math.pi * step / num_steps)) / 2.0


def _weight_epoch(learner: Learner, x: Tensor, y: Tensor, epoch: int) -> float:
    """One pass over the training data in random order. Returns the mean loss of its batches."""
    protocol, optimizer = learner.protocol, learner.optimizers["weights"]
    batches = torch.randperm(len(x), generator=learner.streams["batches"]).split(protocol.batch_size)
    num_steps, total = protocol.epochs * len(batches), 0.0
    for index, batch in enumerate(batches):
        loss = learner.objective.weight_loss(x[batch], y[batch], len(x), learner.streams["views"])
        optimizer.zero_grad()
        loss.backward()
        _step(optimizer, cosine((epoch - 1) * len(batches) + index, num_steps, protocol.lr, protocol.lr_min))
        total += loss.item() * len(batch)
    if not math.isfinite(total):
        raise ValueError(f"training diverged in epoch {epoch}: lower the learning rate (--lr, now {protocol.lr:g})")
    return total / len(x)


def _update(learner: Learner, x: Tensor, y: Tensor, epoch: int) -> float:
    """All hyperparameter steps of one epoch. Returns the mean of their estimates of log q / N.

    While only the prior is learned, the rows of one block serve all steps; otherwise they change with every step, and
    each step draws its own block.
    """
    protocol, objective = learner.protocol, learner.objective
    done, total = protocol.num_updates(epoch - 1), protocol.num_updates(protocol.epochs)
    rates = {"prior": (protocol.lr_hyper, protocol.hyper_steps), "augmentation": (protocol.lr_aug, protocol.aug_steps)}
    estimates = []
    try:
        objective.resample(x, y, learner.streams["partition"])
        stream = learner.streams["blocks"]
        fresh = partial(objective.backward, x, y, 1, stream)
        backward = fresh if protocol.learns_invariance else objective.cached_backward(x, y, 1, stream)
        for step in range(protocol.steps_per_update):
            objective.zero_grad()
            estimates.append(float(backward().total) / len(x))
            for name, (rate, count) in rates.items():
                if name in learner.optimizers and step < count:
                    end = rate / protocol.hyper_decay
                    _step(learner.optimizers[name], cosine(done * count + step, total * count, rate, end))
    except ValueError as error:
        raise ValueError(f"epoch {epoch}, {protocol.estimator} with a {protocol.prior_kind} prior: {error}") from None
    values = [objective.prior.values, *objective.parameters()]
    if not all(bool(torch.isfinite(value).all()) for value in values):
        raise ValueError(
            f"the hyperparameters diverged in epoch {epoch} ({protocol.estimator}): lower --lr-hyper (now "
            f"{protocol.lr_hyper:g}) or --lr-aug (now {protocol.lr_aug:g})"
        )
    return math.fsum(estimates) / len(estimates)


def _step(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


@torch.no_grad()
def evaluate(learner: Learner, data: ImageDataset) -> Scores:
    """Scores on the test data, logits averaged over S views. The views are the same at every epoch of a run."""
    objective, x = learner.objective, data.test_inputs
    generator = generator_for(learner.protocol.seed, "test-views")
    size = max(1, EVALUATION_INPUTS // learner.protocol.samples)
    outputs = torch.cat([objective.outputs(x[chunk], generator) for chunk in chunks(len(x), size)])
    return score(outputs, data.test_targets, objective.likelihood)


def state_of(learner: Learner) -> dict[str, Any]:
    """What :func:`restore` needs to go on bit by bit: tensors, numbers and strings in dictionaries and lists.

    Schedules and counters follow from the epoch, and the partition is drawn anew; neither is kept.
    """
    tree = learner.objective.tree
    return {
        "weights": learner.objective.model.state_dict(),
        "hyperparameters": learner.objective.state_dict(),
        "optimizers": {name: optimizer.state_dict() for name, optimizer in learner.optimizers.items()},
        "generators": {name: stream.get_state() for name, stream in learner.streams.items()},
        "tree": [[list(left), list(right)] for left, right in tree.splits] if tree else None,
    }


def restore(learner: Learner, state: Mapping[str, Any]) -> None:
    """Put a learner of the same protocol into a state that :func:`state_of` returned."""
    learner.objective.model.load_state_dict(state["weights"])
    learner.objective.load_state_dict(state["hyperparameters"])
    for name, optimizer in learner.optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    for name, stream in learner.streams.items():
        stream.set_state(state["generators"][name])
    if state["tree"] is not None:
        learner.objective.tree = NestedDichotomy(tuple((tuple(left), tuple(right)) for left, right in state["tree"]))
