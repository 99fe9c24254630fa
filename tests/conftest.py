"""Fixtures that several folders of tests share."""

import gc
import shutil
import signal

import pytest
import torch

from ntkml import commands
from ntkml.commands.stops import EXIT_CODES


def pytest_collection_finish():
    """What is imported by now stays: the garbage collector need not go through all of torch and the tests again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def one_thread():
    """Small matrices are slower on several threads, and bit-identical results need a fixed number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def command_line(capsys):
    """Run ``ntkml ...`` here; returns exit code, standard output and standard error."""

    def call(*arguments):
        with pytest.raises(SystemExit) as leaving:
            commands.main([*map(str, arguments)])
        captured = capsys.readouterr()
        return leaving.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def in_empty_folder(tmp_path, monkeypatch, command_line):
    """:func:`command_line` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return command_line


@pytest.fixture
def heard_signals():
    """No signal is ignored, as SIGINT is by a shell for jobs in the background and SIGHUP by nohup; handlers are put back."""
    heard = {signal.SIGINT: signal.default_int_handler}
    heard |= {getattr(signal, name): signal.SIG_DFL for name in EXIT_CODES if name != "SIGINT"}
    before = {number: signal.signal(number, handler) for number, handler in heard.items()}
    yield
    now = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert now == heard


@pytest.fixture
def blank_pictures(monkeypatch):
    """Pictures are drawn, but the files of them stay blank: encoding them takes most of the time of a small run."""
    from ntkml.figures import render

    monkeypatch.setattr(render, "encoded", lambda figure, name: b"blank")


@pytest.fixture(scope="module")
def kept_folders():
    """By arguments of ``ntkml``: a copy of what they left in an empty folder."""
    return {}


@pytest.fixture
def finished(in_empty_folder, kept_folders, tmp_path, tmp_path_factory):
    """What ``ntkml ...`` leaves, in the empty folder of the test: computed once in a module, then copied with its times."""

    def call(*arguments):
        if arguments in kept_folders:
            shutil.copytree(kept_folders[arguments], tmp_path, dirs_exist_ok=True)
            return
        assert in_empty_folder(*arguments)[0] == 0
        kept_folders[arguments] = shutil.copytree(tmp_path, tmp_path_factory.mktemp("kept"), dirs_exist_ok=True)

    return call


@pytest.fixture
def only():
    """The one file below a folder that fits a pattern."""

    def find(folder, pattern):
        found = list(folder.rglob(pattern))
        assert len(found) == 1, found
        return found[0]

    return find
