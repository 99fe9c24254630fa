"""The command line where its surroundings are odd: standard streams that are closed, paths that are no UTF-8, other backends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ntkml.datasets import load_dataset
from ntkml.records.manifests import read_manifest, write_manifest

ROOT = Path(__file__).parents[2]
TRAIN = ("train", "--estimator", "none", "--num-data", "40", "--epochs", "2", "--device", "cpu")
NO_UTF8 = os.fsdecode(b"q\xff5")


@pytest.fixture
def started(tmp_path):
    """Run ``ntkml ...`` by a shell in an empty folder: exit code, standard output and standard error."""

    def call(*arguments, redirections="", **environment):
        command = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {redirections}', "sh", *command],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            timeout=120,
        )
        return done.returncode, done.stdout, done.stderr

    return call


def test_a_run_needs_no_standard_error(started, only, tmp_path):
    code, out, _ = started(*TRAIN, redirections="2>&-")
    assert (code, b"weights.pt:" in out) == (0, True)
    assert len(only(tmp_path, "rows.csv").read_text().splitlines()) == 3
    assert started("plot", "figure-99", redirections="2>&-")[0] == 2


@pytest.mark.parametrize(
    "redirections", [">&-", *(pytest.param(more, marks=pytest.mark.slow) for more in ("<&- >&-", "<&-"))]
)
def test_closed_streams_are_taken_by_no_file_of_a_run(started, only, tmp_path, redirections):
    """What a library writes to number 1 would go into the first file that is opened."""
    assert started(*TRAIN, redirections=redirections)[0] == 0
    code = "import os, sys; from ntkml.commands.own_process import arrange_process as go; go(); print(open(sys.argv[1]).fileno() > 2)"
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections} 2>seen', "sh", sys.executable, "-c", f"{code[:-1]}, file=sys.stderr)", __file__],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0
    assert (tmp_path / "seen").read_text() == "True\n"


@pytest.mark.slow
def test_a_sweep_needs_no_standard_streams(started, only, tmp_path):
    sweep = ("sweep", "train-digits", "--hparam", "prior", "--estimators", "none", "--num-data", "40", "--epochs", "2")
    assert started(*sweep, "--device", "cpu", redirections="0<&- 1>&- 2>&-")[0] == 0
    assert len(only(tmp_path, "rows.csv").read_text().splitlines()) == 3


@pytest.mark.slow
def test_a_results_folder_need_not_be_utf8(started, only, tmp_path):
    code, out, error = started(*TRAIN, "--out", NO_UTF8, PYTHONIOENCODING="utf-8:strict")
    assert code == 0, error
    assert rb"weights.pt:    q\udcff5/train" in out
    path = only(tmp_path, "manifest.json")
    assert json.loads(path.read_bytes())["environment"]["argv"][-1] == r"q\udcff5"
    page = Path(NO_UTF8, "page.html")
    assert started("report", "--results", NO_UTF8, "--out", page)[0] == 0
    assert r"1 finished run below <code>q\udcff5</code>" in (tmp_path / page).read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_locale_need_not_know_the_letters_of_a_path(started, only, tmp_path):
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert started(*TRAIN, "--out", "é", **plain)[0] == 0
    assert read_manifest(only(tmp_path, "manifest.json"))["finished_at"]


def test_a_manifest_keeps_what_is_no_utf8(tmp_path):
    manifest = {"path": NO_UTF8, "word": "é"}
    assert read_manifest(write_manifest(tmp_path / "manifest.json", manifest)) == manifest


def test_a_folder_of_images_need_not_be_utf8(tmp_path, monkeypatch):
    monkeypatch.setenv("NTKML_CACHE", str(tmp_path / "cache"))
    for part in ("train", "test"):
        for label in ("a", NO_UTF8):
            folder = tmp_path / NO_UTF8 / part / label
            folder.mkdir(parents=True)
            Image.new("L", (8, 8), color=90).save(folder / f"{part}.png")
    for _ in range(2):  # decoded, then from the cache
        data = load_dataset(f"folder:{tmp_path / NO_UTF8}")
        assert (data.name, data.num_classes) == (r"q\udcff5", 2)


def test_pictures_need_no_backend_of_matplotlib(started, tmp_path):
    code, _, error = started("plot", "figure-2", "--format", "png", MPLBACKEND="foo")
    assert (code, error) == (0, b"")
    assert (tmp_path / "figures" / "figure-2.png").is_file()


@pytest.mark.parametrize("begin", ["ntkml.commands.own_process:arrange_process", "ntkml.runs.sweep_worker:main"])
def test_a_harmless_warning_of_torch_is_left_out_and_others_are_not(begin):
    module, name = begin.split(":")
    code = f"""
import io, os, sys, warnings
sys.stdin = io.StringIO('{{"data_root": null, "device": "cpu", "chunk": null, "threads": 1}}')
from {module} import {name} as begin
begin()
warnings.warn("Attempting to run cuBLAS, but there was no current CUDA context! Attempting to set the primary context...")
warnings.warn("Attempting something else")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "cuBLAS" not in done.stderr
    assert "UserWarning: Attempting something else" in done.stderr
