"""Rows and manifests: what is written is read back, files appear whole, and rows that break the schema are refused."""

import errno
import gzip
import itertools
import json
import os
import re
import stat
import subprocess
import sys
import tempfile
import time

import pandas
import pytest
import torch

from ntkml.machine import files
from ntkml.records import bound_grid as bound_records
from ntkml.records.manifests import read_manifest, settings_id, write_manifest
from ntkml.records.provenance import environment
from ntkml.runs import surroundings
from tests.synthetic import rows_of

ESTIMATORS = ("ntk-N-C", "ntk-100-1", "kfac-N-C", "ntk-10-C+class")


@pytest.fixture
def rows():
    return rows_of(ESTIMATORS, "prior", points=3, seeds=(0, 1))


def test_the_schema_is_the_published_one():
    assert ",".join(bound_records.COLUMNS) == (
        "run_id,command,dataset,model,seed,num_data,num_params,estimator,structure,inputs,outputs,grouping,hparam,hparam_value,"
        "block,num_blocks,certified,log_marginal_likelihood,standard_error,log_likelihood,log_prior,log_det,exceeds_exact,"
        "seconds,peak_bytes,device,dtype"
    )


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_rows_come_back_as_they_were(tmp_path, rows, name):
    table = bound_records.read_rows(bound_records.write_rows(tmp_path / name, rows))
    assert list(table) == list(bound_records.COLUMNS)
    for row, (_, read) in zip(rows, table.iterrows(), strict=True):
        for column, value in row.items():
            if value is None:
                assert pandas.isna(read[column]), column
            elif isinstance(value, float):
                assert read[column] == pytest.approx(value, rel=1e-9), column
            else:
                assert read[column] == value, column


def test_columns_have_their_types(tmp_path, rows):
    table = bound_records.read_rows(bound_records.write_rows(tmp_path / "rows.csv", rows))
    assert str(table["block"].dtype) == str(table["peak_bytes"].dtype) == "Int64"
    assert str(table["certified"].dtype) == str(table["exceeds_exact"].dtype) == "boolean"
    assert table["seed"].dtype == "int64"
    assert table["standard_error"].dtype == table["hparam_value"].dtype == "float64"
    filled = bound_records.write_rows(tmp_path / "filled.csv", [row | {"peak_bytes": 1} for row in rows])
    assert str(bound_records.read_rows(filled)["peak_bytes"].dtype) == "Int64"  # as where cells are empty
    # A run id that looks like a number, inputs that are one, and an empty grouping all stay text.
    assert set(table["run_id"]) == {"12e4567890"}
    assert set(table["inputs"]) == {"N", "100", "10"}
    assert set(table["grouping"]) == {"", "class"}


def test_several_files_are_joined(tmp_path, rows):
    first = bound_records.write_rows(tmp_path / "prior.csv", rows)
    second = bound_records.write_rows(tmp_path / "rotation.csv", rows_of(ESTIMATORS, "rotation", points=3))
    assert list(bound_records.read_rows(first, second)["hparam"].unique()) == ["prior", "rotation"]


def test_equal_rows_make_equal_files(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(time, "time", itertools.count().__next__)  # a second for every look
    for name in ("a.csv", "a.csv.gz"):
        assert (
            bound_records.write_rows(tmp_path / name, rows).read_bytes()
            == bound_records.write_rows(tmp_path / f"b{name}", rows).read_bytes()
        )
    assert gzip.decompress((tmp_path / "a.csv.gz").read_bytes()) == (tmp_path / "a.csv").read_bytes()


def test_numbers_are_written_with_ten_digits(tmp_path, rows):
    path = bound_records.write_rows(tmp_path / "rows.csv", [rows[0] | {"log_det": 1 / 3}])
    assert "0.3333333333," in path.read_text()


def test_a_file_has_the_permissions_of_any_new_file(tmp_path, rows):
    path = bound_records.write_rows(tmp_path / "rows.csv", rows)
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, rows, monkeypatch):
    path = bound_records.write_rows(tmp_path / "rows.csv", rows)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        bound_records.write_rows(path, rows[:1])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["rows.csv"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "has unknown columns colour"),
        ({"run_id": None}, "run_id must not be empty"),
        ({"run_id": ""}, "run_id must not be empty"),
        ({"log_det": float("nan")}, "log_det must be a finite number, got nan"),
        ({"log_prior": float("-inf")}, "log_prior must be a finite number, got -inf"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
        ({"block": 3, "exceeds_exact": True}, "exceeds_exact belongs to aggregate rows"),
    ],
)
def test_a_row_that_breaks_the_schema_is_refused_and_nothing_is_written(tmp_path, rows, change, message):
    with pytest.raises(ValueError, match=rf"row 1 of .*rows\.csv:? {message}"):
        bound_records.write_rows(tmp_path / "rows.csv", [rows[0], rows[0] | change])
    assert not os.listdir(tmp_path)


def test_a_row_without_a_column_is_refused(tmp_path, rows):
    del rows[0]["device"]
    with pytest.raises(ValueError, match=r"row 0 of .* lacks device"):
        bound_records.write_rows(tmp_path / "rows.csv", rows)


