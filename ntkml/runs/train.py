"""A training run: weights and hyperparameters learned together, one row per epoch, in a folder that survives a kill.

The folder holds ``checkpoint.pt`` (and its predecessor while the run goes on), ``rows.csv`` and ``manifest.json`` as of
the last checkpoint, and, when the run is finished, ``weights.pt`` and a manifest with ``finished_at``. A resumed run gives
the rows of an uninterrupted one, bit by bit, on the same device with the same threads, chunk and torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ntkml import records
from ntkml.capture import trainable_parameters
from ntkml.checkpoints import previous, read_checkpoint, write_checkpoint
from ntkml.datasets import ImageDataset, subset
from ntkml.hyperparameters.affine import GENERATOR_NAMES
from ntkml.learning import Learner, learn, new_learner, restore, state_of
from ntkml.likelihoods import as_likelihood, column_groups
from ntkml.model_contract import check_model
from ntkml.models import build_model
from ntkml.provenance import now
from ntkml.randomness import generator_for
from ntkml.runs.bound_rows import peak_bytes
from ntkml.runs.folders import exclusive
from ntkml.runs.train_rows import common_columns, hyperparameter_columns, measured_columns
from ntkml.runs.weights import save_weights
from ntkml.specs import NO_ESTIMATOR, is_certified, parse_estimator, resolve_estimator
from ntkml.train_protocols import TrainProtocol
from ntkml.train_records import COLUMNS

#: track(rows, epochs in all, epochs done) yields the rows and shows progress.
Track = Callable[[Iterable[dict[str, Any]], int, int], Iterable[dict[str, Any]]]

#: What to do about a difference that would change the last bits of a resumed run.
_REMEDIES = {"threads": "set OMP_NUM_THREADS", "device": "choose it with --device", "chunk": "choose it with --chunk"}


@dataclass(frozen=True)
class TrainRun:
    """What is to be computed: a protocol (see :func:`resolve_protocol`), its data, and where and how.

    ``chunk``: inputs per captured chunk, or None for the default. ``notes``: sentences that every caption must show.
    """

    protocol: TrainProtocol
    data: ImageDataset
    device: torch.device
    chunk: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that changes a number in the rows by more than rounding; the run's id is its hash."""
        settings = asdict(self.protocol)
        for words in ("name", "title"):
            del settings[words]
        return settings | {"data_checksum": self.data.checksum, "dtype": "float32"}

    @property
    def conditions(self) -> dict[str, Any]:
        """What else decides the last bits of the rows."""
        threads = torch.get_num_threads()
        return {"device": self.device.type, "threads": threads, "chunk": self.chunk, "torch": str(torch.__version__)}

    @property
    def run_id(self) -> str:
        return records.run_id(self.settings)

    def folder(self, results: Path) -> Path:
        """Where the run lives below ``results``."""
        return results / "train" / f"{self.protocol.estimator}-{self.protocol.dataset}-{self.run_id}"


def resolve_protocol(protocol: TrainProtocol, data: ImageDataset) -> TrainProtocol:
    """The protocol with its estimator resolved on the data.

    Raises:
        ValueError: more data than there are, an estimator that cannot be built on them or does not take the prior.
    """
    available = len(data.train_inputs)
    if protocol.num_data > available:
        raise ValueError(f"--num-data {protocol.num_data}: {data.name} has {available} training images")
    if protocol.estimator == NO_ESTIMATOR:
        return protocol
    softmax = as_likelihood(protocol.likelihood).softmax
    spec = resolve_estimator(parse_estimator(protocol.estimator), protocol.num_data, data.num_classes, softmax)
    if spec.structure == "kfac" and protocol.prior_kind == "diagonal":
        raise ValueError(f"{spec} takes a scalar or layerwise prior, not a diagonal one: use blockdiag, diag or ntk")
    return replace(protocol, estimator=str(spec))


def run_train(
    run: TrainRun, folder: Path, track: Track, resume: bool, checkpoint_every: int, warn: Callable[[str], None]
) -> Path:
    """Run what is missing in ``folder`` and return the path of the finished ``rows.csv``.

    Raises:
        ValueError: an unfinished run lies there and ``resume`` is false, or it was made under other conditions; damaged
            checkpoints; another process on the same run; see also :func:`ntkml.learning.learn`.
    """
    with exclusive(folder):
        return _run_alone(run, folder, track, resume, checkpoint_every, warn)


