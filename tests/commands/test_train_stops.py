"""``ntkml train`` when it is asked to stop: after the step in progress, with the right exit code, and resumed bit by bit."""

import itertools
import json
import shutil
import signal
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from ntkml import datasets
from ntkml.commands.stops import EXIT_CODES, orderly_stops
from ntkml.learning import loop
from ntkml.records import train as train_records
from ntkml.runs import train as train_run
from ntkml.runs import train_journal
from ntkml.runs.train_journal import Journal
from ntkml.two_pass import TwoPass

SMALL = [
    "--num-data",
    "60",
    "--epochs",
    "4",
    "--batch-size",
    "25",
    "--burn-in",
    "2",
    "--update-every",
    "1",
    "--eval-every",
    "2",
    "--device",
    "cpu",
]
PRIOR = (*["--hparam", "prior", "--estimator", "ntk-20-tree", "--hyper-steps", "3"], *SMALL)
INVARIANCE = (
    *["--hparam", "invariance", "--estimator", "ntk-10-1", "--samples", "2", "--aug-steps", "3", "--hyper-steps", "2"],
    *SMALL,
)

pytestmark = pytest.mark.usefixtures("one_thread", "heard_signals")


@pytest.fixture
def run(in_empty_folder):
    """``ntkml train ...``"""
    return partial(in_empty_folder, "train")


def signalled(monkeypatch, owner, name, call, *signals):
    """Send ``signals`` to this process in the middle of call number ``call`` of a function."""
    function, calls = getattr(owner, name), []

    def watched(*arguments, **named):
        result = function(*arguments, **named)
        calls.append(name)
        if len(calls) == call:
            for sent in signals:
                signal.raise_signal(getattr(signal, sent))
        return result

    monkeypatch.setattr(owner, name, watched)
    return calls


def outcome(folder):
    [rows], [weights] = folder.rglob("rows.csv"), folder.rglob("weights.pt")
    frame = train_records.read_rows(rows).drop(columns=list(train_records.MEASURED))
    return frame.to_csv(index=False), torch.load(weights, weights_only=True)


def assert_same(ours, theirs):
    assert ours[0] == theirs[0]
    assert all(torch.equal(ours[1][name], value) for name, value in theirs[1].items())


@pytest.mark.parametrize(
    ("settings", "sent", "name", "call", "epochs", "steps"),
    [
        (PRIOR, "SIGTERM", "_weight_step", 2 * 3 + 2, 2, 2),
        (PRIOR, "SIGUSR1", "_hyper_step", 3 + 1, 2, 3 + 1),
        (INVARIANCE, "SIGTERM", "_hyper_step", 2, 1, 3 + 2),
        (INVARIANCE, "SIGINT", "_weight_step", 1, 0, 1),
        (PRIOR, "SIGUSR1", "evaluate", 1, 2, 0),
    ],
)
def test_a_signal_stops_after_the_step_and_costs_nothing(
    run, tmp_path, monkeypatch, only, settings, sent, name, call, epochs, steps
):
    assert run(*settings, "--out", "whole")[0] == 0
    with monkeypatch.context() as patch:
        calls = signalled(patch, loop, name, call, sent)
        code, _, error = run(*settings)
    assert code == EXIT_CODES[sent]
    assert len(calls) == call
    counted = f"{epochs} epoch{'s' * (epochs != 1)} and {steps} step{'s' * (steps != 1)}"
    assert error.splitlines()[-1] == f"Stopped by {sent} after {counted}: the same command continues it"
    rows = only(tmp_path / "results", "rows.csv").read_text().splitlines()
    assert len(rows) == 1 + epochs
    assert run(*settings)[0] == 0
    assert_same(outcome(tmp_path / "results"), outcome(tmp_path / "whole"))
    [entry] = json.loads(only(tmp_path / "results", "manifest.json").read_text())["resumed"]
    assert (entry["from_epoch"], entry["from_step"]) == (epochs, steps)


def test_a_second_interrupt_does_not_wait_for_the_step(run, tmp_path, monkeypatch):
    signalled(monkeypatch, loop, "_weight_step", 2, "SIGINT", "SIGINT")
    code, _, error = run(*PRIOR)
    assert code == 130
    assert (
        error.splitlines()[-1]
        == "Interrupted: the same command continues it, without the steps since its last checkpoint"
    )
    assert not list(tmp_path.rglob("checkpoint.pt"))


def test_other_signals_wait_with_the_first(run, monkeypatch):
    signalled(monkeypatch, loop, "_weight_step", 2, "SIGUSR1", "SIGTERM")
    code, _, error = run(*PRIOR)
    assert code == 75
    assert "Stopped by SIGUSR1 after 0 epochs and 2 steps" in error


@pytest.mark.parametrize("sent", EXIT_CODES)
def test_a_signal_while_the_data_are_read_has_the_same_exit_code(run, tmp_path, monkeypatch, sent):
    signalled(monkeypatch, datasets, "load_dataset", 1, sent)
    code, _, error = run(*PRIOR)
    assert code == EXIT_CODES[sent]
    assert error.strip() == ("Interrupted." if sent == "SIGINT" else f"Stopped by {sent}.")
    assert not list(tmp_path.iterdir())


