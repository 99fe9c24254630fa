"""Comparisons that share a training cell with another process: they wait for it, say so once, and can be stopped meanwhile."""

from __future__ import annotations

import errno
import shutil
import signal
from contextlib import ExitStack

import pytest

from ntkml.runs import cells
from ntkml.runs import train as train_run
from ntkml.runs.locks import exclusive
from ntkml.runs.train_journal import Pace
from tests.synthetic_training import write_training_run

pytestmark = pytest.mark.usefixtures("one_thread", "blank_pictures")
SMALL = ("--hparam", "prior", "--num-data", 60, "--epochs", 10, "--device", "cpu")
COMMANDS = [
    ("compare", "--systems", "map", "--seeds", 0, *SMALL),
    ("compare", "--systems", "grid-1", "--seeds", 0, *SMALL),
    ("pareto", "--estimators", "ntk-20-1", "--repeats", 1, "--no-exact", *SMALL),
]


@pytest.fixture(params=COMMANDS, ids=["compare", "search", "pareto"])
def shared(request, in_empty_folder, tmp_path):
    """A command, the folder of its only cell, and the lock of another process on it, which the test may close."""
    assert in_empty_folder(*request.param)[0] == 0
    [cell] = (tmp_path / "results" / "train").iterdir()
    shutil.rmtree(tmp_path / "results")
    with ExitStack() as other:
        other.enter_context(exclusive(cell))
        yield request.param, cell.relative_to(tmp_path), other


def test_a_cell_that_another_process_trains_is_waited_for(shared, in_empty_folder, monkeypatch):
    arguments, cell, other = shared
    looks = []

    def look(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            other.close()

    monkeypatch.setattr(cells, "sleep", look)
    code, _, error = in_empty_folder(*arguments)
    assert (code, len(looks)) == (0, 3), error
    assert error.count(f"Waiting for another process, which trains {cell}\n") == 1


def test_who_waits_can_be_stopped(shared, in_empty_folder, monkeypatch):
    arguments, _, _ = shared
    monkeypatch.setattr(cells, "sleep", lambda seconds: signal.raise_signal(signal.SIGTERM))
    code, _, error = in_empty_folder(*arguments)
    assert (code, error.splitlines()[-1]) == (75, "Stopped by SIGTERM: the same command continues it")


def test_a_run_that_another_process_finished_meanwhile_is_not_trained_again(tmp_path, monkeypatch):
    path = write_training_run(tmp_path, "ntk-100-1", "prior")
    monkeypatch.setattr(train_run, "_set_up", lambda run: pytest.fail("it was trained again"))
    assert train_run.run_train(None, path.parent, pytest.fail, Pace(), pytest.fail) == path


def test_a_file_system_without_locks_is_named_and_not_waited_for(in_empty_folder, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("ntkml.runs.locks.fcntl.flock", no_locks)
    code, _, error = in_empty_folder(*COMMANDS[0])
    assert code == 1
    assert "cannot be locked (No locks available): choose a folder on another file system with --out" in error
