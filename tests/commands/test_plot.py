"""``ntkml plot`` from files and from finished runs."""

import os
import subprocess
import sys
from functools import partial

import pytest

from ntkml.figures.drawing import draw
from ntkml.protocols.bound_figures import figure_names
from ntkml.protocols.bound_grid import load_bound_grid
from ntkml.records import bound_grid as bound_records
from tests.pictures import caption_of
from tests.synthetic import rows_of, write_run

ALL = load_bound_grid("mnist-bounds", "prior").estimators
FIGURE_3 = load_bound_grid("figure-3", "prior").estimators


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder, command_line):
    """``ntkml plot ...`` in an empty folder."""
    return partial(command_line, "plot")


def is_picture(path):
    return path.read_bytes()[:4] in (b"\x89PNG", b"%PDF")


@pytest.mark.parametrize("name", ["figure-2", *figure_names()])
def test_every_figure_is_drawn_and_named(run, folder, name):
    for hparam in ("prior", "rotation"):
        write_run(folder / "results", ALL, hparam, points=5)
    code, out, error = run(name, "--format", "png", "--format", "pdf")
    assert (code, error) == (0, "")
    assert f"Wrote figures/{name}.png\nWrote figures/{name}.pdf\n" in out
    assert is_picture(folder / "figures" / f"{name}.png")
    assert is_picture(folder / "figures" / f"{name}.pdf")
    assert len(os.listdir(folder / "figures")) == 2


def test_torch_is_never_imported(folder):
    write_run(folder / "results", FIGURE_3, "prior", points=5)
    code = (
        "import sys\nfrom ntkml.commands import main\n"
        "try:\n    main(['plot', 'figure-3', '--format', 'png'])\nexcept SystemExit as leaving:\n    assert not leaving.code\n"
        "assert 'matplotlib' in sys.modules\nassert 'torch' not in sys.modules"
    )
    path = os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr


def test_files_used_and_the_empty_panel_are_said(run, blank_pictures, folder):
    rows = write_run(folder / "elsewhere", FIGURE_3, "prior", points=5)
    code, out, error = run("figure-3", "--csv", rows, "--out", "pictures", "--format", "png")
    assert (code, error) == (0, "")
    assert out == f"Read {rows}\nNo rotation rows: that panel stays empty\nWrote pictures/figure-3.png\n"


def test_the_newest_finished_run_with_the_estimators_is_taken(run, blank_pictures, folder):
    results = folder / "results"
    write_run(results, FIGURE_3, "prior", points=5, run_id="0000000001", finished_at="2026-01-01T00:00:00Z")
    newest = write_run(results, FIGURE_3, "prior", points=5, run_id="0000000002", finished_at="2026-02-01T00:00:00Z")
    write_run(results, FIGURE_3, "prior", points=5, run_id="0000000003", finished_at=None)
    write_run(results, FIGURE_3[:2], "prior", points=5, run_id="0000000004", finished_at="2026-03-01T00:00:00Z")
    # Other data than the newest run's: not to be mixed into one figure.
    write_run(results, FIGURE_3, "rotation", points=5, run_id="0000000005", dataset="digits_r180")
    rotation = write_run(results, FIGURE_3, "rotation", points=5, run_id="0000000006")
    code, out, _ = run("figure-3", "--format", "png")
    assert code == 0
    assert out.splitlines()[:2] == [f"Read {path.relative_to(folder)}" for path in (newest, rotation)]


def test_a_run_on_as_few_data_as_a_block_holds_is_drawn(folder):
    """Its rows call that block by the name of all data."""
    names = [name.replace("-500-", "-N-") for name in load_bound_grid("figure-5", "prior").estimators]
    path = write_run(folder / "results", dict.fromkeys(names), "prior", points=5, num_data=500)
    drawn = draw("figure-5", [], folder / "results")
    assert drawn.files == (path,)
    assert "Missing" not in caption_of(drawn.figure)


def test_other_seeds_of_the_newest_run_are_averaged(run, blank_pictures, folder):
    results = folder / "results"
    paths = [
        write_run(
            results,
            FIGURE_3,
            "prior",
            points=5,
            seeds=(seed,),
            run_id=f"000000000{seed}",
            finished_at=f"2026-01-0{seed}T00:00:00Z",
        )
        for seed in (1, 2)
    ]
    _, out, _ = run("figure-3", "--format", "png")
    assert [line for line in out.splitlines() if line.startswith("Read")] == [
        f"Read {path.relative_to(folder)}" for path in paths
    ]


