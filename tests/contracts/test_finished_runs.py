"""What counts as a finished run below a folder of results: each once, no fits of a search, nothing that a kill left."""

from __future__ import annotations

import shutil

import pytest

from ntkml.records.finished_runs import finished_runs
from ntkml.records.manifests import read_manifest, write_manifest
from tests.protocol_runs import write_protocol_run
from tests.synthetic import write_run
from tests.synthetic_training import write_pareto_run, write_training_run


def folders(results, command="train"):
    return [run.rows.parent for run in finished_runs(results, command)]


def changed(rows, **entries):
    manifest = rows.with_name("manifest.json")
    write_manifest(manifest, read_manifest(manifest) | entries)
    return manifest


def test_fits_of_a_search_are_no_runs_unless_their_folder_is_named(tmp_path):
    search = write_training_run(tmp_path, "ntk-100-1", "prior").parent
    fit = write_training_run(tmp_path / "other", "ntk-20-1", "prior").parent
    fits = search / "fits"
    shutil.move(fit, fits / "0.01-0")
    assert folders(tmp_path) == [search]
    assert folders(fits / "0.01-0") == [fits / "0.01-0"]


@pytest.mark.parametrize("suffix", [".new", ".old"])
def test_what_a_killed_forced_run_leaves_counts_only_where_the_run_itself_is_missing(tmp_path, suffix):
    run = write_run(tmp_path, ["ntk-N-C"], "prior").parent
    beside = run.with_name(run.name + suffix)
    shutil.copytree(run, beside)
    changed(beside / "rows.csv", finished_at="2027-01-01T00:00:00Z")
    assert folders(tmp_path, "bound-grid") == [run]
    shutil.rmtree(run)
    assert folders(tmp_path, "bound-grid") == [beside]


def test_a_copied_run_is_taken_once(tmp_path, in_empty_folder, blank_pictures):
    write_run(tmp_path / "results", ["ntk-N-C", "ntk-100-1"], "prior", points=5)
    write_pareto_run(tmp_path / "results", ["ntk-100-1"], "prior")
    shutil.copytree(tmp_path / "results", tmp_path / "results" / "backup")
    code, out, error = in_empty_folder("report")
    assert (code, error) == (0, "")
    assert ", 2 runs" in out


def test_the_same_settings_on_two_devices_are_two_runs(tmp_path):
    run = write_training_run(tmp_path / "cpu", "ntk-100-1", "prior").parent
    shutil.copytree(run, tmp_path / "gpu" / run.name)
    changed(tmp_path / "gpu" / run.name / "rows.csv", finished_at="2027-01-01T00:00:00Z", conditions={"device": "cuda"})
    assert folders(tmp_path) == [tmp_path / "gpu" / run.name, run]


def test_links_to_folders_are_followed_and_may_lead_round(tmp_path):
    elsewhere = write_training_run(tmp_path / "elsewhere", "ntk-100-1", "prior").parent
    results = tmp_path / "results"
    results.mkdir()
    (results / "linked").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(results)
    assert folders(results) == [results / "linked"]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"settings": {"dataset": "mnist"}}, "settings lack hparam"),
        ({"settings": ["prior"]}, "settings should be an object, got a list"),
        ({"protocol": "table-1"}, "protocol should be an object, got text"),
        ({"protocol": {"name": ["table-1"]}}, "protocol.name should be text, got a list"),
        ({"notes": None}, "notes should be a list, got null"),
        ({"notes": [1]}, "notes should be text, got a number"),
        ({"environment": None}, "environment should be an object, got null"),
        ({"finished_at": 3}, "finished_at should be text, got a number"),
        ({"estimators": 1.5}, "estimators should be an object, got a number"),
    ],
)
@pytest.mark.parametrize("command", ["table 1", "report", "plot figure-9", "plot figure-15"])
def test_a_manifest_of_another_shape_is_named_in_one_line(tmp_path, in_empty_folder, command, entries, words):
    path = changed(write_protocol_run(tmp_path / "results", "table-1", "prior", "ntk-500-1"), **entries)
    code, _, error = in_empty_folder(*command.split())
    assert code == 1
    path = path.relative_to(tmp_path)
    remedy = f"the run is damaged; remove {path.parent} and compute it again"
    assert error == f"Error: {path}: {words}: {remedy}\n"


def test_settings_of_training_are_single_values(tmp_path):
    rows = write_training_run(tmp_path, "ntk-100-1", "prior")
    settings = finished_runs(tmp_path, "train")[0].settings
    changed(rows, settings=settings | {"lr": [0.1, 0.2]})
    with pytest.raises(ValueError, match=r"manifest\.json: settings\.lr should be one value, got \[0\.1, 0\.2\]"):
        finished_runs(tmp_path, "train")


def test_the_manifests_within_a_pareto_run_are_looked_at_too(tmp_path):
    rows = write_pareto_run(tmp_path, ["ntk-100-1"], "prior")
    path = changed(rows, runs={"12": {"notes": None}})
    with pytest.raises(ValueError, match=rf"{path}: runs\.12\.notes should be a list, got null"):
        finished_runs(tmp_path, "pareto")


def test_a_protocol_without_its_variant_is_none_that_is_known(tmp_path, in_empty_folder):
    changed(write_protocol_run(tmp_path / "results", "table-1", "prior", "ntk-500-1"), protocol={"name": "table-1"})
    code, out, error = in_empty_folder("table", "1")
    assert (code, error) == (0, "")
    assert out.startswith("0 finished runs")
