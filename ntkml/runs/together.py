"""One training run in many processes: the first one keeps the run's folder, the others compute with it and write nothing.

The first process sends the state that the run starts from. From there on all of them take the same steps, each on its part
of every batch and of every step's blocks, and agree between any two steps on whether to leave.
"""

from __future__ import annotations

import io
import signal

import torch

from ntkml.datasets import ImageDataset
from ntkml.learning import loop
from ntkml.learning.state import Learner, restore, state_of
from ntkml.machine.processes import Processes, ProcessLostError
from ntkml.protocols.train import TrainProtocol
from ntkml.runs.stopping import Stopped, StopRequest
from ntkml.specs import NO_ESTIMATOR
from ntkml.system_specs import is_bound


def check_shares(protocol: TrainProtocol, processes: Processes) -> None:
    """Raise ValueError where the processes cannot share a step's blocks, or a batch, evenly."""
    blocks, count = protocol.blocks_per_step, processes.count
    if count > 1 and protocol.estimator != NO_ESTIMATOR and not is_bound(protocol.estimator):
        raise ValueError(f"{protocol.estimator} trains in one process: start it without torchrun")
    if protocol.estimator != NO_ESTIMATOR and blocks % count:
        raise ValueError(
            f"{count} processes share the blocks of a step evenly, and a step has {blocks}: take --blocks-per-step {count} "
            "or a multiple of it"
        )
    if protocol.batch_size < count:
        raise ValueError(f"{count} processes share every batch: take --batch-size {count} or more")


def begin(learner: Learner) -> None:
    """Send the state of the first process's learner to those that :func:`follow`."""
    if learner.processes.count > 1:
        buffer = io.BytesIO()
        torch.save(state_of(learner), buffer)
        learner.processes.send(buffer.getvalue())


def follow(learner: Learner, data: ImageDataset, stop: StopRequest) -> None:
    """Take the steps that the first process takes, until the run is finished; nothing where it starts none.

    Raises:
        Stopped: one of the processes was asked to leave.
        ProcessLostError: another process is gone.
    """
    processes = learner.processes
    try:
        start = processes.receive()
    except ProcessLostError:  # the run is finished already, or refused: the first process says so
        return
    restore(learner, torch.load(io.BytesIO(start), map_location="cpu", weights_only=True))
    position, epochs, leave = learner.position, learner.protocol.epochs, agreed(processes, stop)
    going_on = loop.steps(learner, data)
    while position.epoch <= epochs:
        if reason := leave():
            raise Stopped(reason, position.epoch - 1, position.step)
        next(going_on)


def agreed(processes: Processes, stop: StopRequest) -> StopRequest:
    """``stop``, true in all processes once it is true in one; all of them have to ask together."""
    if processes.count == 1:
        return stop

    def ask() -> str | None:
        name = stop()
        number = processes.largest(signal.Signals[name].value if name else 0)
        return signal.Signals(number).name if number else None

    return ask
