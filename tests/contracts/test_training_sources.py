"""Which training runs a trajectory figure shows."""

import pytest

from ntkml.figures.training_sources import choose, training_files, training_runs
from ntkml.protocols.training_figures import load_trajectory_figure
from ntkml.records.manifests import write_manifest
from ntkml.records.tables import as_rows, write_rows
from ntkml.records.train import COLUMNS, read_rows
from tests.synthetic_training import training_manifest, write_pareto_run, write_training_run

FIGURE = load_trajectory_figure("figure-10")


def chosen(results):
    runs, notes = choose(FIGURE, training_runs(training_files(FIGURE, results)))
    return {(run.estimator, run.rows["seed"].iloc[0], run.rows["epoch"].max(), run.dataset) for run in runs}, notes


def test_runs_alone_and_in_pareto_runs_are_joined_and_each_is_taken_once(tmp_path):
    write_pareto_run(tmp_path, ["ntk-100-C", "kfac-N-C"], "prior", seeds=(0, 1))
    write_training_run(tmp_path, "ntk-100-C", "prior", 1)
    write_training_run(tmp_path, "diag-N-C", "prior", 0)
    write_training_run(tmp_path, "diag-N-C", "prior", 1, finished_at=None)
    write_training_run(tmp_path, "diag-N-C", "invariance", 0)
    write_training_run(tmp_path, "ntk-7-C", "prior", 0)  # no estimator of the figure
    runs, notes = chosen(tmp_path)
    cells = [("ntk-100-C", 0), ("ntk-100-C", 1), ("kfac-N-C", 0), ("kfac-N-C", 1), ("diag-N-C", 0)]
    assert runs == {(*cell, 60, "mnist") for cell in cells}
    # Notes of the training runs and of the Pareto run that holds them; nothing was left out.
    assert notes == [
        "No augmentation (S\u00a0=\u00a01).",
        "Synthetic training.",
        "Pareto run: Reduced: synthetic cells.",
    ]


def test_settings_are_those_of_the_newest_run_and_the_others_are_counted(tmp_path):
    write_training_run(tmp_path, "ntk-100-C", "prior", finished_at="2026-01-01T00:00:00Z")
    write_training_run(tmp_path, "ntk-50-C", "prior", finished_at="2026-01-02T00:00:00Z")
    write_training_run(tmp_path, "ntk-20-C", "prior", epochs=40, finished_at="2026-01-04T00:00:00Z")
    write_training_run(tmp_path, "ntk-100-C", "prior", epochs=40, finished_at="2026-01-03T00:00:00Z")
    runs, notes = chosen(tmp_path)
    assert runs == {("ntk-20-C", 0, 40, "mnist"), ("ntk-100-C", 0, 40, "mnist")}
    assert notes[-1] == "No settings are mixed: 2 runs of other settings left out."


def test_settings_that_no_row_shows_are_not_mixed_either(tmp_path):
    write_training_run(tmp_path, "ntk-100-C", "prior", finished_at="2026-01-02T00:00:00Z")
    path = write_training_run(tmp_path, "ntk-50-C", "prior").with_name("manifest.json")
    manifest = training_manifest("ntk-50-C", "prior", 0)
    write_manifest(path, manifest | {"settings": manifest["settings"] | {"lr_hyper": 0.5}})
    runs, notes = chosen(tmp_path)
    assert {run[0] for run in runs} == {"ntk-100-C"}
    assert notes[-1] == "No settings are mixed: 1 run of other settings left out."


def test_how_blocks_are_drawn_is_not_mixed_and_means_nothing_to_a_single_block(tmp_path):
    """Runs of one protocol with fresh blocks: those of all inputs and outputs at once do not have the setting."""
    for name, changes, finished_at in (
        ("kfac-N-C", {}, "2026-01-05T00:00:00Z"),
        ("ntk-100-C", {"fresh_blocks": True}, "2026-01-04T00:00:00Z"),
        ("ntk-50-C", {}, "2026-01-03T00:00:00Z"),
    ):
        path = write_training_run(tmp_path, name, "prior", finished_at=finished_at).with_name("manifest.json")
        manifest = training_manifest(name, "prior", 0, finished_at)
        write_manifest(path, manifest | {"settings": manifest["settings"] | changes})
    runs, notes = chosen(tmp_path)
    assert {run[0] for run in runs} == {"kfac-N-C", "ntk-100-C"}
    assert notes[-1] == "No settings are mixed: 1 run of other settings left out."


