"""``ntkml pareto`` on the embedded digits: cells reused, stopped and continued, one line for every mistake."""

import shutil
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch

from ntkml.datasets import load_dataset
from ntkml.learning.state import new_learner
from ntkml.models import build_model
from ntkml.protocols.cells import changed
from ntkml.protocols.pareto import load_pareto, restricted
from ntkml.protocols.train import load_train
from ntkml.randomness import generator_for
from ntkml.records import pareto as pareto_records
from ntkml.records import train as train_records
from ntkml.records.manifests import read_manifest
from ntkml.runs import pareto as pareto_run
from tests.sweeps import finish, written

SMALL = ("--num-data", 60, "--epochs", 10, "--device", "cpu")
NAMES = ("ntk-20-C", "ntk-20-1", "diag-20-1")
ARGUMENTS = ("--hparam", "prior", "--estimators", ",".join(NAMES), "--repeats", 3, *SMALL)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(in_empty_folder, blank_pictures):
    """``ntkml pareto ...``"""
    return partial(in_empty_folder, "pareto")


@pytest.fixture
def finished_run(finished, blank_pictures):
    """The run of ARGUMENTS."""
    finished("pareto", *ARGUMENTS)


@pytest.fixture
def trained(finished_run, tmp_path):
    """The training cells of ARGUMENTS alone."""
    shutil.rmtree(tmp_path / "results" / "pareto")


def rows_of(folder, only):
    return pareto_records.read_rows(only(folder / "results" / "pareto", "rows.csv"))


def test_a_run_leaves_rows_training_rows_and_a_picture_and_is_not_computed_twice(
    in_empty_folder, tmp_path, only, request
):
    run = partial(in_empty_folder, "pareto")
    assert in_empty_folder("train", "--hparam", "prior", "--estimator", NAMES[0], *SMALL)[0] == 0
    times = written(tmp_path)
    code, out, _ = run(*ARGUMENTS)
    assert code == 0
    assert len(written(tmp_path)) == 3
    assert times.items() <= written(tmp_path).items()  # a run of ntkml train is a cell
    frame = rows_of(tmp_path, only)
    ours = frame.set_index("estimator").loc[list(NAMES)]
    assert len(frame) == len(NAMES)
    assert ours["certified"].tolist() == [True, False, False]
    assert ours["num_pairs"].tolist() == [200, 20, 20]
    assert (frame["seconds_low"] <= frame["seconds"]).all()
    assert (frame["seconds"] <= frame["seconds_high"]).all()
    for _, row in frame.iterrows():
        own = train_records.read_rows(only(tmp_path / "results" / "train", f"{row['estimator']}-*/rows.csv"))
        assert row["log_marginal_likelihood"] == pytest.approx(own["log_marginal_likelihood"].dropna().tail(5).mean())
        assert row["test_accuracy"] == own["test_accuracy"].iloc[-1]
    folder = only(tmp_path / "results" / "pareto", "rows.csv").parent
    assert {path.name for path in folder.iterdir()} == {"rows.csv", "training.csv.gz", "manifest.json"}
    assert len(train_records.read_rows(folder / "training.csv.gz")) == 30
    notes = read_manifest(folder / "manifest.json")["notes"]
    assert notes == ["Against protocol train-digits: num data 60 instead of 1000, epochs 10 instead of 100."]
    for suffix in ("png", "pdf"):
        assert (tmp_path / "figures" / f"pareto-{folder.name}.{suffix}").stat().st_size > 1000
    for path in (folder / "rows.csv", folder / "training.csv.gz"):
        assert str(path.relative_to(tmp_path)) in out
    request.getfixturevalue("blank_pictures")
    times = written(tmp_path)
    code, out, _ = run(*ARGUMENTS)
    assert (code, "Finished already" in out, written(tmp_path)) == (0, True, times)
    before = (folder / "rows.csv").stat().st_mtime_ns
    code, out, _ = run(*ARGUMENTS, "--force")
    assert (code, "Finished already" in out, written(tmp_path)) == (0, False, times)  # timed again, not trained again
    assert (folder / "rows.csv").stat().st_mtime_ns > before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    code, out, _ = in_empty_folder("plot", "pareto", "--format", "png")
    assert (code, f"Read {(folder / 'rows.csv').relative_to(tmp_path)}" in out) == (0, True)


def test_the_exact_value_is_above_what_is_certified_at_the_same_state(run, tmp_path, monkeypatch, only):
    bounds, exact = {}, pareto_run._exact

    def watched(learner, data, chunk):
        x, y = data.train_inputs, data.train_targets
        bounds[learner.protocol.estimator] = float(learner.objective.estimate(x, y).total) / len(x)
        return exact(learner, data, chunk)

    monkeypatch.setattr(pareto_run, "_exact", watched)
    assert run("--hparam", "prior", "--estimators", "ntk-20-C,ntk-20-tree,diag-N-C,ntk-N-C", *ARGUMENTS[4:])[0] == 0
    frame = rows_of(tmp_path, only).set_index("estimator")
    assert frame["certified"].all()
    for name, bound in bounds.items():
        value = frame.loc[name, "exact_log_marginal_likelihood"]
        assert value == pytest.approx(bound, abs=1e-6) if name == "ntk-N-C" else value > bound


