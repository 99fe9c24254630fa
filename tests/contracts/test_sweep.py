"""How a sweep hands its cells to workers, and what it makes of the reports and the deaths of these."""

from __future__ import annotations

import itertools
import json
import signal
import weakref
from dataclasses import replace

import pytest

from ntkml.datasets import load_dataset
from ntkml.protocols.cells import Cell
from ntkml.protocols.train import load_train
from ntkml.records.manifests import write_manifest
from ntkml.runs import sweep as sweep_run
from ntkml.runs.locks import exclusive
from ntkml.runs.stopping import never
from ntkml.runs.sweep import sweep
from ntkml.runs.sweep_plan import PlannedCell, epochs_kept, planned, state_of, threads_of
from ntkml.runs.sweep_worker import BEGUN, BUSY, EPOCH, FAILED, FINISHED, STOPPED, WARNING, Report
from tests.sweeps import SITE, ScriptedWorker, finish, planned_cells

KILLED = -signal.SIGKILL
GOOD = [Report(BEGUN), Report(EPOCH, 1), Report(EPOCH, 12), Report(FINISHED, 12)]


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    monkeypatch.setattr(sweep_run, "LOOK", 0.01)
    monkeypatch.setattr(sweep_run, "LOOK_ELSEWHERE", 0.0)


class Foreman:
    """Starts scripted workers and keeps what was asked of them."""

    def __init__(self, script=lambda cell: GOOD):
        self.given, self.workers, self.lines, self.script = [], [], [], script

    def start(self, site, reports):
        self.workers.append(ScriptedWorker(site, reports, self._noted))
        return self.workers[-1]

    def _noted(self, cell):
        self.given.append(cell.run_id)
        return self.script(cell)

    def run(self, cells, workers=2, stop=never):
        steps = sweep(cells, [SITE] * workers, self.lines.append, stop, self.start)
        *_, last = itertools.islice(steps, 500)  # one that stands still would go on for ever
        return {one.cell.run_id: one for one in last.cells}


def test_every_cell_is_given_out_once_and_more_workers_than_cells_are_not_started(tmp_path):
    cells = planned_cells(tmp_path, ("ntk-20-1", "kfac-20-1"), (0, 1, 2))
    foreman = Foreman()
    ended = foreman.run(cells, workers=4)
    assert foreman.given == [cell.run_id for cell in cells]
    assert {one.status for one in ended.values()} == {"done"}
    assert len(foreman.workers) == 4
    assert all(worker.state == "leaving" for worker in foreman.workers)
    few = Foreman()
    few.run(cells[:2], workers=4)
    assert len(few.workers) == 2


def test_finished_cells_are_skipped(tmp_path):
    cells = planned_cells(tmp_path, seeds=(0, 1))
    finish(cells[0].folder)
    foreman = Foreman()
    ended = foreman.run(cells)
    assert foreman.given == ["ntk-20-1-1"]
    assert [one.was_done for one in ended.values()] == [True, False]
    all_there = Foreman()
    finish(cells[1].folder)
    all_there.run(cells)
    assert all_there.workers == []


def test_a_cell_that_fails_does_not_stop_the_others(tmp_path):
    def script(cell):
        return [Report(BEGUN), Report(FAILED, line="diverged")] if cell.protocol.seed == 1 else GOOD

    ended = Foreman(script).run(planned_cells(tmp_path, seeds=(0, 1, 2)), workers=1)
    assert [one.status for one in ended.values()] == ["done", "failed", "done"]
    assert ended["ntk-20-1-1"].line == "diverged"


def test_a_cell_whose_worker_dies_is_taken_up_by_another_one(tmp_path):
    deaths = [[Report(BEGUN), Report(EPOCH, 3), KILLED]]

    def script(cell):
        return deaths.pop() if cell.protocol.seed == 0 and deaths else GOOD

    foreman = Foreman(script)
    ended = foreman.run(planned_cells(tmp_path, seeds=(0, 1)), workers=1)
    assert {one.status for one in ended.values()} == {"done"}
    assert foreman.given == ["ntk-20-1-0", "ntk-20-1-1", "ntk-20-1-0"]
    assert foreman.lines == [
        "prior ntk-20-1 digits N=60 seed 0: its worker was ended by SIGKILL; it goes on from its last checkpoint"
    ]