def test_the_newest_run_of_any_kind(run, blank_pictures, folder):
    write_run(folder / "results", ["ntk-N-C", "ntk-100-C"], "rotation", points=5, dataset="digits_r180")
    code, out, _ = run("bound-grid", "--format", "png")
    assert code == 0
    assert out.endswith("Wrote figures/bound-grid-rotation-digits_r180-12e4567890.png\n")


@pytest.mark.parametrize(("dataset", "named"), [("my photos <1>", "my photos <1>"), ("../a\t", ".._a_")])
def test_a_picture_is_named_after_its_run_and_chooses_no_folder(run, blank_pictures, folder, dataset, named):
    path = bound_records.write_rows("rows.csv", rows_of(["ntk-N-C"], "prior", points=5, dataset=dataset))
    code, out, error = run("bound-grid", "--csv", path, "--format", "png")
    assert code == 0, error
    assert out.endswith(f"Wrote figures/bound-grid-prior-{named}-12e4567890.png\n")


def test_a_file_without_a_manifest_is_drawn(run, blank_pictures, folder):
    rows = write_run(folder, FIGURE_3, "prior", points=5).rename(folder / "rows.csv")
    assert run("figure-3", "--csv", rows, "--format", "png")[0] == 0


def test_the_caption_names_estimators_of_which_the_rows_were_lost(folder):
    """A file that was cut between two estimators is whole as far as its rows can tell."""
    path = write_run(folder / "results", ["ntk-N-C", "ntk-100-C", "ntk-50-C"], "prior", points=5)
    words = "Not in the rows of run 12e4567890, which computed them: ntk-50-C."
    assert words not in caption_of(draw("bound-grid", [path], folder).figure)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if ",ntk-50-C," not in line))
    assert words in caption_of(draw("bound-grid", [path], folder).figure)


def test_an_older_picture_is_replaced_and_rows_are_not_touched(run, folder):
    rows = write_run(folder / "results", FIGURE_3, "prior", points=5)
    before = rows.read_bytes()
    (folder / "figures").mkdir()
    (folder / "figures" / "figure-3.png").write_text("old")
    assert run("figure-3", "--format", "png")[0] == 0
    assert is_picture(folder / "figures" / "figure-3.png")
    assert rows.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("figure-33",), 2, "unknown figure 'figure-33'; did you mean 'figure-3'? known: figure-1, figure-2"),
        ((), 2, "Missing argument 'NAME'"),
        (("figure-2", "--csv", "rows.csv"), 2, "figure-2 is a schematic and reads no rows; leave out --csv"),
        (("figure-3", "--format", "svg"), 2, "'svg' is not one of 'png', 'pdf'"),
        (
            ("figure-3",),
            1,
            "no finished bound-grid run under results holds the estimators of figure-3; run: ntkml bound-grid --hparam prior --protocol figure-3",
        ),
        (
            ("bound-grid",),
            1,
            "no finished bound-grid run under results holds the estimators of bound-grid; run: ntkml bound-grid --hparam prior (and",
        ),
        (("figure-3", "--csv", "none.csv"), 1, "none.csv: no such file"),
    ],
)
def test_what_cannot_be_drawn_is_one_line_and_writes_nothing(run, folder, arguments, code, message):
    status, out, error = run(*arguments)
    assert (status, out) == (code, "")
    assert error.startswith("Error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not os.listdir(folder)


def test_a_file_in_the_place_of_the_folder(run, folder):
    (folder / "figures").write_text("mine")
    code, _, error = run("figure-2")
    assert (code, error) == (1, "Error: figures is a file, expected a folder to write to; choose another with --out\n")
    assert (folder / "figures").read_text() == "mine"


def test_a_damaged_manifest_is_named(run, folder):
    rows = write_run(folder / "results", FIGURE_3, "prior", points=5)
    rows.with_name("manifest.json").write_text("{")
    code, _, error = run("figure-3")
    assert code == 1
    assert f"{rows.with_name('manifest.json').relative_to(folder)}: not a JSON file" in error
    assert "the run is damaged; remove results/" in error


def test_a_manifest_without_its_keys_is_no_finished_run(run, folder):
    rows = write_run(folder / "results", FIGURE_3, "prior", points=5)
    rows.with_name("manifest.json").write_text('{"command": "bound-grid", "finished_at": "2026"}')
    code, _, error = run("figure-3")
    assert code == 1
    assert "no finished bound-grid run under results" in error