def _run_alone(
    run: TrainRun, folder: Path, track: Track, resume: bool, checkpoint_every: int, warn: Callable[[str], None]
) -> Path:
    checkpoint = folder / "checkpoint.pt"
    if not resume and (checkpoint.exists() or previous(checkpoint).exists()):
        raise ValueError(f"{folder} holds an unfinished run: --resume continues it, --force starts again")
    _remove_leftovers(folder)
    data, learner = _set_up(run)
    state = read_checkpoint(checkpoint, warn)
    rows: list[dict[str, Any]] = []
    manifest = _manifest(run, learner)
    if state is not None:
        saved = state.get("settings", {}) | state.get("conditions", {})
        _refuse_differences(checkpoint, saved, run.settings | run.conditions)
        restore(learner, state["learner"])
        rows = list(state["rows"])
        again = {"from_epoch": len(rows), "environment": manifest["environment"]}
        manifest |= {"environment": state["environment"], "resumed": [*state["resumed"], again]}

    def keep() -> None:
        kept = {key: manifest[key] for key in ("environment", "resumed")}
        about = {"settings": run.settings, "conditions": run.conditions, "rows": rows, **kept}
        write_checkpoint(checkpoint, about | {"learner": state_of(learner)})
        records.write_manifest(folder / "manifest.json", manifest | _topology(learner))
        records.write_rows(folder / "rows.csv", rows, COLUMNS)

    for row in track(_rows(run, learner, data, len(rows) + 1), run.protocol.epochs, len(rows)):
        rows.append(row)
        if row["epoch"] % checkpoint_every == 0 or row["epoch"] == run.protocol.epochs:
            keep()
    path = records.write_rows(folder / "rows.csv", rows, COLUMNS)  # a kill may have come between checkpoint and rows
    save_weights(folder / "weights.pt", learner.objective.model.cpu())
    records.write_manifest(folder / "manifest.json", manifest | _topology(learner) | {"finished_at": now()})
    previous(checkpoint).unlink(missing_ok=True)
    return path


def _remove_leftovers(folder: Path) -> None:
    """Temporary files of writes that a kill cut short."""
    for name in ("checkpoint.pt", "rows.csv", "manifest.json", "weights.pt"):
        for path in folder.glob(f".{name}.*"):
            path.unlink(missing_ok=True)


def _set_up(run: TrainRun) -> tuple[ImageDataset, Learner]:
    """The training subset with the test data, and the learner at its start, on the run's device."""
    protocol = run.protocol
    data = subset(run.data, protocol.num_data, generator_for(protocol.seed, "data"))
    model = build_model(protocol.model, data.input_shape, data.num_classes, generator_for(protocol.seed, "init"))
    learner = new_learner(protocol, model, run.device, run.chunk)
    parts = ("train_inputs", "train_targets", "test_inputs", "test_targets")
    data = replace(data, **{part: getattr(data, part).to(run.device) for part in parts})
    check_model(learner.objective.model, data.train_inputs)
    return data, learner


def _refuse_differences(path: Path, saved: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise ValueError where a checkpoint was made under other settings or conditions."""
    different = [key for key in asked if saved.get(key) != asked[key]]
    if different:
        words = ", ".join(f"{key} {saved.get(key)} instead of {asked[key]}" for key in different)
        remedies = [_REMEDIES[key] for key in different if key in _REMEDIES]
        advice = " or ".join([*remedies, "start again with --force"])
        raise ValueError(f"{path} was made with {words}, and would not go on bit by bit: {advice}")


def _rows(run: TrainRun, learner: Learner, data: ImageDataset, first_epoch: int) -> Iterator[dict[str, Any]]:
    common = common_columns(learner, run.run_id, data.num_classes, run.device)
    for record in learn(learner, data, first_epoch):
        measured = measured_columns(record) | {"peak_bytes": peak_bytes(run.device)}
        yield common | measured | hyperparameter_columns(learner)


def _topology(learner: Learner) -> dict[str, Any]:
    """The tree over the classes, known from the first partition on."""
    tree = learner.objective.tree
    return {"tree": [[list(left), list(right)] for left, right in tree.splits] if tree else None}


def _manifest(run: TrainRun, learner: Learner) -> dict[str, Any]:
    protocol, estimators = run.protocol, {}
    if protocol.estimator != NO_ESTIMATOR:
        spec = parse_estimator(protocol.estimator)
        num_batches = 1 if spec.inputs is None else -(-protocol.num_data // spec.inputs)
        softmax, num_outputs = learner.objective.likelihood.softmax, run.data.num_classes
        num_blocks = num_batches * len(column_groups(spec.outputs, num_outputs, softmax))
        estimators = {str(spec): {"certified": is_certified(spec, num_outputs, softmax), "num_blocks": num_blocks}}
    return {
        "run_id": run.run_id,
        "command": "train",
        "settings": run.settings,
        "conditions": run.conditions,
        "environment": records.environment(),
        "resumed": [],
        "data_checksum": run.data.checksum,
        "estimators": estimators,
        "parameters": list(trainable_parameters(learner.objective.model)),
        "eta": dict(zip([f"eta_{index}" for index in range(6)], GENERATOR_NAMES, strict=True)),
        "notes": list(run.notes),
    }


def finished_learner(run: TrainRun, folder: Path) -> tuple[ImageDataset, Learner]:
    """The data and the learner of a finished run as it ended, from its last checkpoint.

    Raises:
        ValueError: the folder holds no checkpoint of this run.
    """
    state = read_checkpoint(folder / "checkpoint.pt", lambda line: None)
    if state is None:
        raise ValueError(f"{folder} holds no checkpoint; compute the run again with ntkml train --force")
    _refuse_differences(folder / "checkpoint.pt", state.get("settings", {}), run.settings)
    data, learner = _set_up(run)
    restore(learner, state["learner"])
    return data, learner
