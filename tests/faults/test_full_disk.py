"""A disk without room: a message with the path and the size, the old files as they were, and nothing half-written."""

from __future__ import annotations

import errno
import re
import signal
import subprocess
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from ntkml.learning.checkpoints import previous, read_checkpoint, write_checkpoint
from ntkml.machine import files
from ntkml.records import train as train_records
from ntkml.records.manifests import write_manifest

resource = pytest.importorskip("resource", reason="needs POSIX limits")

STATE = {"weights": torch.arange(20000.0)}
PRIOR = ("--estimator", "ntk-20-1", "--num-data", 60, "--epochs", 6, "--burn-in", 2, "--device", "cpu")


@contextmanager
def no_file_beyond(size):
    """Writes beyond ``size`` bytes fail, as they do on a full disk, with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 600 kB in memory; only root can have one."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no tmpfs can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk):
    """Leave some 50 kB."""
    files.write_atomically(disk / "ballast", b"x" * 540000)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_refused_and_intact(folder, write, code):
    before = contents(folder)
    with pytest.raises(OSError, match=r"\(writing \d{5,} bytes\)") as caught:
        write()
    assert caught.value.errno == code
    assert contents(folder) == before
    return caught.value


def test_a_checkpoint_that_does_not_fit_leaves_both_files_as_they_were(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for epoch in (1, 2):
        write_checkpoint(path, {"epoch": epoch})
    with no_file_beyond(30000):
        error = assert_refused_and_intact(tmp_path, lambda: write_checkpoint(path, STATE), errno.EFBIG)
    assert error.filename == str(path)
    assert read_checkpoint(path, pytest.fail) == {"epoch": 2}
    assert read_checkpoint(previous(path), pytest.fail) == {"epoch": 1}


def test_rows_and_manifests_that_do_not_fit_leave_the_old_ones(tmp_path):
    manifest, text = tmp_path / "manifest.json", "x" * 40000
    write_manifest(manifest, {"run_id": "old"})
    with no_file_beyond(30000):
        assert_refused_and_intact(tmp_path, lambda: write_manifest(manifest, {"run_id": text}), errno.EFBIG)
        fresh = partial(files.write_atomically, tmp_path / "rows.csv", text.encode())
        assert_refused_and_intact(tmp_path, fresh, errno.EFBIG)


def test_on_a_full_disk_nothing_changes(small_disk):
    path = small_disk / "checkpoint.pt"
    for epoch in (1, 2):
        write_checkpoint(path, {"epoch": epoch})
    fill(small_disk)
    error = assert_refused_and_intact(small_disk, lambda: write_checkpoint(path, STATE), errno.ENOSPC)
    assert re.fullmatch(
        rf"\[Errno {errno.ENOSPC}\] No space left on device \(writing 8\d{{4}} bytes\): '{path}'", str(error)
    )
    (small_disk / "ballast").unlink()
    write_checkpoint(path, STATE)
    assert read_checkpoint(previous(path), pytest.fail) == {"epoch": 2}


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_run_on_a_full_disk_ends_with_one_line_and_goes_on_when_there_is_room(in_empty_folder, small_disk, only):
    fill(small_disk)
    train = partial(in_empty_folder, "train", *PRIOR, "--checkpoint-every", 2, "--out", small_disk)
    code, out, error = train()
    assert code == 1
    line = error.splitlines()[-1]
    assert re.search(r"Error: No space left on device \(writing \d+ bytes\): .*/(checkpoint|weights)\.pt$", line), line
    assert "Traceback" not in error
    assert not [path.name for path in small_disk.rglob(".*")]
    (small_disk / "ballast").unlink()
    code, _, error = train()
    assert code == 0, error
    assert len(train_records.read_rows(only(small_disk, "rows.csv"))) == 6


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_cell_on_a_full_disk_fails_with_its_reason(in_empty_folder, small_disk):
    fill(small_disk)
    code, out, error = in_empty_folder(
        "sweep",
        "train-digits",
        "--hparam",
        "prior",
        "--estimators",
        "none",
        "--num-data",
        60,
        "--epochs",
        20,
        "--out",
        small_disk,
    )
    assert code == 1, out
    assert re.search(r"failed: prior none digits N=60 seed 0: No space left on device \(writing \d+ bytes\): ", error)