def test_the_device_is_that_of_the_timing_and_that_of_the_training_is_told(run, trained, tmp_path, only):
    rows = only(tmp_path / "results" / "train", f"{NAMES[0]}-*/rows.csv")
    rows.write_text(rows.read_text().replace(",cpu,", ",cuda,"))
    assert run(*ARGUMENTS, "--no-exact")[0] == 0
    assert set(rows_of(tmp_path, only)["device"]) == {"cpu"}
    manifest = read_manifest(only(tmp_path / "results" / "pareto", "rows.csv").with_name("manifest.json"))
    assert manifest["notes"][-1] == f"Trained on cuda: {NAMES[0]}."


def test_without_the_exact_value_its_column_is_empty(run, trained, tmp_path, only):
    assert run(*ARGUMENTS, "--no-exact")[0] == 0
    assert rows_of(tmp_path, only)["exact_log_marginal_likelihood"].isna().all()


def test_a_stop_between_cells_or_timings_is_continued(run, tmp_path, monkeypatch, only):
    """Once when the first cell is finished, once when the first estimator has been timed."""

    def signalled(owner, function):
        original, calls = getattr(owner, function), []

        def watched(*arguments, **named):
            result = original(*arguments, **named)
            calls.append(1)
            if len(calls) == 1:
                signal.raise_signal(signal.SIGTERM)
            return result

        return owner, function, watched

    for place, finished in (((pareto_run, "train_cell"), 1), ((pareto_run, "_measured"), 3)):
        with monkeypatch.context() as patch:
            patch.setattr(*signalled(*place))
            code, _, error = run(*ARGUMENTS)
        assert code == 75
        assert error.splitlines()[-1] == "Stopped by SIGTERM: the same command continues it"
        assert len(written(tmp_path)) == finished
        times = written(tmp_path)
    assert len(list((tmp_path / "results").rglob("parts/*.json"))) == 1
    assert run(*ARGUMENTS)[0] == 0
    assert written(tmp_path) == times
    assert len(rows_of(tmp_path, only)) == 3


DAMAGED_PARTS = [
    "{}",
    *(
        pytest.param(damage, marks=pytest.mark.slow)
        for damage in ("", '{"seconds": [], "num_pairs": 3}', '{"seconds": ["1"], "num_pairs": 3}')
    ),
]


@pytest.mark.parametrize("damage", DAMAGED_PARTS)
def test_a_damaged_part_is_timed_again(run, trained, tmp_path, monkeypatch, only, damage):
    timed, measured = [], pareto_run._measured

    def watched(run, name, results):
        timed.append(name)
        return measured(run, name, results)

    def killed(run, results):
        raise KeyboardInterrupt

    monkeypatch.setattr(pareto_run, "_measured", watched)
    with monkeypatch.context() as patch:
        patch.setattr(pareto_run, "_training_rows", killed)
        assert run(*ARGUMENTS)[0] == 130
    only(tmp_path, f"parts/{NAMES[1]}.json").write_text(damage)
    code, _, error = run(*ARGUMENTS)
    assert code == 0, error
    assert sorted(timed) == sorted([*NAMES, NAMES[1]])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("checkpoint.pt", "is not a checkpoint; there is no earlier checkpoint"),
        pytest.param("rows.csv", "missing or empty", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_cell_says_what_to_remove(run, finished_run, tmp_path, only, name, words):
    damaged = only(tmp_path / "results" / "train", f"{NAMES[0]}-*/{name}")
    damaged.write_text("")
    code, _, error = run(*ARGUMENTS, "--force")
    last = error.splitlines()[-1]
    assert (code, words in last) == (1, True), error
    assert f"remove {damaged.parent.relative_to(tmp_path)} and " in last
    shutil.rmtree(damaged.parent)
    assert run(*ARGUMENTS, "--force")[0] == 0


def test_a_cell_whose_rows_were_cut_off_is_refused(run, finished_run, tmp_path, only):
    rows = only(tmp_path / "results" / "train", f"{NAMES[0]}-*/rows.csv")
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:6]))
    code, _, error = run(*ARGUMENTS, "--force")
    assert code == 1
    assert "rows.csv: ends with epoch 5 of 10; remove results/train/" in error.splitlines()[-1]


def test_empty_rows_of_a_finished_run_say_what_to_remove(run, finished_run, tmp_path, only):
    rows = only(tmp_path / "results" / "pareto", "rows.csv")
    rows.write_text("")
    folder = rows.parent.relative_to(tmp_path)
    code, _, error = run(*ARGUMENTS)
    assert (code, error.splitlines()) == (
        1,
        [f"Error: {folder / 'rows.csv'} of a finished run is missing or empty; remove {folder} and compute it again"],
    )


