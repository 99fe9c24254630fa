"""Files that are not rows of a bound grid: one clear line each."""

import pytest

from ntkml.records import bound_grid as bound_records
from ntkml.records import compare as compare_records
from ntkml.records import pareto as pareto_records
from ntkml.records import train as train_records
from ntkml.records.tables import write_rows
from tests.synthetic import rows_of
from tests.synthetic_training import pareto_rows, training_rows


@pytest.fixture
def good(tmp_path):
    return bound_records.write_rows(tmp_path / "good.csv", rows_of(["ntk-N-C", "ntk-100-C"], "prior", points=3))


def _bad(tmp_path, text):
    path = tmp_path / "bad.csv"
    path.write_text(text) if isinstance(text, str) else path.write_bytes(text)
    return path


def test_no_file_at_all():
    with pytest.raises(ValueError, match="no CSV file was given; pass at least one"):
        bound_records.read_rows()


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.csv: no such file"):
        bound_records.read_rows(tmp_path / "nothing.csv")


def test_a_folder(tmp_path):
    with pytest.raises(ValueError, match="is a folder, expected a CSV file"):
        bound_records.read_rows(tmp_path)


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
        bound_records.read_rows(_bad(tmp_path, content))


def test_a_truncated_or_damaged_archive(tmp_path, good):
    path = tmp_path / "rows.csv.gz"
    bound_records.write_rows(path, rows_of(["ntk-N-C"], "prior"))
    data = path.read_bytes()
    for damaged in (data[:-30], data[:40] + bytes(20) + data[60:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"rows\.csv\.gz: not a CSV file"):
            bound_records.read_rows(path)


@pytest.mark.parametrize("cells", [1, 3, -1])
def test_a_file_that_was_cut_in_the_middle_of_a_line(tmp_path, good, cells):
    *whole, last = good.read_text().splitlines()
    path = _bad(tmp_path, "\n".join([*whole, ",".join(last.split(",")[:cells])]))
    line = len(whole) + 1
    with pytest.raises(
        ValueError, match=rf"bad\.csv: the last line, {line}, has fewer cells than the header; was the file cut"
    ):
        bound_records.read_rows(path)


def test_blank_lines_at_the_end_are_no_cut(tmp_path, good):
    path = _bad(tmp_path, good.read_text() + "\n   \n")
    assert len(bound_records.read_rows(path)) == len(bound_records.read_rows(good))


def test_rows_of_another_command(tmp_path, good):
    path = _bad(tmp_path, good.read_text().replace(",bound-grid,", ",pareto,"))
    with pytest.raises(ValueError, match=r"bad\.csv: holds rows of 'pareto', expected rows of 'bound-grid'"):
        bound_records.read_rows(path)


def test_missing_columns_are_named(tmp_path, good):
    path = _bad(tmp_path, good.read_text().replace("standard_error", "sem").replace("dtype", "type"))
    with pytest.raises(ValueError, match=r"missing columns: standard_error, dtype$"):
        bound_records.read_rows(path)


def test_a_header_alone(tmp_path, good):
    with pytest.raises(ValueError, match="has a header but no rows"):
        bound_records.read_rows(_bad(tmp_path, good.read_text().splitlines()[0] + "\n"))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("log_det", "abc", "column log_det, line 3: expected a finite number, got 'abc'"),
        ("log_det", "inf", "column log_det, line 3: expected a finite number, got 'inf'"),
        ("log_det", "nan", "column log_det, line 3: expected a finite number, got 'nan'"),
        ("seed", "1.5", "column seed, line 3: expected a whole number below 2.63, got '1.5'"),
        ("seed", "99999999999999999999", "column seed, line 3: expected a whole number below 2.63, got '9{20}'"),
        ("peak_bytes", "1e30", "column peak_bytes, line 3: expected a whole number below 2.63, got '1e30'"),
        ("hparam", "foo", "column hparam, line 3: expected prior or rotation, got 'foo'"),
        ("hparam_value", "-1", "column hparam_value, line 3: expected a number above 0 .prior. or .*, got -1"),
        ("hparam_value", "0", "column hparam_value, line 3: expected a number above 0 .prior. or .*, got 0"),
        ("estimator", "foo", "column estimator, line 3: expected the name of an estimator such as .*, got 'foo'"),
        ("estimator", "none", "column estimator, line 3: expected the name of an estimator such as .*, got 'none'"),
        ("inputs", "n", "column inputs, line 3: expected the inputs that the estimator's name says, got 'n'"),
        ("outputs", "foo", "column outputs, line 3: expected the outputs that the estimator's name says, got 'foo'"),
        ("structure", "kfac", "column structure, line 3: expected the structure that the .* name says, got 'kfac'"),
        ("grouping", "class", "column grouping, line 3: expected the grouping that the .* name says, got 'class'"),
        ("estimator", "ntk-9999999999999999999-C", "column estimator, line 3: expected the name of an estimator"),
        ("num_data", "0", "column num_data, line 3: expected a number above 0, got 0"),
        ("certified", "maybe", "column certified, line 3: expected true or false, got 'maybe'"),
        ("estimator", "", "column estimator is empty in line 3"),
    ],
)
def test_a_cell_that_its_column_cannot_hold(tmp_path, good, column, value, message):
    lines = good.read_text().splitlines()
    cells = lines[2].split(",")
    cells[list(bound_records.COLUMNS).index(column)] = value
    path = _bad(tmp_path, "\n".join([*lines[:2], ",".join(cells), *lines[3:]]) + "\n")
    with pytest.raises(ValueError, match=rf"bad\.csv: {message}"):
        bound_records.read_rows(path)