def test_a_cell_of_which_two_workers_die_has_failed(tmp_path):
    foreman = Foreman(lambda cell: [Report(BEGUN), KILLED] if cell.protocol.seed == 0 else GOOD)
    ended = foreman.run(planned_cells(tmp_path, seeds=(0, 1)), workers=1)
    assert [one.status for one in ended.values()] == ["failed", "done"]
    assert ended["ntk-20-1-0"].line.startswith("its worker was ended by SIGKILL, 2 times in all")


def test_a_worker_that_is_stopped_alone_leaves_its_cell_to_another(tmp_path):
    stops = [[Report(BEGUN), Report(STOPPED, 4, "SIGTERM"), 0]]
    foreman = Foreman(lambda cell: stops.pop() if stops else GOOD)
    ended = foreman.run(planned_cells(tmp_path), workers=1)
    assert ended["ntk-20-1-0"].status == "done"
    assert len(foreman.workers) == 2
    assert "its worker was stopped by SIGTERM; it goes on" in foreman.lines[0]


def test_workers_that_cannot_start_are_an_error(tmp_path):
    class Broken(ScriptedWorker):
        def __init__(self, site, reports):
            super().__init__(site, reports, None)
            reports.get()
            self._die(1)

    with pytest.raises(ValueError, match="a worker was ended with exit code 1 before it was ready; try ntkml train"):
        list(sweep(planned_cells(tmp_path), [SITE], print, never, Broken))


def test_cells_of_another_process_are_waited_for_and_taken_over_when_it_leaves_them(tmp_path):
    finished, left = planned_cells(tmp_path, seeds=(0, 1))
    looks = []
    with exclusive(finished.folder), exclusive(left.folder):
        foreman = Foreman()
        steps = sweep([finished, left], [SITE], print, never, foreman.start)
        assert {one.status for one in next(steps).cells} == {"elsewhere"}
        assert {one.status for one in next(steps).cells} == {"elsewhere"}
        assert foreman.workers == []
    finish(finished.folder)
    *looks, last = steps
    assert foreman.given == [left.run_id]
    assert {one.status for one in last.cells} == {"done"}


def test_a_worker_that_finds_its_cell_taken_says_so_and_goes_on_with_the_next(tmp_path):
    cells = planned_cells(tmp_path, seeds=(0, 1))
    busy = [[Report(BUSY, line="another process")]]
    foreman = Foreman(lambda cell: busy.pop() if busy else GOOD)
    assert {one.status for one in foreman.run(cells, workers=1).values()} == {"done"}
    assert sorted(foreman.given) == ["ntk-20-1-0", "ntk-20-1-0", "ntk-20-1-1"]


def test_a_stop_is_passed_on_once_and_the_rest_waits_for_the_next_time(tmp_path):
    asked = []
    foreman = Foreman(lambda cell: [Report(BEGUN), Report(EPOCH, 5), Report(WARNING, line="hot")])
    steps = sweep(
        planned_cells(tmp_path, seeds=(0, 1, 2)),
        [SITE],
        foreman.lines.append,
        lambda: asked[0] if asked else None,
        foreman.start,
    )
    while not (progress := next(steps)).having("running"):
        pass
    [worker] = foreman.workers
    asked.append("SIGUSR1")
    next(steps)
    next(steps)
    assert worker.signals == ["SIGUSR1"]
    worker.reports.put((worker, Report(STOPPED, 6, "SIGUSR1")))
    *_, last = steps
    assert [(one.status, one.epochs) for one in last.cells] == [("stopped", 6), ("waiting", 0), ("waiting", 0)]
    assert foreman.lines == ["prior ntk-20-1 digits N=60 seed 0: hot"]
    assert progress is last


def test_leaving_at_once_leaves_no_worker_behind(tmp_path):
    foreman = Foreman(lambda cell: [Report(BEGUN)])
    steps = sweep(planned_cells(tmp_path), [SITE], print, never, foreman.start)
    while not next(steps).having("running"):
        pass
    killed = []
    foreman.workers[0].process.kill = lambda: killed.append(True)
    steps.close()
    assert killed == [True]


