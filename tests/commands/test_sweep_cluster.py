"""``ntkml sweep --cluster slurm``: what is submitted, and how it is watched."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace

import pytest

from ntkml.runs import sweep_cluster, sweep_worker
from ntkml.runs.locks import exclusive
from ntkml.runs.stopping import never
from ntkml.runs.sweep_cluster import listed, queued, submit, train_in_task, watched
from ntkml.runs.sweep_worker import Report
from tests.sweeps import SITE, finish, planned_cells

DIGITS = ("train-digits", "--hparam", "prior", "--num-data", "60", "--device", "cpu", "--cluster", "slurm")


class Job:
    """What submitit gives for a task; ``end``: what the task returned."""

    def __init__(self, folder, number, end=None):
        self.job_id = f"7_{number}"
        pickle = folder / f"{number}.pkl"
        if end is not None:
            pickle.write_text(json.dumps(end))
        self.paths = SimpleNamespace(result_pickle=pickle, stderr=folder / f"{number}.err")

    def result(self):
        return json.loads(self.paths.result_pickle.read_text())


class Executor:
    """In the place of submitit's: keeps what it is asked for, and trains nothing."""

    made = None

    def __init__(self, folder, cluster):
        Executor.made = self
        self.folder, self.cluster, self.parameters, self.tasks = folder, cluster, {}, []

    def update_parameters(self, **parameters):
        if "slurm_tiem" in parameters:
            raise NameError("Unknown argument 'slurm_tiem'\nin arguments")
        self.parameters |= parameters

    def batch(self):
        return contextlib.nullcontext()

    def submit(self, function, *arguments):
        self.tasks.append((function, arguments))
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        return Job(folder, len(self.tasks) - 1)


@pytest.fixture
def submitit(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=Executor))


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    monkeypatch.setattr(sweep_cluster, "LOOK", 0.0)
    monkeypatch.setattr(sweep_cluster, "LOOK_AT_QUEUE", 0.0)


def test_every_cell_is_a_task_that_is_told_in_time_and_may_return_to_the_queue(submitit, tmp_path):
    cells = planned_cells(tmp_path / "out", seeds=(0, 1, 2))
    jobs = submit(cells, SITE, tmp_path / "with space", 2, {"partition": "gpu", "time": "30"})
    assert [job.job_id for job in jobs] == ["7_0", "7_1", "7_2"]
    made = Executor.made
    assert (made.cluster, made.parameters["slurm_array_parallelism"]) == ("slurm", 2)
    assert (made.parameters["slurm_partition"], made.parameters["slurm_time"]) == ("gpu", 30)
    assert made.parameters["slurm_additional_parameters"] == {"signal": "B:USR1@120", "requeue": True}
    # B: is the batch shell, which must be the process that trains.
    last = made.parameters["slurm_setup"][-1]
    assert last == f"exec {sys.executable} -u -m submitit.core._submit '{tmp_path}/with space'"
    assert [(function, cell["run_id"]) for function, (cell, _) in made.tasks] == [
        (train_in_task, f"ntk-20-1-{seed}") for seed in (0, 1, 2)
    ]
    submit(cells, SITE, tmp_path, 2, {"time": "2"})
    assert Executor.made.parameters["slurm_additional_parameters"]["signal"] == "B:USR1@60"


def test_what_slurm_refuses_is_one_line(submitit, tmp_path):
    with pytest.raises(ValueError, match="Slurm takes no job: Unknown argument 'slurm_tiem' in arguments"):
        submit(planned_cells(tmp_path), SITE, tmp_path, 1, {"tiem": "3"})


def test_without_submitit_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=re.escape("--cluster slurm needs submitit: pip install 'ntkml[slurm]'")):
        submit(planned_cells(tmp_path), SITE, tmp_path, 1, {})


