"""``ntkml compare`` and the systems of ``ntkml train``: one schema, costs, what is resumed and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from ntkml import datasets
from ntkml.commands.types import SYSTEM
from ntkml.datasets import load_dataset
from ntkml.protocols.compare import compare_names, load_compare
from ntkml.records import compare as compare_records
from ntkml.records import train as train_records
from ntkml.records.finished_runs import finished_runs
from ntkml.records.manifests import read_manifest
from ntkml.registry import SYSTEMS
from ntkml.runs import compare as compare_run
from ntkml.system_specs import FAMILIES, canonical_name, family_of, parse_system
from tests.sweeps import written

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ("--num-data", 30, "--epochs", 10)
ARGUMENTS = ("--hparam", "prior", "--systems", "map", "--seeds", 0, *SMALL)
REFERENCE = Path(__file__).resolve().parents[2] / "results/reference/comparison"


@pytest.fixture
def run(in_empty_folder, blank_pictures):
    """``ntkml compare ...``"""
    return partial(in_empty_folder, "compare")


@pytest.fixture
def finished_run(finished, blank_pictures):
    """The comparison of ARGUMENTS."""
    finished("compare", *ARGUMENTS)


def comparison_of(folder, only):
    """The folder of the only comparison."""
    return only(folder / "results" / "compare", "rows.csv").parent


def test_a_comparison_has_one_row_per_system_and_counts_every_fit(in_empty_folder, only, tmp_path):
    arguments = ("compare", "--hparam", "prior", "--systems", "map,grid-2", *SMALL, "--out", "results")
    code, out, _ = in_empty_folder(*arguments)
    assert code == 0
    rows = compare_records.read_rows(only(tmp_path / "results" / "compare", "rows.csv")).set_index("system")
    assert list(rows.index) == ["none", "grid-2"]
    assert list(rows["fits"]) == [1, 3]
    assert rows.loc["none", "data_passes"] == pytest.approx(10)
    assert rows.loc["grid-2", "data_passes"] == pytest.approx(10 * (0.8 + 0.8 + 1))
    assert rows.loc["grid-2", "prior_precision_median"] in (0.01, 1000)
    folder = comparison_of(tmp_path, only)
    assert {path.name for path in folder.iterdir()} == {"rows.csv", "manifest.json"}
    pictures = [Path("figures") / f"comparison-{folder.name}.{suffix}" for suffix in ("png", "pdf")]
    for path in (*(folder.relative_to(tmp_path) / name for name in ("rows.csv", "manifest.json")), *pictures):
        assert str(path) in out
    assert (tmp_path / pictures[0]).stat().st_size > 10_000
    assert (tmp_path / pictures[1]).stat().st_size > 1000
    code, _, _ = in_empty_folder("plot", "comparison", "--results", "results", "--format", "png")
    assert code == 0
    assert (tmp_path / "figures" / "comparison.png").read_bytes() == (tmp_path / pictures[0]).read_bytes()


def test_training_runs_of_a_comparison_say_how_they_differ_from_their_protocol(finished_run, tmp_path, only):
    [note] = read_manifest(only(tmp_path / "results" / "train", "manifest.json"))["notes"]
    assert note.startswith("Against protocol train-digits: ")
    assert "epochs 10 instead of " in note


def test_a_finished_comparison_is_drawn_again_and_computed_again_when_forced(run, finished_run, tmp_path, only):
    folder, times = comparison_of(tmp_path, only), written(tmp_path)
    before = (folder / "rows.csv").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "figures")
    code, out, _ = run(*ARGUMENTS)
    assert (code, "Finished already" in out, (folder / "rows.csv").stat().st_mtime_ns) == (0, True, before)
    for suffix in ("png", "pdf"):
        picture = Path("figures") / f"comparison-{folder.name}.{suffix}"
        assert (str(picture) in out, (tmp_path / picture).exists()) == (True, True)
    code, out, _ = run(*ARGUMENTS, "--force", "--figures", "elsewhere")
    assert (code, "Finished already" in out) == (0, False)  # compared again ...
    assert written(tmp_path) == times  # ... and not trained again
    assert (folder / "rows.csv").stat().st_mtime_ns > before
    assert list(folder.parent.iterdir()) == [folder]
    assert (tmp_path / "elsewhere" / f"comparison-{folder.name}.png").exists()


def test_a_forced_comparison_that_is_stopped_loses_nothing(run, finished_run, tmp_path, monkeypatch, only):
    folder, train = comparison_of(tmp_path, only), compare_run.train_cell
    rows = (folder / "rows.csv").read_bytes()
    [cell] = (tmp_path / "results" / "train").iterdir()
    shutil.rmtree(cell)

    def signalled(*arguments):
        signal.raise_signal(signal.SIGTERM)
        train(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(compare_run, "train_cell", signalled)
        code, _, error = run(*ARGUMENTS, "--force")
    words = "Stopped by SIGTERM: the same command continues its training and compares again"
    assert (code, error.splitlines()[-1]) == (75, words)
    assert ((folder / "rows.csv").read_bytes(), "Finished already" in run(*ARGUMENTS)[1]) == (rows, True)
    assert run(*ARGUMENTS, "--force")[0] == 0
    assert list(folder.parent.iterdir()) == [folder]
    assert list(written(tmp_path)) == [cell.name]


def test_a_stop_is_continued_by_the_same_command(run, tmp_path, monkeypatch, only):
    train, trained = compare_run.train_cell, []

    def signalled(*arguments):
        train(*arguments)
        trained.append(1)
        signal.raise_signal(signal.SIGTERM)

    arguments = ("--hparam", "prior", "--systems", "map,sampled-2", *SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(compare_run, "train_cell", signalled)
        code, _, error = run(*arguments)
    assert (code, error.splitlines()[-1]) == (75, "Stopped by SIGTERM: the same command continues it")
    assert (len(trained), len(times := written(tmp_path))) == (1, 1)
    assert not (tmp_path / "figures").exists()
    assert run(*arguments)[0] == 0
    assert times.items() <= written(tmp_path).items()
    assert len(compare_records.read_rows(only(tmp_path / "results" / "compare", "rows.csv"))) == 2


def test_settings_of_one_hyperparameter_reach_its_runs_and_the_caption(run, tmp_path, only):
    small = ("--systems", "map,ntk-10-1", *SMALL)
    assert run("--hparam", "prior", *small, "--fresh-blocks")[0] == 0
    notes = read_manifest(comparison_of(tmp_path, only) / "manifest.json")["notes"]
    assert notes[-1] == "Against protocol train-digits (ntk-10-1): fresh blocks on instead of off."
    before = written(tmp_path)
    assert run("--hparam", "prior", *small, "--kept-blocks")[0] == 0  # the protocol's: MAP is reused, ntk-10-1 is not
    assert len(written(tmp_path)) == len(before) + 1
    assert before.items() <= written(tmp_path).items()
    assert run("--hparam", "rotation", *small, "--samples", 2)[0] == 0
    [folder] = (tmp_path / "results" / "compare").glob("invariance-*")
    assert read_manifest(folder / "manifest.json")["settings"]["samples"] == 2


@pytest.mark.parametrize("hparam", ["prior", "invariance"])
def test_comparisons_keep_the_ids_of_the_reference_results(hparam):
    data = load_dataset(load_compare("comparison-digits", hparam).asked.dataset)
    reference = read_manifest(REFERENCE / f"{hparam}-{data.name}" / "manifest.json")
    systems = {entry["run_id"]: name for name, entry in reference["estimators"].items()}
    protocol = load_compare(
        "comparison-digits", hparam, tuple(systems[cell] for cell in reference["settings"]["cells"])
    )
    assert compare_run.CompareRun(protocol, data, torch.device("cpu")).run_id == reference["run_id"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--protocol", "pareto-digits"], 2, "unknown protocol 'pareto-digits'"),
        (["--seeds", "0,0"], 2, "'0,0' is not a list of different seeds, such as 0,1,2"),
        (["--systems", "lila,kfac-N-C"], 2, "'lila,kfac-N-C' is not a list of different names"),
        (["--epochs", "4", "--systems", "hoag"], 2, "in 4 epochs no hyperparameter is updated"),
        (["--num-data", "5000"], 2, "--num-data 5000: digits has 1297 training images"),
        (["--samples", "4"], 2, "--samples: belongs to --hparam invariance"),
        (["--hparam", "rotation", "--fresh-blocks"], 2, "--kept-blocks: belongs to --hparam prior"),
        (["--hparam", "rotation", "--kept-blocks"], 2, "--kept-blocks: belongs to --hparam prior"),
        (["--figures", "/dev/null"], 1, "is a file, expected a folder to write to; choose another with --figures"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(run, tmp_path, arguments, code, words):
    left, _, error = run("--hparam", "prior", *arguments, "--device", "cpu")
    assert (left, words in error, error.count("\n")) == (code, True, 1), error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["compare", "train"])
@pytest.mark.parametrize(("name", "words"), [("manifest.json", "not a JSON file"), ("rows.csv", "missing or empty")])
def test_a_damaged_run_says_what_to_remove(run, finished_run, only, tmp_path, command, name, words):
    if command == "train":
        shutil.rmtree(tmp_path / "results" / "compare")
    damaged = only(tmp_path / "results" / command, name)
    damaged.write_text("")
    code, _, error = run(*ARGUMENTS)
    last = error.splitlines()[-1]
    assert (code, words in last) == (1, True), error
    assert f"remove {damaged.parent.relative_to(tmp_path)} and compute it again" in last
    shutil.rmtree(damaged.parent)
    assert run(*ARGUMENTS)[0] == 0


def test_a_cell_is_compared_at_its_last_epoch_whatever_the_order_of_its_rows(run, finished_run, only, tmp_path):
    [expected] = compare_records.read_rows(only(tmp_path / "results" / "compare", "rows.csv"))["test_accuracy"]
    rows = only(tmp_path / "results" / "train", "rows.csv")
    head, *lines = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join([head, *reversed(lines)]))
    shutil.rmtree(tmp_path / "results" / "compare")
    assert run(*ARGUMENTS)[0] == 0
    [found] = compare_records.read_rows(only(tmp_path / "results" / "compare", "rows.csv"))["test_accuracy"]
    assert found == expected
    shutil.rmtree(tmp_path / "results" / "compare")
    folder = rows.parent.relative_to(tmp_path)
    for text, words in (
        ("".join([head, *lines[:-1]]), f"{folder / 'rows.csv'}: ends with epoch 9 of 10; "),
        (head, f"{folder / 'rows.csv'}: has a header but no rows; "),
    ):
        rows.write_text(text)
        code, _, error = run(*ARGUMENTS)
        assert (code, error.splitlines()[-1]) == (1, f"Error: {words}remove {folder} and compute it again")


def test_a_cell_without_its_costs_is_refused(run, finished_run, only, tmp_path):
    shutil.rmtree(tmp_path / "results" / "compare")
    path = only(tmp_path / "results" / "train", "manifest.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"budget": {"fits": 1}}))
    code, _, error = run(*ARGUMENTS)
    folder = path.parent.relative_to(tmp_path)
    words = f"{folder} was run before costs were counted: remove it and compute it again"
    assert (code, error.splitlines()[-1]) == (1, f"Error: {words}")


def test_a_search_refits_its_best_value_and_says_what_it_tried(in_empty_folder, only, tmp_path):
    code, _, error = in_empty_folder("train", "--estimator", "grid-2", "--hparam", "rotation", "--samples", 2, *SMALL)
    assert code == 0, error
    folder = next((tmp_path / "results" / "train").glob("grid-2-*"))
    manifest = json.loads((folder / "manifest.json").read_text())
    reached = {fit["value"]: fit["validation_log_likelihood"] for fit in manifest["fits"]}
    assert set(reached) == {0.0, 180.0}
    assert manifest["best"] == max(reached, key=reached.get)
    assert (folder / "weights.pt").read_bytes() == (folder / "fits" / "all-data" / "weights.pt").read_bytes()
    rows = train_records.read_rows(folder / "rows.csv")
    assert set(rows["estimator"]) == {"grid-2"}
    assert list(rows["epoch"]) == list(range(1, 11))
    assert [run.rows.parent for run in finished_runs(tmp_path, "train")] == [folder]  # its fits are no runs
    assert (
        "Finished already"
        in in_empty_folder("train", "--estimator", "grid-2", "--hparam", "rotation", "--samples", 2, *SMALL)[1]
    )


def test_a_cross_validation_takes_the_value_that_is_best_on_average_over_its_folds(in_empty_folder, tmp_path):
    small = ("--num-data", 12, "--epochs", 1, "--batch-size", 12, "--seed", 2)
    code, _, error = in_empty_folder("train", "--estimator", "cross-validation-2", "--hparam", "prior", *small)
    assert code == 0, error
    [folder] = (tmp_path / "results" / "train").iterdir()
    manifest = read_manifest(folder / "manifest.json")
    reached = {}
    for fit in manifest["fits"]:
        reached.setdefault(fit["value"], []).append(fit["validation_log_likelihood"])
    assert [len(parts) for parts in reached.values()] == [2] * 5
    assert manifest["best"] == max(reached, key=lambda value: sum(reached[value]))
    assert manifest["budget"]["data_passes"] == pytest.approx(5 * 2 * 0.5 + 1)


def test_a_search_keeps_the_notes_of_the_command_and_of_the_data(in_empty_folder, tmp_path, monkeypatch):
    noted = replace(load_dataset("digits"), notes=("A note of the data.",))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: noted)
    assert in_empty_folder("train", "--estimator", "grid-1", "--hparam", "prior", *SMALL)[0] == 0
    against, of_data = read_manifest(next((tmp_path / "results" / "train").glob("*/manifest.json")))["notes"]
    assert against.startswith("Against protocol train-digits: ")
    assert of_data == "A note of the data."


@pytest.mark.parametrize("name", ["hoag", "sampled-2"])
def test_rows_of_other_systems_claim_no_marginal_likelihood(in_empty_folder, only, tmp_path, name):
    code, _, error = in_empty_folder("train", "--estimator", name, *SMALL)
    assert code == 0, error
    rows = train_records.read_rows(only(tmp_path, "rows.csv"))
    assert rows["log_marginal_likelihood"].isna().all()
    assert rows["certified"].isna().all()
    assert rows["prior_precision_median"].iloc[-1] != 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--estimator", "sampled-4", "--hparam", "invariance"), "learns the prior alone: write --hparam prior"),
        (("--estimator", "augerino"), "learns the invariance alone: write --hparam invariance"),
        (("--estimator", "sampled"), "lacks its number of posterior samples: write for example sampled-4"),
        (("--estimator", "grid-0"), "the number of fits is a positive integer, got '0'"),
        (("--estimator", "grid-10001"), "'grid-10001': the number of fits is at most 10000"),
        (("--estimator", "grid-" + "9" * 5000), "the number of fits is at most 10000"),
        (("--estimator", "hoagg"), "unknown estimator or system 'hoagg'; did you mean 'hoag'? known: ntk-100-1, "),
        (
            ("--estimator", "hoag-4"),
            "unknown system 'hoag-4'; did you mean 'hoag'? known: none, fixed-augmentation-K, hoag,",
        ),
        (("--estimator", "hoag", "--prior", "diagonal"), "takes a scalar or layerwise prior"),
        (("--estimator", "hoag", "--epochs", 3), "no hyperparameter is updated"),
        (("--estimator", "hoag", "--likelihood", "gaussian"), "is offered for --likelihood categorical"),
        (("--estimator", "cross-validation-1"), "takes 2 to 1000 folds, got 1"),
        (("--estimator", "hoag", "--num-data", 1), "take --num-data 2 or more, got 1"),
        (("--estimator", "grid-3", "--num-data", 1), "take --num-data 2 or more, got 1"),
        (("--estimator", "hoag", "--blocks-per-step", 2), "hoag has no blocks; leave the option out"),
        (("--estimator", "none", "--blocks-per-step", 2), "none has no blocks; leave the option out"),
        (("--estimator", "hoag", "--fresh-blocks"), "hoag has no blocks to draw from; leave the option out"),
        (("--seed", -1), "-1 is not in the range"),
    ],
)
def test_what_a_system_cannot_do_is_refused(in_empty_folder, arguments, message):
    code, out, error = in_empty_folder("train", *arguments)
    assert (code, out) == (2, "")
    assert message in " ".join(error.split())


def test_names():
    assert canonical_name("map") == "none"
    assert canonical_name("lila") == SYSTEM.convert("lila", None, None) == "kfac-N-C"
    for name, family in FAMILIES.items():
        full = f"{name}-3" if family.counts else name
        assert str(parse_system(full)) == canonical_name(full) == full
        assert family.searches or name in SYSTEMS
    assert family_of("ntk-50-tree").updates
    assert not family_of("augerino").updates


def test_the_protocols_can_be_read():
    for name in compare_names():
        for hparam in ("prior", "invariance"):
            assert len(load_compare(name, hparam).cells) >= 10


def test_what_one_system_needs_changes_its_cell_alone_and_the_command_line_wins():
    rates = {cell.estimator: cell.lr_aug for cell in load_compare("comparison-digits", "invariance").cells}
    assert rates["augerino"] == 0.003
    assert len({rate for name, rate in rates.items() if not name.startswith("augerino")}) == 1
    changed = load_compare("comparison-digits", "invariance", settings={"lr_aug": 0.2}).cells
    assert {cell.lr_aug for cell in changed} == {0.2}