def test_a_folder_says_where_its_run_stands(tmp_path):
    folder = tmp_path / "a run"
    assert (state_of(folder), epochs_kept(folder), threads_of(folder, 5)) == ("missing", 0, 5)
    with exclusive(folder):
        assert state_of(folder) == "running"
    assert state_of(folder) == "missing"
    folder.mkdir(exist_ok=True)
    (folder / "checkpoint.pt").write_bytes(b"")
    assert state_of(folder) == "stopped"
    finish(folder)
    assert (state_of(folder), epochs_kept(folder), threads_of(folder, 5)) == ("done", 2, 3)
    (folder / "manifest.json").write_text("{")
    assert (state_of(folder), threads_of(folder, 5)) == ("damaged", 5)


def test_a_search_that_was_stopped_says_so_and_goes_on_with_the_threads_of_the_fit_in_work(tmp_path):
    first, second, third = (tmp_path / "fits" / f"{value}-0" for value in (1, 10, 100))
    with exclusive(tmp_path), exclusive(first):
        assert state_of(tmp_path) == "running"
        assert threads_of(tmp_path, 5) == 5
        finish(first)
    assert (state_of(tmp_path), threads_of(tmp_path, 5)) == ("stopped", 3)
    for folder, manifest in (
        (second, {"finished_at": None, "conditions": {"threads": 2}}),
        (third, {"finished_at": "2024-01-01T00:00:00Z", "conditions": {"threads": 4}}),
    ):
        folder.mkdir()
        write_manifest(folder / "manifest.json", manifest)
    assert (state_of(tmp_path), threads_of(tmp_path, 5)) == ("stopped", 2)
    (second / "manifest.json").write_text("{")
    assert threads_of(tmp_path, 5) == 4


def test_a_cell_reaches_another_process_as_it_is(tmp_path):
    [cell] = planned_cells(tmp_path / "Ordner mit Ümläuten 折")
    assert PlannedCell.from_json(json.loads(json.dumps(cell.as_json()))) == cell


def test_cells_that_differ_in_other_settings_say_so_and_equal_runs_stand_once(tmp_path):
    asked = replace(load_train("train-digits", "prior"), estimator="ntk-20-1", num_data=60)
    cells = [Cell(protocol=replace(asked, lr=lr), asked=asked, row=row) for lr in (0.001, 0.01) for row in ("a", "b")]
    other = load_train("train-digits", "invariance")  # differs in much, as all that learn the invariance do
    cells.append(Cell(protocol=other, asked=other))
    found = planned(cells, load_dataset, tmp_path)
    assert [(cell.label, cell.rows) for cell in found] == [
        ("prior ntk-20-1 digits N=60 seed 0 lr=0.001", ("a", "b")),
        ("prior ntk-20-1 digits N=60 seed 0 lr=0.01", ("a", "b")),
        ("invariance ntk-100-tree digits_r180 N=1000 seed 0 lr=0.001", ()),
    ]
    assert found[0].notes == ()
    assert found[1].notes == ("Against protocol train-digits: lr 0.01 instead of 0.001.",)
    assert [PlannedCell.from_json(cell.as_json()).label for cell in found] == [cell.label for cell in found]


def test_notes_are_of_the_run_that_is_trained_as_those_of_train_are(tmp_path):
    asked = load_train("train-digits", "prior", estimator="sampled-4")
    cell = Cell(protocol=replace(asked, dataset="folder:photos", num_data=60), asked=asked)
    [found] = planned([cell], lambda name: replace(load_dataset("digits"), name="photos"), tmp_path)
    changes = "dataset photos instead of digits, num data 60 instead of 1000, hyper steps 1 instead of 10"
    assert found.notes == (f"Against protocol train-digits: {changes}.",)
    assert (found.data, found.protocol.dataset, found.protocol.hyper_steps) == ("folder:photos", "photos", 1)


def test_data_sets_are_read_once_and_let_go_when_their_cells_are_planned(tmp_path):
    asked = replace(load_train("train-digits", "prior"), estimator="ntk-20-1", num_data=60)
    names = ("digits", "digits_r90", "digits", "digits_r180")
    cells = [Cell(protocol=replace(asked, dataset=name), asked=asked) for name in names]
    read, there_when_read = [], []

    def load(name):
        there_when_read.append(sum(data() is not None for data in read))
        data = load_dataset(name)
        read.append(weakref.ref(data))
        return data

    found = planned(cells, load, tmp_path)
    assert [cell.protocol.dataset for cell in found] == ["digits", "digits_r90", "digits_r180"]
    assert there_when_read == [0, 0, 0]
    assert [data() for data in read] == [None] * 3
