"""``ntkml train`` on the embedded digits: rows, one folder for every setting, and resuming bit by bit."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from ntkml.records import train as train_records
from ntkml.records.tables import write_rows

ROOT = Path(__file__).parents[2]
SMALL = ("--num-data", 60, "--epochs", 4, "--burn-in", 2, "--update-every", 1, "--eval-every", 2, "--device", "cpu")
PRIOR = ("--hparam", "prior", "--estimator", "ntk-20-tree", "--hyper-steps", 2, *SMALL)
INVARIANCE = ("--hparam", "invariance", "--estimator", "ntk-10-1", "--samples", 2, *SMALL)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(in_empty_folder):
    """``ntkml train ...``"""
    return partial(in_empty_folder, "train")


def lines_of(path):
    """Rows as text, without what is measured by the clock or the machine."""
    names = path.read_text().splitlines()[0].split(",")
    frame = train_records.read_rows(path)
    assert list(frame) == names
    return frame.drop(columns=list(train_records.MEASURED)).to_csv(index=False)


def stopped_after(monkeypatch, epoch):
    """Interrupt the run when the weights of ``epoch`` + 1 have been trained, before its hyperparameters."""
    from ntkml.learning import loop

    step = loop._weight_step

    def interrupted(learner, *arguments):
        loss = step(learner, *arguments)
        if learner.position.epoch == epoch + 1:
            raise KeyboardInterrupt
        return loss

    monkeypatch.setattr(loop, "_weight_step", interrupted)


def test_a_run_leaves_rows_manifest_weights_and_checkpoint_and_names_them(run, tmp_path, only):
    code, out, error = run(*INVARIANCE)
    assert code == 0
    rows, manifest, weights = only(tmp_path, "rows.csv"), only(tmp_path, "manifest.json"), only(tmp_path, "weights.pt")
    assert sorted(os.listdir(rows.parent)) == ["checkpoint.pt", "manifest.json", "rows.csv", "weights.pt"]
    assert rows.parent.parent == tmp_path / "results" / "train"
    assert rows.parent.name.startswith("ntk-10-1-digits_r180-")
    for path in (rows, manifest, weights):
        assert str(path.relative_to(tmp_path)) in out
    for word in ("log q/N=", "test=", "|eta|="):
        assert word in error
    frame = train_records.read_rows(rows)
    assert frame["epoch"].tolist() == [1, 2, 3, 4]
    assert frame["log_marginal_likelihood"].notna().tolist() == [False, True, True, True]
    assert frame["test_log_likelihood"].notna().tolist() == [False, True, False, True]
    assert set(frame["num_params"]) == {3658}
    assert (set(frame["certified"]), set(frame["structure"]), set(frame["inputs"])) == ({False}, {"ntk"}, {"10"})
    assert frame.loc[0, [f"eta_{index}" for index in range(6)]].tolist() == [0.0] * 6
    assert (frame.loc[3, [f"eta_{index}" for index in range(6)]] != 0.0).all()
    for _, row in frame.iterrows():
        precisions = json.loads(row["prior_precisions"])
        assert len(precisions) == 8
        assert (min(precisions), max(precisions)) == (row["prior_precision_min"], row["prior_precision_max"])
    loaded = json.loads(manifest.read_text())
    assert loaded["run_id"] in rows.parent.name
    assert loaded["finished_at"]
    assert loaded["estimators"] == {"ntk-10-1": {"certified": False, "num_blocks": 60}}
    assert loaded["eta"]["eta_2"] == "rotation"
    assert len(loaded["parameters"]) == 8
    assert loaded["tree"] is None
    assert any("num data 60 instead of 1000" in note for note in loaded["notes"])
    assert torch.load(weights, weights_only=True)["0.weight"].shape == (8, 1, 3, 3)


def test_rotation_is_another_word_for_invariance(run, tmp_path):
    run(*INVARIANCE)
    code, out, _ = run("--hparam", "rotation", *INVARIANCE[2:])
    assert code == 0
    assert "Finished already" in out


def test_map_has_empty_cells_where_nothing_is_estimated(run, tmp_path, only):
    assert run("--hparam", "invariance", "--estimator", "none", "--prior-init", 25, *SMALL)[0] == 0
    frame = train_records.read_rows(only(tmp_path, "rows.csv"))
    for name in ("log_marginal_likelihood", "certified", *(f"eta_{index}" for index in range(6))):
        assert frame[name].isna().all()
    assert set(frame["structure"]) == {"none"}
    assert frame["prior_precision_min"].tolist() == pytest.approx([25.0] * 4)


def test_the_median_of_an_even_number_of_precisions_is_the_lower_of_the_middle_ones(run, tmp_path, only):
    assert run(*PRIOR)[0] == 0
    last = train_records.read_rows(only(tmp_path, "rows.csv")).iloc[-1]
    precisions = sorted(json.loads(last["prior_precisions"]))
    assert len(precisions) % 2 == 0
    assert last["prior_precision_median"] == pytest.approx(precisions[len(precisions) // 2 - 1])
    assert precisions[len(precisions) // 2 - 1] < precisions[len(precisions) // 2]


def test_the_manifest_has_the_tree_of_tree_rows(run, tmp_path, only):
    run(*PRIOR)
    assert len(json.loads(only(tmp_path, "manifest.json").read_text())["tree"]) == 9


def test_a_diagonal_prior_is_summarised(run, tmp_path, only):
    assert run(*PRIOR, "--prior", "diagonal")[0] == 0
    frame = train_records.read_rows(only(tmp_path, "rows.csv"))
    assert set(frame["prior_precisions"]) == {""}
    last = frame.iloc[-1]
    assert last["prior_precision_min"] < last["prior_precision_median"] < last["prior_precision_max"]


@pytest.mark.parametrize("settings", [PRIOR, INVARIANCE], ids=["prior", "invariance"])
def test_an_interrupted_run_goes_on_bit_by_bit(run, tmp_path, monkeypatch, settings, only):
    assert run(*settings)[0] == 0
    with monkeypatch.context() as patch:
        stopped_after(patch, 3)
        code, _, error = run(*settings, "--out", "again", "--checkpoint-every", 1)
    assert code == 130
    assert "Traceback" not in error
    assert "finished_at" not in json.loads(only(tmp_path / "again", "manifest.json").read_text())
    assert len(train_records.read_rows(only(tmp_path / "again", "rows.csv"))) == 3
    assert run(*settings, "--out", "again")[0] == 0
    assert lines_of(only(tmp_path / "again", "rows.csv")) == lines_of(only(tmp_path / "results", "rows.csv"))
    ours, theirs = (torch.load(only(tmp_path / out, "weights.pt"), weights_only=True) for out in ("again", "results"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    loaded = json.loads(only(tmp_path / "again", "manifest.json").read_text())
    assert [part["from_epoch"] for part in loaded["resumed"]] == [3]


def test_a_killed_run_goes_on_bit_by_bit(run, tmp_path, only):
    """A process that is killed with SIGKILL in the middle of its work, and resumed here."""
    settings = [*PRIOR, "--checkpoint-every", 1]
    settings[settings.index("--epochs") + 1] = 6
    assert run(*settings, "--out", "whole")[0] == 0
    code = (
        "import os, signal, torch; torch.set_num_threads(1); from ntkml.learning import loop\n"
        "steps = loop._weight_step\n"
        "def step(learner, *arguments):\n"
        "    loss = steps(learner, *arguments)\n"
        "    return os.kill(os.getpid(), signal.SIGKILL) if learner.position.epoch == 4 else loss\n"
        f"loop._weight_step = step; from ntkml.commands import main; main({['train', *map(str, settings)]})"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, timeout=300
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert not list((tmp_path / "results").rglob("weights.pt"))
    only(tmp_path / "results", "checkpoint.previous.pt").with_name(".rows.csv.cutshort").write_text("half a ro")
    assert run(*settings)[0] == 0
    assert not list((tmp_path / "results").rglob(".*"))
    assert lines_of(only(tmp_path / "results", "rows.csv")) == lines_of(only(tmp_path / "whole", "rows.csv"))
    loaded = json.loads(only(tmp_path / "results", "manifest.json").read_text())
    assert loaded["resumed"][0]["from_epoch"] == 3


def test_a_damaged_checkpoint_costs_one_line_and_no_bits(run, tmp_path, monkeypatch, only):
    run(*PRIOR)
    with monkeypatch.context() as patch:
        stopped_after(patch, 3)
        run(*PRIOR, "--out", "again", "--checkpoint-every", 1)
    checkpoint = only(tmp_path / "again", "checkpoint.pt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    code, _, error = run(*PRIOR, "--out", "again")
    assert code == 0
    assert error.count("Warning") == 1
    assert "is damaged (its checksum does not fit); continuing from checkpoint.previous.pt" in error
    assert lines_of(only(tmp_path / "again", "rows.csv")) == lines_of(only(tmp_path / "results", "rows.csv"))


def test_an_unfinished_run_is_neither_overwritten_nor_mixed(run, tmp_path, monkeypatch, only):
    with monkeypatch.context() as patch:
        stopped_after(patch, 2)
        run(*PRIOR, "--checkpoint-every", 1)
    before = only(tmp_path, "checkpoint.pt").read_bytes()
    code, _, error = run(*PRIOR, "--chunk", "7")
    assert (code, error.count("\n")) == (1, 1)
    assert "was made with chunk None instead of 7, and would not go on bit by bit: choose it" in error
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 3)
        _, _, error = run(*PRIOR)
    assert "threads 1 instead of 3" in error
    assert "set OMP_NUM_THREADS or remove results/train/" in error
    assert only(tmp_path, "checkpoint.pt").read_bytes() == before
    assert run(*PRIOR, "--force")[0] == 0
    assert only(tmp_path, "weights.pt")


def test_a_finished_run_is_computed_again_only_by_force(run, tmp_path, only):
    assert run(*PRIOR)[0] == 0
    finished = only(tmp_path, "rows.csv").stat().st_mtime_ns
    code, out, _ = run(*PRIOR)
    assert code == 0
    assert "Finished already" in out
    assert only(tmp_path, "rows.csv").stat().st_mtime_ns == finished
    run(*PRIOR, "--force")
    assert only(tmp_path, "rows.csv").stat().st_mtime_ns > finished


def test_a_finished_run_whose_rows_were_cut_is_not_called_finished(run, only, tmp_path):
    run(*PRIOR)
    path = only(tmp_path, "rows.csv")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    code, out, error = run(*PRIOR)
    folder = path.parent.relative_to(tmp_path)
    assert (code, out) == (1, "")
    assert error == f"Error: {folder}/rows.csv: ends with epoch 2 of 4; remove {folder} and compute it again\n"
    assert run(*PRIOR, "--force")[0] == 0
    assert "Finished already" in run(*PRIOR)[1]


def test_a_finished_run_without_its_weights_says_so(run, tmp_path, only):
    [named] = [line for line in run(*PRIOR)[1].splitlines() if line.startswith("weights.pt:")]
    assert (tmp_path / named.split()[1]).exists()
    only(tmp_path, "weights.pt").unlink()
    code, out, _ = run(*PRIOR)
    assert (code, "Finished already" in out, named in out) == (0, True, False)
    assert "weights.pt:    missing (--force computes the run again)" in out.splitlines()


def test_a_kill_after_the_last_checkpoint_costs_no_rows(run, tmp_path, monkeypatch, only):
    write, seen = write_rows, []

    def killed(path, rows, columns):
        seen.append(path)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return write(path, rows, columns)

    with monkeypatch.context() as patch:
        patch.setattr("ntkml.runs.train_journal.write_rows", killed)
        assert run(*PRIOR, "--checkpoint-every", 2)[0] == 130
    assert len(train_records.read_rows(only(tmp_path, "rows.csv"))) == 2
    assert run(*PRIOR)[0] == 0
    assert len(train_records.read_rows(only(tmp_path, "rows.csv"))) == 4


def test_equal_settings_have_one_folder_and_others_their_own(run, tmp_path):
    """Chunks and how often is checkpointed change no number but for rounding."""
    run(*PRIOR)
    assert "Finished already" in run(*PRIOR, "--checkpoint-every", 1, "--chunk", 5)[1]
    for option in (("--seed", 1), ("--lr-hyper", 0.2), ("--optimizer", "sgd"), ("--prior-init", 2)):
        assert "Finished already" not in run(*PRIOR, *option)[1]
    assert len(list((tmp_path / "results" / "train").iterdir())) == 5


def test_help_shows_examples(run):
    code, out, _ = run("--help")
    assert code == 0
    assert "ntkml train --hparam invariance --dataset digits_r180 --estimator kfac-100-1" in out
    for option in ("--checkpoint-every", "--chunk", "--lr-aug", "--update-every", "--prior "):
        assert option in out


def test_estimators_and_none_are_completed():
    from ntkml.commands.types import SYSTEM

    assert [item.value for item in SYSTEM.shell_complete(None, None, "no")] == ["none"]
    assert "kfac-500-1" in [item.value for item in SYSTEM.shell_complete(None, None, "kfac-5")]


def test_names_of_data_sets_and_protocols_are_completed():
    from ntkml.commands.types import DATASET, DATASETS, TRAIN_PROTOCOL

    assert [item.value for item in DATASET.shell_complete(None, None, "cifar100")] == [
        "cifar100",
        "cifar100_r90",
        "cifar100_r180",
    ]
    assert "digits,mnist_r180" in [item.value for item in DATASETS.shell_complete(None, None, "digits,mn")]
    assert "table-1" in [item.value for item in TRAIN_PROTOCOL.shell_complete(None, None, "table")]