def test_a_manifest_comes_back_and_its_keys_are_sorted(tmp_path):
    manifest = {
        "run_id": "a",
        "notes": ["π instead of τ"],
        "estimators": {"ntk-N-C": {"certified": True, "num_blocks": 1}},
    }
    path = write_manifest(tmp_path / "manifest.json", manifest)
    assert read_manifest(path) == manifest
    assert list(json.loads(path.read_text())) == sorted(manifest)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no such file"), ("{", "not a JSON file"), ("[1]", "expected a JSON object, got a list")],
)
def test_a_bad_manifest_is_refused(tmp_path, text, message):
    path = tmp_path / "manifest.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=rf"manifest\.json: {message}"):
        read_manifest(path)


def test_a_run_id_names_the_settings_and_not_their_order():
    assert settings_id({"a": 1, "b": [2.5, "x"]}) == settings_id({"b": [2.5, "x"], "a": 1})
    assert settings_id({"a": 1}) != settings_id({"a": 2})
    assert re.fullmatch("[0-9a-f]{10}", settings_id({}))


def test_the_environment_is_json_and_imports_no_torch():
    code = "import json, sys; from ntkml.records import provenance; e = provenance.environment(); print(json.dumps(e)); assert 'torch' not in sys.modules"
    printed = subprocess.run([sys.executable, "-c", code, "--flag"], check=True, capture_output=True, text=True)
    environment = json.loads(printed.stdout)
    assert environment["argv"] == ["-c", "--flag"]
    assert environment["versions"]["python"] == sys.version.split()[0]
    assert environment["versions"]["torch"]
    assert environment["cores"] >= 1
    assert environment["memory_bytes"] > 0
    assert environment["cpu"]
    assert environment["started_at"].endswith("Z")


def test_the_environment_keeps_the_program_and_not_its_place(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/somebody/bin/ntkml", "bound-grid"])
    assert environment()["argv"] == ["ntkml", "bound-grid"]


def test_runs_on_cuda_name_their_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    found = surroundings.environment(torch.device("cuda"))
    assert found["gpu"] == "a GPU"
    assert found.keys() - {"gpu"} == surroundings.environment(torch.device("cpu")).keys() == environment().keys()


def test_a_folder_is_made_and_left_empty(tmp_path):
    folder = files.ensure_writable_folder(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert not os.listdir(folder)


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "results").write_text("mine")
    with pytest.raises(ValueError, match="results is a file, expected a folder to write to; choose another with --out"):
        files.ensure_writable_folder(tmp_path / "results")
    with pytest.raises(ValueError, match="cannot write to the folder .*deeper"):
        files.ensure_writable_folder(tmp_path / "results" / "deeper")


def test_an_unwritable_folder_is_refused(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    # Permissions do not bind an administrator, under whom tests may run.
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(
        ValueError, match=r"cannot write to the folder .* \(Permission denied\); choose another with --out"
    ):
        files.ensure_writable_folder(tmp_path)


def test_a_folder_that_is_tried_leaves_nothing_where_none_was(tmp_path):
    files.check_writable_folder(tmp_path / "a" / "b")
    (tmp_path / "kept").mkdir()
    files.check_writable_folder(tmp_path / "kept")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_folder_made_in_vain_is_removed_again(tmp_path, monkeypatch):
    def full(dir):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(ValueError, match="cannot write to the folder .*b .No space left on device.; choose another"):
        files.ensure_writable_folder(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_process_removes_meanwhile_is_made_again(tmp_path, monkeypatch):
    removed, try_file = [], tempfile.TemporaryFile

    def too_late(dir):
        if not removed:
            removed.append(dir)
            os.rmdir(dir)
        return try_file(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", too_late)
    assert files.ensure_writable_folder(tmp_path / "a").is_dir()
    assert removed == [tmp_path / "a"]


@pytest.mark.parametrize("left_out", ["an aggregate", "a block"])
def test_rows_that_were_cut_between_two_lines_are_refused(tmp_path, rows, left_out):
    blocks = [row for row in rows if row["block"] is not None]
    whole = [row for row in rows if row["block"] is None]
    gone = whole[-1] if left_out == "an aggregate" else blocks[-1]
    path = bound_records.write_rows(tmp_path / "rows.csv", [row for row in rows if row is not gone])
    with pytest.raises(ValueError, match=f"are not whole: some of {re.escape(gone['estimator'])} are missing; restore"):
        bound_records.read_rows(path)
    bound_records.read_rows(bound_records.write_rows(path, whole))  # aggregates alone are a file of their own


def test_a_file_is_parsed_once_while_it_stays_as_it_is(tmp_path, rows, monkeypatch):
    whole = [row for row in rows if row["block"] is None]
    path = bound_records.write_rows(tmp_path / "rows.csv", whole)
    first = bound_records.read_rows(path)
    with monkeypatch.context() as patch:
        patch.setattr(pandas, "read_csv", pytest.fail)
        again = bound_records.read_rows(path)
    pandas.testing.assert_frame_equal(first, again)
    first["seed"] = 7  # of the first caller's frame alone
    pandas.testing.assert_frame_equal(bound_records.read_rows(path), again)
    bound_records.write_rows(path, [row for row in whole if row["seed"] == 1])
    assert set(bound_records.read_rows(path)["seed"]) == {1}
