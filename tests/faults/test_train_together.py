"""One training in many processes: the numbers of one process, one folder, orderly ends, and what follows a lost process."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from tests.faults.servers import ROOT, assert_same, files, outcome

TOY = [
    "train",
    "--hparam",
    "prior",
    "--estimator",
    "ntk-10-1",
    "--num-data",
    "40",
    "--batch-size",
    "15",
    "--epochs",
    "8",
    "--burn-in",
    "2",
    "--update-every",
    "1",
    "--hyper-steps",
    "2",
    "--blocks-per-step",
    "4",
    "--eval-every",
    "8",
    "--device",
    "cpu",
    "--checkpoint-every",
    "2",
]
WEIGHT_STEP, HYPER_STEP = "ntkml.learning.loop:_weight_step", "ntkml.learning.loop:_hyper_step"
FLOAT64 = "tests.faults.float64_training:main"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX signals and fork")


def trained(server, folder, processes, arguments):
    """What every process of a float64 training ends with."""
    folder.mkdir(exist_ok=True)
    codes, printed = server.run_together(folder, arguments, processes, entry=FLOAT64)
    assert codes == [0] * processes, printed
    return [torch.load(folder / f"process-{rank}.pt", weights_only=True) for rank in range(processes)]


def assert_close(ours, theirs, tolerance):
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert (ours[name] - value).abs().max() <= tolerance * value.abs().max(), name


@pytest.mark.parametrize(
    ("hparam", "estimator", "counts"),
    [
        ("prior", "ntk-10-1", [2]),
        pytest.param("invariance", "ntk-10-tree+kmeans", [2, 4], marks=pytest.mark.slow),
        pytest.param("invariance", "kfac-10-1", [2, 4], marks=pytest.mark.slow),
        pytest.param("prior", "diag-10-1+iid", [4], marks=pytest.mark.slow),
    ],
)
def test_any_number_of_processes_computes_what_one_does(server, tmp_path, hparam, estimator, counts):
    [alone] = trained(server, tmp_path / "1", 1, [hparam, estimator])
    for count in counts:
        all_of_them = trained(server, tmp_path / str(count), count, [hparam, estimator])
        for one in all_of_them:
            assert_close(one["gradients"], alone["gradients"], 1e-12)
            assert one["first"].item() == pytest.approx(alone["first"].item(), rel=1e-12)
            for ours, theirs in zip(one["records"], alone["records"], strict=True):
                assert ours == pytest.approx(theirs, rel=1e-9)
            assert_close(one["weights"], alone["weights"], 1e-8)
            assert_close(one["hyperparameters"], alone["hyperparameters"], 1e-8)
            for part in ("weights", "hyperparameters"):
                assert all(torch.equal(one[part][name], value) for name, value in all_of_them[0][part].items())


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """What an uninterrupted run of two processes leaves."""
    folder = tmp_path_factory.mktemp("whole")
    codes, printed = server.run_together(folder, TOY, 2)
    assert codes == [0, 0], printed
    assert "rows.csv:" in printed[0]
    assert printed[1] == ""
    return outcome(folder)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(("at", "call"), [(WEIGHT_STEP, 4 * 3 + 2), (HYPER_STEP, 6)])
def test_a_killed_process_ends_all_and_a_resumed_run_loses_no_bits(server, whole, tmp_path, victim, at, call):
    request = {"at": at, "call": call, "signal": [signal.SIGKILL], "victim": victim}
    codes, printed = server.run_together(tmp_path, TOY, 2, **request)
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 1
    said = f"process {1 - victim} of 2 has lost another one, whose own message says why: start all of them again to go on from the last checkpoint"
    assert said in printed[1 - victim].splitlines()[-1]
    assert "Traceback" not in "".join(printed)
    codes, printed = server.run_together(tmp_path, TOY, 2)
    assert codes == [0, 0], printed
    assert_same(outcome(tmp_path), whole)


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "sent"), [(0, "SIGTERM"), (1, "SIGUSR1"), (1, "SIGTERM")])
def test_a_signal_to_one_process_stops_all_after_the_same_step(server, whole, tmp_path, victim, sent):
    request = {"at": WEIGHT_STEP, "call": 8, "signal": [getattr(signal, sent)], "victim": victim}
    codes, printed = server.run_together(tmp_path, TOY, 2, **request)
    assert codes == [75, 75], printed
    assert printed[0].splitlines()[-1] == f"Stopped by {sent} after 2 epochs and 2 steps: the same command continues it"
    assert printed[1] == ""
    codes, printed = server.run_together(tmp_path, TOY, 2)
    assert codes == [0, 0], printed
    assert_same(outcome(tmp_path), whole)
    codes, printed = server.run_together(tmp_path, TOY, 2)
    assert codes == [0, 0]
    assert printed[0].startswith("Finished already")


@pytest.mark.slow
def test_another_number_of_processes_does_not_resume_a_run(server, tmp_path):
    server.run_together(tmp_path, TOY, 2, at=WEIGHT_STEP, call=8, signal=[signal.SIGTERM])
    codes, printed = server.run_together(tmp_path, TOY, 1)
    assert codes == [1]
    assert (
        "was made with processes 2 instead of 1, and would not go on bit by bit: start as many with torchrun"
        in printed[0]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (
            ["--blocks-per-step", "3"],
            "2 processes share the blocks of a step evenly, and a step has 3: take --blocks-per",
            2,
        ),
        (["--batch-size", "1"], "2 processes share every batch: take --batch-size 2 or more", 2),
        (["--lr", "1e30"], "training diverged in epoch 1", 1),
    ],
)
def test_what_cannot_be_trained_is_said_once_by_each_process(server, tmp_path, arguments, words, code):
    codes, printed = server.run_together(tmp_path, [*TOY, *arguments], 2)
    assert codes == [code, 1], printed
    assert words in printed[0].splitlines()[-1]
    assert printed[1].startswith("Error in process 1 of 2: ")
    assert words in printed[1]
    assert not files(tmp_path, "weights.pt")


@pytest.mark.slow
def test_torchrun_starts_a_training_and_one_process_of_it_is_a_plain_one(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for count in (1, 2):
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", "ntkml"]
        (tmp_path / str(count)).mkdir()
        done = subprocess.run(
            [sys.executable, *command, *TOY],
            **{"cwd": tmp_path / str(count), "env": environment, "capture_output": True, "text": True, "timeout": 300},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("weights.pt:") == 1
    alone, together = (outcome(tmp_path / count)[1] for count in ("1", "2"))
    assert_close(alone, together, 1e-2)
