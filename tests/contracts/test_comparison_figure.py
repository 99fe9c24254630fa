"""The comparison of systems: every row is drawn where it stands, and the best is named whichever it is."""

from __future__ import annotations

import pandas
import pytest

from ntkml.figures import comparison
from ntkml.records import compare as compare_records
from ntkml.records.tables import write_rows
from tests.pictures import caption_of

SYSTEMS = {"none": ("none", -0.9), "ntk-50-tree": ("bound", -0.6), "grid-5": ("grid", -0.5)}


def rows_file(tmp_path, seeds=(0, 1)):
    rows = [
        {
            "run_id": "r", "command": "compare", "dataset": "digits", "model": "mininet", "seed": seed, "num_data": 500,
            "num_params": 3658, "hparam": "prior", "system": name, "family": family, "learns_from": "train",
            "epochs": 60, "test_log_likelihood": value + 0.1 * seed, "test_accuracy": 0.8, "test_ece": None,
            "prior_precision_median": 3.0, "eta_2": None, "fits": 1, "data_passes": 60.0 + index, "seconds": 2.0 + index,
            "device": "cpu",
        }
        for seed in seeds
        for index, (name, (family, value)) in enumerate(SYSTEMS.items())
    ]  # fmt: skip
    return write_rows(tmp_path / "rows.csv", rows, compare_records.COLUMNS)


def test_points_are_means_over_seeds_and_the_best_is_named(tmp_path):
    figure = comparison.draw(compare_records.read_rows(rows_file(tmp_path)), ["A note."])
    passes, seconds = figure.axes
    points = {line.get_gid(): line for line in passes.lines if line.get_gid() in SYSTEMS}
    for name, (_, value) in SYSTEMS.items():
        assert points[name].get_ydata()[0] == pytest.approx(value + 0.05)
    assert points["none"].get_xdata()[0] == 60
    assert {line.get_gid() for line in seconds.lines} >= set(SYSTEMS)
    caption = next(text.get_text() for text in figure.texts if text.get_gid() == "caption").replace("\n", " ")
    assert "Best on digits (prior): grid-5 at -0.450 nats." in caption
    assert "A note." in caption


def test_the_caption_speaks_of_systems_that_are_drawn_alone(tmp_path, monkeypatch):
    hoag, search = "hoag holds out a fifth of the training data", "The cost of a search is that of all its fits"
    caption = caption_of(comparison.draw(compare_records.read_rows(rows_file(tmp_path))))
    assert (hoag in caption, search in caption) == (False, True)
    monkeypatch.delitem(SYSTEMS, "grid-5")
    monkeypatch.setitem(SYSTEMS, "hoag-cubic", ("hoag-cubic", -0.65))
    caption = caption_of(comparison.draw(compare_records.read_rows(rows_file(tmp_path))))
    assert (hoag in caption, search in caption) == (True, False)


def test_the_legend_has_the_fields_words_for_map_and_lila(tmp_path, monkeypatch):
    monkeypatch.setitem(SYSTEMS, "kfac-N-C", ("bound", -0.6))
    figure = comparison.draw(compare_records.read_rows(rows_file(tmp_path)))
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert labels == ["none (MAP)", "ntk-50-tree", "grid-5", "kfac-N-C (LILA)"]


def test_a_row_that_is_there_twice_is_refused(tmp_path):
    path = rows_file(tmp_path)
    with pytest.raises(ValueError, match="none with seed 0 is there more than once"):
        compare_records.read_rows(path, path)


@pytest.mark.parametrize(("column", "value"), [("epochs", 12), ("model", "lenet"), ("num_params", 5)])
def test_rows_of_other_protocols_are_no_seeds(tmp_path, column, value):
    rows = compare_records.read_rows(rows_file(tmp_path))
    rows.loc[rows["seed"] == 1, column] = value
    with pytest.raises(
        ValueError, match=f"prior on digits mix several values of {column} .*: draw the files one by one"
    ):
        comparison.draw(rows)


def test_runs_of_other_settings_are_no_seeds(tmp_path):
    rows = compare_records.read_rows(rows_file(tmp_path))
    both = pandas.concat([rows, rows.assign(run_id="another")], ignore_index=True)
    with pytest.raises(ValueError, match=r"prior on digits have none with seed 0 more than once: draw .* one by one"):
        comparison.draw(both)


def test_filled_marks_are_proven_bounds(tmp_path, monkeypatch):
    monkeypatch.setitem(SYSTEMS, "ntk-50-1", ("bound", -0.65))
    passes, _ = comparison.draw(compare_records.read_rows(rows_file(tmp_path))).axes
    open_marks = {line.get_gid() for line in passes.lines if line.get_gid() and line.get_markerfacecolor() == "white"}
    assert open_marks == {"none", "grid-5", "ntk-50-1"}


@pytest.mark.parametrize("spread", [0.0, 0.002])
def test_differences_of_thousandths_are_not_magnified(tmp_path, monkeypatch, spread):
    for index, (name, (family, _)) in enumerate(SYSTEMS.items()):
        monkeypatch.setitem(SYSTEMS, name, (family, -1.6 + spread * index))
    for part in comparison.draw(compare_records.read_rows(rows_file(tmp_path, seeds=(0,)))).axes:
        low, high = part.get_ylim()
        assert high - low >= comparison.LEAST_RANGE - 1e-12
        assert low < -1.6 <= -1.6 + 2 * spread < high
