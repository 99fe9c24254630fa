"""``ntkml report``: one page that opens from disk, says where everything comes from and replaces nothing but itself."""

import html
import json
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pandas
import pytest

from ntkml.protocols.bound_grid import load_bound_grid
from ntkml.records.manifests import read_manifest, write_manifest
from ntkml.report.contents import gather
from ntkml.report.summaries import bound_table, cell, table, training_table
from tests.synthetic import rows_of, write_run
from tests.synthetic_training import training_rows, write_training_run

FIGURE_3 = load_bound_grid("figure-3", "prior").estimators
CHROMIUM = shutil.which("chromium")


@pytest.fixture
def report(in_empty_folder):
    """``ntkml report ...`` in a folder of its own."""
    return partial(in_empty_folder, "report")


@pytest.fixture
def results(tmp_path):
    write_run(tmp_path / "results", FIGURE_3, "prior", points=5)
    write_training_run(tmp_path / "results", "ntk-100-1", "prior")
    return tmp_path / "results"


def test_the_page_shows_figures_tables_and_runs_and_needs_no_network(report, results):
    code, out, error = report()
    assert (code, error) == (0, "")
    assert out.endswith("Wrote report.html\n")
    page = (results.parent / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == int(out.partition(" figures")[0])
    assert not re.search(r'(src|href)="(?!data:|#)', page), "something is loaded from elsewhere"
    for name in (
        "Bounds over a grid",
        "Training runs",
        "bound-grid/prior-mnist-12e4567890/rows.csv",
        "Synthetic rows.",
    ):
        assert name in page
    assert "<dt>figure-1</dt><dd>no finished pareto run under results" in page


def test_runs_that_count_nowhere_are_named_with_the_reason(report, blank_pictures, results):
    without_rows = write_training_run(results, "ntk-10-1", "prior").parent
    (without_rows / "rows.csv").unlink()
    stopped = write_training_run(results, "ntk-20-1", "prior", finished_at=None).parent
    assert report()[0] == 0
    page = (results.parent / "report.html").read_text()
    assert "Left out: 2 runs" in page
    for folder, reason in ((without_rows, "finished, but its rows.csv is missing"), (stopped, "not finished: ")):
        assert f"<dt><code>{folder.relative_to(results)}</code></dt><dd>{reason}" in page


def test_what_files_say_cannot_become_markup(report, blank_pictures, tmp_path):
    write_run(tmp_path / "results", FIGURE_3, "prior", points=5, dataset="<script>alert(1)</script>")
    assert report()[0] == 0
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page
    assert html.escape("<script>alert(1)</script>") in page


def test_a_report_is_replaced_and_another_file_is_not(report, blank_pictures, results):
    other = results.parent / "thesis.html"
    other.write_text("<title>my thesis</title>")
    code, _, error = report("--out", other)
    assert code == 2
    assert "is no report of ntkml: name another file" in error
    assert other.read_text() == "<title>my thesis</title>"
    other.write_text("<title>ntkml report: old</title>")
    assert report("--out", other)[0] == 0
    assert "old</title>" not in other.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--results", "nowhere"), "no folder nowhere: name one that holds runs with --results"),
        (("--results", "."), "no finished run under ."),
        (("--out", "."), "is a folder: name a file"),
        (("--results", ".", "--out", "deep/in/report.html"), "no finished run under ."),
    ],
)
def test_what_is_wrong_is_said_in_one_line(report, tmp_path, arguments, message):
    code, _, error = report(*arguments)
    assert code != 0
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_stopped_runs_alone_are_no_report_and_counted(report, tmp_path):
    write_training_run(tmp_path / "results", "ntk-20-1", "prior", finished_at=None)
    code, _, error = report()
    assert code != 0
    assert "no finished run under results (1 stopped or without rows): run ntkml train" in error


def test_a_run_is_shown_by_its_last_recorded_values():
    rows = training_rows("ntk-100-1", "prior", epochs=12)
    rows[-1]["log_marginal_likelihood"], rows[-2]["log_marginal_likelihood"] = None, -7.0
    shown = training_table(pandas.DataFrame(rows))
    assert shown.rows[0][shown.columns.index("log q / N")].text == "-7"


def test_the_likelihood_is_shown_where_runs_have_another_than_that_of_classes():
    rows, other = (pandas.DataFrame(training_rows("ntk-100-1", "prior", seed, epochs=12)) for seed in (0, 1))
    assert "likelihood" not in training_table(rows).columns
    shown = training_table(pandas.concat([rows, other.assign(likelihood="gaussian")]))
    assert [row[shown.columns.index("likelihood")].text for row in shown.rows] == ["categorical", "gaussian"]


