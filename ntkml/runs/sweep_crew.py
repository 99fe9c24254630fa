"""The worker processes of a sweep, seen from the process that started them."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import threading
from dataclasses import asdict, dataclass
from typing import IO

from ntkml.runs import sweep_worker
from ntkml.runs.sweep_progress import CellProgress
from ntkml.runs.sweep_worker import Report, Site

STARTING, IDLE, BUSY, LEAVING = "starting", "idle", "busy", "leaving"


@dataclass(eq=False)
class Worker:
    """One process at its ``site``, what it does, and the cell that it trains."""

    site: Site
    process: subprocess.Popen[str]
    state: str = STARTING
    cell: CellProgress | None = None

    def give(self, cell: CellProgress) -> None:
        """Have it train a cell."""
        self.cell, self.state = cell, BUSY
        self.send(json.dumps(cell.cell.as_json()))

    def let_go(self) -> None:
        """Nothing is left for it: the end of its input ends it."""
        self.state = LEAVING
        with contextlib.suppress(OSError):  # it has died, which its reports will say
            self._input.close()

    def ask_to_stop(self, reason: str) -> None:
        """Stop it after the step in progress; ``reason``: the name of a signal."""
        self.process.send_signal(getattr(signal, reason, signal.SIGTERM))

    @property
    def end(self) -> str:
        """How the process ended, in words."""
        code = self.process.returncode
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    @property
    def _input(self) -> IO[str]:
        assert self.process.stdin is not None
        return self.process.stdin

    def send(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self._input.write(line + "\n")
            self._input.flush()


#: What the workers say: a report, or None when the process has ended.
Reports = queue.Queue[tuple[Worker, Report | None]]


def start_worker(site: Site, reports: Reports) -> Worker:
    """A worker in a session of its own: an interrupt at the terminal reaches it by way of this process alone."""
    command, environment = sweep_worker.command_line()
    process = subprocess.Popen(
        command,
        env=environment | {"OMP_NUM_THREADS": str(site.threads)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    worker = Worker(site, process)
    threading.Thread(target=_listen, args=(worker, reports), daemon=True).start()
    worker.send(json.dumps(asdict(site)))
    return worker


def _listen(worker: Worker, reports: Reports) -> None:
    assert worker.process.stdout is not None
    with worker.process.stdout as lines:
        for line in lines:
            # A line that a kill cut short is the last one.
            with contextlib.suppress(ValueError):
                reports.put((worker, Report(**json.loads(line))))
    worker.process.wait()
    reports.put((worker, None))
