"""The time that is left of a sweep, and how a sweep shows itself."""

from __future__ import annotations

import time

import pytest

from ntkml.commands import sweep_table
from ntkml.commands.sweep_table import Screen, duration, shown, summary, table
from ntkml.runs.sweep_progress import CellProgress, SweepProgress
from tests.sweeps import planned_cells


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def progress(tmp_path, clock):
    cells = planned_cells(tmp_path, ("ntk-20-1", "kfac-20-1"), (0, 1), epochs=10)
    return SweepProgress([CellProgress(cell) for cell in cells], 2, clock)


def test_before_the_first_epoch_nothing_is_known(progress):
    assert progress.seconds_left is None
    assert summary(progress) == "0 of 4 cells done, 4 waiting, 0 s passed"


def test_epochs_left_cost_what_those_of_the_same_kind_did_and_the_workers_share_them(progress, clock):
    ntk, kfac = progress.cells[:2]
    progress.begin(ntk, 0)
    progress.begin(kfac, 6)  # six epochs of an earlier sweep cost nothing now
    clock.now += 4
    progress.advance(ntk, 2)
    progress.advance(kfac, 7)
    # ntk: 2 s an epoch, 8 + 10 epochs left; kfac: 4 s an epoch, 3 + 10 left; two workers.
    assert progress.seconds_left == pytest.approx((18 * 2 + 13 * 4) / 2)
    ntk.status, progress.workers = "failed", 1
    assert progress.seconds_left == pytest.approx(10 * 2 + 13 * 4)


def test_no_number_of_workers_is_quicker_than_the_longest_cell(progress, clock):
    progress.workers = 100
    progress.begin(progress.cells[0], 0)
    clock.now += 3
    progress.advance(progress.cells[0], 1)
    assert progress.seconds_left == pytest.approx(10 * 3)


def test_a_wall_clock_that_jumps_is_not_read(progress, clock, monkeypatch):
    def jumping():
        raise AssertionError("the wall clock was read")

    monkeypatch.setattr(time, "time", jumping)
    progress = SweepProgress(progress.cells, 1)
    progress.begin(progress.cells[0], 0)
    progress.advance(progress.cells[0], 5)
    assert progress.seconds_left is not None
    Screen().draw(table(progress))


def test_the_table_has_the_sum_and_the_cells_in_work(progress, clock, monkeypatch):
    progress.cells[0].status = "done"
    progress.begin(progress.cells[1], 5)
    progress.cells[2].status = "elsewhere"
    clock.now += 65
    lines = table(progress)
    assert lines[0] == "1 of 4 cells done, 1 running, 1 in other processes, 1 waiting, 1 min 05 s passed"
    assert lines[1:] == [
        "  running   ████████········    5/10   prior kfac-20-1 digits N=60 seed 0",
        "  elsewhere ················    0/10   prior ntk-20-1 digits N=60 seed 1",
    ]
    monkeypatch.setattr(sweep_table, "LINES", 1)
    assert table(progress)[-1] == "  and 1 more"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7800, "2 h 10 min"), (273600, "3 d 4 h")],
)
def test_durations_in_two_units(seconds, words):
    assert duration(seconds) == words


def test_a_log_has_one_line_for_every_cell_that_ended_and_no_table(progress, capsys):
    for one, status in zip(progress.cells, ("done", "failed", "stopped", "done"), strict=True):
        one.status = status
    progress.cells[1].line = "diverged"
    progress.cells[2].epochs = 4
    progress.cells[3].was_done = True
    assert len(list(shown([progress, progress], Screen()))) == 2
    assert capsys.readouterr().err.splitlines() == [
        "done: prior ntk-20-1 digits N=60 seed 0 (2 of 4 cells done, 1 failed, 0 s passed)",
        "failed: prior kfac-20-1 digits N=60 seed 0: diverged",
        "stopped: prior ntk-20-1 digits N=60 seed 1 after 4 of 10 epochs",
    ]


def test_a_terminal_shows_the_table_in_one_place_below_what_is_said(progress, capsys, monkeypatch):
    monkeypatch.setattr(sweep_table, "PAUSE", 0.0)
    screen = Screen()
    screen.live = True
    progress.begin(progress.cells[0], 1)
    steps = shown([progress, progress], screen)
    next(steps)
    progress.cells[1].status = "done"
    list(steps)
    text = capsys.readouterr().err
    assert text.count("\x1b[2A\x1b[J") == 2  # before the news and at the end
    assert text.endswith("\x1b[2A\x1b[J")
    assert text.index("done: prior kfac") < text.rindex("1 of 4 cells done, 1 running, 2 waiting")