def test_only_what_is_finished_can_be_compared(run, in_empty_folder, tmp_path, only):
    code, _, error = run(*ARGUMENTS, "--finished")
    assert (code, error.count("\n")) == (1, 1)
    assert "no training cell of pareto-digits is finished under results: leave out --finished" in error
    assert in_empty_folder("train", "--hparam", "prior", "--estimator", NAMES[1], *SMALL)[0] == 0
    assert run(*ARGUMENTS, "--finished")[0] == 0
    assert rows_of(tmp_path, only)["estimator"].tolist() == [NAMES[1]]
    notes = read_manifest(only(tmp_path / "results" / "pareto", "manifest.json"))["notes"]
    assert notes[-1] == "1 of 3 training cells of protocol pareto-digits were run, none of ntk-20-C, diag-20-1."


def test_finished_controls_alone_are_not_compared(tmp_path):
    protocol, data = load_pareto("pareto-digits", "prior"), load_dataset("digits")
    cells = (protocol.cells[0], changed(protocol.cells[0], {"dataset": "digits_r90"}))
    datasets = {"digits": data, "digits_r90": data}
    run = pareto_run.ParetoRun(replace(protocol, cells=cells), datasets, torch.device("cpu"))
    finish(run.cell(cells[1]).folder(tmp_path))
    with pytest.raises(ValueError, match="no training cell of pareto-digits is finished"):
        pareto_run.only_finished(run, tmp_path)
    finish(run.cell(cells[0]).folder(tmp_path))
    assert pareto_run.only_finished(run, tmp_path) is run


def test_estimators_that_are_the_same_on_few_data_are_one_run():
    few = restricted(load_pareto("figure-13", "prior"), None, None, {"num_data": 500})
    compared = pareto_run.resolve_cells(few, {"mnist": load_dataset("digits")}).compared
    seeds = {name: [cell.protocol.seed for cell in cells] for name, cells in compared.items()}
    assert {name: seeds[name] for name in ("ntk-N-C", "ntk-N-1")} == {"ntk-N-C": [0], "ntk-N-1": [0, 1, 2]}
    assert all(len(set(own)) == len(own) for own in seeds.values())


def test_the_first_estimate_is_not_timed(monkeypatch):
    protocol, data = load_train("train-digits", "prior"), load_dataset("digits")
    model = build_model(protocol.model, data.input_shape, data.num_classes, generator_for(0, "init"))
    learner, events = new_learner(protocol, model, torch.device("cpu")), []
    monkeypatch.setattr(learner.objective, "backward", lambda *_: events.append("backward"))
    monkeypatch.setattr(pareto_run, "clock", lambda device: events.append("clock") or 0.0)
    assert list(pareto_run._timed(learner, data, 2)) == [0.0, 0.0]
    assert events == ["backward", *["clock", "backward", "clock"] * 2]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--hparam", "momentum"], 2, "'momentum' is not one of 'prior', 'invariance', 'rotation'"),
        (["--protocol", "figure-14"], 2, "unknown protocol 'figure-14'"),
        (["--protocol", "figure-1"], 2, "figure-1 learns the invariance: write --hparam invariance"),
        (["--estimators", "ntk-10"], 2, "write <structure>-<inputs>-<outputs>"),
        (["--estimators", "ntk-100-1", "--num-data", "60"], 2, "ntk-100-1 needs 100 inputs but there are 60"),
        (["--seeds", "0,0"], 2, "'0,0' is not a list of different seeds, such as 0,1,2"),
        (["--seeds", "9223372036854775808"], 2, "such as 0,1,2 (up to 9223372036854775807)"),
        (["--seeds", "0,00"], 2, "'0,00' is not a list of different seeds"),
        (["--seeds", "1,²"], 2, "'1,²' is not a list of different seeds"),
        (["--seeds", "-1"], 2, "'-1' is not a list of different seeds"),
        (["--epochs", "4"], 2, "in 4 epochs no hyperparameter is updated: take --epochs 10 or more"),
        (["--num-data", "5000"], 2, "--num-data 5000: digits has 1297 training images"),
        (["--samples", "4"], 2, "belongs to --hparam invariance"),
        (["--chunk", "²"], 2, "'²' is not auto or a positive number of inputs"),
        (["--repeats", "0"], 2, "0 is not in the range 1<=x<=1000000000"),
        (["--protocol", "figure-13", "--data-root", "nowhere"], 1, "--data-root"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(run, tmp_path, arguments, code, words):
    left, _, error = run("--hparam", "prior", *arguments, "--device", "cpu")
    assert (left, words in error, error.count("\n")) == (code, True, 1), error
    assert not list(tmp_path.iterdir())
