"""``ntkml bound-grid --weights`` of a training run: at its weights and hyperparameters, and its caption says which."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pandas
import pytest
import torch

from ntkml.datasets import load_dataset
from ntkml.models import build_model
from ntkml.protocols.bound_grid import load_bound_grid
from ntkml.records.manifests import read_manifest, write_manifest
from ntkml.runs.bound_setup import BoundGrid
from ntkml.runs.learned import Learned, read_learned
from ntkml.runs.weights import SavedWeights
from tests.synthetic_training import write_training_run

pytestmark = pytest.mark.usefixtures("one_thread", "blank_pictures")

TRAIN = ("--num-data", 40, "--epochs", 3, "--batch-size", 20, "--burn-in", 1, "--update-every", 1, "--eval-every", 3)
GRID = ("--grid-points", 2, "--num-data", 40, "--estimators", "ntk-10-tree", "--device", "cpu")


@pytest.fixture
def learned(in_empty_folder, tmp_path, only):
    """The folder of a finished training run."""

    def train(*arguments):
        code, _, error = in_empty_folder("train", *arguments, *TRAIN, "--device", "cpu", "--out", "learned")
        assert code == 0, error
        return only(tmp_path / "learned", "manifest.json").parent

    return train


def squares_of(folder):
    """The sum of squares of every parameter tensor of a run."""
    state = torch.load(folder / "weights.pt", weights_only=True)
    return [float(weight.double().square().sum()) for weight in state.values()]


def test_a_rotation_grid_takes_precisions_and_half_widths_of_the_run(learned, in_empty_folder, tmp_path, only):
    folder = learned("--hparam", "invariance", "--estimator", "ntk-20-tree", "--samples", 2)
    run = partial(in_empty_folder, "bound-grid", "--hparam", "rotation", "--samples", 2, *GRID)
    assert run("--weights", folder / "weights.pt")[0] == 0
    rows = pandas.read_csv(only(tmp_path / "results", "rows.csv"))
    last = pandas.read_csv(folder / "rows.csv").iloc[-1]
    data = load_dataset("digits")
    shapes = [weight.shape for weight in build_model("mininet", data.input_shape, 10).parameters()]
    squares = squares_of(folder)
    precisions = json.loads(last["prior_precisions"])
    assert len(precisions) == len(shapes) == len(squares)
    expected = -0.5 * sum(p * square for p, square in zip(precisions, squares, strict=True)) / 40
    normalisers = rows["log_prior"].unique()
    assert normalisers == pytest.approx([expected], rel=1e-5)
    notes = json.loads(only(tmp_path / "results", "manifest.json").read_text())["notes"]
    assert (
        "weights trained with hyperparameters learned by ntk-20-tree on digits_r180 (epochs: 3, S\u00a0=\u00a02, seed 0"
        in notes[0]
    )
    assert (
        "Training run of these weights: Against protocol train-digits: num data 40 instead of 1000, samples 2"
        in notes[0]
    )
    assert notes[1] == "Rotation grid: at the prior precisions and other half-widths of that run."


def test_a_rotation_grid_takes_one_precision_for_all_weights_and_the_one_that_is_asked_for(
    learned, in_empty_folder, tmp_path, only
):
    folder = learned("--hparam", "prior", "--prior", "scalar", "--estimator", "ntk-20-tree")
    [precision] = read_learned(folder / "weights.pt").prior_precisions
    for expected, asked in ((precision, ()), (5.0, ("--prior-precision", 5))):
        arguments = ("--hparam", "rotation", "--samples", 2, *GRID, "--weights", folder / "weights.pt", *asked)
        assert in_empty_folder("bound-grid", *arguments, "--out", f"at-{expected}")[0] == 0
        rows = pandas.read_csv(only(tmp_path / f"at-{expected}", "rows.csv"))
        assert rows["log_prior"].unique() == pytest.approx([-0.5 * expected * sum(squares_of(folder)) / 40], rel=1e-5)


def test_rotation_grids_at_other_learned_hyperparameters_are_other_runs():
    grid, weights = BoundGrid(load_bound_grid("digits", "rotation"), load_dataset("digits")), SavedWeights({}, "0")
    learned = (((1.0,), ()), ((2.0,), ()), ((1.0,), (0.0,) * 6))
    ids = {replace(grid, given=Learned(weights, "Weights.", *hyperparameters)).run_id for hyperparameters in learned}
    assert len(ids) == len(learned)


def test_the_variant_of_the_weights_protocol_is_said(learned, in_empty_folder, tmp_path, only):
    folder = learned("--hparam", "prior", "--estimator", "none", "--protocol-variant", "code")
    code, _, error = in_empty_folder("bound-grid", "--hparam", "prior", *GRID, "--weights", folder / "weights.pt")
    assert (code, error.count("Error")) == (0, 0)
    [note, *_] = json.loads(only(tmp_path / "results", "manifest.json").read_text())["notes"]
    assert note.startswith("Prior grid: weights trained by MAP on digits (epochs: 3, seed 0")
    assert (
        "Training run of these weights: Settings of the authors' code where it differs from the paper's text." in note
    )


def test_hyperparameters_are_those_of_the_last_epoch_by_its_number(learned):
    folder = learned("--hparam", "prior", "--estimator", "ntk-20-tree")
    found = read_learned(folder / "weights.pt").prior_precisions
    header, *rows = (folder / "rows.csv").read_text().splitlines(keepends=True)
    (folder / "rows.csv").write_text("".join([header, *reversed(rows)]))
    assert read_learned(folder / "weights.pt").prior_precisions == found
    (folder / "rows.csv").write_text("".join([header, *rows[:2]]))
    with pytest.raises(ValueError, match=r"rows\.csv: ends with epoch 2 of 3; remove .* and compute it again"):
        read_learned(folder / "weights.pt")


def test_hyperparameters_are_those_of_a_finished_run_in_its_own_rows(tmp_path):
    folder = write_training_run(tmp_path, "ntk-100-1", "prior").parent
    torch.save({"w": torch.ones(2)}, folder / "weights.pt")
    manifest = read_manifest(folder / "manifest.json")
    write_manifest(folder / "manifest.json", manifest | {"run_id": "another"})
    with pytest.raises(ValueError, match="holds rows of run"):
        read_learned(folder / "weights.pt")
    write_manifest(folder / "manifest.json", manifest | {"finished_at": None})
    assert read_learned(folder / "weights.pt").description.startswith("Weights read from a file (sha256 ")
