"""Figures 7 and 14 to 16: points are the last values of runs, averaged over seeds, of one setting."""

from __future__ import annotations

import math

import numpy
import pytest

from ntkml.dataset_names import VARIANTS, split_name
from ntkml.figures import render, subsets
from ntkml.figures.subset_sources import subset_runs
from ntkml.protocols.training_figures import load_subset_figure, subset_names
from ntkml.records import train as train_records
from ntkml.records.manifests import read_manifest, write_manifest
from ntkml.records.tables import as_rows, write_rows
from tests.pictures import bands_of, caption_of, lines_of
from tests.protocol_runs import write_protocol_run

COLUMNS = {
    "figure-7": ("test_log_likelihood", 1, 1.0),
    "figure-14": ("log_marginal_likelihood", 0, 1.0),
    "figure-15": ("test_log_likelihood", 1, 1.0),
    "figure-16": ("test_accuracy", 2, 100.0),
}


def value(size, seed, estimator, transformation):
    """Log q, test log likelihood and accuracy that rise with the data."""
    level = (
        0.1 * math.log(size) + 0.02 * seed + (0.05 if estimator == "ntk-400-1" else 0.0) - 0.1 * bool(transformation)
    )
    return (level - 3.0, level - 2.0, level - 0.3)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for dataset, kind in (("cifar10-jpeg", ""), ("cifar10-jpeg_r180", "r180")):
        for size in (500, 1000):
            for name, seeds in (("kfac-400-1", (0, 1)), ("ntk-400-1", (0,))):
                for seed in seeds:
                    write_protocol_run(
                        folder, "figure-7-reduced", "invariance", name, seed, last=value(size, seed, name, kind),
                        dataset=dataset, num_data=size,
                    )  # fmt: skip
    other = "2025-01-01T00:00:00Z"
    write_protocol_run(folder, "figure-7-reduced", "invariance", "kfac-400-1", dataset="digits", finished_at=other)
    return folder


def test_the_figures_are_those_of_the_paper():
    assert subset_names() == list(COLUMNS)
    for name, (column, _, _) in COLUMNS.items():
        figure = load_subset_figure(name)
        assert (figure.training, figure.quantity, figure.plain) == ("figure-7", column, "cifar10")
        assert figure.transformations == ("", "r90", "r180", "translated", "scaled")
        assert set(figure.estimators) == {"kfac-400-1", "ntk-400-1", "kfac-N-C"}


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("cifar10", ("cifar10", "")), ("cifar10-jpeg_r180", ("cifar10-jpeg", "r180")),
        ("translated_cifar10", ("cifar10", "translated")), ("scaled_cifar10", ("cifar10", "scaled")),
    ],
)  # fmt: skip
def test_a_name_says_what_was_done_to_the_images(dataset, expected):
    assert split_name(dataset) == expected


@pytest.mark.parametrize("name", COLUMNS)
def test_lines_are_means_over_seeds_and_bands_one_standard_error(results, name):
    column, place, scale = COLUMNS[name]
    figure = subsets.draw(name, subset_runs(load_subset_figure(name), results))
    lines = {(ax.get_label(), estimator): line for ax, estimator, line in lines_of(figure)}
    drawn = {(f"{column}: {VARIANTS[kind]}", one) for kind in ("", "r180") for one in ("kfac-400-1", "ntk-400-1")}
    assert set(lines) == drawn
    for kind in ("", "r180"):
        panel = f"{column}: {VARIANTS[kind]}"
        line = lines[panel, "kfac-400-1"]
        pairs = [[scale * value(size, seed, "kfac-400-1", kind)[place] for seed in (0, 1)] for size in (500, 1000)]
        assert list(line.get_xdata()) == [500, 1000]
        numpy.testing.assert_allclose(line.get_ydata(), [sum(pair) / 2 for pair in pairs], rtol=1e-8)
        assert line.get_markerfacecolor() == "white"  # not a proven bound
        (path,) = bands_of(figure)[panel, "kfac-400-1"].get_paths()
        for (a, b), size in zip(pairs, (500, 1000), strict=True):
            ends = path.vertices[path.vertices[:, 0] == size, 1]
            assert numpy.isclose(ends, (a + b) / 2 - abs(a - b) / 2).any()
        assert (panel, "ntk-400-1") not in bands_of(figure)
    empty = {ax.get_label().partition(": ")[2] for ax in figure.axes if ax.texts}
    assert empty == {VARIANTS[kind] for kind in ("r90", "translated", "scaled")}


