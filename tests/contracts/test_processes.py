"""What is refused before processes compute together, and one process alone."""

import re

import pytest
import torch

from ntkml.machine import processes
from ntkml.machine.processes import ALONE, Processes, launched_processes

CPU = torch.device("cpu")
LAUNCHED = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def launched(monkeypatch):
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)


def refused(device, words):
    with pytest.raises(ValueError, match=re.escape(words)), launched_processes(device):
        pass


def test_without_torchrun_or_with_one_process_of_it_there_is_one(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with launched_processes(CPU) as alone:
        assert alone is ALONE
    monkeypatch.setenv("WORLD_SIZE", "1")
    with launched_processes(CPU) as alone:
        assert alone is ALONE


def test_an_environment_that_is_not_torchruns_is_refused(launched, monkeypatch):
    monkeypatch.delenv("MASTER_PORT")
    monkeypatch.delenv("RANK")
    refused(CPU, "WORLD_SIZE is 2 without RANK, MASTER_PORT: start the processes with torchrun")


def test_more_processes_than_gpus_are_refused(launched, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    refused(torch.device("cuda"), "process 1 of this machine finds 1 GPUs: start as many processes as GPUs")


def test_a_torch_without_what_connects_processes_is_refused(launched, monkeypatch):
    monkeypatch.setattr(processes.distributed, "is_backend_available", lambda name: False)
    refused(CPU, "this torch has no gloo, which connects the processes: train in one process")


def test_one_process_takes_everything_and_sends_nothing():
    assert list(range(5))[ALONE.part] == list(range(5))
    assert (ALONE.largest(3), ALONE.total(torch.tensor(2.5)).item(), ALONE.first) == (3, 2.5, True)
    ALONE.check_same([torch.ones(2)], "numbers")


@pytest.mark.parametrize("count", [2, 3, 7])
def test_every_item_is_taken_by_one_process(count):
    everyone = [Processes(rank, count) for rank in range(count)]
    assert sorted(item for one in everyone for item in list(range(5))[one.part]) == list(range(5))
    for index in range(5):
        assert sum(one.takes(index) for one in everyone) == 1


def test_what_differs_between_processes_is_refused(monkeypatch):
    one = Processes(0, 2)
    monkeypatch.setattr(Processes, "largest", lambda self, number: max(number, 5))  # the other one has 5 for everything
    with pytest.raises(ValueError, match="the processes have partitions that differ: run them on machines of one kind"):
        one.check_same([torch.arange(3)], "partitions")


def test_other_commands_run_in_one_process(launched, in_empty_folder):
    code, _, error = in_empty_folder("bound-grid", "--hparam", "prior")
    assert code == 2
    assert "Error: bound-grid runs in one process: start it without torchrun" in error


def test_more_blocks_than_a_partition_has_are_refused(in_empty_folder):
    arguments = ["--hparam", "prior", "--num-data", 40, "--estimator", "ntk-20-C", "--blocks-per-step", 4]
    code, _, error = in_empty_folder("train", *arguments, "--device", "cpu")
    assert code == 2
    assert "--blocks-per-step 4: ntk-20-C has 2 blocks of 40 inputs" in error