def test_the_same_rows_twice(good):
    with pytest.raises(
        ValueError, match=r"the row of ntk-N-C at prior = 0\.0001, seed 0, is there more than once; give each file once"
    ):
        bound_records.read_rows(good, good)


def test_a_rotation_of_zero_is_none_at_all(tmp_path):
    rows = rows_of(["ntk-N-C"], "rotation", points=3)
    assert bound_records.read_rows(bound_records.write_rows(tmp_path / "rows.csv", rows))["hparam_value"].min() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimator": "foo"}, "column estimator, line 3: expected the name of an estimator such as .*, got 'foo'"),
        ({"seeds": "a b"}, "column seeds, line 3: expected whole numbers with spaces between them, .*, got 'a b'"),
        ({"hparam": "rotation"}, "column hparam, line 3: expected prior or invariance, got 'rotation'"),
        ({"num_pairs": 0}, "column num_pairs, line 3: expected a number above 0, got 0"),
        ({"seconds_low": -0.5}, "column seconds_low, line 3: expected a number above 0, got -0.5"),
    ],
)
def test_edited_rows_of_a_pareto_run(tmp_path, change, message):
    first, second = pareto_rows(["ntk-N-C", "ntk-100-1"], "prior", seeds=(0,))
    path = write_rows(tmp_path / "bad.csv", [first, second | change], pareto_records.COLUMNS)
    with pytest.raises(ValueError, match=rf"bad\.csv: {message}"):
        pareto_records.read_rows(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"system": "foo"},
            "column system, line 2: expected the name of an estimator or another system, .*, got 'foo'",
        ),
        ({"family": "hoag"}, "column family, line 2: expected bound for estimators .* alone, got 'hoag'"),
        ({"seconds": 0.0}, "column seconds, line 2: expected a number above 0, got 0"),
    ],
)
def test_edited_rows_of_a_comparison(tmp_path, change, message):
    row = {
        "run_id": "a", "command": "compare", "dataset": "digits", "model": "mininet", "seed": 0, "num_data": 100,
        "num_params": 1000, "hparam": "prior", "system": "ntk-50-tree", "family": "bound", "learns_from": "train",
        "epochs": 10, "test_log_likelihood": -1.0, "test_accuracy": 0.9, "test_ece": None, "prior_precision_median": 1.0,
        "eta_2": None, "fits": 1, "data_passes": 20.0, "seconds": 3.0, "device": "cpu",
    }  # fmt: skip
    assert len(compare_records.read_rows(write_rows(tmp_path / "good.csv", [row], compare_records.COLUMNS))) == 1
    path = write_rows(tmp_path / "bad.csv", [row | change], compare_records.COLUMNS)
    with pytest.raises(ValueError, match=rf"bad\.csv: {message}"):
        compare_records.read_rows(path)


