"""A forced run that is killed while it takes the place of the finished one: the next start finishes what was begun."""

from __future__ import annotations

import shutil

import pytest

from ntkml.runs import folders
from ntkml.runs import train as train_run
from ntkml.runs.folders import complete_replacement, replacement
from ntkml.runs.locks import BusyError, exclusive
from tests.synthetic_training import write_training_run

pytestmark = pytest.mark.usefixtures("one_thread", "blank_pictures")
SMALL = ("--num-data", 60, "--epochs", 10, "--hparam", "prior")
TRAIN = ("train", "--estimator", "none", *SMALL)
GRID = (
    "bound-grid",
    "--num-data",
    20,
    "--epochs",
    2,
    "--grid-points",
    2,
    "--estimators",
    "ntk-10-1",
    "--hparam",
    "prior",
)
PARETO = ("pareto", "--estimators", "ntk-20-1", "--repeats", 1, "--no-exact", *SMALL)
COMPARE = ("compare", "--systems", "map", "--seeds", 0, *SMALL)


def killed_between_renames(folder):
    """What a SIGKILL leaves: the finished forced run, marked, beside what it replaces."""
    shutil.copytree(folder, replacement(folder))
    (replacement(folder) / "forced").touch()
    (folder / ".lock").touch()
    folder.rename(folder.with_name(f"{folder.name}.old"))


@pytest.mark.parametrize("arguments", [TRAIN, GRID, PARETO, COMPARE], ids=lambda arguments: arguments[0])
def test_the_next_start_puts_the_finished_run_in_its_place(in_empty_folder, only, tmp_path, arguments):
    assert in_empty_folder(*arguments)[0] == 0
    folder = only(tmp_path / "results" / arguments[0], "rows.csv").parent
    killed_between_renames(folder)
    code, out, error = in_empty_folder(*arguments)
    assert (code, "Finished already" in out) == (0, True), error
    assert (folder / "forced").exists()
    assert list(folder.parent.iterdir()) == [folder]


def test_a_cell_of_a_comparison_is_put_in_its_place_too(in_empty_folder, only, tmp_path, monkeypatch):
    assert in_empty_folder(*COMPARE)[0] == 0
    folder = only(tmp_path / "results" / "train", "rows.csv").parent
    killed_between_renames(folder)
    shutil.rmtree(tmp_path / "results" / "compare")
    monkeypatch.setattr(train_run, "_set_up", lambda run: pytest.fail("it was trained again"))
    assert in_empty_folder(*COMPARE)[0] == 0
    assert (folder / "forced").exists()


def test_a_kill_before_the_renames_is_made_up_for_too(tmp_path):
    folder = write_training_run(tmp_path, "ntk-100-1", "prior").parent
    killed_between_renames(folder)
    folder.with_name(f"{folder.name}.old").rename(folder)
    complete_replacement(folder)
    assert (folder / "forced").exists()
    assert list(folder.parent.iterdir()) == [folder]


def test_another_process_between_the_renames_is_left_to_it(tmp_path):
    folder = write_training_run(tmp_path, "ntk-100-1", "prior").parent
    killed_between_renames(folder)
    with exclusive(folder.with_name(f"{folder.name}.old")), pytest.raises(BusyError, match="another process"):
        complete_replacement(folder)
    assert not folder.exists()


def test_another_process_that_begins_between_our_two_looks_is_left_to_it_too(tmp_path, monkeypatch):
    folder = write_training_run(tmp_path, "ntk-100-1", "prior").parent
    killed_between_renames(folder)
    looks = iter((False, True))
    monkeypatch.setattr(folders, "held", lambda old: next(looks))
    with pytest.raises(BusyError, match="another process"):
        complete_replacement(folder)
    assert replacement(folder).exists()


def killed_after_the_renames(folder):
    killed_between_renames(folder)
    replacement(folder).rename(folder)
    return folder.with_name(f"{folder.name}.old")


@pytest.mark.parametrize("arguments", [TRAIN, GRID, PARETO, COMPARE], ids=lambda arguments: arguments[0])
def test_what_was_replaced_is_removed_by_the_next_start(in_empty_folder, only, tmp_path, arguments):
    assert in_empty_folder(*arguments)[0] == 0
    folder = only(tmp_path / "results" / arguments[0], "rows.csv").parent
    killed_after_the_renames(folder)
    code, out, error = in_empty_folder(*arguments)
    assert (code, "Finished already" in out) == (0, True), error
    assert (folder / "forced").exists()
    assert list(folder.parent.iterdir()) == [folder]


def test_what_was_replaced_stays_where_it_is_the_only_whole_run_or_somebody_elses(tmp_path):
    folder = write_training_run(tmp_path, "ntk-100-1", "prior").parent
    old = killed_after_the_renames(folder)
    with exclusive(old):  # by the process that is removing it
        complete_replacement(folder)
        assert old.exists()
    (old / ".lock").touch()
    with exclusive(folder):
        complete_replacement(folder)
    assert old.exists()
    (folder / "manifest.json").rename(folder / "away")
    complete_replacement(folder)
    assert old.exists()
    shutil.rmtree(folder)
    complete_replacement(folder)
    assert old.exists()
    assert not folder.exists()
    shutil.copytree(old, folder)
    (old / ".lock").unlink()  # a copy that a user keeps
    complete_replacement(folder)
    assert old.exists()
    (old / ".lock").touch()
    complete_replacement(folder)
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("damage", ["{", None])
def test_an_unfinished_or_damaged_forced_run_takes_no_place(tmp_path, damage):
    folder = write_training_run(tmp_path, "ntk-100-1", "prior").parent
    shutil.copytree(folder, replacement(folder))
    manifest = replacement(folder) / "manifest.json"
    manifest.write_text(damage) if damage else manifest.unlink()
    complete_replacement(folder)
    assert replacement(folder).exists()


def test_the_lock_of_a_run_that_took_the_place_of_ours_stays(tmp_path):
    folder = tmp_path / "run"
    with exclusive(folder):
        folder.rename(tmp_path / "away")
        with exclusive(folder):
            pass
        folder.mkdir()
        (folder / ".lock").touch()
    assert (folder / ".lock").exists()


def test_a_forced_search_that_was_killed_is_resumed_beside_the_finished_one(
    in_empty_folder, tmp_path, only, monkeypatch
):
    search = ("train", "--estimator", "grid-2", *SMALL)
    assert in_empty_folder(*search)[0] == 0
    [folder] = (tmp_path / "results" / "train").iterdir()
    set_up, starts = train_run._set_up, []

    def killed(run):
        starts.append(run)
        if len(starts) == 2:
            raise KeyboardInterrupt
        return set_up(run)

    with monkeypatch.context() as patch:
        patch.setattr(train_run, "_set_up", killed)
        assert in_empty_folder(*search, "--force")[0] == 130
    before = (folder / "rows.csv").stat().st_mtime_ns
    code, out, error = in_empty_folder(*search)
    assert (code, "Finished already" in out) == (0, False), error
    assert (folder / "rows.csv").stat().st_mtime_ns > before
    assert list(folder.parent.iterdir()) == [folder]
