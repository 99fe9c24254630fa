"""``ntkml sweep --cluster slurm`` on a real Slurm of one node, where one can be started."""

from __future__ import annotations

import json
import re
import signal
import time

import pytest

from ntkml.runs.locks import exclusive
from tests import one_node_slurm
from tests.sweeps import started_sweeps, wait_for

DIGITS = ("train-digits", "--hparam", "prior", "--num-data", "60", "--device", "cpu", "--cluster", "slurm")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    pytest.importorskip("submitit", reason="needs submitit (pip install 'ntkml[slurm]')")
    if reason := one_node_slurm.missing():
        pytest.skip(f"no Slurm can be started here: {reason}")
    started = one_node_slurm.OneNodeSlurm(tmp_path_factory.mktemp("slurm"))
    yield started
    started.stop()


@pytest.fixture
def on_slurm(slurm, tmp_path):
    """Start ``ntkml sweep ... --cluster slurm`` in a folder whose name has a space and an umlaut."""
    folder = tmp_path / "Läufe hier"
    folder.mkdir()
    with started_sweeps(folder, *DIGITS, environment=slurm.environment) as start:
        yield start


def only_job(slurm):
    """The id of the one job in the queue."""
    [job] = wait_for(lambda: {line.split("_")[0] for line in slurm.call("squeue", "-h", "--format=%i").split()})
    return job


def start_now(slurm, job):
    """Have a task that was put back start, for which Slurm waits two minutes otherwise."""
    wait_for(lambda: "PENDING" in slurm.call("squeue", "--noheader", "--format=%T", "--jobs", job))
    time.sleep(2)  # in the second in which it was put back Slurm would have revoked its credential, and fail it
    slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now")


@pytest.mark.slow
def test_on_a_real_slurm_every_cell_is_trained_once(on_slurm, tmp_path):
    arguments = ("--estimators", "ntk-20-1,none", "--seeds", "0,1", "--epochs", "12", "--workers", "2")
    out, error = (first := on_slurm(*arguments)).communicate(timeout=300)
    assert first.returncode == 0, error
    assert "4 of 4 cells are done, 0 were so before" in out
    assert len(list(tmp_path.rglob("weights.pt"))) == 4
    out, _ = (again := on_slurm(*arguments)).communicate(timeout=100)
    assert (again.returncode, "0 of 4 cells as tasks of Slurm job none" in out) == (0, True)


@pytest.mark.slow
def test_on_a_real_slurm_a_task_whose_time_is_over_is_continued(on_slurm, slurm, tmp_path):
    """The signal that Slurm sends to the batch process before a task's time is over, sent earlier."""
    process = on_slurm("--estimators", "ntk-20-1", "--epochs", "600")
    wait_for(lambda: list(tmp_path.rglob("checkpoint.pt")))
    job = only_job(slurm)
    slurm.call("scancel", "--batch", "--signal=USR1", job)
    wait_for(lambda: "Restarts=1" in slurm.call("scontrol", "show", "job", job))
    [manifest] = tmp_path.rglob("manifest.json")
    start_now(slurm, job)
    out, error = process.communicate(timeout=400)
    assert process.returncode == 0, error
    [entry] = json.loads(manifest.read_text())["resumed"]
    assert 0 < entry["from_epoch"] < 600


@pytest.mark.slow
def test_on_a_real_slurm_the_tasks_go_on_when_nobody_looks(on_slurm, slurm, tmp_path):
    process = on_slurm("--estimators", "none", "--epochs", "40")
    wait_for(lambda: list(tmp_path.rglob("*_submitted.pkl")))
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"Stopped by SIGINT: .*; the tasks go on \(scancel \d+ ends them\)$", error.strip())
    wait_for(lambda: list(tmp_path.rglob("weights.pt")))


@pytest.mark.slow
def test_on_a_real_slurm_a_cell_of_another_process_is_taken_up_when_that_leaves_it(on_slurm, slurm, tmp_path):
    arguments = ("--estimators", "none", "--epochs", "12")
    listed, _ = on_slurm(*arguments, "--list").communicate(timeout=60)
    folder = tmp_path / "Läufe hier" / listed.splitlines()[0].split("  ")[-1]
    with exclusive(folder):
        process = on_slurm(*arguments)
        job = only_job(slurm)
        wait_for(lambda: "Restarts=1" in slurm.call("scontrol", "show", "job", job))
    start_now(slurm, job)
    out, error = process.communicate(timeout=200)
    assert (process.returncode, "1 of 1 cells are done" in out) == (0, True), error


@pytest.mark.slow
def test_on_a_real_slurm_the_watching_goes_on_when_its_controller_was_away(on_slurm, slurm, tmp_path):
    process = on_slurm("--estimators", "ntk-20-1", "--epochs", "900")
    wait_for(lambda: list(tmp_path.rglob("checkpoint.pt")))
    with slurm.without_controller():
        line = process.stderr.readline()
    assert line.startswith("Slurm does not say how far the tasks are ("), line
    out, error = process.communicate(timeout=400)
    assert (process.returncode, "1 of 1 cells are done" in out) == (0, True), error
    assert "failed" not in error
