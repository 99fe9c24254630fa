"""How far a sweep is: the status of every cell, and the seconds that are left.

Time is the monotonic clock's: a wall clock that jumps changes nothing here.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ntkml.runs.sweep_plan import PlannedCell
from ntkml.runs.sweep_states import OPEN, RUNNING, WAITING


@dataclass
class CellProgress:
    """One cell. ``was_done``: it was finished before this sweep began; ``line``: why it failed."""

    cell: PlannedCell
    status: str = WAITING
    epochs: int = 0
    line: str = ""
    was_done: bool = False
    seconds: float = 0.0  # of our workers, for `trained` epochs
    trained: int = 0
    latest: float = 0.0  # when the last epoch ended

    @property
    def left(self) -> int:
        """Epochs that are left of a cell that has not ended."""
        return max(self.cell.protocol.epochs - self.epochs, 0)


@dataclass
class SweepProgress:
    """All cells of a sweep, trained by ``workers`` at a time."""

    cells: list[CellProgress]
    workers: int
    clock: Callable[[], float] = time.monotonic
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def having(self, *statuses: str) -> list[CellProgress]:
        return [cell for cell in self.cells if cell.status in statuses]

    @property
    def counts(self) -> Counter[str]:
        """How many cells have each status."""
        return Counter(cell.status for cell in self.cells)

    @property
    def elapsed(self) -> float:
        """Seconds since the sweep began."""
        return self.clock() - self.began

    def begin(self, cell: CellProgress, epochs: int) -> None:
        """A worker of ours trains the cell, of which ``epochs`` epochs were done."""
        cell.status, cell.epochs, cell.latest = RUNNING, epochs, self.clock()

    def advance(self, cell: CellProgress, epochs: int) -> None:
        """The cell has ``epochs`` epochs now."""
        now = self.clock()
        cell.seconds, cell.latest = cell.seconds + now - cell.latest, now
        cell.trained, cell.epochs = cell.trained + epochs - cell.epochs, epochs

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last cell ends, or None before the first epoch was timed.

        An epoch of a cell takes what epochs of cells that differ in the seed alone have taken, or else the mean of those
        that were timed; the workers share the cells evenly, and none of them is quicker than its longest cell.
        """
        timed: dict[tuple[object, ...], list[CellProgress]] = {}
        for one in self.cells:
            if one.trained:
                timed.setdefault(_kind(one), []).append(one)
        if not timed:
            return None
        known = {kind: _seconds_per_epoch(cells) for kind, cells in timed.items()}
        other = sum(known.values()) / len(known)
        left = [one.left * known.get(_kind(one), other) for one in self.having(*OPEN)]
        return max([sum(left) / max(self.workers, 1), *left], default=0.0)


def _kind(one: CellProgress) -> tuple[object, ...]:
    protocol = one.cell.protocol
    return (protocol.hparam, protocol.estimator, protocol.dataset, protocol.model, protocol.num_data, protocol.samples)


def _seconds_per_epoch(cells: Iterable[CellProgress]) -> float:
    cells = list(cells)
    return sum(one.seconds for one in cells) / sum(one.trained for one in cells)
