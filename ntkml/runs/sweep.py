"""A sweep: many training runs, each in its own folder, by worker processes on this machine.

Several sweeps may work on the same cells, on one machine or on several that share the folder: a cell is trained by whoever
holds the lock of its folder, and the others look again until it is finished or free. A worker that dies costs the
steps since the last checkpoint of its cell, which another worker takes up; a cell of which two workers die has failed.
"""

from __future__ import annotations

import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ntkml.runs import sweep_crew, sweep_plan, sweep_worker
from ntkml.runs.stopping import StopRequest
from ntkml.runs.sweep_crew import Reports, Worker
from ntkml.runs.sweep_plan import PlannedCell
from ntkml.runs.sweep_progress import CellProgress, SweepProgress
from ntkml.runs.sweep_states import DONE, ELSEWHERE, FAILED, RUNNING, STOPPED, WAITING
from ntkml.runs.sweep_worker import Report, Site

#: Seconds between looks: at signals, and at cells that other processes train.
LOOK, LOOK_ELSEWHERE = 0.2, 2.0
#: Workers that may die of one cell; the last of them makes it a failed one.
DEATHS = 2


def sweep(
    cells: Sequence[PlannedCell],
    sites: Sequence[Site],
    warn: Callable[[str], None],
    stop: StopRequest,
    start: Callable[[Site, Reports], Worker] = sweep_crew.start_worker,
) -> Iterator[SweepProgress]:
    """Train the cells that are not finished, by one worker at each of ``sites``; yields the progress as it changes.

    When ``stop`` asks for it, the workers stop after their steps, and the sweep ends when they have.

    Raises:
        ValueError: a worker ended before it was ready.
    """
    of_cells = [CellProgress(cell) for cell in cells]
    return _Sweep(SweepProgress(of_cells, len(sites)), list(sites), warn, stop, start).work()


@dataclass
class _Sweep:
    """Cells that wait, workers, and sites without one."""

    progress: SweepProgress
    sites: list[Site]
    warn: Callable[[str], None]
    stop: StopRequest
    start: Callable[[Site, Reports], Worker]
    workers: list[Worker] = field(default_factory=list)
    waiting: deque[CellProgress] = field(default_factory=deque)
    reports: Reports = field(default_factory=queue.Queue)
    deaths: Counter[str] = field(default_factory=Counter)
    stopping: bool = False
    looked: float = field(default_factory=time.monotonic)

    def work(self) -> Iterator[SweepProgress]:
        for one in self.progress.cells:
            self._look_at(one)
            one.was_done = one.status == DONE
        try:
            while True:
                self._ask()
                self._hand_out()
                yield self.progress
                if self._over():
                    return
                self._hear()
                self._look_elsewhere()
        finally:
            for worker in self.workers:  # none of them has a cell, unless we are leaving at once
                worker.process.kill()

    def _over(self) -> bool:
        in_work = any(worker.cell is not None for worker in self.workers)
        return not in_work and (self.stopping or not self.progress.having(WAITING, ELSEWHERE))

    def _look_at(self, one: CellProgress) -> None:
        """Where a cell stands that none of our workers trains."""
        state = sweep_plan.state_of(one.cell.folder)
        if state == DONE:
            one.status, one.epochs = DONE, one.cell.protocol.epochs
        elif state == RUNNING:
            one.status, one.epochs = ELSEWHERE, sweep_plan.epochs_kept(one.cell.folder)
        else:
            one.epochs = sweep_plan.epochs_kept(one.cell.folder)
            self._wait(one)

    def _look_elsewhere(self) -> None:
        if not self.stopping and time.monotonic() - self.looked >= LOOK_ELSEWHERE:
            self.looked = time.monotonic()
            for one in self.progress.having(ELSEWHERE):
                self._look_at(one)

    def _wait(self, one: CellProgress) -> None:
        one.status = WAITING
        self.waiting.append(one)

    def _ask(self) -> None:
        """Pass on what asks this process to stop, once."""
        reason = self.stop()
        if reason and not self.stopping:
            self.stopping = True
            for worker in self.workers:
                worker.ask_to_stop(reason)

    def _hand_out(self) -> None:
        """A cell for every worker that has none, new workers while cells are left, and the end for the others."""
        for worker in self.workers:
            if worker.state == sweep_crew.IDLE:
                if self.waiting and not self.stopping:
                    worker.give(self.waiting.popleft())
                else:
                    worker.let_go()
        starting = sum(worker.state == sweep_crew.STARTING for worker in self.workers)
        while self.sites and starting < len(self.waiting) and not self.stopping:
            self.workers.append(self.start(self.sites.pop(0), self.reports))
            starting += 1

    def _hear(self) -> None:
        """Take in what the workers have said, after waiting a moment for the first word."""
        try:
            self._take_in(*self.reports.get(timeout=LOOK))
            while True:
                self._take_in(*self.reports.get_nowait())
        except queue.Empty:
            pass

    def _take_in(self, worker: Worker, report: Report | None) -> None:
        if report is None:
            self._bury(worker)
        elif report.kind == sweep_worker.READY:
            worker.state = sweep_crew.IDLE
        elif worker.cell is not None:
            self._note(worker.cell, report)
            if report.kind in sweep_worker.ENDS:
                worker.cell = None
                worker.state = sweep_crew.LEAVING if report.kind == sweep_worker.STOPPED else sweep_crew.IDLE

    def _note(self, one: CellProgress, report: Report) -> None:
        """What a report says of a cell."""
        if report.kind == sweep_worker.WARNING:
            self.warn(f"{one.cell.label}: {report.line}")
        elif report.kind == sweep_worker.BEGUN:
            self.progress.begin(one, report.epochs)
        elif report.kind == sweep_worker.EPOCH:
            self.progress.advance(one, report.epochs)
        elif report.kind == sweep_worker.FINISHED:
            one.status, one.epochs = DONE, report.epochs
        elif report.kind == sweep_worker.FAILED:
            one.status, one.line = FAILED, report.line
        elif report.kind == sweep_worker.BUSY:
            one.status = ELSEWHERE
        else:
            one.epochs = report.epochs
            self._left_behind(one, f"its worker was stopped by {report.line}")

    def _bury(self, worker: Worker) -> None:
        """A process has ended: its site is free, and the cell that it did not end waits again."""
        self.workers.remove(worker)
        self.sites.append(worker.site)
        if worker.cell is not None:
            self._left_behind(worker.cell, f"its worker was {worker.end}")
        elif worker.state == sweep_crew.STARTING and not self.stopping:
            raise ValueError(f"a worker was {worker.end} before it was ready; try ntkml train with one of the cells")

    def _left_behind(self, one: CellProgress, why: str) -> None:
        self.deaths[one.cell.run_id] += 1
        if self.stopping:
            one.status = STOPPED
        elif self.deaths[one.cell.run_id] < DEATHS:
            self.warn(f"{one.cell.label}: {why}; it goes on from its last checkpoint")
            self._wait(one)
        else:
            one.status, one.line = FAILED, f"{why}, {DEATHS} times in all: ntkml train on it alone may say more"