def test_training_rows_may_be_empty_where_nothing_was_measured(tmp_path):
    bound, none = training_rows("ntk-100-C", "prior", epochs=2)[1], training_rows("ntk-100-C", "prior", 1, epochs=2)[1]
    without = {"inputs": None, "outputs": None, "certified": None, "log_marginal_likelihood": None}
    none |= {"estimator": "grid-5", "structure": "grid", "test_accuracy": None, "test_log_likelihood": None} | without
    rows = [bound | {"prior_precisions": "[1.0, 2.5e-3, 4]", "observation_noise": 0.5}, none]
    assert len(train_records.read_rows(write_rows(tmp_path / "rows.csv", rows, train_records.COLUMNS))) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimator": "foo"}, "column estimator, line 3: expected the name of an estimator or another .*, got 'foo'"),
        ({"estimator": "map"}, "column estimator, line 3: expected the name of an estimator or another .*, got 'map'"),
        ({"estimator": "none"}, "column structure, line 3: expected the structure that .* name says, got 'ntk'"),
        (
            {"inputs": None},
            "column inputs, line 3: expected the inputs that the estimator's name says, got an empty cell",
        ),
        (
            {"certified": None},
            "column certified, line 3: expected true or false for estimators .* alone, got an empty cell",
        ),
        ({"hparam": "rotation"}, "column hparam, line 3: expected prior or invariance, got 'rotation'"),
        ({"likelihood": "x"}, "column likelihood, line 3: expected categorical or bernoulli or gaussian, got 'x'"),
        ({"num_data": 0}, "column num_data, line 3: expected a number above 0, got 0"),
        ({"num_params": -3}, "column num_params, line 3: expected a number above 0, got -3"),
        ({"epoch": 0}, "column epoch, line 3: expected a number above 0, got 0"),
        ({"seed": -1}, "column seed, line 3: expected a number of 0 or more, got -1"),
        ({"test_accuracy": 93.5}, "column test_accuracy, line 3: expected a number from 0 to 1, got 93.5"),
        ({"test_ece": -0.1}, "column test_ece, line 3: expected a number from 0 to 1, got -0.1"),
        ({"observation_noise": 0.0}, "column observation_noise, line 3: expected a number above 0, got 0"),
        ({"prior_precision_min": 0.0}, "column prior_precision_min, line 3: expected a number above 0, got 0"),
        ({"prior_precisions": "1 2"}, "column prior_precisions, line 3: expected numbers above 0 as .*, got '1 2'"),
        ({"prior_precisions": "[1, -2]"}, r"column prior_precisions, line 3: expected numbers .*, got '\[1, -2\]'"),
        ({"prior_precisions": "[" * 100_000}, "column prior_precisions, line 3: expected numbers above 0 as "),
        ({"prior_precisions": f"[{10**400}]"}, "column prior_precisions, line 3: expected numbers above 0 as "),
        ({"prior_precisions": "[NaN]"}, "column prior_precisions, line 3: expected numbers above 0 as "),
        ({"prior_precisions": "[true]"}, "column prior_precisions, line 3: expected numbers above 0 as "),
        ({"prior_precisions": "5"}, "column prior_precisions, line 3: expected numbers above 0 as "),
        ({"prior_precisions": "[]"}, "column prior_precisions, line 3: expected numbers above 0 as "),
        ({"prior_precisions": '{"a": 1}'}, "column prior_precisions, line 3: expected numbers above 0 as "),
        (
            {"eta_0": 0.1},
            "column eta_1, line 3: expected a number where eta_0 has one, else nothing, got an empty cell",
        ),
        ({"seconds_hyper": -1.0}, "column seconds_hyper, line 3: expected a number of 0 or more, got -1"),
        ({"seed": 1}, "column seed, line 3: expected the same in every row of one run_id, got 1"),
        ({"dataset": "x"}, "column dataset, line 3: expected the same in every row of one run_id, got 'x'"),
    ],
)
def test_edited_rows_of_a_training_run(tmp_path, change, message):
    first, second = training_rows("ntk-100-C", "prior", epochs=2)
    path = write_rows(tmp_path / "bad.csv", [first, second | change], train_records.COLUMNS)
    with pytest.raises(ValueError, match=rf"bad\.csv: {message}"):
        train_records.read_rows(path)
