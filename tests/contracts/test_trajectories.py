"""One contract over Figures 8 to 11: what is drawn is what the rows say, and what is not drawn is said."""

import math

import numpy
import pandas
import pytest
from matplotlib.figure import Figure

from ntkml.figures import render, style, trajectories
from ntkml.figures.curves import Curve
from ntkml.figures.panels import Limits, draw_panel
from ntkml.protocols.bound_figures import PanelAxes
from ntkml.protocols.training_figures import load_trajectory_figure, trajectory_names
from ntkml.records import train as train_records
from ntkml.records.tables import write_rows
from tests.pictures import (
    assert_open_markers_are_the_unproven,
    assert_told_apart_without_colour,
    bands_of,
    caption_of,
    few,
    lines_of,
    within,
)
from tests.synthetic_training import training_rows

COLUMNS = ("log_marginal_likelihood", "test_log_likelihood")
ONE_SEED = "ntk-N-C"  # the others have two


def read(folder, rows):
    return train_records.read_rows(write_rows(folder / "rows.csv.gz", rows, train_records.COLUMNS))


@pytest.fixture(scope="module")
def all_rows(tmp_path_factory):
    tables = {}
    for name in trajectory_names():
        figure = load_trajectory_figure(name)
        cells = [(one, seed) for one in figure.estimators for seed in ((0,) if one == ONE_SEED else (0, 1))]
        rows = [row for estimator, seed in cells for row in training_rows(estimator, figure.hparam, seed)]
        tables[name] = read(tmp_path_factory.mktemp(name), rows)
    return tables


@pytest.fixture(params=trajectory_names())
def name(request):
    return request.param


@pytest.fixture(scope="module")
def drawn(all_rows):
    return {name: trajectories.draw(name, rows, ["A note.", "Long. " * 60]) for name, rows in all_rows.items()}


def smoothed(rows, estimator, seed, column):
    """Epochs and rolling means of one run, the slow way."""
    run = rows[(rows["estimator"] == estimator) & (rows["seed"] == seed)].sort_values("epoch")
    recorded = [(epoch, value) for epoch, value in zip(run["epoch"], run[column], strict=True) if not math.isnan(value)]
    values = [value for _, value in recorded]
    means = [sum(values[max(0, i - 4) : i + 1]) / len(values[max(0, i - 4) : i + 1]) for i in range(len(values))]
    return [epoch for epoch, _ in recorded], means


@pytest.mark.parametrize("shown", [True, False])
def test_a_point_that_is_alone_is_whole_on_the_frame_and_stays_hidden_outside_it(shown):
    x, y, error = (numpy.array([number]) for number in (3.0, -1.0, math.nan))
    curve = Curve("ntk-10-1", "ntk", 10, certified=False, x=x, y=y, error=error)
    limits = Limits((0.0, 3.0), (-2.0, 0.0) if shown else (-0.5, 0.0))
    part = Figure().subplots()
    draw_panel([part], limits, PanelAxes(xlabel=""), {curve.estimator: curve}, {curve.estimator: style.FULL})
    assert [line.get_clip_on() for line in part.lines] == [not shown]


