"""``ntkml table`` and the figures of the same runs, on the command line."""

from __future__ import annotations

from functools import partial

import pytest

from tests.protocol_runs import write_protocol_run


@pytest.fixture
def run(in_empty_folder):
    """``ntkml table ...``"""
    return partial(in_empty_folder, "table")


def test_a_table_is_written_in_every_format_and_named(run, tmp_path):
    write_protocol_run(tmp_path / "results", "table-1", "prior", "ntk-500-1")
    code, out, error = run("1")
    assert (code, error) == (0, "")
    paths = [f"tables/table-1.{suffix}" for suffix in ("md", "tex", "csv")]
    assert out == "".join(["1 finished run of table 1 under results\n", *(f"Wrote {path}\n" for path in paths)])
    assert "`ntk-500-1` NTK-500-1* |" in (tmp_path / paths[0]).read_text()


@pytest.mark.parametrize("command", [("table", "1"), ("plot", "figure-7")])
def test_a_run_whose_rows_were_cut_off_is_named(in_empty_folder, tmp_path, command):
    name, estimator = ("table-1", "ntk-500-1") if command[0] == "table" else ("figure-7", "kfac-400-1")
    rows = write_protocol_run(tmp_path / "results", name, "prior" if name == "table-1" else "invariance", estimator)
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    code, _, error = in_empty_folder(*command)
    assert code == 1
    assert f"{rows.relative_to(tmp_path)}: ends with epoch 3 of " in error
    assert f"remove {rows.parent.relative_to(tmp_path)} and compute it again" in error


def test_one_format_and_an_empty_folder_give_the_published_numbers_alone(run, tmp_path):
    assert run("2", "--format", "markdown", "--out", "here")[0] == 0
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["table-2.md"]
    text = (tmp_path / "here" / "table-2.md").read_text()
    assert "Ours: no finished run yet." in text
    assert "| PARTITIONED |  | 48.6 ± 0.0 |  |  |  |" in text


@pytest.mark.parametrize(
    ("arguments", "words"), [(["3"], "'3' is not one of '1', '2'"), (["1", "--format", "html"], "'html' is not one of")]
)
def test_what_is_not_there_is_refused_in_one_line(run, arguments, words):
    code, _, error = run(*arguments)
    assert code == 2
    assert words in error
    assert error.count("\n") == 1


def test_one_of_a_kind_is_no_plural(in_empty_folder, tmp_path):
    write_protocol_run(tmp_path / "results", "table-1", "prior", "ntk-500-1")
    assert in_empty_folder("table", "1")[1].startswith("1 finished run of table 1 under ")
    listed = ("sweep", "train-digits", "--hparam", "prior", "--list", "--device", "cpu")
    assert in_empty_folder(*listed)[1].endswith("\n1 cell, 0 done\n")
    few = ("--hparam", "prior", "--num-data", 20, "--epochs", 1, "--device", "cpu")
    assert (
        "in 1 epoch no hyperparameter is updated"
        in in_empty_folder("train", "--estimator", "ntk-10-1", "--burn-in", 0, *few)[2]
    )
    grid = ("--grid-points", 1, "--estimators", "ntk-N-C")
    assert ", 1 estimator, 1 grid point\n" in in_empty_folder("bound-grid", *grid, *few)[1]


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_a_mistyped_folder_replaces_no_table(run, tmp_path, name):
    run("1")
    (tmp_path / "file").touch()
    table = tmp_path / "tables" / "table-1.csv"
    before = table.stat().st_mtime_ns
    code, _, error = run("1", "--results", name)
    assert code == 1
    assert error == f"Error: no folder {name}: name one that holds runs with --results\n"
    assert table.stat().st_mtime_ns == before


def test_a_subset_figure_reads_the_runs_that_it_names(in_empty_folder, tmp_path):
    write_protocol_run(tmp_path / "results", "figure-7-reduced", "invariance", "kfac-400-1", dataset="cifar10-jpeg")
    code, out, _ = in_empty_folder("plot", "figure-15", "--format", "png")
    assert code == 0
    assert out.startswith("Read results/train/kfac-400-1-")
    assert out.endswith("Wrote figures/figure-15.png\n")
    code, _, error = in_empty_folder("plot", "figure-15", "--csv", "rows.csv")
    assert code == 1
    assert "name their folder with --results, not --csv" in error
    code, _, error = in_empty_folder("plot", "figure-16", "--results", "elsewhere")
    assert code == 1
    assert "no finished training run under elsewhere for figure-16; run: ntkml train --protocol figure-7 " in error
