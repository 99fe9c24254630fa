"""Weights and hyperparameters learned together: weight epochs and stochastic steps of the marginal likelihood in turn.

Section 4 of the paper: after an initial burn-in, every k-th epoch draws a new partition of the training data and takes a
few gradient steps on the hyperparameters, each from one block of it. What such a run consists of is a
:class:`~ntkml.learning.state.Learner`; :func:`learn` runs it, one record per epoch, and :func:`steps` the same with a
pause after every step, where it can be left and taken up again bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ntkml.datasets import ImageDataset
from ntkml.learning.scores import Scores, one_hot, score
from ntkml.learning.state import Learner, Position, UnreadLoss, planned
from ntkml.learning.trouble import check_loss, check_scores, check_update, named_trouble
from ntkml.machine.full_precision import full_precision
from ntkml.parameters import trainable_parameters
from ntkml.randomness import generator_for
from ntkml.rows.chunking import chunks
from ntkml.systems.contract import WeightLoss

#: Network inputs, views included, that are evaluated at a time.
EVALUATION_INPUTS = 1024

#: Steps of the weights on a GPU after which their losses are read; the host runs ahead of the device in between.
UNREAD_STEPS = 50


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


def learn(learner: Learner, data: ImageDataset) -> Iterator[LearningRecord]:
    """Run the epochs that are left, in place. The data lie on the learner's device.

    Raises:
        ValueError: a loss, weights or hyperparameters that became NaN or infinite, a factorisation that failed, a step
            that found no memory, or a network that cannot be captured; the message names the epoch, the step and what to
            change.
    """
    return (record for record in steps(learner, data) if record is not None)


def steps(learner: Learner, data: ImageDataset) -> Iterator[LearningRecord | None]:
    """:func:`learn` from the learner's position on, one step at a time: None after a step, the record after an epoch.

    A step is one of the weights, on one batch, or one of the hyperparameters, on its blocks; the evaluation comes with the
    record. Whenever this yields, what :func:`~ntkml.learning.state.state_of` returns after :func:`settle` is all that
    there is to keep.
    """
    protocol, position, x = learner.protocol, learner.position, data.train_inputs
    y = data.train_targets
    if not learner.objective.likelihood.softmax:
        y = one_hot(y, data.num_classes)
    ours, theirs = learner.system.weight_data(x, y)
    while position.epoch <= protocol.epochs:
        yield from _weight_epoch(learner, ours, theirs)
        if protocol.updates_at(position.epoch):
            yield from _update(learner, x, y, _num_batches(learner, ours))
        yield _record(learner, data, len(ours))


def cosine(step: int, num_steps: int, start: float, end: float) -> float:
    """The learning rate of step 0 ... num_steps - 1: end + (start - end) (1 + cos(pi step / num_steps)) / 2."""
    return end + (start - end) * (1.0 + math.cos(math.pi * step / num_steps)) / 2.0


def _weight_epoch(learner: Learner, x: Tensor, y: Tensor) -> Iterator[None]:
    """What is left of one pass over the training data in random order."""
    protocol, position = learner.protocol, learner.position
    count = _num_batches(learner, x)
    if position.step >= count:
        return
    with position.timed("weights"):
        shuffle = partial(torch.randperm, len(x), generator=learner.streams["batches"])
        # On the data's device once, so that taking a batch does not copy its indices there and wait.
        batches = planned(learner, ["batches"], shuffle).to(x.device).split(protocol.batch_size)
    while position.step < count:
        batch = batches[position.step]
        rate = cosine(
            (position.epoch - 1) * count + position.step, protocol.epochs * count, protocol.lr, protocol.lr_min
        )
        with position.timed("weights"), named_trouble(learner, "weights"):
            _weight_step(learner, x, y, batch, rate)
            if position.step + 1 == count or len(learner.unread) >= UNREAD_STEPS:
                settle(learner)
        position.advance(count)
        yield


@full_precision()
def _weight_step(learner: Learner, x: Tensor, y: Tensor, batch: Tensor, rate: float) -> None:
    """One step of the weights on a batch. On a CPU its loss is checked before the weights move, else when it is read."""
    if _records(x.device) and learner.system.repeats_itself:
        return _recorded_step(learner, x, y, batch, rate)
    protocol, processes = learner.protocol, learner.processes
    share = len(batch) / learner.system.num_losses(batch)
    for loss, names in _losses(learner, x, y, batch):
        learner.unread.append(UnreadLoss(processes.total(loss), share, learner.position.step, rate))
        if _reads_at_once(x.device):
            settle(learner)
        moved = [learner.optimizers[name] for name in names]
        for optimizer in moved:
            optimizer.zero_grad()
        with processes.summed_gradients(trainable_parameters(learner.objective.model).values()):
            loss.backward()
        for name, optimizer in zip(names, moved, strict=True):
            # An augmentation that the weights' loss moves follows the weights' schedule.
            _step(optimizer, protocol.lr_aug * rate / protocol.lr if name == "augmentation" else rate)


def _recorded_step(learner: Learner, x: Tensor, y: Tensor, batch: Tensor, rate: float) -> None:
    """:func:`_weight_step` on a GPU of a system whose loss repeats itself."""
    objective = learner.objective

    def loss(images: Tensor, targets: Tensor) -> Tensor:
        with _autocast(learner, images.device):
            return objective.weight_loss(images, targets, len(x))

    images, targets = learner.system.drawn(x, y, batch, learner.streams["views"])
    value = learner.recorded.gradients(loss, trainable_parameters(objective.model).values(), images, targets)
    learner.unread.append(UnreadLoss(value.clone(), len(batch), learner.position.step, rate))
    _step(learner.optimizers["weights"], rate)


def _losses(learner: Learner, x: Tensor, y: Tensor, batch: Tensor) -> Iterator[WeightLoss]:
    """The system's losses on a batch, each computed when the one before it has been descended, in the run's precision."""
    losses = learner.system.weight_losses(x, y, batch, learner.streams["views"])
    while True:
        with _autocast(learner, x.device):
            loss = next(losses, None)
        if loss is None:
            return
        yield loss


def _autocast(learner: Learner, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=learner.precision == "bf16")


def _records(device: torch.device) -> bool:
    """Whether steps of the weights can be recorded there."""
    return device.type == "cuda"


def _reads_at_once(device: torch.device) -> bool:
    """Whether the host computes the losses itself, so that reading one costs nothing."""
    return device.type == "cpu"


def settle(learner: Learner) -> None:
    """Read the losses that are still on the device into the position. To be called before the state is kept.

    Raises:
        DivergenceError: one of them is NaN or infinite.
    """
    if not learner.unread:
        return
    unread = list(learner.unread)
    learner.unread.clear()
    for loss, value in zip(unread, torch.stack([loss.value for loss in unread]).tolist(), strict=True):
        check_loss(learner, value, loss.step, loss.rate)
        learner.position.loss += value * loss.num_data


def _update(learner: Learner, x: Tensor, y: Tensor, before: int) -> Iterator[None]:
    """What is left of the hyperparameter steps of one epoch, after its ``before`` weight steps."""
    protocol, position = learner.protocol, learner.position
    end = before + protocol.steps_per_update
    if position.step >= end:
        return
    with position.timed("hyper"), named_trouble(learner, "hyper"):
        backward = planned(learner, ["partition", "blocks"], partial(learner.system.update, x, y, learner.streams))
    while position.step < end:
        with position.timed("hyper"), named_trouble(learner, "hyper"):
            position.estimates.append(_hyper_step(learner, backward, position.step - before))
        position.advance(end)
        yield


@full_precision()
def _hyper_step(learner: Learner, backward: Callable[[], float], step: int) -> float:
    """One step of all hyperparameters, number ``step`` of its update. Returns the estimate of what it ascends."""
    protocol = learner.protocol
    done, total = protocol.num_updates(learner.position.epoch - 1), protocol.num_updates(protocol.epochs)
    schedules = {
        "prior": (protocol.lr_hyper, protocol.hyper_decay, protocol.hyper_steps),
        "augmentation": (protocol.lr_aug, protocol.aug_decay, protocol.aug_steps),
    }
    learner.objective.zero_grad()
    estimate = backward()
    for name, (rate, decay, count) in schedules.items():
        if name in learner.optimizers and step < count:
            _step(learner.optimizers[name], cosine(done * count + step, total * count, rate, rate / decay))
    check_update(learner, estimate)
    if learner.objective.chunk is not None:  # halved where memory ran out: the checkpoint keeps one number for all
        learner.objective.chunk = -learner.processes.largest(-learner.objective.chunk)
    return estimate


def _record(learner: Learner, data: ImageDataset, num_data: int) -> LearningRecord:
    """The record of the epoch whose steps are done; the learner then stands before the next one."""
    protocol, position = learner.protocol, learner.position
    epoch, estimates, test = position.epoch, position.estimates, None
    if epoch % protocol.eval_every == 0 or epoch == protocol.epochs:
        with position.timed("eval"), named_trouble(learner, "eval"):
            test = evaluate(learner, data)
            check_scores(learner, test)
    loss = position.loss / num_data
    estimate = math.fsum(estimates) / len(estimates) if estimates else None
    seconds = position.seconds
    position.move_to(Position(epoch + 1))
    return LearningRecord(epoch, loss, estimate, test, seconds["weights"], seconds["hyper"], seconds["eval"])


def _num_batches(learner: Learner, x: Tensor) -> int:
    return -(-len(x) // learner.protocol.batch_size)


def _step(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("share", 1.0)
    optimizer.step()


@torch.no_grad()
@full_precision()
def evaluate(learner: Learner, data: ImageDataset) -> Scores:
    """Scores on the test data, logits averaged over S views. The views are the same at every epoch of a run."""
    objective, x = learner.objective, data.test_inputs
    generator = generator_for(learner.protocol.seed, "test-views")
    size = max(1, EVALUATION_INPUTS // learner.protocol.samples)
    outputs = torch.cat([learner.system.outputs(x[chunk], generator) for chunk in chunks(len(x), size)])
    return score(outputs, data.test_targets, objective.likelihood)
