"""The process of ``training_server.py``, and what a training run leaves."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ntkml.learning.checkpoints import read_checkpoint
from ntkml.records import train as train_records

ROOT = Path(__file__).parents[2]


class Server:
    """See ``training_server.py``."""

    def __init__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("training_server.py"))],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, folder, arguments, **request):
        """Run ``ntkml train`` in ``folder``. Returns exit code (negative: of a signal), seconds and what it printed."""
        log = folder / "log.txt"
        log.unlink(missing_ok=True)
        request |= {"arguments": ["train", *arguments], "folder": str(folder), "log": str(log)}
        answer = self._answer(request)
        return answer["code"], answer["seconds"], log.read_text()

    def run_together(self, folder, arguments, processes, **request):
        """The same in many processes: all their exit codes, and what each of them printed."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            request |= {"port": free.getsockname()[1], "processes": processes}
        logs = [folder / ("log.txt" + f".{rank}" * (rank > 0)) for rank in range(processes)]
        for log in logs:
            log.unlink(missing_ok=True)
        request |= {"arguments": arguments, "folder": str(folder), "log": str(logs[0])}
        return self._answer(request)["codes"], [log.read_text() for log in logs]

    def _answer(self, request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def files(folder, name):
    return list((folder / "results" / "train").glob(f"*/{name}"))


def outcome(folder):
    """Rows without what is measured, weights, and the learner's state in the last checkpoint."""
    [rows], [weights] = files(folder, "rows.csv"), files(folder, "weights.pt")
    frame = train_records.read_rows(rows).drop(columns=list(train_records.MEASURED))
    state = read_checkpoint(rows.with_name("checkpoint.pt"), pytest.fail)["learner"]
    assert not list((folder / "results").rglob(".*"))
    return frame.to_csv(index=False), torch.load(weights, weights_only=True), state


def assert_same(ours, theirs):
    assert ours[0] == theirs[0]
    for name, value in theirs[1].items():
        assert torch.equal(ours[1][name], value), name
    torch.testing.assert_close(ours[2]["hyperparameters"], theirs[2]["hyperparameters"], rtol=0, atol=0)
    for name, value in theirs[2]["generators"].items():
        assert torch.equal(ours[2]["generators"][name], value), name
