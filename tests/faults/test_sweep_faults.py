"""Sweeps that are killed, doubled, put into odd folders or left without room: every cell once, no row lost, one line."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ntkml.records import train as train_records
from ntkml.runs import locks
from ntkml.runs.locks import BusyError, exclusive, held
from ntkml.runs.sweep_plan import state_of
from tests.sweeps import ROOT, started_sweeps, wait_for

DIGITS = ("train-digits", "--hparam", "prior", "--num-data", "60", "--device", "cpu")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX locks and signals")


@pytest.fixture
def sweeps(tmp_path):
    with started_sweeps(tmp_path, *DIGITS) as start:
        yield start


def outcome(folder):
    """The rows of all cells without what is measured."""
    frame = train_records.read_rows(*folder.rglob("rows.csv")).drop(columns=list(train_records.MEASURED))
    return frame.sort_values(["run_id", "epoch"]).to_csv(index=False)


def manifests(folder):
    return [json.loads(path.read_text()) for path in folder.rglob("manifest.json")]


def workers_of(process):
    """The process ids of a sweep's workers."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in children.read_text().split()] if children.exists() else []


def test_a_lock_that_was_removed_while_it_was_waited_for_is_not_held_twice(tmp_path, monkeypatch):
    """One process opens the lock, the one before it removes it and leaves, a third one makes a new lock."""
    folder, locked, third = tmp_path / "run", locks._locked, []

    def slow(file, **how):
        if not third:
            (folder / ".lock").unlink()
            third.append((folder / ".lock").open("w"))
            assert locked(third[0])
        return locked(file, **how)

    monkeypatch.setattr(locks, "_locked", slow)
    with pytest.raises(BusyError, match="another process is working on"), exclusive(folder):
        pass
    third[0].close()
    with exclusive(folder):
        assert held(folder)
    assert not held(folder)