class TestContract:
    def test_every_estimator_is_drawn_in_both_columns_of_its_facets(self, name, drawn):
        lines = {(ax.get_label(), estimator) for ax, estimator, _ in lines_of(drawn[name])}
        figure = load_trajectory_figure(name)
        assert lines == {
            (f"{column}: {facet.title}", estimator)
            for facet in figure.facets
            for estimator in facet.estimators
            for column in COLUMNS
        }

    def test_lines_are_means_over_seeds_of_rolling_means_and_bands_one_standard_error(self, name, all_rows, drawn):
        bands = bands_of(drawn[name])
        for ax, estimator, line in lines_of(drawn[name]):
            column = ax.get_label().partition(":")[0]
            x, first = smoothed(all_rows[name], estimator, 0, column)
            assert list(line.get_xdata()) == x
            if estimator == ONE_SEED:
                numpy.testing.assert_allclose(line.get_ydata(), first)
                assert (ax.get_label(), estimator) not in bands
                continue
            _, second = smoothed(all_rows[name], estimator, 1, column)
            mean = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
            numpy.testing.assert_allclose(line.get_ydata(), mean)
            (path,) = bands[ax.get_label(), estimator].get_paths()
            for epoch, middle, a, b in zip(x, mean, first, second, strict=True):
                # Of two values a and b the sample standard deviation over sqrt(2) is |a - b| / 2.
                at_epoch = path.vertices[path.vertices[:, 0] == epoch, 1]
                for end in (middle - abs(a - b) / 2, middle + abs(a - b) / 2):
                    assert numpy.isclose(at_epoch, end).any()

    def test_open_markers_are_exactly_the_unproven(self, name, drawn):
        assert_open_markers_are_the_unproven(drawn[name])

    def test_curves_of_one_panel_can_be_told_apart_without_colour(self, name, drawn):
        assert_told_apart_without_colour(drawn[name])

    def test_the_caption_says_what_was_run(self, name, drawn):
        caption = caption_of(drawn[name])
        figure = load_trajectory_figure(name)
        for words in (
            f"{figure.dataset}, N = 1000, mininet (P = 14 538), 60 epochs, 2 seeds (0, 1), 1 seed (0) for ntk-N-C.",
            "Left: the runs' own estimates.",
            "mean over the last 5 recorded values",
            "Bands: one standard error over seeds, none where there is one seed.",
            "A note.",
        ):
            assert words in caption

    def test_missing_estimators_are_named_and_not_drawn(self, name, all_rows):
        absent = load_trajectory_figure(name).estimators[-1]
        figure = trajectories.draw(name, all_rows[name][all_rows[name]["estimator"] != absent])
        assert f"Missing: {absent}." in caption_of(figure)
        assert absent not in {estimator for _, estimator, _ in lines_of(figure)}

    def test_a_facet_without_runs_says_so(self, name, all_rows):
        facet = load_trajectory_figure(name).facets[-1]
        others = set(facet.estimators) - {"ntk-N-C"}
        figure = trajectories.draw(name, all_rows[name][~all_rows[name]["estimator"].isin(others)])
        empty = [ax for ax in figure.axes if ax.get_label().endswith(f": {facet.title}")]
        assert len(empty) == 2
        for ax in empty:
            assert [text.get_text() for text in ax.texts] == ["no runs"]
            assert not ax.lines

    def test_no_text_is_cut_off_or_covers_another(self, name, drawn):
        figure = drawn[name]
        with style.context():
            figure.draw_without_rendering()
            titles = [label for ax in figure.axes for label in (*ax.get_xticklabels(), ax.xaxis.label)]
            texts = [*figure.texts, *titles, *(text for legend in figure.legends for text in legend.get_texts())]
            boxes = [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]
            for box in boxes:
                assert within(box, figure.bbox)
            frames = [ax.get_window_extent() for ax in figure.axes]
            headings = [text.get_window_extent() for text in figure.texts] + [
                legend.get_window_extent() for legend in figure.legends
            ]
            for place, box in enumerate(headings):
                for other in [*headings[:place], *frames]:
                    assert not box.overlaps(other)

    @pytest.mark.parametrize("name", few(trajectory_names(), ["figure-8"]), indirect=True)
    def test_equal_rows_make_equal_files(self, name, all_rows, drawn, tmp_path):
        again = trajectories.draw(name, all_rows[name], ["A note.", "Long. " * 60])
        for figure, stem in ((drawn[name], "a"), (again, "b")):
            render.save(figure, tmp_path / stem)
        for suffix in (".png", ".pdf"):
            assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()

    def test_rows_of_other_runs_are_refused(self, name, all_rows):
        figure = load_trajectory_figure(name)
        with pytest.raises(
            ValueError, match=f"these rows hold no run of {name}; run: ntkml pareto --hparam {figure.hparam}"
        ):
            trajectories.draw(name, all_rows[name].assign(estimator="kfac-7-1"))


def legends_of(figure):
    return [[text.get_text().replace("\u00a0", " ") for text in legend.get_texts()] for legend in figure.legends]