def test_a_signal_before_the_first_step_leaves_before_it(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signalled(patch, train_run, "_set_up", 1, "SIGTERM")
        code, _, error = run(*PRIOR)
    assert code == 75
    assert "Stopped by SIGTERM after 0 epochs and 0 steps: the same command continues it" in error
    assert run(*PRIOR)[0] == 0


def test_a_forced_run_that_kept_nothing_starts_again(run, monkeypatch):
    signalled(monkeypatch, train_run, "_set_up", 1, "SIGTERM")
    _, _, error = run(*PRIOR, "--force")
    assert "Stopped by SIGTERM after 0 epochs and 0 steps: the same command starts it" in error


@pytest.mark.parametrize(("owner", "name", "call"), [(loop, "evaluate", 2), (Journal, "finish", 1)])
def test_a_signal_in_or_after_the_last_step_finds_a_finished_run(run, monkeypatch, only, tmp_path, owner, name, call):
    signalled(monkeypatch, owner, name, call, "SIGTERM")
    assert run(*PRIOR)[0] == 0
    assert json.loads(only(tmp_path, "manifest.json").read_text())["finished_at"]


def test_checkpoints_come_by_the_clock_too(run, tmp_path, monkeypatch):
    kept = signalled(monkeypatch, Journal, "keep", 0)
    run(*PRIOR, "--checkpoint-seconds", 0)
    assert len(kept) == 4 * (3 + 1) + 3 * 3
    kept.clear()
    run(*PRIOR, "--out", "other", "--checkpoint-every", 2)
    assert len(kept) == 2
    assert_same(outcome(tmp_path / "results"), outcome(tmp_path / "other"))
    kept.clear()
    looks = itertools.count(0, 100)  # seconds
    monkeypatch.setattr(train_journal, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + next(looks)))
    run(*PRIOR, "--out", "another", "--checkpoint-seconds", 300)
    assert len(kept) == (4 * (3 + 1) + 3 * 3) // 3  # every third time, counted from the last checkpoint


def test_a_forced_run_that_was_stopped_goes_on_beside_the_finished_one(run, tmp_path, monkeypatch, only):
    assert run(*PRIOR)[0] == 0
    before = only(tmp_path, "rows.csv").read_bytes()
    with monkeypatch.context() as patch:
        signalled(patch, loop, "_weight_step", 5, "SIGTERM")
        code, _, error = run(*PRIOR, "--force")
    assert code == 75
    assert error.splitlines()[-1].endswith(": the same command without --force continues it")
    finished = next(path for path in tmp_path.rglob("rows.csv") if not path.parent.name.endswith(".new"))
    assert finished.read_bytes() == before
    calls = signalled(monkeypatch, loop, "_weight_step", 0)
    code, out, _ = run(*PRIOR)
    assert (code, "Finished already" in out) == (0, False)
    assert len(calls) == 4 * 3 - 5
    assert len(outcome(tmp_path)[0].splitlines()) == 1 + 4  # and nothing is left beside it


def test_a_forced_run_without_a_finished_one_goes_on_too(run, monkeypatch):
    with monkeypatch.context() as patch:
        signalled(patch, loop, "_weight_step", 5, "SIGTERM")
        assert run(*PRIOR, "--force")[0] == 75
    calls = signalled(monkeypatch, loop, "_weight_step", 0)
    assert run(*PRIOR)[0] == 0
    assert len(calls) == 4 * 3 - 5


def test_a_copied_folder_of_another_run_is_refused_with_the_difference(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signalled(patch, loop, "_weight_step", 5, "SIGTERM")
        run(*PRIOR)
    assert run(*PRIOR, "--seed", 3, "--lr", 0.01, "--out", "other")[0] == 0
    [theirs], [ours] = (list((tmp_path / out / "train").iterdir()) for out in ("results", "other"))
    shutil.rmtree(ours)
    shutil.copytree(theirs, ours)
    before = (ours / "checkpoint.pt").read_bytes()
    code, _, error = run(*PRIOR, "--seed", 3, "--lr", 0.01, "--out", "other")
    assert (code, error.count("\n")) == (1, 1)
    assert "checkpoint.pt is of another run, with " in error
    assert "seed 0 instead of 3" in error
    assert "lr 0.001 instead of 0.01" in error
    assert (ours / "checkpoint.pt").read_bytes() == before


def test_no_memory_is_one_line_and_finished_epochs_stay(run, tmp_path, monkeypatch, only):
    def failing(*_, **__):
        raise MemoryError

    monkeypatch.setattr(TwoPass, "first", failing)
    code, _, error = run(*PRIOR, "--checkpoint-every", 1)
    assert code == 1
    assert error.splitlines()[-1] == (
        "Error: out of memory in epoch 2, step 4: ntk-20-tree takes blocks of 20 inputs; try a smaller estimator "
        "(--estimator ntk-10-tree)"
    )
    assert train_records.read_rows(only(tmp_path, "rows.csv"))["epoch"].tolist() == [1]
    assert only(tmp_path, "checkpoint.pt")


def test_other_threads_and_ignored_signals_are_left_alone():
    seen = []

    def elsewhere():
        with orderly_stops() as stops:
            seen.append((signal.getsignal(signal.SIGTERM), stops.requested()))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [(signal.getsignal(signal.SIGTERM), None)]
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with orderly_stops():
            assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not before
    finally:
        signal.signal(signal.SIGUSR1, before)
