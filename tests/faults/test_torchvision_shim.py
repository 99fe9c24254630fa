"""torchvision is a guest: it may fail to load or to download, and then the message says what to do."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from ntkml.datasets import load_dataset
from ntkml.machine import torchvision_shim
from tests.idx_files import write_idx_files


def test_torchvision_imports_beside_whatever_torch_is_installed():
    """In a fresh interpreter, since a failed import leaves traces; also the second call is served."""
    code = (
        "from ntkml.machine import torchvision_shim as s; import torch; "
        "assert s.torchvision() is s.torchvision(); assert callable(s.torchvision().datasets.MNIST); "
        "print(torch.ops.torchvision.nms)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_only_the_missing_operator_is_mended(monkeypatch):
    attempts = []

    def fails(message):
        def attempt():
            attempts.append(message)
            raise RuntimeError(message)

        return attempt

    monkeypatch.setattr(torchvision_shim, "_import", fails("something else is broken"))
    with pytest.raises(
        ValueError, match=f"cannot be imported .something else is broken.*torch {torch.__version__[:4]}"
    ):
        torchvision_shim.torchvision()
    assert len(attempts) == 1


def test_the_missing_operator_is_declared_and_the_import_tried_once_more(monkeypatch):
    steps = []
    outcomes = iter([RuntimeError("operator torchvision::nms does not exist"), "imported"])

    def attempt():
        steps.append("import")
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(torchvision_shim, "_import", attempt)
    monkeypatch.setattr(torchvision_shim, "_declare_missing_operators", lambda: steps.append("declare"))
    assert torchvision_shim.torchvision() == "imported"
    assert steps == ["import", "declare", "import"]


def test_an_absent_torchvision_names_what_to_install(monkeypatch):
    def absent():
        raise ImportError("No module named 'torchvision'")

    monkeypatch.setattr(torchvision_shim, "_import", absent)
    with pytest.raises(ValueError, match="No module named 'torchvision'.*install the version that belongs to torch"):
        torchvision_shim.torchvision()


def fake_torchvision(monkeypatch, mnist):
    monkeypatch.setattr(torchvision_shim, "torchvision", lambda: SimpleNamespace(datasets=SimpleNamespace(MNIST=mnist)))


def test_a_failed_download_says_what_to_do_instead(monkeypatch, tmp_path):
    def offline(root, download):
        raise OSError("no network")

    fake_torchvision(monkeypatch, offline)
    with pytest.raises(ValueError, match="downloading MNIST into .* failed .no network.; copy its files.*--data-root"):
        load_dataset("mnist", tmp_path, download=True)


def test_a_download_is_asked_for_only_when_files_are_missing(monkeypatch, tmp_path):
    calls = []

    def fetch(root, download):
        calls.append(root)
        write_idx_files(tmp_path / "MNIST" / "raw")

    fake_torchvision(monkeypatch, fetch)
    with pytest.raises(ValueError, match="--download"):
        load_dataset("mnist", tmp_path)
    assert calls == []
    load_dataset("mnist", tmp_path, download=True)
    load_dataset("mnist", tmp_path, download=True)
    assert calls == [str(tmp_path)]
