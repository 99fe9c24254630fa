"""A training run: weights and hyperparameters learned together, one row per epoch, in a folder that survives a kill.

The folder holds ``checkpoint.pt`` (and its predecessor while the run goes on), ``rows.csv`` and ``manifest.json`` as of
the last checkpoint, and, when the run is finished, ``weights.pt`` and a manifest with ``finished_at``. A resumed run gives
the rows of an uninterrupted one, bit by bit, on the same device with the same threads, chunk and torch: one that was asked
to stop goes on with the next step, one that was killed with the step after its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from ntkml.datasets import ImageDataset, subset
from ntkml.hyperparameters.affine import GENERATOR_NAMES
from ntkml.learning import loop
from ntkml.learning.checkpoints import read_checkpoint
from ntkml.learning.state import Learner, new_learner, restore_values
from ntkml.machine.peak_memory import peak_bytes
from ntkml.machine.processes import ALONE, Processes
from ntkml.models import build_model
from ntkml.parameters import trainable_parameters
from ntkml.protocols.train import WORDS, TrainProtocol
from ntkml.randomness import generator_for
from ntkml.records.manifests import settings_id
from ntkml.rows.model_contract import check_model
from ntkml.runs.folders import finished
from ntkml.runs.locks import exclusive
from ntkml.runs.progress import TrackEpochs
from ntkml.runs.stopping import StopRequest, never
from ntkml.runs.surroundings import environment
from ntkml.runs.together import agreed, begin, follow
from ntkml.runs.train_checks import num_blocks
from ntkml.runs.train_journal import Journal, Pace
from ntkml.runs.train_rows import common_columns, hyperparameter_columns, measured_columns
from ntkml.specs import is_certified, parse_estimator
from ntkml.system_specs import is_bound


@dataclass(frozen=True)
class TrainRun:
    """What is to be computed: a protocol (see :func:`~ntkml.runs.train_checks.resolve_protocol`), its data, and where and how.

    ``chunk``: inputs per captured chunk, or None for the default. ``notes``: sentences that every caption must show.
    ``processes``: those that compute it together.
    ``precision``: of the weights' steps, see :class:`~ntkml.learning.state.Learner`; estimates have their own.
    """

    protocol: TrainProtocol
    data: ImageDataset
    device: torch.device
    chunk: int | None = None
    notes: tuple[str, ...] = ()
    processes: Processes = ALONE
    precision: str = "float32"

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that changes a number in the rows by more than rounding; the run's id is its hash."""
        settings = {
            field.name: getattr(self.protocol, field.name)
            for field in fields(TrainProtocol)
            if field.name not in WORDS
            and (field.default is MISSING or getattr(self.protocol, field.name) != field.default)
        }
        if not self.protocol.draws_afresh:
            settings.pop("fresh_blocks", None)
        precision = {} if self.precision == "float32" else {"precision": self.precision}
        return settings | precision | {"data_checksum": self.data.checksum, "dtype": "float32"}

    @property
    def conditions(self) -> dict[str, Any]:
        """What else decides the last bits of the rows."""
        threads = torch.get_num_threads()
        here = {"device": self.device.type, "threads": threads, "processes": self.processes.count}
        return here | {"chunk": self.chunk, "torch": str(torch.__version__)}

    @property
    def run_id(self) -> str:
        return settings_id(self.settings)

    def folder(self, results: Path) -> Path:
        """Where the run lives below ``results``."""
        return results / "train" / f"{self.protocol.estimator}-{self.protocol.dataset}-{self.run_id}"


