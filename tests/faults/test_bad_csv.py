"""Files that are not rows of a bound grid: one clear line each."""

import pytest

from ntkml import records
from tests.synthetic import rows_of


@pytest.fixture
def good(tmp_path):
    return records.write_rows(tmp_path / "good.csv", rows_of(["ntk-N-C", "ntk-100-C"], "prior", points=3))


def _bad(tmp_path, text):
    path = tmp_path / "bad.csv"
    path.write_text(text) if isinstance(text, str) else path.write_bytes(text)
    return path


def test_no_file_at_all():
    with pytest.raises(ValueError, match="no CSV file was given; pass at least one"):
        records.read_rows()


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.csv: no such file"):
        records.read_rows(tmp_path / "nothing.csv")


def test_a_folder(tmp_path):
    with pytest.raises(ValueError, match="is a folder, expected a CSV file"):
        records.read_rows(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not a CSV file"),
        ("a,b\n1,2,3\n1,2,3,4,5\n", "not a CSV file"),
        ("epoch,loss\n1,2\n", "not a file of 'bound-grid', missing columns: run_id, command, dataset"),
    ],
)
def test_something_else(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"bad\.csv: {message}"):
        records.read_rows(_bad(tmp_path, content))


def test_a_truncated_archive(tmp_path, good):
    path = tmp_path / "rows.csv.gz"
    records.write_rows(path, rows_of(["ntk-N-C"], "prior"))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"rows\.csv\.gz: not a CSV file"):
        records.read_rows(path)


def test_rows_of_another_command(tmp_path, good):
    path = _bad(tmp_path, good.read_text().replace(",bound-grid,", ",pareto,"))
    with pytest.raises(ValueError, match=r"bad\.csv: holds rows of 'pareto', expected rows of 'bound-grid'"):
        records.read_rows(path)


def test_missing_columns_are_named(tmp_path, good):
    path = _bad(tmp_path, good.read_text().replace("standard_error", "sem").replace("dtype", "type"))
    with pytest.raises(ValueError, match=r"missing columns: standard_error, dtype$"):
        records.read_rows(path)


def test_a_header_alone(tmp_path, good):
    with pytest.raises(ValueError, match="has a header but no rows"):
        records.read_rows(_bad(tmp_path, good.read_text().splitlines()[0] + "\n"))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("log_det", "abc", "column log_det, line 3: expected a finite number, got 'abc'"),
        ("log_det", "inf", "column log_det, line 3: expected a finite number, got 'inf'"),
        ("log_det", "nan", "column log_det, line 3: expected a finite number, got 'nan'"),
        ("seed", "1.5", "column seed, line 3: expected a whole number, got '1.5'"),
        ("certified", "maybe", "column certified, line 3: expected true or false, got 'maybe'"),
        ("estimator", "", "column estimator is empty in line 3"),
    ],
)
def test_a_cell_that_its_column_cannot_hold(tmp_path, good, column, value, message):
    lines = good.read_text().splitlines()
    cells = lines[2].split(",")
    cells[list(records.COLUMNS).index(column)] = value
    path = _bad(tmp_path, "\n".join([*lines[:2], ",".join(cells), *lines[3:]]) + "\n")
    with pytest.raises(ValueError, match=rf"bad\.csv: {message}"):
        records.read_rows(path)


def test_the_same_rows_twice(good):
    with pytest.raises(
        ValueError, match=r"the row of ntk-N-C at prior = 0\.0001, seed 0, is there more than once; give each file once"
    ):
        records.read_rows(good, good)
