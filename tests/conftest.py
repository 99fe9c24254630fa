"""Fixtures that several rooms of tests share."""

import pytest
import torch

from ntkml import commands


@pytest.fixture(scope="module")
def one_thread():
    """Small matrices are slower on several threads, and bit-identical results need a fixed number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def in_empty_folder(tmp_path, monkeypatch, capsys):
    """Run ``ntkml ...`` in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as leaving:
            commands.main([*map(str, arguments)])
        captured = capsys.readouterr()
        return leaving.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def only():
    """The one file below a folder that fits a pattern."""

    def find(folder, pattern):
        found = list(folder.rglob(pattern))
        assert len(found) == 1, found
        return found[0]

    return find