def test_legends_name_structures_and_index_pairs(drawn):
    structures, pairs = legends_of(drawn["figure-8"])
    assert structures == ["full", "blockdiag", "KFAC", "diag"]
    assert pairs == ["full (10 000)", "5000", "2500", "1000", "500", "200", "100"]
    doubly, one, tree = legends_of(drawn["figure-11"])
    assert doubly == pairs
    assert one == tree == ["full (10 000)", "1000", "500", "250", "100", "50", "20", "10"]


def test_a_facet_without_proof_says_so(drawn):
    headings = [text.get_text() for text in drawn["figure-9"].texts if text.get_gid() == "heading"]
    assert headings == [
        "blockdiag, data subsets, by index pairs per block",
        "NTK, one output (the paper's), by index pairs per block: not a proven bound",
        "NTK, one tree node (ours), by index pairs per block",
    ]
    assert "Open markers, not a proven bound: ntk-{N, 500, 250, 100, 50, 20, 10}-1." in caption_of(drawn["figure-9"])


def test_what_lies_below_the_range_is_named(drawn):
    assert "Below the range shown (log marginal likelihood): diag-N-C." in caption_of(drawn["figure-8"])


def test_blocks_are_counted_in_inputs_where_the_number_of_outputs_is_not_known(all_rows):
    figure = trajectories.draw("figure-10", all_rows["figure-10"].assign(dataset="cifar-100"))
    assert legends_of(figure)[1] == ["full", "500", "250", "100", "50", "20", "10"]
    assert "cifar-100 (not the paper's mnist)" in caption_of(figure)


def test_one_seed_has_no_bands_and_runs_without_values_empty_panels(tmp_path):
    rows = read(tmp_path, training_rows("ntk-100-C", "prior") + training_rows("ntk-N-C", "prior"))
    figure = trajectories.draw("figure-10", rows.assign(log_marginal_likelihood=math.nan))
    assert not bands_of(figure)
    assert (
        "1 seed (0). Left: the runs' own estimates. Lines: mean over the last 5 recorded values (right: one every 10 epochs). No bands: one seed."
        in caption_of(figure)
    )
    words = {ax.get_label(): [text.get_text() for text in ax.texts] for ax in figure.axes}
    assert words["log_marginal_likelihood: NTK, data subsets"] == ["no estimates"]
    assert words["test_log_likelihood: NTK, data subsets"] == []
    assert words["test_log_likelihood: parametric"] == ["no runs"]


def test_on_as_few_data_as_a_block_holds_it_is_drawn_by_the_name_of_all(tmp_path):
    rows = read(tmp_path, training_rows("blockdiag-N-C", "prior") + training_rows("ntk-N-1", "prior"))
    figure = trajectories.draw("figure-11", rows.assign(num_data=500))
    assert {estimator for _, estimator, _ in lines_of(figure)} == {"blockdiag-N-C", "ntk-N-1"}
    assert "Missing: ntk-N-C, blockdiag-{250, 100, 50, 20, 10}-C, ntk-{250, 100" in caption_of(figure)


@pytest.mark.parametrize("column", ["dataset", "model", "num_data", "num_params"])
def test_rows_of_several_settings_are_refused(all_rows, column):
    rows = all_rows["figure-8"].copy()
    rows.loc[rows["estimator"] == "ntk-10-C", column] = {"dataset": "digits", "model": "other"}.get(column, 7)
    with pytest.raises(ValueError, match=f"the invariance rows mix several values of {column}"):
        trajectories.draw("figure-8", rows)


def test_seeds_that_cannot_be_averaged_are_refused(all_rows):
    rows = all_rows["figure-8"]
    with pytest.raises(ValueError, match="the seeds of ntk-10-C have log_marginal_likelihood at different epochs"):
        trajectories.draw(
            "figure-8", rows[~((rows["estimator"] == "ntk-10-C") & (rows["seed"] == 1) & (rows["epoch"] > 40))]
        )
    other = rows[(rows["estimator"] == "ntk-10-C") & (rows["seed"] == 1)].assign(run_id="ffffffffff")
    with pytest.raises(ValueError, match="ntk-10-C has several runs of one seed; give the files of one run per seed"):
        trajectories.draw("figure-8", pandas.concat([rows, other]))
