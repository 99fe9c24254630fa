"""Peak memory of one part of a run."""

import mmap
import subprocess
import sys

import pytest
import torch

from ntkml.machine import peak_memory

CPU, MIB = torch.device("cpu"), 2**20


def test_a_part_that_holds_more_has_a_higher_peak_and_what_came_before_does_not_count():
    def peak(size):
        if not peak_memory.begin_peak(CPU):
            pytest.skip("this system does not forget a peak")
        # Pages of its own: an allocator may hand out memory that earlier tests left resident.
        with mmap.mmap(-1, size * MIB) as held:
            for page in range(0, len(held), mmap.PAGESIZE):
                held[page] = 1
        return peak_memory.peak_bytes(CPU)

    large, small = peak(256), peak(1)
    assert 240 * MIB < large - small < 300 * MIB


def test_a_system_that_cannot_forget_a_peak_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(peak_memory, "_CLEAR_REFS", tmp_path / "missing" / "file")
    assert not peak_memory.begin_peak(CPU)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process has no peak but the one it may inherit")
def test_a_process_does_not_inherit_the_peak_of_the_one_that_started_it():
    show = "import torch; from ntkml.machine.peak_memory import peak_bytes; print(peak_bytes(torch.device('cpu')))"
    with mmap.mmap(-1, 1024 * MIB) as held:
        held.write(bytes(1024 * MIB))
        started = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    assert int(started.stdout) < 1024 * MIB


def test_a_system_without_a_status_file_has_a_peak_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(peak_memory, "_STATUS", tmp_path / "missing")
    assert peak_memory.peak_bytes(CPU) > MIB
    monkeypatch.setattr(peak_memory, "_STATUS", tmp_path / "status")
    peak_memory._STATUS.write_text("Name: ntkml\n")
    assert peak_memory.peak_bytes(CPU) > MIB
