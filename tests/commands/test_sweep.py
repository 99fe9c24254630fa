"""``ntkml sweep`` on the embedded digits, with real workers: every cell once, stopped, continued, and one line for mistakes."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from ntkml.commands import sweep as sweep_command
from ntkml.datasets import load_dataset
from ntkml.protocols.cells import Cell
from ntkml.records import train as train_records
from ntkml.runs import sweep_worker
from ntkml.runs.locks import exclusive
from ntkml.runs.stopping import never
from ntkml.runs.sweep_plan import planned, state_of
from ntkml.runs.sweep_worker import Site, train_cell
from tests.image_files import sound_files, write_files
from tests.sweeps import SITE, planned_cells, started_sweeps, wait_for, written

ROOT = Path(__file__).parents[2]
SMALL = ("--num-data", "60", "--device", "cpu")
DIGITS = ("train-digits", "--hparam", "prior", "--estimators", "ntk-20-1,kfac-20-1", "--epochs", "12", *SMALL)


@pytest.fixture
def run(in_empty_folder):
    """``ntkml sweep ...``"""
    return partial(in_empty_folder, "sweep")


@pytest.fixture
def started(tmp_path):
    with started_sweeps(tmp_path) as start:
        yield start


def test_a_sweep_trains_every_cell_in_its_own_folder_and_nothing_twice(run, tmp_path):
    code, out, error = run(*DIGITS)
    assert code == 0, error
    assert out.splitlines()[0].startswith("Learning hyperparameters: 2 cells, 1 worker of ")
    assert error.count("done: prior ") == 2
    assert "2 of 2 cells are done, 0 were so before" in out
    times = written(tmp_path)
    assert sorted(name.rsplit("-", 1)[0] for name in times) == ["kfac-20-1-digits", "ntk-20-1-digits"]
    rows = train_records.read_rows(*(tmp_path / "results" / "train").glob("*/rows.csv"))
    assert rows.groupby("estimator").size().tolist() == [12, 12]
    code, out, _ = run(*DIGITS, "--list")
    assert [line.split()[:2] for line in out.splitlines()] == [["done", "12/12"]] * 2 + [["2", "cells,"]]
    code, out, error = run(*DIGITS)
    assert (code, error, written(tmp_path)) == (0, "", times)
    assert "2 of 2 cells are done, 2 were so before" in out
    code, out, error = run(*DIGITS, "--cluster", "slurm")
    assert (code, error, written(tmp_path)) == (0, "", times)
    assert "0 of 2 cells as tasks of Slurm job none\n2 of 2 cells are done, 2 were so before" in out
    assert out.count("\n") == 2


def test_images_of_ones_own_are_read_by_the_workers_too(run, tmp_path):
    write_files(tmp_path / "photos", sound_files(per_class=10))
    asked = ("--datasets", "folder:photos,folder:photos_r90", "--estimators", "none", "--epochs", 1, "--num-data", 20)
    code, _, error = run("train-digits", "--hparam", "prior", *asked, "--device", "cpu")
    assert code == 0, error
    assert sorted(name.rsplit("-", 1)[0] for name in written(tmp_path)) == ["none-photos", "none-photos_r90"]
    [manifest] = (tmp_path / "results" / "train").glob("none-photos-*/manifest.json")
    assert "dataset photos instead of digits" in json.loads(manifest.read_text())["notes"][0]


@pytest.mark.slow
def test_the_cells_are_runs_of_train(run, in_empty_folder, tmp_path):
    assert in_empty_folder("train", "--estimator", "ntk-20-1", "--epochs", 12, *SMALL)[0] == 0
    times = written(tmp_path)
    code, out, _ = run(*DIGITS, "--seeds", "0,1", "--workers", 2)
    assert (code, "4 of 4 cells are done, 1 were so before" in out) == (0, True)
    assert {name: written(tmp_path)[name] for name in times} == times


def test_list_says_what_would_be_done_and_does_nothing(run, tmp_path):
    code, out, _ = run("sweep-digits", "--list", "--seeds", 0)
    lines = out.splitlines()
    assert (code, len(lines), lines[-1]) == (0, 8, "7 cells, 0 done")
    assert lines[0].startswith(
        "missing     0/40   prior ntk-100-1 digits N=200 seed 0 [prior]  results/train/ntk-100-1-"
    )
    assert "invariance ntk-50-tree digits_r180 N=200 seed 0 [invariance]" in lines[6]
    assert not (tmp_path / "results").exists()
    code, out, _ = run("sweep-digits", "--dry-run", "--hparam", "rotation")
    assert out.splitlines()[-1] == "3 cells, 0 done"


def test_options_replace_what_the_protocol_says(run):
    code, out, error = run(
        *(
            "sweep-digits",
            "--list",
            "--estimators",
            "none,ntk-50-1",
            "--seeds",
            "4,5",
            "--datasets",
            "digits,digits_r90",
        ),
        *("--num-data", "80,100", "--epochs", 30),
    )
    assert code == 0, error
    lines = out.splitlines()
    # Added estimators take the settings of the first one, which learns the prior.
    assert lines[-1] == "16 cells, 0 done"
    assert all("prior" in line and "/30 " in line for line in lines[:-1])
    assert lines[0].split("  ")[0] != ""
    for words in ("none digits_r90 N=80 seed 5", "ntk-50-1 digits N=100 seed 4"):
        assert words in out
    assert out.index("seed 4") < out.index("seed 5")


def test_settings_of_some_cells_leave_the_others_as_they_are(run):
    def folders(*arguments):
        return [line.split()[-1] for line in run(*arguments, "--list")[1].splitlines()[:-1]]

    few = ("train-digits", "--hparam", "prior", "--estimators", "none,ntk-20-1", *SMALL)
    kept, fresh = (folders(*few, option) for option in ("--kept-blocks", "--fresh-blocks"))
    assert (kept[0] == fresh[0], kept[1] == fresh[1]) == (True, False)
    both = ("sweep-digits", "--seeds", "0")
    changed = {old != new for old, new in zip(folders(*both), folders(*both, "--samples", "2"), strict=True)}
    assert changed == {True, False}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["figure-99"], "unknown protocol 'figure-99'; did you mean"),
        (["pareto-digits"], "pareto-digits does not say what is learned: write --hparam prior or --hparam invariance"),
        (["figure-13", "--hparam", "invariance"], "no cell of figure-13 learns the invariance: leave out --hparam"),
        (["sweep-digits", "--num-data", "10,x"], "'10,x' is not a list of different numbers, such as 250,500,1000"),
        (["sweep-digits", "--datasets", "digits,,"], "'digits,,' is not a list of different names"),
        (["sweep-digits", "--estimators", "ntk-1"], "Invalid value for '--estimators'"),
        (["sweep-digits", "--num-data", "60"], "ntk-100-1 needs 100 inputs but there are 60"),
        (["sweep-digits", "--workers", "0"], "Invalid value for '--workers'"),
        (
            ["train-digits", "--hparam", "prior", "--samples", "2"],
            "--samples: no cell learns the invariance",
        ),
        (
            ["train-digits", "--hparam", "prior", "--estimators", "none,kfac-N-C", "--kept-blocks"],
            "--fresh-blocks/--kept-blocks: no cell learns the prior from blocks that are drawn",
        ),
        (["sweep-digits", "--epochs", "3"], "in 3 epochs no hyperparameter is updated"),
    ],
)
def test_a_mistake_is_one_line_and_usage(run, tmp_path, arguments, words):
    code, _, error = run(*arguments)
    assert (code, error.count("\n")) == (2, 1)
    assert words in error
    assert not list(tmp_path.iterdir())


def test_missing_data_are_one_line_that_is_no_matter_of_usage(run, tmp_path):
    code, _, error = run("sweep-digits", "--datasets", "digits,mnist", "--data-root", "nowhere", "--list")
    assert (code, error.count("\n")) == (1, 1)
    assert "nowhere" in error
    assert "--download" in error
    assert not list(tmp_path.iterdir())


def test_a_mistake_in_a_file_of_ones_own_is_one_line_before_anything_is_listed(run, tmp_path):
    own = tmp_path / "my.toml"
    own.write_text('base = "train-digits"\nhparam = "prior"\n[[cells]]\nepochs = -3\n')
    code, _, error = run("my.toml", "--list")
    assert (code, error.count("\n")) == (2, 1)
    assert "my.toml, [[cells]] table 1: epochs = -3: write a whole number from 1 to 1000000000" in error
    assert list(tmp_path.iterdir()) == [own]


def test_a_pareto_comparison_is_a_sweep_of_its_training_cells(run):
    code, out, _ = run("pareto-digits", "--hparam", "prior", "--list")
    assert (code, out.splitlines()[-1]) == (0, "9 cells, 0 done")


@pytest.mark.parametrize(
    ("asked", "workers", "threads"), [("", 1, 4), ("", 3, 1), ("", 9, 1), ("3", 2, 3), ("x", 2, 2), ("0", 2, 2)]
)
def test_workers_share_the_cores_unless_the_environment_says_otherwise(monkeypatch, tmp_path, asked, workers, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4), raising=False)
    options = {"device": "cpu", "workers": workers, "chunk": 7, "data_root": tmp_path}
    sites = sweep_command._sites(options)
    assert sites == [Site(str(tmp_path), "cpu", 7, threads)] * workers


def test_workers_take_the_gpus_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for count, devices in ((2, ["cuda:0", "cuda:1", "cuda:0"]), (1, ["cuda", "cuda", "cuda"])):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        options = {"device": "auto", "workers": 3, "chunk": None, "data_root": None}
        assert [site.device for site in sweep_command._sites(options)] == devices


class Worker:
    """``train_cell`` in this process, and what it reports."""

    def __init__(self):
        self.reports = []

    def train(self, cell, stop=never, site=SITE):
        return train_cell(cell, site, self.reports.append, stop)

    @property
    def kinds(self):
        return [report.kind for report in self.reports]


def real(cell, folder):
    """The cell with the run id and folder that its settings have."""
    cells = [Cell(protocol=cell.protocol, asked=cell.protocol)]
    [found] = planned(cells, load_dataset, folder)
    return replace(found, rows=cell.rows)


@pytest.mark.usefixtures("one_thread")
def test_a_worker_reports_every_epoch_and_a_finished_cell_at_once(tmp_path):
    [cell] = [real(cell, tmp_path) for cell in planned_cells(tmp_path, epochs=10)]
    worker = Worker()
    with exclusive(cell.folder):
        assert worker.train(cell).kind == "busy"
    assert worker.train(cell, stop=lambda: "SIGTERM").line == "SIGTERM"
    assert worker.train(cell).epochs == 10
    assert worker.kinds == ["busy", "stopped", "begun", *["epoch"] * 10, "finished"]
    assert worker.train(cell).kind == "finished"
    assert worker.kinds[-2:] == ["finished", "finished"]


@pytest.mark.usefixtures("one_thread")
def test_trouble_in_a_cell_is_one_line(tmp_path, monkeypatch, capsys):
    [cell] = planned_cells(tmp_path, lr=1e9)
    assert "is not what it was when the sweep began: start the sweep again" in Worker().train(cell).line
    end = Worker().train(real(cell, tmp_path))
    assert (end.kind, end.line.count("\n")) == ("failed", 0)
    assert "diverged" in end.line or "not finite" in end.line
    for error, line in (
        (MemoryError(), "out of memory: fewer --workers, or a smaller estimator"),
        (OSError(28, "No space left on device", "x.csv"), "No space left on device: x.csv"),
        (ValueError("first\n second"), "first second"),
        (KeyError("x"), "KeyError: 'x'"),
    ):

        def failing(*_, error=error):
            raise error

        monkeypatch.setattr(sweep_worker, "run_any", failing)
        assert Worker().train(real(replace(cell, rows=()), tmp_path)).line == line
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("heard_signals")
@pytest.mark.parametrize(("sent", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGHUP", 75), ("SIGINT", 130)])
def test_a_signal_stops_all_workers_after_their_steps_and_the_same_command_goes_on(run, started, tmp_path, sent, code):
    arguments = (*DIGITS[:-5], "4000", *SMALL, "--workers", "2")
    process = started(*arguments)
    wait_for(lambda: len(list(tmp_path.rglob("checkpoint.pt"))) == 2)
    process.send_signal(getattr(signal, sent))
    began = time.monotonic()
    out, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    assert time.monotonic() - began < 20
    assert error.splitlines()[-1].startswith(f"Stopped by {sent}: 0 of 2 cells are done, 0 were so before;")
    assert error.splitlines()[-1].endswith("the same command continues it")
    assert error.count("stopped: prior ") == 2
    code, listed, _ = run(*arguments[:-2], "--list")
    assert [line.split()[0] for line in listed.splitlines()] == ["stopped", "stopped", "2"]
    kept = {path.parent.name: json.loads(path.read_text())["resumed"] for path in tmp_path.rglob("manifest.json")}
    assert list(kept.values()) == [[], []]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("estimator", ["none", "grid-2"])
def test_a_stopped_cell_goes_on_with_its_own_number_of_threads(tmp_path, monkeypatch, estimator):
    [cell] = [real(cell, tmp_path) for cell in planned_cells(tmp_path, (estimator,), epochs=3)]
    asked = []
    worker = Worker()
    assert worker.train(cell, stop=lambda: "SIGTERM" if len(worker.kinds) > 1 else None).kind == "stopped"
    assert state_of(cell.folder) == "stopped"
    set_num_threads = torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda count: (asked.append(count), set_num_threads(count)))
    assert worker.train(cell, site=replace(SITE, threads=2)).kind == "finished", worker.reports
    assert asked == [1]


@pytest.mark.slow
def test_a_cell_that_fails_is_named_at_the_end_with_its_reason(started, tmp_path):
    settings = ("--estimators", "ntk-20-1,none", "--epochs", "12", *SMALL)
    protocol = "train-digits", "--hparam", "prior"
    listed, _ = started(*protocol, *settings, "--list").communicate(timeout=60)
    folder = tmp_path / listed.splitlines()[0].split("  ")[-1]
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_bytes(b"junk")
    process = started(*protocol, *settings)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "1 of 2 cells are done, 0 were so before" in out
    last = error.splitlines()[-1]
    assert last.startswith("failed: prior ntk-20-1 digits N=60 seed 0: ")
    assert "is not a checkpoint; there is no earlier checkpoint: remove results/train/" in last
    assert "Traceback" not in error