def test_the_figures_own_data_come_first_and_others_serve_where_there_are_none(tmp_path):
    write_training_run(tmp_path, "ntk-100-C", "prior", dataset="digits", finished_at="2026-02-01T00:00:00Z")
    assert chosen(tmp_path)[0] == {("ntk-100-C", 0, 60, "digits")}
    write_training_run(tmp_path, "ntk-50-C", "prior", finished_at="2026-01-01T00:00:00Z")
    runs, notes = chosen(tmp_path)
    assert runs == {("ntk-50-C", 0, 60, "mnist")}
    assert not any("left out" in note for note in notes)


def test_blocks_of_all_data_are_those_of_the_figure_where_they_have_its_size(tmp_path):
    path = write_training_run(tmp_path, "blockdiag-N-C", "prior")
    figure, rows = load_trajectory_figure("figure-11"), read_rows(path)
    with pytest.raises(ValueError, match="figure-11 draws runs that learn the prior by"):
        choose(figure, training_runs([path]))
    write_rows(path, as_rows(rows.assign(num_data=500)), COLUMNS)
    [run], _ = choose(figure, training_runs([path]))
    assert (run.estimator, run.num_data) == ("blockdiag-N-C", 500)


def test_a_file_without_its_manifest_is_drawn_and_said(tmp_path):
    paths = [write_training_run(tmp_path, name, "prior") for name in ("ntk-100-C", "ntk-50-C")]
    paths[0].with_name("manifest.json").unlink()
    runs, notes = choose(FIGURE, training_runs(paths))
    assert {run.estimator for run in runs} == {"ntk-100-C", "ntk-50-C"}
    unknown = "their settings are known from the rows alone, which may end early"
    assert f"No manifest of the runs in rows.csv: {unknown}." in notes


def test_a_run_that_is_not_finished_is_refused(tmp_path):
    path = write_training_run(tmp_path, "ntk-100-C", "prior", finished_at=None)
    cut(path, 30)
    with pytest.raises(
        ValueError,
        match=r"rows\.csv: the run of ntk-100-C is not finished \(epoch 30 of 60\): the same ntkml train command continues it",
    ):
        training_runs([path])


@pytest.mark.parametrize("write", [write_training_run, write_pareto_run])
def test_rows_of_a_finished_run_that_end_early_are_refused(tmp_path, write):
    path = write(tmp_path, "ntk-100-C" if write is write_training_run else ["ntk-100-C", "kfac-N-C"], "prior")
    path = path if write is write_training_run else path.with_name("training.csv.gz")
    assert training_runs([path])
    cut(path, 30)
    with pytest.raises(
        ValueError, match=rf"{path.name}: ends with epoch 30 of 60; remove {path.parent} and compute it again"
    ):
        training_runs(training_files(FIGURE, tmp_path))


def cut(path, epochs):
    rows = [row for row in as_rows(read_rows(path)) if row["epoch"] <= epochs]
    write_rows(path, rows, COLUMNS)


def test_what_to_run_is_said_where_there_is_nothing(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"no finished training run under .* for figure-10; run: ntkml pareto --hparam prior --protocol figure-13 \(all of them\), or one with "
        "ntkml train --hparam prior --protocol train-mnist --estimator ntk-10-C",
    ):
        training_files(FIGURE, tmp_path)
    path = write_training_run(tmp_path, "ntk-100-C", "invariance")
    with pytest.raises(
        ValueError,
        match=r"figure-10 draws runs that learn the prior by ntk-.*, these are of .*; run: ntkml pareto --hparam prior",
    ):
        choose(FIGURE, training_runs([path]))
