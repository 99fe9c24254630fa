"""``ntkml compare`` and the systems of ``ntkml train``: one schema, costs, what is resumed and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest

from ntkml.commands.types import TrainEstimator
from ntkml.protocols.compare import compare_names, load_compare
from ntkml.records import compare as compare_records
from ntkml.records import train as train_records
from ntkml.records.finished_runs import finished_runs
from ntkml.registry import SYSTEMS
from ntkml.system_specs import FAMILIES, canonical_name, family_of, parse_system

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ("--num-data", 30, "--epochs", 10)


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
    # All runs are there already: the same comparison computes nothing, another one of the same systems only its rows.
    assert "Finished already" in in_empty_folder(*arguments)[1]
    code, _, _ = in_empty_folder("plot", "comparison", "--results", "results", "--format", "png")
    assert code == 0
    assert (tmp_path / "figures" / "comparison.png").stat().st_size > 10_000


@pytest.mark.parametrize("room", ["compare", "train"])
@pytest.mark.parametrize(("name", "words"), [("manifest.json", "not a JSON file"), ("rows.csv", "missing or empty")])
def test_a_damaged_run_says_what_to_remove(in_empty_folder, finished, only, tmp_path, room, name, words):
    arguments = ("compare", "--hparam", "prior", "--systems", "map", "--seeds", 0, *SMALL)
    finished(*arguments)
    if room == "train":
        shutil.rmtree(tmp_path / "results" / "compare")
    damaged = only(tmp_path / "results" / room, name)
    damaged.write_text("")
    code, _, error = in_empty_folder(*arguments)
    last = error.splitlines()[-1]
    assert (code, words in last) == (1, True), error
    assert f"remove {damaged.parent.relative_to(tmp_path)} and compute it again" in last
    shutil.rmtree(damaged.parent)
    assert in_empty_folder(*arguments)[0] == 0


def test_a_cell_is_compared_at_its_last_epoch_whatever_the_order_of_its_rows(in_empty_folder, finished, only, tmp_path):
    arguments = ("compare", "--hparam", "prior", "--systems", "map", "--seeds", 0, *SMALL)
    finished(*arguments)
    [expected] = compare_records.read_rows(only(tmp_path / "results" / "compare", "rows.csv"))["test_accuracy"]
    rows = only(tmp_path / "results" / "train", "rows.csv")
    head, *lines = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join([head, *reversed(lines)]))
    shutil.rmtree(tmp_path / "results" / "compare")
    assert in_empty_folder(*arguments)[0] == 0
    [found] = compare_records.read_rows(only(tmp_path / "results" / "compare", "rows.csv"))["test_accuracy"]
    assert found == expected
    shutil.rmtree(tmp_path / "results" / "compare")
    folder = rows.parent.relative_to(tmp_path)
    for text, words in (
        ("".join([head, *lines[:-1]]), f"{folder / 'rows.csv'}: ends with epoch 9 of 10; "),
        (head, f"{folder / 'rows.csv'}: has a header but no rows; "),
    ):
        rows.write_text(text)
        code, _, error = in_empty_folder(*arguments)
        assert (code, error.splitlines()[-1]) == (1, f"Error: {words}remove {folder} and compute it again")


def test_a_cell_without_its_costs_is_refused(in_empty_folder, finished, only, tmp_path):
    arguments = ("compare", "--hparam", "prior", "--systems", "map", "--seeds", 0, *SMALL)
    finished(*arguments)
    shutil.rmtree(tmp_path / "results" / "compare")
    path = only(tmp_path / "results" / "train", "manifest.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"budget": {"fits": 1}}))
    code, _, error = in_empty_folder(*arguments)
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
    rows = train_records.read_rows(folder / "rows.csv")
    assert set(rows["estimator"]) == {"grid-2"}
    assert list(rows["epoch"]) == list(range(1, 11))
    assert [run.rows.parent for run in finished_runs(tmp_path, "train")] == [folder]  # its fits are no runs
    assert (
        "Finished already"
        in in_empty_folder("train", "--estimator", "grid-2", "--hparam", "rotation", "--samples", 2, *SMALL)[1]
    )


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
        (("--estimator", "hoagg"), "none trains without one, and other systems are called"),
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
    assert canonical_name("lila") == TrainEstimator().convert("lila", None, None) == "kfac-N-C"
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
