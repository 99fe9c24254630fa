"""A bound grid that was killed, stopped, damaged or forced goes on, or says what to do."""

import signal
from functools import partial

import pandas
import pytest

from ntkml.records import bound_grid as bound_records
from tests.bound_grids import SMALL

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(in_empty_folder, blank_pictures):
    """``ntkml bound-grid ...``"""
    return partial(in_empty_folder, "bound-grid")


@pytest.fixture
def finished_run(finished, blank_pictures, tmp_path, only):
    """The rows of a finished run."""
    finished("bound-grid", *SMALL, "--estimators", "ntk-10-1")
    return only(tmp_path / "results", "rows.csv")


def test_a_killed_run_continues_where_it_was(run, finished_run, tmp_path, monkeypatch, only):
    finished = finished_run.read_bytes()

    from ntkml.runs import bound_grid

    whole, calls = bound_grid.estimator_rows, []

    def killed_in_the_second_cell(*arguments):
        calls.append(arguments)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(bound_grid, "estimator_rows", killed_in_the_second_cell)
    code, _, error = run(*SMALL, "--estimators", "ntk-10-1", "--out", "again")
    assert code == 130
    assert "Traceback" not in error
    assert len(list((tmp_path / "again").rglob("parts/*.csv"))) == 1
    assert not list((tmp_path / "again").rglob("rows.csv"))
    calls.clear()
    monkeypatch.setattr(
        bound_grid, "estimator_rows", lambda *arguments: (calls.append(arguments), whole(*arguments))[1]
    )
    assert run(*SMALL, "--estimators", "ntk-10-1", "--out", "again")[0] == 0
    assert len(calls) == 2  # the exact value and ntk-10-1, in the one cell that was missing
    columns = ["estimator", "hparam_value", "block", "log_marginal_likelihood", "standard_error", "log_det"]
    continued = pandas.read_csv(only(tmp_path / "again", "rows.csv"))[columns]
    pandas.testing.assert_frame_equal(continued, pandas.read_csv(finished_run)[columns])
    assert finished_run.read_bytes() == finished


def test_parts_of_another_device_are_computed_again(run, tmp_path, monkeypatch, only):
    from ntkml.runs import bound_grid

    whole, calls = bound_grid.estimator_rows, []

    def killed_in_the_second_cell(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(bound_grid, "estimator_rows", killed_in_the_second_cell)
    assert run(*SMALL, "--estimators", "ntk-10-1")[0] == 130
    part = only(tmp_path, "0000.csv")
    part.write_text(part.read_text().replace(",cpu,", ",cuda,"))
    calls[:] = [()] * 9
    assert run(*SMALL, "--estimators", "ntk-10-1")[0] == 0
    assert len(calls) == 9 + 4  # two estimators in both cells
    assert set(bound_records.read_rows(only(tmp_path, "rows.csv"))["device"]) == {"cpu"}


@pytest.mark.usefixtures("heard_signals")
@pytest.mark.parametrize(("sent", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGHUP", 75), ("SIGINT", 130)])
def test_a_signal_drops_the_part_in_progress_and_the_same_command_goes_on(run, tmp_path, monkeypatch, only, sent, code):
    from ntkml.runs import bound_grid

    whole, calls = bound_grid.estimator_rows, []

    def signalled_in_the_second_cell(*arguments):
        calls.append(arguments)
        if len(calls) == 4:  # of two estimators in two cells
            signal.raise_signal(getattr(signal, sent))
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(bound_grid, "estimator_rows", signalled_in_the_second_cell)
        left, _, error = run(*SMALL, "--estimators", "ntk-10-1")
    assert left == code
    said = "Interrupted" if sent == "SIGINT" else f"Stopped by {sent}"
    assert error.splitlines()[-1] == f"{said}: the same command continues it"
    assert [path.name for path in tmp_path.rglob("parts/*")] == ["0000.csv"]
    assert run(*SMALL, "--estimators", "ntk-10-1")[0] == 0
    assert len(bound_records.read_rows(only(tmp_path, "rows.csv"))) == 2 * (
        2 + 1 + 40
    )  # aggregates, one block, 4 batches of 10 outputs


def test_a_finished_run_is_not_computed_twice_but_by_force(run, finished_run, tmp_path, only):
    before = finished_run.stat().st_mtime_ns
    code, out, _ = run(*SMALL, "--estimators", "ntk-10-1")
    assert code == 0
    assert "Finished already" in out
    assert "--force" in out
    assert only(tmp_path, "rows.csv").stat().st_mtime_ns == before
    run(*SMALL, "--estimators", "ntk-10-1", "--force")
    assert only(tmp_path, "rows.csv").stat().st_mtime_ns > before


def stopped_run(finished_run, tmp_path):
    """A run of which one part is left, as a kill leaves it: its folder, and the rows it must end with."""
    folder, finished = finished_run.parent, finished_run.rename(tmp_path / "finished.csv")
    lines = finished.read_text().splitlines(keepends=True)
    first = [line for line in lines[1:] if line.split(",")[13] == "0"]
    (folder / "manifest.json").unlink()
    (folder / "parts").mkdir()
    return folder, lines[0], first, finished


@pytest.mark.parametrize(
    "damage",
    ["none", "cut in a row", *(pytest.param(more, marks=pytest.mark.slow) for more in ("empty", "cut between rows"))],
)
def test_a_damaged_part_is_computed_again(run, finished_run, tmp_path, damage):
    folder, head, rows, finished = stopped_run(finished_run, tmp_path)
    assert rows
    kept = {"none": rows, "empty": [], "cut in a row": [*rows[:-1], rows[-1][:40]], "cut between rows": rows[:-1]}[
        damage
    ]
    (folder / "parts" / "0000.csv").write_text(head + "".join(kept) if damage != "empty" else "")
    assert run(*SMALL, "--estimators", "ntk-10-1")[0] == 0
    columns = ["estimator", "hparam_value", "block", "log_marginal_likelihood", "log_det"]
    ours = pandas.read_csv(folder / "rows.csv")[columns]
    pandas.testing.assert_frame_equal(ours, pandas.read_csv(finished)[columns])


def test_a_second_process_on_the_same_run_is_refused(run, finished_run):
    from ntkml.runs.locks import exclusive

    folder = finished_run.parent
    (folder / "manifest.json").unlink()
    with exclusive(folder):
        code, _, error = run(*SMALL, "--estimators", "ntk-10-1")
    assert code == 1
    assert "another process is working on" in error
    assert run(*SMALL, "--estimators", "ntk-10-1")[0] == 0


def test_a_forced_run_that_is_killed_loses_no_finished_one(run, finished_run, monkeypatch):
    before = finished_run.read_bytes()

    from ntkml.runs import bound_grid

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bound_grid, "estimator_rows", killed)
    assert run(*SMALL, "--estimators", "ntk-10-1", "--force")[0] == 130
    assert finished_run.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("manifest.json", "{", "the run is damaged; remove results/bound-grid/"),
        ("weights.pt", "junk", "start again with --force"),
    ],
)
def test_a_damaged_run_says_what_to_do(run, finished_run, name, content, words):
    folder = finished_run.parent
    if name == "weights.pt":
        (folder / "manifest.json").unlink()
    (folder / name).write_text(content)
    code, _, error = run(*SMALL, "--estimators", "ntk-10-1")
    assert code == 1
    assert words in error
    assert error.count("\n") == 1
    assert run(*SMALL, "--estimators", "ntk-10-1", "--force")[0] == 0
