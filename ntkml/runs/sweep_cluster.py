"""The cells of a sweep as an array job of a Slurm cluster, by way of submitit (the extra ``slurm``): a cell is a task.

Before a task's time is over Slurm sends SIGUSR1 to it: the run stops after its step with everything kept, and the task is
put into the queue again. So is a task whose cell another process trains: when its turn comes again, it finds the cell
finished, or takes it up where it was left. Tasks need what the submitting machine has: the folder of the results, this
package and the data.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ntkml.runs import sweep_plan, sweep_worker
from ntkml.runs.folders import holds_whole_run
from ntkml.runs.locks import held
from ntkml.runs.stopping import StopRequest
from ntkml.runs.sweep_plan import PlannedCell
from ntkml.runs.sweep_progress import CellProgress, SweepProgress
from ntkml.runs.sweep_states import DONE, ELSEWHERE, FAILED, OPEN, RUNNING, WAITING
from ntkml.runs.sweep_worker import Report, Site

#: Seconds before the end of a task's time at which it is asked to stop (in a short task half of its time).
NOTICE_SECONDS = 120
#: Minutes of a task, where nothing else is asked for.
MINUTES = 60
#: Seconds between looks at the queue and the folders, and at signals.
LOOK_AT_QUEUE, LOOK = 5.0, 0.2


def submit(
    cells: Sequence[PlannedCell], site: Site, folder: Path, at_once: int, parameters: Mapping[str, str]
) -> list[Any]:
    """Put the cells into the queue, ``at_once`` of them at a time; returns submitit's jobs in their order.

    ``parameters``: options of sbatch by name ("partition", "time" in minutes, "gpus_per_node", ...), which win over ours.

    Raises:
        ValueError: submitit or Slurm is missing, or Slurm refuses.
    """
    try:
        import submitit
    except ImportError:
        raise ValueError("--cluster slurm needs submitit: pip install 'ntkml[slurm]'") from None
    folder = folder.resolve()
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
        executor.update_parameters(**_sbatch_options(site, folder, at_once, parameters))
        with executor.batch():
            return [executor.submit(train_in_task, _absolute(cell), asdict(site)) for cell in cells]
    except Exception as error:  # submitit words its refusals in many types, over many lines
        raise ValueError(f"Slurm takes no job: {' '.join(str(error).split())}") from None


def _sbatch_options(site: Site, folder: Path, at_once: int, parameters: Mapping[str, str]) -> dict[str, Any]:
    _, environment = sweep_worker.command_line()
    # The batch shell becomes the Python process: B:USR1 reaches the batch shell alone, and a shell waits for its command
    # before it heeds a signal. What submitit writes behind these lines, which would start the same, is never reached.
    exported = {
        "SUBMITIT_EXECUTOR": "slurm",
        "OMP_NUM_THREADS": str(site.threads),
        "PYTHONPATH": environment["PYTHONPATH"],
    }
    setup = [f"export {name}={shlex.quote(value)}" for name, value in exported.items()]
    setup.append(shlex.join(["exec", sys.executable, "-u", "-m", "submitit.core._submit", str(folder)]))
    ours: dict[str, Any] = {
        "job_name": "ntkml-sweep",
        "time": MINUTES,
        "cpus_per_task": site.threads,
        "array_parallelism": at_once,
    }
    asked = {name: int(value) if value.isdecimal() else value for name, value in parameters.items()}
    options = ours | asked
    minutes = options["time"]
    notice = min(NOTICE_SECONDS, 30 * minutes) if isinstance(minutes, int) else NOTICE_SECONDS
    extra = {"signal": f"B:USR1@{notice}", "requeue": True}
    named = {f"slurm_{name}": value for name, value in options.items()}
    return named | {"slurm_setup": setup, "slurm_additional_parameters": extra}


def _absolute(cell: PlannedCell) -> dict[str, Any]:
    """For a task, which may start in another folder."""
    return cell.as_json() | {"folder": str(cell.folder.resolve())}


def train_in_task(cell: Mapping[str, Any], site: Mapping[str, Any]) -> dict[str, Any]:
    """What a task does: train its cell; when its time is over, or another process has the cell, it goes back into the queue.

    Exits with code 75 when it was put back, so that submitit takes nothing for its result.
    """
    stop = sweep_worker.stop_by_signals()
    end = sweep_worker.train_cell(PlannedCell.from_json(cell), Site(**site), _print, stop)
    if end.kind == sweep_worker.BUSY or (end.kind == sweep_worker.STOPPED and end.line == "SIGUSR1"):
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
        sys.stdout.flush()
        os._exit(75)
    return asdict(end)


def _print(report: Report) -> None:
    print(report.kind, report.epochs, report.line, flush=True)


def watched(
    cells: Sequence[PlannedCell],
    jobs: Mapping[Path, Any],
    at_once: int,
    warn: Callable[[str], None],
    stop: StopRequest,
) -> Iterator[SweepProgress]:
    """How far the tasks ``jobs`` are, by the folders of their cells, until all have ended or ``stop`` asks to look no more.

    While Slurm does not answer nothing is known of them: that is said once, and they are asked for again.
    """
    progress = SweepProgress([CellProgress(cell) for cell in cells], at_once)
    for one in progress.cells:
        one.epochs = sweep_plan.epochs_kept(one.cell.folder)
        if one.cell.folder not in jobs:
            one.status, one.epochs, one.was_done = DONE, one.cell.protocol.epochs, True
    looked, answered = -LOOK_AT_QUEUE, True
    while not stop():
        if progress.having(*OPEN) and progress.elapsed - looked >= LOOK_AT_QUEUE:
            looked = progress.elapsed
            try:
                _ask(progress, jobs)
                answered = True
            except ConnectionError as error:
                if answered:
                    warn(
                        f"Slurm does not say how far the tasks are ({error}): asked again until it does; the tasks go on"
                    )
                answered = False
        yield progress
        if not progress.having(*OPEN):
            return
        time.sleep(LOOK)
    yield progress


def _ask(progress: SweepProgress, jobs: Mapping[Path, Any]) -> None:
    """Take in what the queue and the folders say of the cells that have not ended. Raises ConnectionError as :func:`queued`."""
    states = queued([str(job.job_id) for job in jobs.values()])
    for one in progress.having(*OPEN):
        job = jobs[one.cell.folder]
        _look_at(progress, one, job, states.get(str(job.job_id), ""))


def _look_at(progress: SweepProgress, one: CellProgress, job: Any, state: str) -> None:
    """``state``: of the task in the queue, empty when it has left it."""
    folder = one.cell.folder
    kept = sweep_plan.epochs_kept(folder)
    if state == "RUNNING" and one.status != RUNNING:
        progress.begin(one, kept)
    elif state and state != "RUNNING":
        one.status = ELSEWHERE if state == "PENDING" and held(folder) else WAITING
    if one.status != RUNNING:
        one.epochs = kept
    elif kept > one.epochs:
        progress.advance(one, kept)
    if holds_whole_run(folder):
        one.status, one.epochs = DONE, one.cell.protocol.epochs
    elif not state:
        one.status, one.line = FAILED, _last_words(job)


def _last_words(job: Any) -> str:
    """Why a task that left the queue did not finish its cell."""
    if job.paths.result_pickle.exists():
        try:
            end = Report(**job.result())
            return end.line or f"its task has {end.kind}"
        except Exception as error:  # whatever the task raised
            return " ".join(str(error).split())[-300:]
    return f"its task left the queue without a result: see {job.paths.stderr}"


def queued(job_ids: Sequence[str]) -> dict[str, str]:
    """The state of the tasks that are in Slurm's queue, by their ids (``12_0``: task 0 of array 12).

    Raises:
        ConnectionError: Slurm does not answer; says what squeue says.
    """
    arrays = sorted({job_id.split("_")[0] for job_id in job_ids})
    command = ["squeue", "--noheader", "--array", "--format=%i %T", f"--jobs={','.join(arrays)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # An array that Slurm has forgotten is an error to squeue too; all of its tasks have left the queue.
    if done.returncode and "Invalid job id" not in done.stderr:
        raise ConnectionError(" ".join(done.stderr.split()) or f"squeue ended with exit code {done.returncode}")
    return dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)


def listed(parameters: Sequence[str]) -> dict[str, str]:
    """``("partition=gpu", ...)`` as a table.

    Raises:
        ValueError: no name, or no value.
    """
    pairs = [parameter.partition("=") for parameter in parameters]
    for name, _, value in pairs:
        if not name or not value:
            raise ValueError(f"expected NAME=VALUE such as partition=gpu, got {name!r}")
    return {name.replace("-", "_"): value for name, _, value in pairs}
