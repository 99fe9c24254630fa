"""``ntkml bound-grid`` on the embedded digits: rows, and one line for every mistake."""

import json
from functools import partial

import pandas
import pytest
import torch

from ntkml.figures import render
from ntkml.records import bound_grid as bound_records
from ntkml.runs import bound_setup
from tests.bound_grids import GIVEN, SMALL
from tests.pictures import caption_of

ESTIMATORS = "blockdiag-N-C,kfac-N-C,diag-N-C,ntk-10-C,ntk-10-1,ntk-10-tree,ntk-10-C+kmeans"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(in_empty_folder, blank_pictures):
    """``ntkml bound-grid ...``"""
    return partial(in_empty_folder, "bound-grid")


def test_a_run_leaves_rows_manifest_weights_and_picture_and_names_them(in_empty_folder, tmp_path, only):
    code, out, _ = in_empty_folder("bound-grid", *SMALL, "--estimators", ESTIMATORS)
    assert code == 0
    rows, manifest = only(tmp_path, "rows.csv"), only(tmp_path, "manifest.json")
    picture, weights = only(tmp_path, "*.png"), only(tmp_path, "weights.pt")
    assert weights.parent == rows.parent
    assert not (rows.parent / "parts").exists()
    for path in (rows, manifest, picture):
        assert str(path.relative_to(tmp_path)) in out
    frame = bound_records.read_rows(rows)
    assert set(frame["estimator"]) == {"ntk-N-C", *ESTIMATORS.split(",")}
    assert set(frame["hparam_value"].round(6)) == {0.0, round(torch.pi, 6)}
    aggregate = frame[frame["block"].isna()].set_index(["estimator", "hparam_value"])["log_marginal_likelihood"]
    for value in frame["hparam_value"].unique():
        exact, block, diag = (aggregate[(name, value)] for name in ("ntk-N-C", "blockdiag-N-C", "diag-N-C"))
        assert exact > block > diag
        assert aggregate[("ntk-10-C", value)] < exact
    loaded = json.loads(manifest.read_text())
    assert loaded["estimators"]["ntk-10-tree"] == {"certified": True, "num_blocks": 4 * 9}
    assert loaded["estimators"]["kfac-N-C"] == {"certified": False, "num_blocks": 1}
    assert any("N 40 instead of 1000" in note for note in loaded["notes"])


def test_the_picture_of_a_finished_run_says_what_its_rows_have_lost(run, monkeypatch, only, tmp_path):
    asked = (*SMALL, "--estimators", "ntk-10-1")
    assert run(*asked)[0] == 0
    rows = only(tmp_path, "rows.csv")
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(line for line in lines if ",ntk-10-1," not in line))
    drawn = []
    monkeypatch.setattr(render, "save", lambda figure, stem, formats: drawn.append(caption_of(figure)) or [stem])
    code, out, error = run(*asked)
    assert (code, "Finished already" in out) == (0, True), error
    assert ", which computed them: ntk-10-1." in drawn[0]


