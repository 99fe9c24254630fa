"""Figures 1 and 13 and the picture of any Pareto run: the points are those of the rows, the frontier is computed."""

import itertools
import math
import random

import numpy
import pandas
import pytest
from matplotlib.figure import Figure

from ntkml.figures import pareto, point_labels, render, style
from ntkml.figures.pareto_marks import mark_size
from ntkml.records import pareto as pareto_records
from ntkml.records.tables import write_rows
from ntkml.specs import is_certified, parse_estimator
from tests.pictures import caption_of, few, legend_labels, within
from tests.synthetic_training import pareto_rows

SIZES = (10, 20, 50, 100, 250, 500, "N")
NAMES = [f"{structure}-{size}-{outputs}" for structure in ("ntk", "kfac") for size in SIZES for outputs in ("C", "1")]
NAMES += [f"ntk-{size}-tree" for size in SIZES] + ["blockdiag-100-C", "blockdiag-N-C", "diag-N-C"]
HPARAMS = {"figure-1": "invariance", "figure-13": "prior", "pareto": "invariance"}
MANIFEST = {
    "environment": {"versions": {"torch": "2.13.0+cpu"}, "cpu": "Abacus 3000"},
    "estimators": [*NAMES, "ggn-N-C"],
}


def read(folder, hparam, names=NAMES, **changes):
    rows = pareto_rows(names, hparam, **changes)
    return pareto_records.read_rows(write_rows(folder / "rows.csv", rows, pareto_records.COLUMNS))