def test_compared_systems_are_shown_the_best_of_each_data_set_first(blank_pictures, tmp_path):
    reference = Path(__file__).parents[2] / "results/reference/comparison"
    for name in ("invariance-digits_r180", "prior-digits"):
        shutil.copytree(reference / name, tmp_path / name)
    [shown] = [table for table in gather(tmp_path).tables if table.title == "Systems compared"]
    rows = [dict(zip(shown.columns, row, strict=True)) for row in shown.rows]
    of_data = {name: [row for row in rows if row["data set"].text == name] for name in ("digits", "digits_r180")}
    assert rows == of_data["digits"] + of_data["digits_r180"]
    for same in of_data.values():
        values = [row["test log lik."].number for row in same]
        assert len(values) > 10
        assert values == sorted(values, reverse=True)


def test_slack_is_measured_at_the_best_point_of_the_exact_curve():
    rows = pandas.DataFrame(rows_of(["ntk-N-C", "ntk-100-C"], "prior", points=9))
    table = bound_table([rows])
    wide = rows[rows.block.isna()].pivot(index="hparam_value", columns="estimator", values="log_marginal_likelihood")
    best = wide["ntk-N-C"].idxmax()
    by_name = {row[table.columns.index("estimator")].text: row for row in table.rows}
    assert by_name["ntk-N-C"][-1].number == 0
    assert by_name["ntk-100-C"][-1].number == pytest.approx(wide.loc[best, "ntk-N-C"] - wide.loc[best, "ntk-100-C"])
    assert by_name["ntk-100-C"][table.columns.index("best at")].number == wide["ntk-100-C"].idxmax()


def test_bounds_are_averaged_over_seeds_of_otherwise_equal_runs_alone(tmp_path):
    for run_id, options in {"a": {}, "b": {"seeds": (1,)}, "c": {"num_data": 300}}.items():
        write_run(tmp_path, ["ntk-N-C", "ntk-100-C"], "prior", points=5, run_id=run_id, **options)
    again = tmp_path / "bound-grid" / "prior-mnist-a"  # the same settings on another device have the same id
    shutil.copytree(again, tmp_path / "elsewhere" / "a")
    earlier = tmp_path / "elsewhere" / "a" / "manifest.json"
    write_manifest(earlier, read_manifest(earlier) | {"finished_at": "2025-01-01T00:00:00Z"})
    [bounds] = [table for table in gather(tmp_path).tables if table.title == "Bounds over a grid"]
    shown = [dict(zip(bounds.columns, (cell.text for cell in row), strict=True)) for row in bounds.rows]
    assert {(row["runs"], row["seeds"], row["N"]) for row in shown} == {("a b", "0 1", "1000"), ("c", "0", "300")}
    assert len(shown) == 4


def test_the_machine_of_a_run_is_its_gpu_and_its_processor(results):
    machines = [{"cpu": "a CPU"}, {"gpu": "a GPU", "cpu": "a CPU"}]
    for path, environment in zip(sorted(results.rglob("manifest.json")), machines, strict=True):
        write_manifest(path, read_manifest(path) | {"environment": environment})
    assert [run.machine for run in gather(results).runs] == ["a CPU", "a GPU, a CPU"]


def test_half_widths_are_shown_by_their_magnitudes():
    [row] = table("", "", pandas.DataFrame({"eta_2": [-1.5]}), {"|rotation| (rad)": "eta_2"}).rows
    assert row[0].number == 1.5


def test_a_missing_value_is_blank():
    assert cell(None).text == cell(float("nan")).text == ""
    assert cell(True).text == "yes"
    assert cell(0.123456).text == "0.1235"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: the page is not opened in a browser")
def test_a_browser_sorts_and_filters(report, results):
    assert report()[0] == 0
    page = (results.parent / "report.html").read_text()
    probe = """<script>
    const has = (table) => [...table.tHead.rows[0].cells].some((cell) => cell.textContent === "best at");
    const table = [...document.querySelectorAll("table.sortable")].find(has);
    const column = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === "best at");
    const values = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[column].dataset.value));
    const button = table.tHead.rows[0].cells[column].querySelector("button");
    button.click(); const rising = values(); button.click(); const falling = values();
    const input = table.closest("section").querySelector("input.filter"); input.value = "kfac-n-c"; input.dispatchEvent(new Event("input"));
    const shown = [...table.tBodies[0].rows].filter((row) => !row.hidden).length;
    const before = document.documentElement.dataset.theme; document.getElementById("theme").click();
    document.title = JSON.stringify({ rising, falling, shown, themed: document.documentElement.dataset.theme !== before });
    </script></body>"""
    probed = results.parent / "probed.html"
    probed.write_text(page.replace("</body>", probe))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={results.parent / 'profile'}"]
    done = subprocess.run([*command, "--dump-dom", probed.as_uri()], capture_output=True, text=True, timeout=120)
    seen = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout).group(1)))
    assert seen["rising"] == sorted(seen["rising"]) == seen["falling"][::-1]
    assert len(seen["rising"]) == len(FIGURE_3)
    assert seen["shown"] == 1
    assert seen["themed"]
