"""What ``ntkml train`` refuses: one line that says what to type, before any work where that can be known."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from ntkml.datasets import load_dataset
from ntkml.protocols.train import load_train
from ntkml.records import train as train_records
from ntkml.runs.train_checks import resolve_protocol

SMALL = ("--num-data", 60, "--epochs", 4, "--burn-in", 2, "--update-every", 1, "--eval-every", 2, "--device", "cpu")
PRIOR = ("--hparam", "prior", "--estimator", "ntk-20-tree", "--hyper-steps", 2, *SMALL)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(in_empty_folder):
    """``ntkml train ...``"""
    return partial(in_empty_folder, "train")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--hparam", "momentum"], 2, "'momentum' is not one of 'prior', 'invariance', 'rotation'"),
        (["--estimator", "ntk-10"], 2, "write <structure>-<inputs>-<outputs>"),
        (["--estimator", "nonne"], 2, "did you mean 'none'?"),
        (["--estimator", "ntk-2000-1"], 2, "needs 2000 inputs but there are 1000"),
        (["--estimator", "ntk-100-10"], 2, "write C for all outputs"),
        (["--estimator", "kfac-100-1", "--prior", "diagonal"], 2, "kfac-100-1 takes a scalar or layerwise prior"),
        (["--num-data", "5000"], 2, "digits has 1297 training images"),
        (["--prior-init", "0"], 2, "0.0 is not in the range 1e-30<=x<=1e+30"),
        (["--lr", "-1"], 2, "-1.0 is not in the range 1e-30<=x<=1e+30"),
        (["--lr-hyper", "nan"], 2, "nan is not a finite number"),
        (["--lr", "1e300"], 2, "Invalid value for '--lr': 1e+300 is not in the range 1e-30<=x<=1e+30"),
        (["--hparam", "invariance", "--samples", "9" * 20], 2, "Invalid value for '--samples'"),
        (["--batch-size", "9" * 20], 2, "Invalid value for '--batch-size'"),
        (["--chunk", "9" * 20], 2, "is not auto or a positive number of inputs (up to 1000000000)"),
        (["--chunk", "9" * 5000], 2, "Invalid value for '--chunk'"),
        (["--epochs", "10000000000"], 2, "10000000000 is not in the range 1<=x<=1000000000"),
        (
            ["--checkpoint-seconds", "nan"],
            2,
            "Invalid value for '--checkpoint-seconds': nan is not a number of seconds",
        ),
        (["--samples", "4"], 2, "Invalid value for --samples: belongs to --hparam invariance"),
        (["--aug-steps", "2"], 2, "Invalid value for --aug-steps: belongs to --hparam invariance"),
        (["--chunk", "some"], 2, "'some' is not auto or a positive number of inputs"),
        (["--protocol", "digits"], 2, "unknown protocol 'digits'"),
        (["--dataset", "mnits"], 1, "did you mean 'mnist'?"),
        (["--dataset", "mnist", "--data-root", "nowhere"], 1, "--data-root"),
        (["--optimizer", "lbfgs"], 2, "'lbfgs' is not one of 'adam', 'sgd'"),
        (
            ["--epochs", "5"],
            2,
            "in 5 epochs no hyperparameter is updated (burn-in 10, update every 5): take more --epochs",
        ),
        (["--out", ""], 2, "Invalid value for '--out': an empty path: name a file or folder"),
        (["--burn-in", "-1"], 2, "-1 is not in the range 0<=x<=1000000000"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(run, tmp_path, arguments, code, words):
    left, _, error = run(*arguments, "--device", "cpu")
    assert (left, words in error, error.count("\n")) == (code, True, 1), error
    assert not list(tmp_path.iterdir())


def test_a_last_block_that_is_not_full_counts_as_one():
    data, protocol = load_dataset("digits"), load_train("train-digits", "prior")
    protocol = replace(protocol, num_data=100, estimator="ntk-30-C", blocks_per_step=4)
    assert resolve_protocol(protocol, data).blocks_per_step == 4
    with pytest.raises(ValueError, match="--blocks-per-step 5: ntk-30-C has 4 blocks of 100 inputs"):
        resolve_protocol(replace(protocol, blocks_per_step=5), data)


def test_a_gpu_that_is_not_there_is_said(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, error = run("--device", "cuda")
    assert (code, error.count("\n")) == (2, 1)
    assert "torch sees no GPU: choose cpu or auto" in error


def test_divergence_is_one_line_and_finished_epochs_stay(run, tmp_path, only):
    code, _, error = run(*SMALL, "--hparam", "prior", "--estimator", "diag-20-1", "--lr", "1e30")
    assert code == 1
    assert error.splitlines()[-1] == (
        "Error: training diverged in epoch 2, step 1: the loss is nan at learning rate 8.53553e+29: lower the learning rate "
        "(--lr, now 1e+30)"
    )
    assert train_records.read_rows(only(tmp_path, "rows.csv"))["epoch"].tolist() == [1]
    assert "finished_at" not in json.loads(only(tmp_path, "manifest.json").read_text())


def test_an_unwritable_folder_is_said_before_any_work(run, tmp_path):
    (tmp_path / "taken").write_text("a file")
    code, _, error = run(*PRIOR, "--out", "taken")
    assert code == 1
    assert "taken" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("a,b\n1,2\n", "not a file of 'train', missing columns: run_id"),
        ("command\nbound-grid\n", "holds rows of 'bound-grid', expected rows of 'train'"),
    ],
)
def test_files_that_are_no_training_rows_are_refused(tmp_path, text, words):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        train_records.read_rows(path)


def test_the_same_epoch_twice_is_refused(run, tmp_path, only):
    run(*PRIOR)
    path = only(tmp_path, "rows.csv")
    with pytest.raises(ValueError, match="epoch 1 of run .* is there more than once; give each file once"):
        train_records.read_rows(path, path)
    with pytest.raises(ValueError, match="no CSV file was given"):
        train_records.read_rows()


def test_a_second_process_on_the_same_run_is_refused(run, tmp_path, only):
    from ntkml.runs.locks import exclusive

    assert run(*PRIOR)[0] == 0
    folder = only(tmp_path, "rows.csv").parent
    with exclusive(folder):
        code, _, error = run(*PRIOR, "--force")
    assert code == 1
    assert "another process is working on" in error
