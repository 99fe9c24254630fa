"""Pictures beside the contract of the paper's figures: any one run, the schematic, and files."""

import matplotlib
import numpy
import pytest

from ntkml.figures import bounds, captions, render, schematic
from ntkml.records import bound_grid as bound_records
from ntkml.specs import is_certified, parse_estimator
from tests.pictures import ALL, aggregates, all_rows, bands_of, caption_of, legend_labels, lines_of
from tests.synthetic import rows_of


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return all_rows(tmp_path_factory.mktemp("rows"))


class TestRun:
    """The picture of any one run."""

    FEW = ("ntk-N-C", "kfac-N-C", "ntk-100-1", "ntk-100-tree")

    def test_seeds_are_averaged_and_the_band_is_that_of_the_mean(self, tmp_path):
        rows = bound_records.read_rows(
            bound_records.write_rows(tmp_path / "rows.csv", rows_of(self.FEW, "prior", seeds=(0, 1, 2)))
        )
        figure = bounds.draw_run(rows)
        single = rows[rows["seed"] == 0]
        for _, estimator, line in lines_of(figure):
            _, y, _ = aggregates(single, "prior", estimator)
            numpy.testing.assert_allclose(line.get_ydata(), y + 0.01)  # seeds lie 0.01 apart
        _, y, error = aggregates(single, "prior", "ntk-100-1")
        (path,) = bands_of(figure)["prior", "ntk-100-1"].get_paths()
        numpy.testing.assert_allclose(path.vertices[:, 1].max(), (y + 0.01 + error / 3**0.5).max())
        assert "mean over seeds 0, 1, 2" in caption_of(figure)

    def test_few_estimators_share_a_panel_under_their_names(self, tmp_path):
        rows = bound_records.read_rows(bound_records.write_rows(tmp_path / "rows.csv", rows_of(self.FEW, "rotation")))
        figure = bounds.draw_run(rows, ["Noted."])
        assert [ax.get_label() for ax in figure.axes] == ["rotation"]
        assert sorted(legend_labels(figure)) == ["kfac-N-C", "ntk-100-1", "ntk-100-tree", "ntk-N-C (full)"]
        assert "Noted." in caption_of(figure)

    @pytest.mark.parametrize("hparams", [["prior"], ["prior", "rotation"]])
    def test_many_estimators_have_a_panel_for_each_family(self, rows, hparams):
        figure = bounds.draw_run(rows[rows["hparam"].isin(hparams)])
        assert {estimator for _, estimator, _ in lines_of(figure)} == set(ALL)
        assert len(figure.axes) == 9 * len(hparams)  # blockdiag, kfac, diag, and six kinds of ntk
        assert {ax.get_label().partition(":")[0] for ax in figure.axes} == set(hparams)

    def test_seeds_on_different_grids_are_refused(self, tmp_path):
        rows = rows_of(self.FEW, "prior", points=5) + rows_of(self.FEW, "prior", points=4, seeds=(1,))
        with pytest.raises(ValueError, match="the seeds of ntk-N-C have different grids of prior"):
            bounds.draw_run(bound_records.read_rows(bound_records.write_rows(tmp_path / "rows.csv", rows)))

    def test_rows_of_blocks_alone_are_refused(self, rows):
        with pytest.raises(ValueError, match="these rows hold single blocks only; a figure needs aggregate rows"):
            bounds.draw_run(rows[rows["block"].notna()])


class TestSchematic:
    def test_every_box_is_a_name_and_its_border_says_whether_it_is_proven(self):
        figure = schematic.draw()
        borders = {patch.get_gid(): patch.get_linestyle() for patch in figure.axes[0].patches if patch.get_gid()}
        assert set(borders) == {box.estimator for box in schematic.BOXES}
        for estimator, border in borders.items():
            assert (border == "solid") == is_certified(parse_estimator(estimator)), estimator

    def test_arrows_lead_between_boxes(self):
        names = {box.estimator for box in schematic.BOXES}
        assert {name for start, end, _ in schematic.ARROWS for name in (start, end)} == names

    def test_equal_files(self, tmp_path):
        for name in ("png", "pdf"):
            first, second = (render.save(schematic.draw(), tmp_path / stem, [name])[0].read_bytes() for stem in "ab")
            assert first == second


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(
        ValueError,
        match="unknown picture format 'jpg'; did you mean 'png'|unknown picture format 'jpg'; known: png, pdf",
    ):
        render.save(schematic.draw(), tmp_path / "figure", ["png", "jpg"])
    assert not list(tmp_path.iterdir())


def test_drawing_leaves_the_users_settings_alone(rows):
    before = matplotlib.rcParams["font.size"]
    bounds.draw("figure-3", rows)
    assert matplotlib.rcParams["font.size"] == before


def test_notes_of_manifests_are_taken_once_and_samples_are_named():
    prior = {"settings": {"hparam": "prior", "samples": 1}, "notes": ["One.", "Two."]}
    rotation = {"settings": {"hparam": "rotation", "samples": 30}, "notes": ["Two."]}
    assert captions.manifest_notes([prior, rotation]) == ["One.", "Two.", "S\u00a0=\u00a030 augmentation samples."]
    grid = {"command": "bound-grid", **rotation}
    assert captions.manifest_notes([grid])[0] == "Rotation grid: S\u00a0=\u00a030 augmentation samples."