def test_the_caption_states_every_reduction(results):
    caption = caption_of(subsets.draw("figure-7", subset_runs(load_subset_figure("figure-7"), results)))
    for words in (
        "cifar10-jpeg (not the paper's cifar10), resnet8-16",
        "protocol figure-7-reduced, 2 seeds (0, 1), 1 seed (0) for ntk-400-1.",
        "Against protocol figure-7: model resnet8-16 instead of resnet18-16, samples 4 instead of 20, epochs 10 instead of 200",
        "Open markers, not a proven bound: kfac-400-1, ntk-400-1.",
        "Missing (plain): kfac-N-C.",
        "No runs: rotated by up to 90°, translated, scaled.",
        "No settings are mixed: 1 other run left out.",
    ):
        assert words in caption


def test_the_whole_protocol_comes_first_and_settings_are_not_mixed(tmp_path):
    figure = load_subset_figure("figure-7")
    with pytest.raises(
        ValueError, match="no finished training run under .* for figure-7; run: ntkml train --protocol figure-7 "
    ):
        subset_runs(figure, tmp_path)
    write_protocol_run(
        tmp_path, "figure-7-reduced", "invariance", "kfac-400-1", dataset="cifar10", finished_at="2026-02-01"
    )
    assert subset_runs(figure, tmp_path).settings.protocol == "figure-7-reduced"
    write_protocol_run(tmp_path, "figure-7", "invariance", "kfac-400-1", num_data=5000)
    write_protocol_run(tmp_path, "figure-7", "invariance", "kfac-400-1", num_data=5000, samples=2)
    found = subset_runs(figure, tmp_path)
    assert (found.settings.protocol, found.settings.changes, len(found.points)) == ("figure-7", (), 1)
    assert found.notes[-1] == "No settings are mixed: 2 other runs left out."


def test_of_two_runs_of_one_point_the_newest_is_drawn(tmp_path):
    for value, day in ((-2.0, "2026-01-01"), (-1.0, "2026-01-03"), (-3.0, "2026-01-02")):
        write_protocol_run(
            tmp_path / day, "figure-7-reduced", "invariance", "ntk-400-1", last=(value, -0.5, 0.5), finished_at=day
        )
    assert list(subset_runs(load_subset_figure("figure-14"), tmp_path).points["log_marginal_likelihood"]) == [-1.0]


def test_runs_without_estimates_leave_every_panel_empty(tmp_path):
    path = write_protocol_run(tmp_path, "figure-7-reduced", "invariance", "ntk-400-1")
    rows = as_rows(train_records.read_rows(path))
    write_rows(path, [row | {"log_marginal_likelihood": None} for row in rows], train_records.COLUMNS)
    figure = subsets.draw("figure-14", subset_runs(load_subset_figure("figure-14"), tmp_path))
    assert all([text.get_text() for text in ax.texts] == ["no runs"] for ax in figure.axes)


def test_points_from_another_device_are_named(tmp_path):
    for num_data, device in ((500, "cpu"), (1000, "cpu"), (2000, "cuda")):
        write_protocol_run(
            tmp_path, "figure-7-reduced", "invariance", "kfac-N-C", dataset="cifar10", num_data=num_data, device=device
        )
    assert (
        subset_runs(load_subset_figure("figure-7"), tmp_path).notes[-1] == "Trained on cuda: kfac-N-C of 2000 images."
    )


def test_sentences_on_anything_but_a_protocol_stay_as_they_are(tmp_path):
    path = write_protocol_run(tmp_path, "figure-7-reduced", "invariance", "kfac-N-C").with_name("manifest.json")
    said = "Weights trained in bfloat16 (autocast)."
    write_manifest(path, read_manifest(path) | {"notes": [said]})
    assert subset_runs(load_subset_figure("figure-7"), tmp_path).notes == (said,)


def test_a_comma_in_the_name_of_a_data_set_leaves_no_half_of_it_in_the_caption(tmp_path):
    write_protocol_run(tmp_path, "figure-7-reduced", "invariance", "kfac-N-C", dataset="a, b", epochs=7)
    [against] = subset_runs(load_subset_figure("figure-7"), tmp_path).notes
    assert against.startswith("Against protocol figure-7: model resnet8-16 instead of resnet18-16, samples 4 instead ")


def test_equal_rows_make_equal_files(results, tmp_path):
    for stem in ("a", "b"):
        render.save(subsets.draw("figure-16", subset_runs(load_subset_figure("figure-16"), results)), tmp_path / stem)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
