"""One contract over all figures of bound grids: what is drawn is what the rows say, and what is not drawn is said."""

import numpy
import pytest

from ntkml.figures import bounds, render, style
from ntkml.figures.curves import curves_of
from ntkml.protocols.bound_figures import figure_names, load_figure
from ntkml.records import bound_grid as bound_records
from tests.pictures import (
    aggregates,
    all_rows,
    assert_open_markers_are_the_unproven,
    assert_told_apart_without_colour,
    bands_of,
    caption_of,
    few,
    legend_labels,
    lines_of,
    marked_points,
    within,
)
from tests.synthetic import rows_of


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return all_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(params=figure_names())
def name(request):
    return request.param


@pytest.fixture(scope="module")
def drawn(rows):
    """Every figure once: drawing is the slow part, looking at it is not."""
    return {name: bounds.draw(name, rows, ["A note of the manifest.", "A long note. " * 30]) for name in figure_names()}


class TestContract:
    def test_every_estimator_of_every_facet_is_drawn_as_the_rows_say(self, name, rows, drawn):
        figure = drawn[name]
        curves = {(ax.get_label(), estimator) for ax, estimator, _ in lines_of(figure)}
        for facet in load_figure(name).facets:
            for hparam in ("prior", "rotation"):
                label = f"{hparam}: {facet.title}" if facet.title else hparam
                assert {(label, estimator) for estimator in facet.estimators} <= curves
        for ax, estimator, line in lines_of(figure):
            x, y, _ = aggregates(rows, ax.get_label().partition(":")[0], estimator)
            numpy.testing.assert_array_equal(line.get_xdata(), x)
            numpy.testing.assert_array_equal(line.get_ydata(), y)

    def test_bands_are_one_standard_error(self, name, rows, drawn):
        figure = drawn[name]
        bands = bands_of(figure)
        for ax, estimator, _ in lines_of(figure):
            x, y, error = aggregates(rows, ax.get_label().partition(":")[0], estimator)
            if numpy.isnan(error).all():
                assert (ax.get_label(), estimator) not in bands
                continue
            (path,) = bands[ax.get_label(), estimator].get_paths()
            for value, low, high in zip(x, y - error, y + error, strict=True):
                at_value = path.vertices[path.vertices[:, 0] == value, 1]
                assert {round(low, 9), round(high, 9)} <= set(at_value.round(9))

    def test_open_markers_are_exactly_the_unproven(self, name, drawn):
        assert_open_markers_are_the_unproven(drawn[name])

    def test_curves_of_one_panel_can_be_told_apart_without_colour(self, name, drawn):
        assert_told_apart_without_colour(drawn[name])

    def test_the_caption_names_data_model_and_seed(self, name, drawn):
        caption = caption_of(drawn[name])
        for words in (
            "mnist (prior)",
            "mnist_r180 (rotation)",
            "N = 1000",
            "mininet (P = 14 538)",
            "seed 0",
            "A note of the manifest.",
        ):
            assert words in caption

    def test_nothing_is_cut_off_at_the_border(self, name, drawn):
        figure = drawn[name]
        with style.context():
            figure.draw_without_rendering()
            frame = figure.bbox
            texts = list(figure.texts) + [
                label for ax in figure.axes for label in (*ax.get_xticklabels(), ax.xaxis.label, ax.title)
            ]
            for text in texts:
                assert not text.get_text() or within(text.get_window_extent(), frame), text.get_text()
            assert within(figure.legends[0].get_window_extent(), frame)

    def test_missing_rows_make_an_empty_panel_that_says_so(self, name, rows):
        figure = bounds.draw(name, rows[rows["hparam"] == "prior"])
        empty = [ax for ax in figure.axes if ax.get_label().startswith("rotation")]
        assert empty
        for ax in empty:
            assert [text.get_text() for text in ax.texts] == ["no rotation rows"]
            assert not ax.lines
        assert "There are no rotation rows." in caption_of(figure)

    def test_missing_estimators_are_named(self, name, rows):
        absent = load_figure(name).estimators[-1]
        figure = bounds.draw(name, rows[(rows["estimator"] != absent) | (rows["hparam"] == "rotation")])
        assert f"Missing in the prior rows: {absent}." in caption_of(figure)

    def test_rows_of_other_estimators_are_refused(self, name, rows):
        with pytest.raises(
            ValueError, match=rf"none of the bounds of {name}; run: ntkml bound-grid --hparam prior --protocol {name}"
        ):
            bounds.draw(name, rows[rows["estimator"] == "ntk-N-C"])

    def test_limits_are_the_protocols(self, name, drawn):
        for ax in drawn[name].axes:
            axes = load_figure(name).axes[ax.get_label().partition(":")[0]]
            assert ax.get_xlim() == pytest.approx(axes.xlim)
            if axes.ylim:
                assert ax.get_ylim() == pytest.approx(axes.ylim)

    @pytest.mark.parametrize("name", few(figure_names(), ["figure-3", "figure-12"]), indirect=True)
    def test_equal_rows_make_equal_files(self, name, rows, drawn, tmp_path):
        for figure, stem in (
            (drawn[name], "a"),
            (bounds.draw(name, rows, ["A note of the manifest.", "A long note. " * 30]), "b"),
        ):
            render.save(figure, tmp_path / stem)
        for suffix in (".png", ".pdf"):
            assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_sizes_in_the_legend_are_index_pairs(drawn):
    assert sorted(legend_labels(drawn["figure-3"])) == ["KFAC", "blockdiag", "diag", "full"]
    assert sorted(legend_labels(drawn["figure-4"])) == ["100", "1000", "200", "2500", "500", "5000", "full (10 000)"]
    assert sorted(legend_labels(drawn["figure-6"])) == ["10", "100", "1000", "20", "250", "50", "500", "full (10 000)"]