def test_the_lock_of_a_dead_process_is_nobodys(tmp_path):
    code = f"import time\nfrom pathlib import Path\nfrom ntkml.runs.locks import exclusive\nwith exclusive(Path({str(tmp_path)!r})):\n    print('held', flush=True)\n    time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert process.stdout.readline() == b"held\n"
    assert held(tmp_path)
    process.kill()
    process.wait()
    assert (tmp_path / ".lock").exists()
    assert not held(tmp_path)
    with exclusive(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()


@pytest.fixture
def flock(monkeypatch):
    """Put what a test needs in the place of ``flock``, and give it the true one as its first argument."""
    true = locks.fcntl.flock
    return lambda other: monkeypatch.setattr(locks.fcntl, "flock", lambda file, how: other(true, file, how))


def test_locks_of_nfs_are_looked_at_and_taken(tmp_path, flock):
    """NFS makes locks of records of them, for which a file must be open in the way of the lock."""

    def on_nfs(true, file, how):
        if not (file.readable() if how & locks.fcntl.LOCK_SH else file.writable()):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        true(file, how)

    flock(on_nfs)
    with exclusive(tmp_path):
        assert held(tmp_path)
        assert state_of(tmp_path) == "running"
    tmp_path.mkdir()
    (tmp_path / ".lock").touch()
    assert not held(tmp_path)
    assert state_of(tmp_path) == "missing"


def test_a_look_at_a_folder_without_locks_ends_nothing(tmp_path, flock):
    def without_locks(true, file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    (tmp_path / ".lock").touch()
    flock(without_locks)
    assert state_of(tmp_path) == "missing"


def test_who_looks_at_a_lock_makes_nobody_busy(tmp_path, flock):
    looks, tries = [(tmp_path / ".lock").open("a+") for _ in range(2)], []
    for file in looks:
        locks.fcntl.flock(file, locks.fcntl.LOCK_SH)

    def while_others_look(true, file, how):
        if how & locks.fcntl.LOCK_EX:
            tries.append(file)
            if len(tries) == 3:
                for look in looks:
                    look.close()
        true(file, how)

    flock(while_others_look)
    assert not held(tmp_path)
    with exclusive(tmp_path):
        assert len(tries) == 3


def test_who_works_on_a_folder_makes_others_busy_at_once(tmp_path):
    with exclusive(tmp_path):
        began = time.monotonic()
        with pytest.raises(BusyError, match="another process is working on"), exclusive(tmp_path):
            pass
        assert time.monotonic() - began < 2


def test_a_results_folder_that_cannot_be_written_to_is_one_line_before_any_work(in_empty_folder, tmp_path):
    (tmp_path / "a file").write_text("")
    code, _, error = in_empty_folder("sweep", *DIGITS, "--estimators", "none", "--out", "a file/results")
    assert (code, error.count("\n")) == (1, 1)
    assert "cannot write to the folder a file/results" in error
    assert "choose another with --out" in error


@pytest.mark.skipif(not Path("/proc/sys").is_dir(), reason="needs a folder that nobody can write to")
def test_a_read_only_results_folder_is_one_line_before_any_work(in_empty_folder):
    code, _, error = in_empty_folder("sweep", *DIGITS, "--estimators", "none", "--out", "/proc/sys/results")
    assert (code, error.count("\n")) == (1, 1)
    assert "cannot write to the folder /proc/sys/results" in error


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_a_worker_that_is_killed_costs_no_bits_and_no_cell(sweeps, tmp_path):
    arguments = ("--estimators", "ntk-20-1", "--seeds", "0,1", "--epochs", "150")
    whole = sweeps(*arguments, "--out", "whole")
    process = sweeps(*arguments)
    [begun] = wait_for(lambda: list((tmp_path / "results").rglob("checkpoint.pt")))
    [worker] = workers_of(process)
    os.kill(worker, signal.SIGKILL)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert "seed 0: its worker was ended by SIGKILL; it goes on from its last checkpoint" in error
    assert error.count("done: prior ntk-20-1") == 2
    assert whole.wait(timeout=300) == 0
    assert outcome(tmp_path / "results") == outcome(tmp_path / "whole")
    resumed = [len(manifest["resumed"]) for manifest in manifests(tmp_path / "results")]
    assert sorted(resumed) == [0, 1]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_a_sweep_that_is_killed_takes_its_workers_with_it_and_is_continued(sweeps, tmp_path):
    arguments = ("--estimators", "ntk-20-1,none", "--epochs", "150", "--workers", "2")
    process = sweeps(*arguments)
    wait_for(lambda: len(list(tmp_path.rglob("checkpoint.pt"))) == 2)
    workers = workers_of(process)
    process.kill()
    process.wait()
    wait_for(lambda: not any(_alive(worker) for worker in workers), seconds=60)
    _, error = (again := sweeps(*arguments)).communicate(timeout=300)
    assert again.returncode == 0, error
    assert len(list(tmp_path.rglob("weights.pt"))) == 2


def _alive(pid):
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.slow
def test_eight_sweeps_at_once_train_every_cell_exactly_once_in_a_folder_with_an_odd_name(sweeps, tmp_path):
    folder = tmp_path / "Läufe und 結果 (neu)"
    folder.mkdir()
    arguments = ("--estimators", "none,ntk-20-1", "--seeds", "0,1,2,3,4", "--epochs", "12")
    together = [sweeps(*arguments, folder=folder) for _ in range(8)]
    said = [process.communicate(timeout=580) for process in together]
    assert [process.returncode for process in together] == [0] * 8, said
    assert all("10 of 10 cells are done" in out for out, _ in said)
    found = manifests(folder)
    assert len(found) == 10
    assert [manifest["resumed"] for manifest in found] == [[]] * 10  # nobody took up what another one had begun
    rows = train_records.read_rows(*folder.rglob("rows.csv"))
    assert rows.groupby(["estimator", "seed"]).size().tolist() == [12] * 10
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"]


def test_a_run_that_was_refused_leaves_no_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="refused"), exclusive(tmp_path / "run"):
        raise ValueError("refused")
    assert not (tmp_path / "run").exists()
    with exclusive(tmp_path / "run") as folder:
        (folder / "rows.csv").touch()
    assert (tmp_path / "run/rows.csv").exists()