def run_train(
    run: TrainRun,
    folder: Path,
    track: TrackEpochs,
    pace: Pace,
    warn: Callable[[str], None],
    stop: StopRequest = never,
) -> Path:
    """Run what is missing in ``folder``, nothing if it is finished, and return the path of the finished ``rows.csv``.

    Of many processes the first one calls this, the others :func:`follow_train`.

    Raises:
        ProcessLostError: one of them is gone.
        Stopped: ``stop`` asked for it between two steps; the next call goes on there.
        ValueError: what lies there was made under other conditions; damaged checkpoints; another process on the same run;
            see also :func:`ntkml.learning.loop.learn`. Epochs that were finished before such trouble stay in ``rows.csv``.
    """
    with exclusive(folder):
        if finished(folder):  # by another process, after the caller had looked
            return folder / "rows.csv"
        data, learner = _set_up(run)
        manifest = _manifest(run, learner)
        leave = agreed(run.processes, stop)
        journal = Journal(folder, learner, run.settings, run.conditions, manifest, pace, leave)
        journal.take_up(warn)
        begin(learner)
        journal.leave_if_asked()
        try:
            for _ in track(_rows(run, journal, data), run.protocol.epochs, len(journal.rows)):
                pass
        except ValueError:
            if journal.rows:
                journal.show()
            raise
        return journal.finish()


def follow_train(run: TrainRun, stop: StopRequest) -> None:
    """Compute with the process that calls :func:`run_train`; see :func:`ntkml.runs.together.follow`."""
    data, learner = _set_up(run)
    follow(learner, data, stop)


def _set_up(run: TrainRun) -> tuple[ImageDataset, Learner]:
    """The training subset with the test data, and the learner at its start, on the run's device."""
    protocol = run.protocol
    data = subset(run.data, protocol.num_data, generator_for(protocol.seed, "data"))
    model = build_model(protocol.model, data.input_shape, data.num_classes, generator_for(protocol.seed, "init"))
    learner = new_learner(protocol, model, run.device, run.chunk, run.processes, run.precision)
    parts = ("train_inputs", "train_targets", "test_inputs", "test_targets")
    data = replace(data, **{part: getattr(data, part).to(run.device) for part in parts})
    check_model(learner.objective.model, data.train_inputs)
    return data, learner


def _rows(run: TrainRun, journal: Journal, data: ImageDataset) -> Iterator[dict[str, Any]]:
    """The rows of the epochs that are left; between any two steps the journal keeps what is due, or leaves."""
    learner = journal.learner
    common = common_columns(learner, run.run_id, run.device)
    for record in loop.steps(learner, data):
        if record is not None:
            measured = measured_columns(record, is_bound(run.protocol.estimator)) | {
                "peak_bytes": peak_bytes(run.device)
            }
            journal.rows.append(common | measured | hyperparameter_columns(learner))
            yield journal.rows[-1]
        journal.between_steps()


def _manifest(run: TrainRun, learner: Learner) -> dict[str, Any]:
    protocol, estimators = run.protocol, {}
    if is_bound(protocol.estimator):
        spec = parse_estimator(protocol.estimator)
        certified = is_certified(spec, learner.objective.likelihood.softmax)
        estimators = {str(spec): {"certified": certified, "num_blocks": num_blocks(protocol, run.data)}}
    return {
        "run_id": run.run_id,
        "command": "train",
        "settings": run.settings,
        "protocol": {"name": run.protocol.name, "variant": run.protocol.variant},
        "conditions": run.conditions,
        "environment": environment(run.device),
        "resumed": [],
        "data_checksum": run.data.checksum,
        "normalisation": asdict(applied) if (applied := run.data.normalisation) else None,
        "estimators": estimators,
        "parameters": list(trainable_parameters(learner.objective.model)),
        "eta": dict(zip([f"eta_{index}" for index in range(6)], GENERATOR_NAMES, strict=True)),
        "notes": [*run.notes, *run.data.notes],
    }


def finished_learner(run: TrainRun, folder: Path) -> tuple[ImageDataset, Learner]:
    """The data of a finished run, and a learner with the weights and hyperparameters that it ended with.

    Raises:
        ValueError: the folder holds no whole checkpoint.
    """
    state = read_checkpoint(folder / "checkpoint.pt", lambda line: None)
    if state is None:
        raise ValueError(f"{folder} holds no checkpoint: remove it and compute the run again")
    data, learner = _set_up(run)
    restore_values(learner, state["learner"])
    return data, learner