def test_sizes_are_inputs_where_the_number_of_outputs_is_not_known(rows):
    figure = bounds.draw("figure-4", rows.assign(dataset="cifar-100"))
    assert sorted(legend_labels(figure)) == ["10", "100", "20", "250", "50", "500", "full"]
    assert figure.legends[0].get_title().get_text() == "inputs per block"


def test_figure_3_breaks_the_axis_where_diag_is_far_below(rows, drawn):
    upper, lower = [ax for ax in drawn["figure-3"].axes if ax.get_label() == "rotation"]
    _, diag, _ = aggregates(rows, "rotation", "diag-N-C")
    _, kfac, _ = aggregates(rows, "rotation", "kfac-N-C")
    assert lower.get_ylim()[0] < diag.min() <= diag.max() < lower.get_ylim()[1] < upper.get_ylim()[0] < kfac.min()


def test_figure_3_does_not_break_the_axis_without_a_gap(rows):
    figure = bounds.draw("figure-3", rows[rows["estimator"] != "diag-N-C"])
    assert len([ax for ax in figure.axes if ax.get_label() == "rotation"]) == 1


def test_figure_3_does_not_break_the_axis_for_less_than_half_a_nat(rows):
    close = rows.assign(log_marginal_likelihood=rows["log_marginal_likelihood"] / 50)
    (ax,) = [ax for ax in bounds.draw("figure-3", close).axes if ax.get_label() == "rotation"]
    assert ax.get_ylim()[1] - ax.get_ylim()[0] >= 0.0999


def test_figure_3_does_not_break_the_axis_for_less_than_a_third_of_it(rows):
    wide = rows.copy()
    low = wide["block"].isna() & (wide["hparam"] == "rotation") & (wide["estimator"] == "diag-N-C")
    wide.loc[low, "log_marginal_likelihood"] = numpy.linspace(-4, -14, low.sum())
    assert len([ax for ax in bounds.draw("figure-3", wide).axes if ax.get_label() == "rotation"]) == 1


def test_a_facet_without_proof_says_so_in_its_title(rows, drawn):
    titles = [ax.get_title(loc="left") for ax in drawn["figure-6"].axes]
    assert "one output (the paper's): not a proven bound" in titles
    assert "one tree node (ours)" in titles
    one_proven = rows.assign(certified=rows["certified"] | (rows["estimator"] == "ntk-10-1"))
    assert "one output (the paper's)" in [ax.get_title(loc="left") for ax in bounds.draw("figure-6", one_proven).axes]


def test_the_legend_is_filled_where_any_curve_of_a_size_is_proven(drawn):
    """Of one output none is, of one tree node all are."""
    lines = drawn["figure-6"].legends[0].get_lines()
    assert {line.get_markerfacecolor() == "white" for line in lines} == {False}


def test_a_curve_is_proven_where_all_its_rows_are(rows):
    doubtful = rows.copy()
    doubtful.loc[rows.index[rows["estimator"] == "ntk-100-C"][0], "certified"] = False
    assert not curves_of(doubtful, "prior")["ntk-100-C"].certified


def test_better_partitions_are_drawn_only_where_there_are_rows(rows, drawn):
    random_and_class = rows[rows["grouping"].isin(["", "class"])]
    assert {ax.get_title() for ax in drawn["figure-12"].axes} >= {"k-means (ours)", "greedy (ours)"}
    assert {ax.get_title() for ax in bounds.draw("figure-12", random_and_class).axes} == {"", "random", "by class"}


