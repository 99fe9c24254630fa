"""What a training run keeps in its folder while it goes on: checkpoints, rows and the manifest, and how it goes on.

``rows.csv`` and ``manifest.json`` follow the checkpoint: they hold the epochs that were finished when it was taken. Each
entry of the manifest's ``resumed`` says how many epochs (``from_epoch``), and how many steps of the next one
(``from_step``), were done when the run was taken up again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ntkml.learning.checkpoints import previous, read_checkpoint, write_checkpoint
from ntkml.learning.loop import settle
from ntkml.learning.state import Learner, restore, state_of
from ntkml.records.manifests import write_manifest
from ntkml.records.provenance import now
from ntkml.records.tables import write_rows
from ntkml.records.train import COLUMNS
from ntkml.runs.stopping import Stopped, StopRequest, never
from ntkml.runs.weights import save_weights

#: What to do about a difference that would change the last bits of a resumed run.
_REMEDIES = {
    "threads": "set OMP_NUM_THREADS",
    "device": "choose it with --device",
    "chunk": "choose it with --chunk",
    "processes": "start as many with torchrun --nproc-per-node",
}


@dataclass(frozen=True)
class Pace:
    """When a checkpoint is due: every so many epochs, and after so many seconds at the latest."""

    epochs: int = 10
    seconds: float = 300.0


@dataclass
class Journal:
    """The files of one run. ``settings`` make another run where they differ, ``conditions`` other last bits."""

    folder: Path
    learner: Learner
    settings: Mapping[str, Any]
    conditions: Mapping[str, Any]
    manifest: dict[str, Any]
    pace: Pace
    stop: StopRequest = never
    rows: list[dict[str, Any]] = field(default_factory=list)
    kept_at: float = field(default_factory=time.monotonic)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def take_up(self, warn: Callable[[str], None]) -> None:
        """Go on from the newest whole checkpoint, if there is one.

        Raises:
            ValueError: no checkpoint is whole, or it was made by another run or under other conditions.
        """
        for name in ("checkpoint.pt", "rows.csv", "manifest.json", "weights.pt"):
            for path in self.folder.glob(f".{name}.*"):  # of a write that a kill cut short
                path.unlink(missing_ok=True)
        state = read_checkpoint(self.checkpoint, warn)
        if state is not None:
            self._restore(state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        _refuse_other_settings(self.checkpoint, state.get("settings", {}), self.settings)
        _refuse_other_conditions(self.checkpoint, state.get("conditions", {}), self.conditions)
        self.rows = list(state["rows"])
        restore(self.learner, state["learner"])
        again = {"from_epoch": len(self.rows), "from_step": self.learner.position.step}
        again |= {"environment": self.manifest["environment"]}
        self.manifest |= {"environment": state["environment"], "resumed": [*state["resumed"], again]}

    def keep(self) -> None:
        """Write a checkpoint, and the rows and the manifest as of now.

        Raises:
            DivergenceError: a loss that was not read yet is NaN or infinite.
        """
        settle(self.learner)
        kept = {key: self.manifest[key] for key in ("environment", "resumed")}
        about = {"settings": dict(self.settings), "conditions": dict(self.conditions), "rows": self.rows, **kept}
        write_checkpoint(self.checkpoint, about | {"learner": state_of(self.learner)})
        self.show()
        self.kept_at = time.monotonic()

    def show(self, **finished: str) -> Path:
        """Write the rows of the finished epochs and the manifest; no checkpoint. Returns the path of the rows."""
        tree = self.learner.objective.tree
        topology = tree.splits if tree else None
        path = write_rows(self.folder / "rows.csv", self.rows, COLUMNS)
        write_manifest(self.folder / "manifest.json", self.manifest | {"tree": topology} | finished)
        return path

    def leave_if_asked(self) -> None:
        """Before the first step, with nothing new to keep.

        Raises:
            Stopped: the run was asked to leave.
        """
        if reason := self.stop():
            raise self._stopped(reason)

    def between_steps(self) -> None:
        """Keep what is due, or leave when asked to.

        Raises:
            Stopped: the run was asked to leave; nothing of it is lost.
        """
        position, epochs = self.learner.position, self.learner.protocol.epochs
        finished = position.epoch > epochs
        reason = None if finished else self.stop()
        whole_epochs = position.step == 0 and (position.epoch - 1) % self.pace.epochs == 0
        if reason or finished or whole_epochs or time.monotonic() - self.kept_at >= self.pace.seconds:
            self.keep()
        if reason:
            raise self._stopped(reason)

    def _stopped(self, reason: str) -> Stopped:
        return Stopped(reason, self.learner.position.epoch - 1, self.learner.position.step)

    def finish(self) -> Path:
        """Write what a finished run leaves. Returns the path of its rows."""
        save_weights(self.folder / "weights.pt", self.learner.objective.model.cpu())
        self.manifest["budget"] = {
            "fits": 1,
            "data_passes": self.learner.system.data_passes,
            "seconds": sum(row["seconds_weights"] + row["seconds_hyper"] for row in self.rows),
        }
        path = self.show(finished_at=now())
        previous(self.checkpoint).unlink(missing_ok=True)
        return path


def holds_checkpoint(folder: Path) -> bool:
    """Whether a run was begun in ``folder`` and can be continued."""
    checkpoint = folder / "checkpoint.pt"
    return checkpoint.exists() or previous(checkpoint).exists()


def _refuse_other_settings(path: Path, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise ValueError where a checkpoint is of another run, in a folder that was copied or renamed."""
    if different := _differences(saved, asked):
        raise ValueError(
            f"{path} is of another run, with {_listed(different)}: ask for those settings in its own folder, or remove "
            f"{path.parent} and start again"
        )


def _refuse_other_conditions(path: Path, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise ValueError where the same run would go on with other last bits."""
    if different := _differences(saved, asked):
        advice = " or ".join(
            [*(_REMEDIES[key] for key in different if key in _REMEDIES), f"remove {path.parent} and start again"]
        )
        raise ValueError(f"{path} was made with {_listed(different)}, and would not go on bit by bit: {advice}")


def _differences(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = dict.fromkeys([*asked, *saved])
    return {key: (saved.get(key), asked.get(key)) for key in keys if saved.get(key) != asked.get(key)}


def _listed(different: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key} {theirs} instead of {ours}" for key, (theirs, ours) in different.items())