def test_options_of_sbatch_are_pairs():
    assert listed(["partition=gpu", "gpus-per-node=1", "comment=a=b"]) == {
        "partition": "gpu",
        "gpus_per_node": "1",
        "comment": "a=b",
    }
    with pytest.raises(ValueError, match="expected NAME=VALUE such as partition=gpu, got 'partition'"):
        listed(["partition"])


def test_the_queue_says_which_tasks_are_left(monkeypatch):
    asked = []

    def squeue(command, **_):
        asked.append(command)
        return SimpleNamespace(stdout="7_0 RUNNING\n7_1 PENDING\nnoise\n", returncode=0)

    monkeypatch.setattr(subprocess, "run", squeue)
    assert queued(["7_0", "7_1", "7_2", "9_0"]) == {"7_0": "RUNNING", "7_1": "PENDING"}
    assert asked[0][-1] == "--jobs=7,9"


def squeue_that_says(*answers):
    """``subprocess.run`` for one call of squeue after another: what each prints, or why it fails."""
    left = iter(answers)

    def run(command, **_):
        assert command[0] == "squeue"
        out, error = next(left)
        return SimpleNamespace(stdout=out, stderr=error, returncode=int(bool(error)))

    return run


UNREACHABLE = ("", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n")
FORGOTTEN = ("", "slurm_load_jobs error: Invalid job id specified\n")


def test_while_slurm_does_not_answer_no_task_has_failed(monkeypatch, tmp_path):
    [cell] = planned_cells(tmp_path / "out")
    running = ("7_0 RUNNING\n", "")
    answers = [UNREACHABLE, running, UNREACHABLE, UNREACHABLE, running, FORGOTTEN]
    monkeypatch.setattr(subprocess, "run", squeue_that_says(*answers))
    lines, seen = [], []
    for progress in watched([cell], {cell.folder: Job(tmp_path, 0)}, 1, lines.append, never):
        seen.append(progress.cells[0].status)
    assert seen == ["waiting", "running", "running", "running", "running", "failed"]
    assert len(lines) == 2  # once for every time that it is away
    assert lines[0].startswith(
        "Slurm does not say how far the tasks are (slurm_load_jobs error: Unable to contact slurm controller (connect failure))"
    )


def test_nothing_is_asked_of_slurm_when_every_cell_is_done(monkeypatch, tmp_path):
    [cell] = planned_cells(tmp_path)
    finish(cell.folder)
    monkeypatch.setattr(subprocess, "run", squeue_that_says())
    assert [step.cells[0].status for step in watched([cell], {}, 1, print, never)] == ["done"]


def test_a_cell_of_another_process_is_elsewhere_as_in_a_sweep_on_this_machine(monkeypatch, tmp_path):
    [cell] = planned_cells(tmp_path / "out")
    states = iter(["RUNNING", "PENDING", "PENDING", "RUNNING"])  # between the first two its task found the cell taken
    monkeypatch.setattr(sweep_cluster, "queued", lambda ids: {"7_0": next(states)})
    seen = []
    with ExitStack() as other:
        other.enter_context(exclusive(cell.folder))
        for progress in watched([cell], {cell.folder: Job(tmp_path, 0)}, 1, print, never):
            seen.append(progress.cells[0].status)
            if len(seen) == 2:
                other.close()
            if len(seen) == 4:
                finish(cell.folder)
                monkeypatch.setattr(sweep_cluster, "queued", lambda ids: {})
    assert seen == ["running", "elsewhere", "waiting", "running", "done"]


def test_tasks_are_watched_until_all_have_ended(monkeypatch, tmp_path):
    before, good, bad, lost, raised = planned_cells(tmp_path / "out", seeds=range(5))
    finish(before.folder)
    logs = tmp_path / "logs"
    logs.mkdir()
    jobs = {
        good.folder: Job(logs, 0),
        bad.folder: Job(logs, 1, {"kind": "failed", "epochs": 0, "line": "diverged"}),
        lost.folder: Job(logs, 2),
        raised.folder: Job(logs, 3, {"nonsense": 1}),
    }
    states = [
        {"7_0": "PENDING", "7_1": "RUNNING", "7_2": "RUNNING", "7_3": "RUNNING"},
        {"7_0": "RUNNING", "7_1": "RUNNING", "7_2": "RUNNING", "7_3": "RUNNING"},
        {"7_0": "RUNNING"},
        {},
    ]
    monkeypatch.setattr(sweep_cluster, "queued", lambda ids: states.pop(0))
    seen = []
    for progress in watched([before, good, bad, lost, raised], jobs, 2, print, never):
        seen.append([one.status for one in progress.cells])
        if len(states) == 1:
            finish(good.folder)
    assert seen == [
        ["done", "waiting", "running", "running", "running"],
        ["done", "running", "running", "running", "running"],
        ["done", "running", "failed", "failed", "failed"],
        ["done", "done", "failed", "failed", "failed"],
    ]
    lines = [one.line for one in progress.cells]
    assert lines[2] == "diverged"
    assert lines[3] == f"its task left the queue without a result: see {logs / '2.err'}"
    assert "nonsense" in lines[4]
    assert [one.was_done for one in progress.cells] == [True, False, False, False, False]


def test_a_stop_ends_the_watching_alone(monkeypatch, tmp_path):
    [cell] = planned_cells(tmp_path)
    monkeypatch.setattr(sweep_cluster, "queued", lambda ids: {"7_0": "PENDING"})
    asked = iter([None, None, "SIGINT"])
    steps = list(watched([cell], {cell.folder: Job(tmp_path, 0)}, 1, print, lambda: next(asked)))
    assert (len(steps), steps[-1].cells[0].status) == (3, "waiting")


@pytest.mark.parametrize(
    ("end", "requeued"),
    [
        (Report("stopped", 5, "SIGUSR1"), True),
        (Report("busy", 0, "another process"), True),
        (Report("stopped", 5, "SIGTERM"), False),
    ],
)
def test_a_task_whose_time_is_over_or_whose_cell_is_taken_goes_back_into_the_queue(
    monkeypatch, tmp_path, end, requeued
):
    class Left(BaseException):
        pass

    def leave(code):
        assert code == 75
        raise Left

    commands = []
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setattr(sweep_worker, "stop_by_signals", lambda: never)
    monkeypatch.setattr(sweep_worker, "train_cell", lambda *_: end)
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    monkeypatch.setattr(os, "_exit", leave)
    task = partial(train_in_task, planned_cells(tmp_path)[0].as_json(), SITE.__dict__)
    if requeued:
        with pytest.raises(Left):
            task()
        assert commands == [["scontrol", "requeue", "12"]]
    else:
        assert task() == {"kind": "stopped", "epochs": 5, "line": "SIGTERM"}
        assert commands == []


def test_the_command_submits_what_is_not_done(submitit, in_empty_folder, monkeypatch):
    monkeypatch.setattr(sweep_cluster, "queued", lambda ids: {})
    sweep = partial(in_empty_folder, "sweep", *DIGITS, "--estimators", "none", "--seeds", "0,1", "--epochs", "2")
    code, out, error = sweep("--slurm", "partition=gpu", "--slurm", "cpus_per_task=3")
    assert code == 1
    assert "2 of 2 cells as tasks of Slurm job 7" in out
    assert error.splitlines()[-1].startswith(
        "failed: prior none digits N=60 seed 1: its task left the queue without a result"
    )
    assert Executor.made.parameters["slurm_partition"] == "gpu"
    [(_, (_, site)), _] = Executor.made.tasks
    assert (site["threads"], site["device"]) == (3, "cpu")
    for more in ((), ("--list",)):
        code, _, error = sweep("--slurm", "partition", *more)
        assert (code, "Invalid value for --slurm: expected NAME=VALUE" in error) == (2, True)
    assert "--slurm belongs to --cluster slurm" in in_empty_folder("sweep", "train-digits", "--slurm", "a=b")[2]