@pytest.fixture(params=list(HPARAMS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def all_rows(tmp_path_factory):
    return {name: read(tmp_path_factory.mktemp(name), hparam) for name, hparam in HPARAMS.items()}


@pytest.fixture(scope="module")
def drawn(all_rows):
    return {name: pareto.draw(name, rows, ["A note."], MANIFEST) for name, rows in all_rows.items()}


def lines(ax):
    return {line.get_gid(): line for line in ax.lines if line.get_gid() != "leader"}


class TestContract:
    def test_points_are_those_of_the_rows(self, name, all_rows, drawn):
        own, exact = drawn[name].axes
        for row in all_rows[name].itertuples():
            point = lines(own)[row.estimator]
            assert (point.get_xdata()[0], point.get_ydata()[0]) == (row.seconds, -row.log_marginal_likelihood)
            assert list(lines(own)[f"quartiles {row.estimator}"].get_xdata()) == [row.seconds_low, row.seconds_high]
            ends = lines(own)[f"error {row.estimator}"].get_ydata()
            assert ends[1] - ends[0] == pytest.approx(2 * row.standard_error)
            if math.isnan(row.exact_log_marginal_likelihood):
                assert row.estimator not in lines(exact)
            else:
                assert lines(exact)[row.estimator].get_ydata()[0] == -row.exact_log_marginal_likelihood

    def test_the_frontier_is_computed_and_drawn_as_steps(self, name, all_rows, drawn):
        best = all_rows[name][all_rows[name]["on_frontier"].astype(bool)].sort_values("seconds")
        line = lines(drawn[name].axes[0])["frontier"]
        assert line.get_drawstyle() == "steps-post"
        numpy.testing.assert_array_equal(line.get_xdata()[:-1], best["seconds"])
        numpy.testing.assert_array_equal(line.get_ydata()[:-1], -best["log_marginal_likelihood"])
        assert "frontier" not in lines(drawn[name].axes[1])
        names = ", ".join(best["estimator"])
        assert f"Frontier, from fast to slow: {names}." in caption_of(drawn[name])

    def test_marks_are_open_where_nothing_is_proven_black_for_the_full_batch_and_grow_with_the_block(self, name, drawn):
        for estimator in NAMES:
            spec, line = parse_estimator(estimator), lines(drawn[name].axes[0])[estimator]
            assert (line.get_markerfacecolor() == "white") == (not is_certified(spec))
            assert (line.get_markeredgecolor() == "black") == (spec.inputs is None and spec.outputs == "C")
            pairs = (spec.inputs or 1000) * (10 if spec.outputs == "C" else 1)
            assert line.get_markersize() == pytest.approx(mark_size(pairs))
        assert mark_size(10) < mark_size(100) < mark_size(10_000)

    def test_families_look_different(self, name, drawn):
        looks = {}
        for estimator in NAMES:
            spec, line = parse_estimator(estimator), lines(drawn[name].axes[0])[estimator]
            family = (spec.structure, spec.outputs, spec.inputs is None and spec.outputs == "C")
            looks.setdefault(family, set()).add((line.get_marker(), line.get_markeredgecolor()))
        assert all(len(look) == 1 for look in looks.values())
        assert len(set.union(*looks.values())) == len(looks)

    def test_labels_are_names_on_the_frontier_and_cover_nothing(self, name, all_rows, drawn):
        figure = drawn[name]
        with style.context():
            figure.draw_without_rendering()
            part = figure.axes[0]
            texts = [text for text in part.texts if text.get_gid() == "label"]
            best = set(all_rows[name].loc[all_rows[name]["on_frontier"].astype(bool), "estimator"])
            assert {text.get_text() for text in texts} <= best
            assert len(texts) >= 0.8 * len(best)
            boxes = [text.get_window_extent() for text in texts]
            for one, other in itertools.combinations(boxes, 2):
                assert not one.padded(-0.5).overlaps(other)
            for row in all_rows[name].itertuples():
                x, y = part.transData.transform((row.seconds, -row.log_marginal_likelihood))
                assert not any(box.contains(x, y) for box in boxes)
            for box in boxes:
                assert within(box, part.get_window_extent())

    def test_nothing_is_cut_off_at_the_border(self, name, drawn):
        figure = drawn[name]
        with style.context():
            figure.draw_without_rendering()
            labels = [label for ax in figure.axes for label in (*ax.get_xticklabels(), ax.xaxis.label, ax.title)]
            for text in [*figure.texts, *labels]:
                assert not text.get_text() or within(text.get_window_extent(), figure.bbox), text.get_text()
            families, scale = [legend.get_window_extent() for legend in figure.legends]
            assert within(families, figure.bbox)
            assert within(scale, figure.bbox)
            assert not families.padded(-0.5).overlaps(scale)
            assert scale.y0 > max(ax.get_window_extent().y1 for ax in figure.axes)

    def test_the_caption_says_what_was_run_and_timed(self, name, drawn):
        samples = {"invariance": 30, "prior": 1}[HPARAMS[name]]
        for words in (
            f"N = 1000, mininet (P = 14 538), S = {samples}, 500 epochs, 3 seeds (0, 1, 2).",
            "Seconds: median of 20 repeats on cpu (Abacus 3000), 2 threads, float32, torch 2.13.0+cpu; horizontal bars: quartiles.",
            "Estimates: mean of the last five that each training run made itself; vertical bars: one standard error over seeds.",
            "Open marks, not a proven bound: ntk-{10, 20, 50, 100, 250, 500, N}-1, kfac-",
            "Outside the range shown (estimates): diag-N-C (8.",
            "Without an exact value: ntk-10-C",
            "A note.",
        ):
            assert words in caption_of(drawn[name])
        missing = caption_of(drawn[name]).partition("Missing: ")[2].partition(". ")[0]
        assert "ggn-N-C" in missing  # of the run
        assert ("blockdiag-{10, 20, 50, 250, 500}-C" in missing) == (name != "pareto")  # of the figure
        assert "disagree" not in caption_of(drawn[name])

    @pytest.mark.parametrize("name", few(HPARAMS, ["figure-13"]), indirect=True)
    def test_equal_rows_make_equal_files(self, name, all_rows, drawn, tmp_path):
        again = pareto.draw(name, all_rows[name], ["A note."], MANIFEST)
        for figure, stem in ((drawn[name], "a"), (again, "b")):
            render.save(figure, tmp_path / stem)
        for suffix in (".png", ".pdf"):
            assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_no_error_bar_is_cut_off(all_rows):
    rows = all_rows["figure-13"].copy()
    own = rows["log_marginal_likelihood"].nlargest(4).index
    rows.loc[own, "standard_error"] = 0.3
    low, high = sorted(pareto.draw("figure-13", rows, [], MANIFEST).axes[0].get_ylim())
    ends = -rows.loc[own, "log_marginal_likelihood"]
    assert low <= (ends - 0.3).min()
    assert (ends + 0.3).max() <= high


def test_grouped_blocks_are_named(all_rows):
    """Their marks are those of random blocks."""
    rows = all_rows["figure-13"].copy()
    for name, grouping in (("ntk-100-C", "class"), ("ntk-50-C", "iid")):
        one = rows.index[rows["estimator"] == name][0]
        rows.loc[one, ["estimator", "grouping"]] = [f"{name}+{grouping}", grouping]
    words = "Grouped blocks, marked like random ones: "
    assert words + "ntk-100-C+class." in caption_of(pareto.draw("figure-13", rows, [], MANIFEST))
    assert words not in caption_of(pareto.draw("figure-13", all_rows["figure-13"], [], MANIFEST))


def test_the_legend_names_the_families_that_are_there(drawn):
    scale = ["frontier", "10 pairs", "100 pairs", "1000 pairs", "10 000 pairs"]
    labels = legend_labels(drawn["figure-1"])
    assert labels[-len(scale) :] == scale
    assert set(labels[: -len(scale)]) == {
        "full (NTK), full batch", "blockdiag, full batch", "KFAC, full batch", "diag, full batch", "NTK, all outputs",
        "NTK, one output", "NTK, one tree node", "blockdiag, all outputs", "KFAC, all outputs", "KFAC, one output",
    }  # fmt: skip


def test_flags_that_disagree_with_the_frontier_are_named(all_rows):
    rows = all_rows["figure-1"].copy()
    rows.loc[rows["estimator"].isin(["ntk-N-C", "diag-N-C"]), "on_frontier"] ^= True
    caption = caption_of(pareto.draw("figure-1", rows))
    assert "The rows' own flags of the frontier disagree with it at ntk-N-C, diag-N-C." in caption


def test_a_figure_of_the_paper_on_other_data_says_so(all_rows):
    for name, data in {"figure-1": "mnist_r180", "figure-13": "mnist"}.items():
        other = caption_of(pareto.draw(name, all_rows[name].assign(dataset="digits")))
        assert f"digits (not the paper's {data}), N = 1000" in other
        assert "not the paper's" not in caption_of(pareto.draw(name, all_rows[name].assign(dataset=data)))
    assert "not the paper's" not in caption_of(pareto.draw("pareto", all_rows["pareto"].assign(dataset="digits")))


def test_without_exact_values_there_is_one_panel_and_without_seeds_no_bars(tmp_path):
    rows = read(tmp_path, "prior", seeds=(0,), exact_log_marginal_likelihood=None)
    figure = pareto.draw("figure-13", rows)
    (part,) = figure.axes
    assert not [gid for gid in lines(part) if gid.startswith("error")]
    caption = caption_of(figure)
    assert "1 seed (0)" in caption
    assert "vertical bars" not in caption
    assert "torch version unknown" in caption


def test_seeds_and_repeats_that_differ_are_said(all_rows):
    rows = all_rows["figure-1"].copy()
    one = rows["estimator"] == "ntk-N-C"
    rows.loc[one, ["seeds", "num_seeds", "repeats"]] = ["0", 1, 3]
    caption = caption_of(pareto.draw("figure-1", rows))
    assert "3 seeds (0, 1, 2), 1 seed (0) for ntk-N-C." in caption
    assert "median of 3 to 20 repeats" in caption
    rows = all_rows["figure-1"].copy()
    rows.loc[~one, ["seeds", "num_seeds"]] = ["0", 1]
    assert "1 seed (0), 3 seeds (0, 1, 2) for ntk-N-C." in caption_of(pareto.draw("figure-1", rows))


def test_of_one_seed_no_first_is_said(tmp_path):
    assert "first seed" not in caption_of(pareto.draw("pareto", read(tmp_path, "prior", NAMES[:3], seeds=(0,))))


def test_blocks_that_are_all_data_are_not_missed_beside_them(tmp_path):
    rows = read(tmp_path, "prior", [name for name in NAMES if "-500-" not in name])
    assert "500" in caption_of(pareto.draw("figure-13", rows)).partition("Missing: ")[2]
    few_data = caption_of(pareto.draw("figure-13", rows.assign(num_data=500)))
    assert "500" not in few_data.partition("Missing: ")[2]


def test_one_estimator_alone_can_be_drawn(tmp_path):
    figure = pareto.draw("pareto", read(tmp_path, "prior", ["ntk-100-1"]))
    assert [text.get_text() for text in figure.axes[0].texts] == ["ntk-100-1"]


@pytest.mark.parametrize("seed", [4, 6, 9])
def test_no_line_from_a_mark_to_its_words_runs_through_other_words(seed):
    places = random.Random(seed)
    points = {f"ntk-100-C-{index}": (places.uniform(0.3, 0.7), places.uniform(0.3, 0.7)) for index in range(8)}
    with style.context():
        part = Figure(figsize=(2.2, 1.6)).add_axes((0.1, 0.1, 0.85, 0.85))
        part.set(xlim=(0, 1), ylim=(0, 1))
        marks = point_labels.boxes_around(part, list(points.values()), [2.0] * len(points))
        point_labels.label_points(part, points, marks)
        boxes = [text.get_window_extent() for text in part.texts]
        assert part.lines
        for line in part.lines:
            start, end = part.transData.transform(line.get_xydata())
            along = [start + share * (end - start) for share in numpy.linspace(0, 1, 101)]
            for box in boxes:
                inside = [(x, y) for x, y in along if box.x0 + 1 < x < box.x1 - 1 and box.y0 + 1 < y < box.y1 - 1]
                assert not inside


def test_other_rows_are_refused_in_one_line(all_rows):
    with pytest.raises(
        ValueError,
        match="figure-13 shows runs that learn the prior, these rows are of hparam invariance; "
        "run: ntkml pareto --hparam prior --protocol figure-13, or draw any run with ntkml plot pareto",
    ):
        pareto.draw("figure-13", all_rows["figure-1"])
    both = pandas.concat([all_rows["figure-1"], all_rows["figure-13"].assign(run_id="ffffffffff")])
    with pytest.raises(ValueError, match=r"these rows are of 2 \(12e4567890, ffffffffff\); give one file"):
        pareto.draw("pareto", both)


def test_the_caption_names_the_gpu_that_estimates_were_timed_on(tmp_path):
    rows = read(tmp_path, "prior", NAMES[:3]).assign(device="cuda")
    manifest = {"environment": {"cpu": "Abacus 3000", "gpu": "Slide Rule"}}
    assert "repeats on cuda (Slide Rule), " in caption_of(pareto.draw("pareto", rows, (), manifest))
