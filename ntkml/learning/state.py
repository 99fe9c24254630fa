"""What training changes, and how it is kept: a :class:`Learner`, where it stands, and its state as plain values.

Between any two steps :func:`state_of` is all that :func:`restore` needs to go on bit by bit. The position gives schedules
and counters. The plan of a phase (order of the batches; partition and cached block) is not kept: a resumed phase
draws it again from the states that its random streams had when it began.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ntkml.layers.fixup import Bias, Scale
from ntkml.layers.layer_rows import qualified
from ntkml.learning.recorded_steps import RecordedSteps
from ntkml.machine.processes import ALONE, Processes
from ntkml.objective import MarginalLikelihood
from ntkml.parameters import trainable_parameters
from ntkml.protocols.train import TrainProtocol
from ntkml.randomness import generator_for
from ntkml.registry import unknown_name
from ntkml.systems import System, make_system

#: One random stream each: order of the batches, views of the weights' steps, partitions, drawn blocks with their views.
STREAMS = ("batches", "views", "partition", "blocks")

#: Learning rate of Fixup's scalars, as a share of the other weights' (Zhang et al. 2019; the paper's protocol).
FIXUP_SHARE = 0.1

#: What the weights' steps compute in: float32, or bfloat16 where torch's autocast finds it safe.
PRECISIONS = ("float32", "bf16")

#: What the seconds of an epoch are spent on.
PARTS = ("weights", "hyper", "eval")

MOMENTUM = 0.9  # of "sgd"
_WEIGHT_OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": partial(torch.optim.SGD, momentum=MOMENTUM),
}
_Plan = TypeVar("_Plan")


@dataclass
class Position:
    """Where a training run stands: ``step`` steps of ``epoch`` are done, those of the weights and then the updates.

    ``loss`` sums the loss over the epoch's data so far, ``estimates`` holds those of its hyperparameter steps. In the
    middle of a phase ``phase_start`` has the states that the streams of its plan had at its beginning, else it is None.
    """

    epoch: int = 1
    step: int = 0
    loss: float = 0.0
    estimates: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    phase_start: dict[str, Tensor] | None = None

    def move_to(self, other: Position) -> None:
        """Stand where ``other`` does."""
        for part in fields(self):
            setattr(self, part.name, getattr(other, part.name))

    def advance(self, end_of_phase: int) -> None:
        """One step further; ``end_of_phase`` is the step at which the present plan is used up."""
        self.step += 1
        if self.step == end_of_phase:
            self.phase_start = None

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count the seconds of a ``with`` block for one of :data:`PARTS`."""
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start


@dataclass(frozen=True)
class UnreadLoss:
    """The loss of one step of the weights, still on its device: reading it would make the host wait."""

    value: Tensor
    num_data: float  # that it counts for
    step: int
    rate: float


@dataclass(frozen=True)
class Learner:
    """Everything that training changes. ``optimizers``: those of the weights, and "prior", "augmentation" where learned.

    ``processes``: those that train together, each with a learner in the same state.
    ``precision``: of the weights' forward and backward pass, one of :data:`PRECISIONS`; estimates have their own.
    ``unread``: losses that the position does not count yet (:func:`ntkml.learning.loop.settle`).
    ``recorded``: steps of the weights that a GPU replays.
    """

    protocol: TrainProtocol
    system: System
    optimizers: Mapping[str, torch.optim.Optimizer]
    streams: Mapping[str, torch.Generator]
    position: Position = field(default_factory=Position)
    processes: Processes = ALONE
    precision: str = "float32"
    unread: list[UnreadLoss] = field(default_factory=list)
    recorded: RecordedSteps = field(default_factory=RecordedSteps)

    @property
    def objective(self) -> MarginalLikelihood:
        """Where the hyperparameters live."""
        return self.system.objective


