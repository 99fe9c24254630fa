"""``ntkml plot`` of training and Pareto runs."""

import os
import shutil

import pytest

from ntkml.protocols.training_figures import load_trajectory_figure, trajectory_names
from tests.synthetic_training import write_pareto_run, write_training_run

NAMES = ["ntk-N-C", "kfac-N-C", "ntk-100-C", "ntk-100-1", "ntk-100-tree", "blockdiag-100-C"]
HPARAMS = {"figure-1": "invariance", "figure-13": "prior"}


@pytest.fixture
def run(in_empty_folder):
    return lambda *arguments: in_empty_folder("plot", *arguments)


@pytest.mark.parametrize("name", [*trajectory_names(), *HPARAMS])
def test_every_figure_is_drawn_from_a_pareto_run(run, tmp_path, name):
    hparam = HPARAMS.get(name) or load_trajectory_figure(name).hparam
    rows = write_pareto_run(tmp_path / "results", NAMES, hparam, epochs=20)
    used = rows if name in HPARAMS else rows.with_name("training.csv.gz")
    code, out, error = run(name)
    assert (code, error) == (0, "")
    assert out == f"Read {used.relative_to(tmp_path)}\nWrote figures/{name}.png\nWrote figures/{name}.pdf\n"
    assert sorted(os.listdir(tmp_path / "figures")) == [f"{name}.pdf", f"{name}.png"]
    assert (tmp_path / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "figures" / f"{name}.pdf").read_bytes()[:4] == b"%PDF"


def test_trajectories_of_single_runs(run, blank_pictures, tmp_path):
    paths = [write_training_run(tmp_path / "results", one, "prior") for one in ("ntk-100-C", "kfac-N-C")]
    code, out, _ = run("figure-10", "--format", "png")
    assert code == 0
    assert sorted(out.splitlines()[:2]) == sorted(f"Read {path.relative_to(tmp_path)}" for path in paths)


def test_many_files_are_counted(run, blank_pictures, tmp_path):
    for seed in range(10):
        write_training_run(tmp_path / "results", "ntk-100-C", "prior", seed=seed)
    code, out, _ = run("figure-10", "--format", "png")
    read = [line for line in out.splitlines() if line.startswith("Read")]
    assert (code, len(read), read[-1]) == (0, 8, "Read 3 more files of rows")


def test_trajectories_of_named_files(run, blank_pictures, tmp_path):
    rows = write_pareto_run(tmp_path / "elsewhere", NAMES, "prior")
    joined = shutil.copy(rows.with_name("training.csv.gz"), tmp_path / "joined.csv.gz")  # no manifest beside it
    single = write_training_run(tmp_path / "elsewhere", "diag-N-C", "prior")
    code, out, _ = run("figure-10", "--csv", joined, "--csv", single, "--format", "png")
    assert code == 0
    assert f"Read {joined}\n" in out
    assert f"Read {single}\n" in out


def test_the_newest_pareto_run_is_drawn_under_its_own_name(run, blank_pictures, tmp_path):
    results = tmp_path / "results"
    write_pareto_run(results, NAMES, "invariance", run_id="0000000001", finished_at="2026-01-01T00:00:00Z")
    write_pareto_run(results, NAMES, "prior", run_id="0000000002", finished_at="2026-02-01T00:00:00Z")
    write_pareto_run(results, NAMES, "prior", run_id="0000000003", finished_at=None)
    code, out, _ = run("pareto", "--format", "png")
    assert code == 0
    assert out.endswith("Wrote figures/pareto-prior-mnist-0000000002.png\n")
    code, out, _ = run("figure-1", "--format", "png")
    assert code == 0
    assert out.startswith("Read results/pareto/invariance-mnist_r180-0000000001/rows.csv\n")


def test_files_of_another_command_are_refused(run, tmp_path):
    rows = write_pareto_run(tmp_path / "elsewhere", NAMES, "prior")
    code, out, error = run("figure-10", "--csv", rows)
    assert (code, out) == (1, "")
    assert error == f"Error: {rows}: holds rows of 'pareto', expected rows of 'train'\n"
    code, out, error = run("figure-13", "--csv", rows.with_name("training.csv.gz"))
    assert (code, out) == (1, "")
    assert error == f"Error: {rows.with_name('training.csv.gz')}: holds rows of 'train', expected rows of 'pareto'\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("figure-8", "no finished training run under results for figure-8; run: ntkml pareto --hparam invariance --protocol figure-1-reduced (all of them), or one with ntkml train --hparam invariance --protocol train-mnist --estimator ntk-10-C"),
        ("figure-11", "no finished training run under results for figure-11; run: ntkml pareto --hparam prior --protocol figure-13 (all of them), or one with ntkml train --hparam prior --protocol train-mnist --estimator ntk-10-tree"),
        ("figure-1", "no finished pareto run under results for figure-1; run: ntkml pareto --hparam invariance --protocol figure-1-reduced, or name a file with --csv"),
        ("figure-13", "no finished pareto run under results for figure-13; run: ntkml pareto --hparam prior --protocol figure-13, or name a file with --csv"),
        ("pareto", "no finished pareto run under results for pareto; run: ntkml pareto --hparam prior, or name a file with --csv"),
    ],
)  # fmt: skip
def test_an_empty_folder_says_what_to_type(run, tmp_path, name, message):
    assert run(name) == (1, "", f"Error: {message}\n")
    assert not os.listdir(tmp_path)