def test_a_run_that_cannot_be_written_leaves_no_folder_for_its_picture(run, tmp_path):
    (tmp_path / "results").touch()
    code, _, error = run(*SMALL, "--estimators", "ntk-10-1")
    assert code == 1
    assert error.startswith("Error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_aggregate_rows_are_the_mean_and_standard_error_of_the_blocks(run, tmp_path, only):
    run(*SMALL, "--estimators", "ntk-10-1,blockdiag-20-C")
    frame = bound_records.read_rows(only(tmp_path, "rows.csv"))
    for _, group in frame.groupby(["estimator", "hparam_value"]):
        aggregate, blocks = group[group["block"].isna()].iloc[0], group[group["block"].notna()]
        if not len(blocks) or aggregate["num_blocks"] == 1:
            continue
        values = blocks["log_marginal_likelihood"]
        assert len(blocks) == aggregate["num_blocks"]
        assert values.mean() == pytest.approx(aggregate["log_marginal_likelihood"], rel=1e-8)
        assert values.sem() == pytest.approx(aggregate["standard_error"], rel=1e-6)
        total = aggregate["log_likelihood"] + aggregate["log_prior"] - aggregate["log_det"] / 2
        assert total == pytest.approx(aggregate["log_marginal_likelihood"], rel=1e-8)


def test_a_prior_grid_equals_the_public_function(run, tmp_path, only):
    import ntkml
    from ntkml.datasets import load_dataset, subset
    from ntkml.models import build_model
    from ntkml.randomness import generator_for

    run("--hparam", "prior", "--grid-points", 3, "--num-data", 40, "--epochs", 1, "--estimators", "ntk-10-1,kfac-N-C")
    data = subset(load_dataset("digits"), 40, generator_for(0, "data"))
    model = build_model("mininet", data.input_shape, 10)
    model.load_state_dict(torch.load(only(tmp_path, "weights.pt"), weights_only=True))
    frame = bound_records.read_rows(only(tmp_path, "rows.csv"))
    for name in ("ntk-N-C", "kfac-N-C", "ntk-10-1"):
        for _, row in frame[(frame["estimator"] == name) & frame["block"].isna()].iterrows():
            estimate = ntkml.log_marginal_likelihood(
                model,
                data.train_inputs,
                data.train_targets,
                name,
                prior=row["hparam_value"],
                generator=generator_for(0, "partition"),
            )
            assert row["log_marginal_likelihood"] * 40 == pytest.approx(estimate.total.item(), rel=1e-6)


def test_the_device_that_is_asked_for_is_the_grids(run, monkeypatch):
    from ntkml.commands import devices
    from ntkml.runs import bound_grid

    seen = []

    def computed(grid, folder, track):
        seen.append(grid.device)
        raise ValueError("enough")

    monkeypatch.setattr(bound_grid, "run_bound_grid", computed)
    monkeypatch.setattr(devices, "device_named", {"cpu": torch.device("cpu"), "auto": torch.device("meta")}.get)
    for asked in ("cpu", "auto"):
        assert run(*SMALL[:-1], asked, "--estimators", "ntk-10-1")[0] == 1
    assert [device.type for device in seen] == ["cpu", "meta"]


def test_a_gpu_that_is_not_there_is_said(run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, error = run(*SMALL[:-1], "cuda")
    assert (code, error.count("\n")) == (2, 1)
    assert "torch sees no GPU: choose cpu or auto" in error
    assert not list(tmp_path.iterdir())


def test_every_purpose_has_a_stream_of_its_own(run, monkeypatch):
    """And all partitions the same one, so that blocks of one size hold the same inputs."""
    asked, generator_for = [], bound_setup.generator_for
    monkeypatch.setattr(
        bound_setup, "generator_for", lambda seed, name: asked.append(name) or generator_for(seed, name)
    )
    assert run(*SMALL, "--estimators", "ntk-10-1")[0] == 0
    assert asked == ["data", "init", "training", "augmentation", "partition", "partition"]


def test_given_weights_are_used_and_said(run, tmp_path, only):
    run(*SMALL, "--estimators", "ntk-10-1")
    weights = only(tmp_path, "weights.pt")
    code, _, _ = run(*GIVEN, "--estimators", "ntk-10-1", "--weights", weights, "--out", "given")
    assert code == 0
    ours = pandas.read_csv(only(tmp_path / "results", "rows.csv"))["log_det"]
    assert (pandas.read_csv(only(tmp_path / "given", "rows.csv"))["log_det"] == ours).all()
    notes = json.loads(only(tmp_path / "given", "manifest.json").read_text())["notes"]
    assert notes[0].startswith("Rotation grid: weights read from a file (sha256 ")
    assert notes[1] == "Rotation grid: at prior precision 1."
    assert not any("trained by MAP" in n for n in notes)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--hparam", "momentum"], 2, "'momentum' is not one of 'prior', 'rotation'"),
        (["--hparam", "prior", "--estimators", "ntk-10"], 2, "write <structure>-<inputs>-<outputs>"),
        (
            ["--hparam", "prior", "--estimators", "ntk-9-1,ntk-9-1"],
            2,
            "'ntk-9-1,ntk-9-1' is not a list of different names",
        ),
        (["--hparam", "prior", "--estimators", "ntkk-10-1"], 2, "did you mean 'ntk'?"),
        (["--hparam", "prior", "--estimators", "ntk-2000-1"], 2, "needs 2000 inputs but there are 1000"),
        (["--hparam", "prior", "--estimators", "ntk-100-10"], 2, "write C for all outputs"),
        (["--hparam", "prior", "--num-data", "5000"], 2, "digits has 1297 training images"),
        (["--hparam", "prior", "--num-data", "0"], 2, "0 is not in the range 1<=x<=1000000000"),
        (["--hparam", "prior", "--prior-precision", "-1"], 2, "-1.0 is not in the range 1e-30<=x<=1e+30"),
        (["--hparam", "prior", "--prior-precision", "nan"], 2, "nan is not a finite number"),
        (["--hparam", "prior", "--seed", str(2**63)], 2, "is not in the range"),
        (["--hparam", "prior", "--grid-points", "1000000000"], 2, "is not in the range"),
        (["--hparam", "rotation", "--samples", "1000000000"], 2, "is not in the range"),
        (["--hparam", "prior", "--figures", "/proc/nowhere"], 1, "choose another with --figures"),
        (["--hparam", "prior", "--samples", "4"], 2, "augmentation samples belong to --hparam rotation"),
        (["--hparam", "prior", "--protocol", "figure-7"], 2, "unknown protocol 'figure-7'"),
        (["--hparam", "prior", "--dataset", "mnits"], 1, "did you mean 'mnist'?"),
        (["--hparam", "prior", "--dataset", "mnist", "--data-root", "nowhere"], 1, "--data-root"),
        (["--hparam", "prior", "--weights", "none.pt"], 1, "none.pt: no such file of weights"),
        (
            ["--hparam", "rotation", "--weights", "w.pt", "--epochs", "5"],
            2,
            "--epochs: nothing is trained with --weights",
        ),
        (
            ["--hparam", "prior", "--weights", "w.pt", "--prior-precision", "5"],
            2,
            "--prior-precision: nothing is trained",
        ),
        (["--hparam", "prior", "--model", "resnet"], 2, "'resnet' is not one of 'mininet'"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(run, tmp_path, arguments, code, words):
    left, _, error = run(*arguments)
    assert (left, words in error, error.count("\n")) == (code, True, 1), error
    assert not list(tmp_path.iterdir())


def test_weights_of_a_run_with_another_likelihood_are_refused(run, in_empty_folder, tmp_path, only):
    training = "--hparam prior --num-data 40 --epochs 2 --burn-in 1 --update-every 1 --estimator ntk-10-1 --likelihood gaussian"
    assert in_empty_folder("train", *training.split(), "--device", "cpu")[0] == 0
    weights = only(tmp_path, "weights.pt")
    code, _, error = run(*GIVEN, "--estimators", "ntk-10-1", "--weights", weights)
    assert (code, error.count("\n")) == (1, 1)
    assert "was trained with the gaussian likelihood, and a bound grid takes the categorical one" in error


def test_a_file_that_is_no_weights_is_refused(run, tmp_path):
    (tmp_path / "junk.pt").write_bytes(b"not weights")
    code, _, error = run(*GIVEN, "--estimators", "ntk-10-1", "--weights", "junk.pt")
    assert code == 1
    assert "junk.pt is not a file of weights" in error
    assert error.count("\n") == 1
    torch.save({"0.weight": torch.zeros(2)}, tmp_path / "other.pt")
    code, _, error = run(*GIVEN, "--estimators", "ntk-10-1", "--weights", "other.pt")
    assert code == 1
    assert "the weights do not fit mininet" in error
    assert error.count("\n") == 1
    torch.save({"0.weight": torch.full((2,), torch.nan)}, tmp_path / "nan.pt")
    code, _, error = run(*GIVEN, "--estimators", "ntk-10-1", "--weights", "nan.pt")
    assert code == 1
    assert "nan.pt holds weights that are NaN or infinite" in error
    assert not list(tmp_path.rglob("rows.csv"))


@pytest.mark.parametrize(
    ("trouble", "words"),
    [(MemoryError(), "out of memory"), (OSError(13, "Permission denied", "junk.pt"), "Permission denied")],
)
def test_weights_that_cannot_be_read_now_are_not_called_no_weights(run, tmp_path, monkeypatch, trouble, words):
    def failing(*_, **__):
        raise trouble

    (tmp_path / "junk.pt").write_bytes(b"perhaps weights")
    monkeypatch.setattr(torch, "load", failing)
    code, _, error = run(*GIVEN, "--estimators", "ntk-10-1", "--weights", "junk.pt")
    assert (code, words in error, "not a file of weights" in error) == (1, True, False)


def test_an_unwritable_folder_is_said_before_any_work(run, tmp_path):
    (tmp_path / "taken").write_text("a file")
    code, _, error = run(*SMALL, "--estimators", "ntk-10-1", "--out", "taken")
    assert code == 1
    assert "taken" in error
    assert error.count("\n") == 1
    assert (tmp_path / "taken").read_text() == "a file"


def test_estimator_names_are_completed():
    from ntkml.commands.types import ESTIMATORS

    values = [item.value for item in ESTIMATORS.shell_complete(None, None, "ntk-N-C,kfac-5")]
    assert values == ["ntk-N-C,kfac-500-1", "ntk-N-C,kfac-500-C", "ntk-N-C,kfac-500-tree"]


def test_a_grid_of_one_point_is_drawn_without_a_warning(in_empty_folder, recwarn):
    arguments = [argument if argument != "2" else "1" for argument in SMALL]
    assert in_empty_folder("bound-grid", *arguments, "--estimators", "ntk-10-1")[0] == 0
    assert not [warning for warning in recwarn if "xlim" in str(warning.message)]


def test_runs_that_would_not_fit_the_memory_are_refused():
    from ntkml.runs.bound_setup import _check_memory

    _check_memory(10_000, 14_538)
    with pytest.raises(ValueError, match="lower --num-data"):
        _check_memory(100_000, 14_538)