def new_learner(
    protocol: TrainProtocol,
    model: nn.Module,
    device: torch.device,
    chunk: int | None = None,
    processes: Processes = ALONE,
    precision: str = "float32",
) -> Learner:
    """The learner at its start: initial weights, prior precisions ``prior_init``, half-widths zero.

    Raises:
        ValueError: an unknown optimizer, estimator, prior or ``precision``, or a prior precision that is not positive.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r} of the weights' steps; known: {', '.join(PRECISIONS)}")
    if protocol.optimizer not in _WEIGHT_OPTIMIZERS:
        raise ValueError(unknown_name("optimizer", protocol.optimizer, list(_WEIGHT_OPTIMIZERS)))
    # Convolutions and pooling of a few channels run twice as fast on a CPU with the channels last in memory, and a GPU's bfloat16
    # wants them there; its float32 convolutions turn them around and back (9% of WRN-16-4's steps).
    last = device.type == "cpu" or precision == "bf16"
    model.to(device=device, memory_format=torch.channels_last if last else torch.contiguous_format)  # type: ignore[call-overload]
    system = make_system(protocol, model, chunk, processes)
    optimizers = {
        name: _WEIGHT_OPTIMIZERS[protocol.optimizer](_weight_groups(model, protocol.optimizer), lr=protocol.lr)
        for name in system.weight_optimizers()
    }
    rates = {"prior": protocol.lr_hyper, "augmentation": protocol.lr_aug}
    for name, learned in system.hyper_parameters().items():
        optimizers[name] = torch.optim.Adam(learned, lr=rates[name])
    streams = {name: generator_for(protocol.seed, name) for name in STREAMS}
    return Learner(protocol, system, optimizers, streams, processes=processes, precision=precision)


def _weight_groups(model: nn.Module, optimizer: str) -> list[dict[str, Any]]:
    """All weights with their share of the learning rate: under SGD, Fixup's scalars take a tenth of it."""
    scalars = {
        qualified(name, key)
        for name, module in model.named_modules()
        if isinstance(module, (Bias, Scale)) and optimizer == "sgd"
        for key, _ in module.named_parameters(recurse=False)
    }
    weights = trainable_parameters(model)
    groups = [{"params": [w for name, w in weights.items() if name not in scalars], "share": 1.0}]
    if scalars:
        groups.append({"params": [weights[name] for name in weights if name in scalars], "share": FIXUP_SHARE})
    return [group for group in groups if group["params"]]


def planned(learner: Learner, streams: Sequence[str], draw: Callable[[], _Plan]) -> _Plan:
    """What ``draw`` draws from ``streams`` at the beginning of a phase; in the middle of one, the same once more.

    Weights and all else that a plan is made from stay as they are during its phase, so that it comes out the same.
    """
    now = _states(learner, streams)
    if learner.position.phase_start is None:
        learner.position.phase_start = now
        return draw()
    _set_states(learner, learner.position.phase_start)
    counted = learner.system.data_passes
    plan = draw()
    learner.system.data_passes = counted  # what the plan costs was counted when the phase began
    _set_states(learner, now)
    return plan


def state_of(learner: Learner) -> dict[str, Any]:
    """What :func:`restore` needs to go on bit by bit: tensors, numbers and strings in dictionaries and lists.

    All losses are read by then (:func:`ntkml.learning.loop.settle`).
    """
    assert not learner.unread
    return {
        "weights": learner.objective.model.state_dict(),
        "hyperparameters": learner.objective.state_dict(),
        "system": learner.system.state(),
        "optimizers": {name: optimizer.state_dict() for name, optimizer in learner.optimizers.items()},
        "generators": _states(learner, STREAMS),
        "position": {part.name: getattr(learner.position, part.name) for part in fields(Position)},
        # Found out by the first estimate, and halved where memory ran out; another one would change the last bits.
        "chunk": learner.objective.chunk,
    }


def restore(learner: Learner, state: Mapping[str, Any]) -> None:
    """Put a learner of the same protocol into a state that :func:`state_of` returned."""
    restore_values(learner, state)
    learner.objective.chunk = state["chunk"]
    learner.system.restore(state["system"])
    for name, optimizer in learner.optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    _set_states(learner, state["generators"])
    learner.position.move_to(Position(**copy.deepcopy(state["position"])))


def restore_values(learner: Learner, state: Mapping[str, Any]) -> None:
    """Weights and hyperparameters alone: all that an estimate at this state depends on."""
    learner.objective.model.load_state_dict(state["weights"])
    learner.objective.load_state_dict(state["hyperparameters"])


def _states(learner: Learner, names: Sequence[str]) -> dict[str, Tensor]:
    return {name: learner.streams[name].get_state() for name in names}


def _set_states(learner: Learner, states: Mapping[str, Tensor]) -> None:
    for name, state in states.items():
        learner.streams[name].set_state(state)
