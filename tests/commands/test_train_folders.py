"""``ntkml train --dataset folder:PATH``: rows, the names they carry, and one line for what does not fit."""

from __future__ import annotations

from functools import partial

import pytest

from ntkml.records import train as train_records
from ntkml.records.manifests import read_manifest
from tests.image_files import picture, write_files

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = (
    "--epochs",
    2,
    "--burn-in",
    1,
    "--update-every",
    1,
    "--hyper-steps",
    1,
    "--estimator",
    "ntk-4-tree",
    "--device",
    "cpu",
)


@pytest.fixture
def run(in_empty_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("NTKML_CACHE", str(tmp_path / "cache"))
    images = {f"{label}/{k}.png": picture(ord(label) + 10 * k, (8, 8)) for label in "abc" for k in range(10)}
    write_files(tmp_path / "photos", images)
    return partial(in_empty_folder, "train", *SMALL)


@pytest.mark.parametrize(
    ("spelled", "name"),
    [("folder:photos", "photos"), ("folder:./photos@8x8", "photos-8x8"), ("scaled_folder:photos", "scaled_photos")],
)
def test_rows_and_folders_carry_the_name_of_the_images(run, tmp_path, only, spelled, name):
    code, out, error = run("--dataset", spelled, "--model", "resnet18-16")
    assert code == 0, error
    assert f"on {name}, N=24" in out
    path = only(tmp_path, "rows.csv")
    assert path.parent.name.startswith(f"ntk-4-tree-{name}-")
    rows = train_records.read_rows(path)
    assert set(rows["dataset"]) == {name}
    assert rows["log_marginal_likelihood"].notna().all()
    manifest = read_manifest(path.with_name("manifest.json"))
    assert set(manifest["normalisation"]) == {"mean", "std"}
    assert any("smallest sha256" in note for note in manifest["notes"])
    assert f"dataset {name} instead of digits" in manifest["notes"][0]


def test_bfloat16_is_said_in_the_notes(run, tmp_path, only):
    code, _, error = run("--dataset", "folder:photos", "--model", "mlp", "--precision", "bf16")
    assert code == 0, error
    manifest = read_manifest(only(tmp_path, "manifest.json"))
    assert "Weights trained in bfloat16 (autocast)." in manifest["notes"]
    assert manifest["settings"]["precision"] == "bf16"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--dataset", "folder:nowhere"),
            "data set 'folder:nowhere': found no folder or archive 'nowhere' in the working",
        ),
        (
            ("--dataset", "folder:photos", "--model", "lenet"),
            "lenet takes images of 28x28 and 32x32 pixels, got 8x8 with 3",
        ),
        (("--dataset", "photos"), "unknown data set 'photos'; "),
    ],
)
def test_what_does_not_fit_is_one_line(run, arguments, words):
    code, _, error = run(*arguments)
    assert (code, error.count("\n")) == (1, 1), error
    assert words in error