def test_the_caption_says_what_is_no_bound_and_what_exceeds_the_exact_value(drawn):
    caption = caption_of(drawn["figure-6"])
    assert "Bands: one standard error over blocks." in caption
    assert "Open markers, not a proven bound: ntk-{N, 500, 250, 100, 50, 20, 10}-1." in caption
    assert "Above the exact value (prior): ntk-{N, 500, 250, 100, 50, 20, 10}-1, at up to 3 of 12 points." in caption


def test_shares_above_the_exact_value_are_of_the_points_where_that_is_known(rows):
    known = rows.copy()
    known.loc[(rows["estimator"] == "ntk-10-1") & ~rows["exceeds_exact"].fillna(True), "exceeds_exact"] = None
    assert ", at up to 3 of 3 points." in caption_of(bounds.draw("figure-6", known))


def test_a_figure_of_the_paper_on_other_data_says_so(rows):
    other = rows.assign(dataset=rows["dataset"].replace("mnist", "digits"))
    assert "digits (prior) (not the paper's mnist) and mnist_r180 (rotation), N" in caption_of(
        bounds.draw("figure-3", other)
    )
    assert "not the paper's" not in caption_of(bounds.draw("figure-3", rows))
    assert "not the paper's" not in caption_of(bounds.draw_run(other[other["hparam"] == "prior"]))


def test_the_caption_names_curves_outside_the_range(rows):
    low = rows.copy()
    low.loc[low["estimator"] == "ntk-10-C", "log_marginal_likelihood"] = -40.0
    caption = caption_of(bounds.draw("figure-4", low))
    assert "Outside the range shown (prior): ntk-10-C, from -40 to -40." in caption
    assert "Outside the range shown (rotation): ntk-10-C, from -40 to -40." in caption


def test_one_point_of_a_grid_is_seen(rows):
    """Of the exact value too, whose line has no markers."""
    values = rows["hparam_value"]
    middle = values.groupby(rows["hparam"]).transform(lambda grid: sorted(set(grid))[len(set(grid)) // 2])
    lines = lines_of(bounds.draw("figure-4", rows[values == middle], []))
    exact = [line for _, estimator, line in lines if estimator == "ntk-N-C"]
    assert exact
    for line in exact:
        assert (len(line.get_xdata()), line.get_marker(), list(line.get_markevery())) == (1, "o", [0])


def test_the_frame_cuts_no_marker(drawn):
    for figure in drawn.values():
        for ax, _, line in lines_of(figure):
            left, right = ax.get_xlim()
            assert all(left < x < right for x in marked_points(line))


def test_a_curve_of_two_points_still_shows_whether_it_is_proven(rows):
    """Both lie on the frame, and an open marker is what says it."""
    rotation = rows[rows["hparam"] == "rotation"]
    ends = rotation["hparam_value"].isin([rotation["hparam_value"].min(), rotation["hparam_value"].max()])
    curves = [curve for curve in lines_of(bounds.draw("figure-6", rotation[ends], [])) if curve[1] != "ntk-N-C"]
    assert curves
    assert all(len(marked_points(line)) == 2 for _, _, line in curves)


def test_other_data_than_the_papers_choose_their_own_range(rows):
    high = rows.assign(dataset="digits", log_marginal_likelihood=rows["log_marginal_likelihood"] + 100)
    for ax in bounds.draw("figure-4", high).axes:
        _, exact, _ = aggregates(high, ax.get_label(), "ntk-N-C")
        bottom, top = ax.get_ylim()
        assert bottom < exact.max() < top
        assert 0.5 < top - bottom < 7


@pytest.mark.parametrize("column", ["dataset", "model", "num_data", "num_params"])
def test_rows_of_several_settings_are_refused(rows, column):
    mixed = rows.copy()
    mixed.loc[mixed["estimator"] == "ntk-10-C", column] = {"dataset": "digits", "model": "other"}.get(column, 7)
    with pytest.raises(ValueError, match=f"the prior rows mix several values of {column}"):
        bounds.draw("figure-4", mixed)


def test_a_mixture_of_many_settings_names_a_few_of_them(rows):
    mixed = rows[rows["block"].isna() & (rows["hparam"] == "prior")].head(100).copy()
    mixed["num_data"] = range(1, 101)
    with pytest.raises(ValueError, match=r"several values of num_data \(1, 2, 3, 4, 5, \.\.\.: 100 in all\); give"):
        bounds.draw("figure-4", mixed)


def test_two_runs_of_one_seed_are_refused(rows, tmp_path):
    other = bound_records.write_rows(tmp_path / "other.csv", rows_of(["ntk-N-C"], "prior", run_id="ffffffffff"))
    import pandas

    with pytest.raises(
        ValueError, match="ntk-N-C has several prior rows for one value and seed; give the files of one run per seed"
    ):
        bounds.draw("figure-3", pandas.concat([rows, bound_records.read_rows(other)]))
