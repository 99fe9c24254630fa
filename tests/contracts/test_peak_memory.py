"""Peak memory of one part of a run."""

import pytest
import torch

from ntkml.runs import peak_memory

CPU, MIB = torch.device("cpu"), 2**20


def test_a_part_that_holds_more_has_a_higher_peak_and_what_came_before_does_not_count():
    def peak(size):
        if not peak_memory.begin_peak(CPU):
            pytest.skip("this system does not forget a peak")
        held = torch.ones(size * MIB // 4)
        del held
        return peak_memory.peak_bytes(CPU)

    large, small = peak(256), peak(1)
    assert 240 * MIB < large - small < 300 * MIB


def test_a_system_that_cannot_forget_a_peak_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(peak_memory, "_CLEAR_REFS", tmp_path / "missing" / "file")
    assert not peak_memory.begin_peak(CPU)
