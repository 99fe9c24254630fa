"""Training that is killed or asked to stop at any moment, and resumed: rows, weights and hyperparameters, bit by bit."""

from __future__ import annotations

import json
import os
import random
import signal

import pytest

from tests.faults.servers import assert_same, files, outcome

TOY = "--num-data 80 --batch-size 20 --burn-in 2 --eval-every 8 --device cpu --checkpoint-every 4"
#: Toys of a second or two: steps on one cached block, and steps with fresh blocks and views.
TOYS = {
    "prior": f"--hparam prior --estimator ntk-20-tree+kmeans --epochs 32 --hyper-steps 6 --update-every 2 {TOY}".split(),
    "invariance": (
        "--hparam invariance --estimator ntk-10-1 --samples 2 --epochs 16 --hyper-steps 2 --aug-steps 3 --update-every 1 "
        f"{TOY}"
    ).split(),
}
#: A step of the weights, a step of the hyperparameters (cached or not), and the three writes of a checkpoint.
WEIGHT_STEP, HYPER_STEP = "ntkml.learning.loop:_weight_step", "ntkml.learning.loop:_hyper_step"
WRITE = "ntkml.machine.files:write_atomically"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX signals and fork")


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """By toy: the seconds of an uninterrupted run and what it leaves."""
    found = {}
    for name, arguments in TOYS.items():
        folder = tmp_path_factory.mktemp(name)
        code, seconds, printed = server.run(folder, arguments)
        assert code == 0, printed
        found[name] = (seconds, outcome(folder))
    return found


def resumed(server, folder, arguments):
    """What the run leaves when it is resumed."""
    code, _, printed = server.run(folder, arguments)
    assert code == 0, printed
    assert "Traceback" not in printed
    return outcome(folder)


def last_resumed(folder):
    [manifest] = files(folder, "manifest.json")
    entry = json.loads(manifest.read_text())["resumed"][-1]
    return entry["from_epoch"], entry["from_step"]


def killed_at_random(server, whole, folder, number):
    """Kill number ``number``: every other one with a checkpoint after every step, so that it falls into epochs."""
    name = ("prior", "invariance")[number % 2]
    arguments = TOYS[name] + ["--checkpoint-seconds", "0.05"] * (number % 4 < 2)
    seconds, expected = whole[name]
    after = random.Random(number).uniform(0.1, 0.95) * seconds
    code, _, printed = server.run(folder, arguments, after=after, signal=[signal.SIGKILL])
    assert code in (-signal.SIGKILL, 0), printed
    assert_same(resumed(server, folder, arguments), expected)


@pytest.mark.parametrize("number", range(3))
def test_a_kill_at_a_random_time_costs_no_bits(server, whole, tmp_path, number):
    killed_at_random(server, whole, tmp_path, number)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3, 20))
def test_further_kills_at_random_times_cost_no_bits(server, whole, tmp_path, number):
    killed_at_random(server, whole, tmp_path, number)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "at", "call", "place"),
    [
        ("prior", WEIGHT_STEP, 4 * 4 + 3, (4, 2)),  # the third batch of epoch 5
        ("prior", HYPER_STEP, 6 + 4, (3, 4 + 3)),  # the fourth cached step of epoch 4
        ("invariance", HYPER_STEP, 3 + 2, (2, 4 + 1)),  # the second step of epoch 3
        ("invariance", "ntkml.two_pass:TwoPass.first", 3 + 3, (2, 4 + 2)),  # inside the third
        ("prior", "ntkml.objective:MarginalLikelihood.resample", 2, (3, 4)),  # while epoch 4 draws its partition
    ],
)
def test_a_kill_in_the_middle_of_a_step_goes_back_to_the_step_before(server, whole, tmp_path, name, at, call, place):
    arguments = [*TOYS[name], "--checkpoint-seconds", "0"]
    code, _, printed = server.run(tmp_path, arguments, at=at, call=call, signal=[signal.SIGKILL])
    assert code == -signal.SIGKILL, printed
    assert_same(resumed(server, tmp_path, TOYS[name]), whole[name][1])
    assert last_resumed(tmp_path) == place


@pytest.mark.slow
@pytest.mark.parametrize("call", range(3 * 5 + 1, 3 * 5 + 4))
def test_a_kill_among_the_writes_of_a_checkpoint_costs_no_bits(server, whole, tmp_path, call):
    """After the write of the checkpoint, of the rows and of the manifest."""
    arguments = [*TOYS["prior"], "--checkpoint-seconds", "0"]
    code, _, printed = server.run(tmp_path, arguments, at=WRITE, call=call, signal=[signal.SIGKILL])
    assert code == -signal.SIGKILL, printed
    assert_same(resumed(server, tmp_path, TOYS["prior"]), whole["prior"][1])
    assert last_resumed(tmp_path) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["ntkml.learning.checkpoints:previous", "os:fsync", "tempfile:mkstemp"])
def test_a_kill_inside_the_write_of_a_file_costs_no_bits(server, whole, tmp_path, at):
    code, _, printed = server.run(tmp_path, TOYS["prior"], at=at, call=5, signal=[signal.SIGKILL])
    assert code == -signal.SIGKILL, printed
    assert_same(resumed(server, tmp_path, TOYS["prior"]), whole["prior"][1])


@pytest.mark.slow
def test_a_run_that_is_killed_over_and_over_ends_as_if_it_never_was(server, whole, tmp_path):
    arguments = [*TOYS["prior"], "--checkpoint-seconds", "0.05"]
    times = random.Random(0)
    for _ in range(4):
        server.run(tmp_path, arguments, after=times.uniform(0.4, 1.2), signal=[signal.SIGKILL])
    assert_same(resumed(server, tmp_path, TOYS["prior"]), whole["prior"][1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sent", "code"), [("prior", "SIGTERM", 75), ("invariance", "SIGUSR1", 75), ("prior", "SIGINT", 130)]
)
def test_a_signal_at_a_random_time_stops_in_order(server, whole, tmp_path, name, sent, code):
    seconds, expected = whole[name]
    number = getattr(signal, sent)
    for share in (0.6, 0.3, 0.15):  # a machine that has become faster may be done before the signal
        folder = tmp_path / str(share)
        folder.mkdir()
        left, _, printed = server.run(folder, TOYS[name], after=share * seconds, signal=[number])
        if left != 0:
            break
    assert left == code, printed
    assert printed.splitlines()[-1].startswith(f"Stopped by {sent} after "), printed
    assert_same(resumed(server, folder, TOYS[name]), expected)
