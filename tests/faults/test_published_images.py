"""CIFAR and TinyImageNet files that are missing, damaged, malicious or not what they should be."""

from __future__ import annotations

import pickle
import re
from types import SimpleNamespace

import numpy as np
import pytest

from ntkml.datasets import load_dataset
from ntkml.datasets.cifar import CIFAR10, CIFAR100
from ntkml.datasets.tiny_imagenet import MD5, URL
from ntkml.machine import torchvision_shim
from tests.image_files import pack, write_files
from tests.published_files import python2_array, python2_dict, python2_list, tiny_imagenet_files, write_cifar


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NTKML_CACHE", str(tmp_path / "cache"))


def refusal(name, root) -> str:
    with pytest.raises(ValueError, match=".") as caught:
        load_dataset(name, root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Command:
    """What a malicious file would run."""

    def __init__(self, function, *arguments):
        self.called = (function, arguments)

    def __reduce__(self):
        return self.called


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "inside", [lambda bad: bad, lambda bad: {"data": bad, "labels": []}], ids=["alone", "in a dict"]
)
def test_a_malicious_pickle_is_refused_and_nothing_of_it_runs(tmp_path, protocol, inside):
    write_cifar(tmp_path, CIFAR10)
    planted = tmp_path / "planted"
    file = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(pickle.dumps(inside(Command(exec, f"open({str(planted)!r}, 'w')")), protocol))
    message = refusal("cifar10", tmp_path)
    assert f"{file} is refused: it asks for " in message
    assert "exec, which no CIFAR file needs; fetch the files again from a source that you trust" in message
    assert not planted.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "getattr"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "frombuffer"),
        ("torch", "load"),
    ],
)
def test_only_what_arrays_are_made_of_is_admitted(tmp_path, module, name):
    write_cifar(tmp_path, CIFAR100)
    (tmp_path / "cifar-100-python" / "train").write_bytes(f"c{module}\n{name}\n.".encode())
    assert f"it asks for {module}.{name}" in refusal("cifar100", tmp_path)


PIXELS = np.zeros((2, 3072), dtype=np.uint8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"is not a whole CIFAR file \(EOFError\); fetch it again"),
        (b"junk", r"is not a whole CIFAR file"),
        (python2_list([1]) + b".", "is no file of cifar10: expected 'data'"),
        (python2_dict({b"labels": python2_list([1])}), r"expected 'data', uint8 of shape \(n, 3072\)"),
        (python2_dict({b"data": python2_array(PIXELS[:, :9])}), r"expected 'data', uint8 of shape \(n, 3072\)"),
        (python2_dict({b"data": python2_array(PIXELS)}), "expected 'labels', a list of integers"),
        (python2_dict({b"data": python2_array(PIXELS), b"labels": python2_list([1])}), "2 images but 1 labels"),
    ],
)
def test_a_file_that_does_not_hold_what_it_should_says_so(tmp_path, content, words):
    write_cifar(tmp_path, CIFAR10)
    file = tmp_path / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(content)
    assert re.search(f"{re.escape(str(file))}.*{words}", refusal("cifar10", tmp_path))


def test_a_cut_file_and_a_label_outside_the_classes_are_refused(tmp_path):
    write_cifar(tmp_path, CIFAR10)
    file = tmp_path / "cifar-10-batches-py" / "test_batch"
    content = file.read_bytes()
    file.write_bytes(content[:-500])
    assert "is not a whole CIFAR file" in refusal("cifar10", tmp_path)
    file.write_bytes(python2_dict({b"data": python2_array(PIXELS), b"labels": python2_list([1, 10])}))
    assert "targets must lie in 0..9, got values from 1 to 10" in refusal("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("name", "missing"),
    [("cifar10", "cifar-10-batches-py/data_batch_1"), ("translated_cifar100", "cifar-100-python/train")],
)
def test_missing_files_say_what_was_looked_for_and_what_to_type(tmp_path, name, missing):
    words = f"{tmp_path / missing} is missing; name the folder .*--data-root .or set NTKML_DATA., .*--download"
    assert re.search(words, refusal(name, tmp_path))


def test_missing_tiny_imagenet_says_where_to_put_it(tmp_path):
    message = refusal("tinyimagenet", tmp_path)
    assert f"neither {tmp_path}/tiny-imagenet-200.zip nor {tmp_path}/tiny-imagenet-200/" in message
    assert f"--download ({URL})" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"wnids.txt": None}, "wnids.txt is missing"),
        ({"val/val_annotations.txt": None}, "val/val_annotations.txt is missing"),
        ({"val/images/val_1.JPEG": None}, "names val_1.JPEG, which is not there or there twice"),
        ({"val/val_annotations.txt": b"val_0.JPEG\tn03\t0\n"}, "names no class of val/images/val_1.JPEG"),
        ({"wnids.txt": b"n01\nn02\n"}, r"train/ and wnids.txt must have the same classes, n03 \(of 1\) is only in one"),
        ({"train/n01/images/n01_0.JPEG": b"junk"}, "1 image cannot be decoded: train/n01/images/n01_0.JPEG"),
    ],
)
def test_a_tiny_imagenet_that_is_not_as_published_is_refused(tmp_path, change, words):
    files = tiny_imagenet_files(top="") | change
    kept = {f"tiny-imagenet-200/{name}": content for name, content in files.items() if content is not None}
    assert re.search(words, refusal("tinyimagenet", write_files(tmp_path, kept)))


def test_a_cut_zip_file_is_named(tmp_path):
    path = pack(tmp_path / "tiny-imagenet-200.zip", tiny_imagenet_files())
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path} is not a whole archive" in refusal("tinyimagenet", tmp_path)


@pytest.mark.parametrize(("name", "archive"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_cifar_is_fetched_by_torchvision_when_asked_and_missing(tmp_path, monkeypatch, name, archive):
    fetched = []
    monkeypatch.setattr(
        torchvision_shim, "download", lambda *given: fetched.append(given) or write_cifar(tmp_path, archive)
    )
    load_dataset(name, tmp_path, download=True)
    load_dataset(name, tmp_path, download=True)
    assert fetched == [(archive.torchvision_name, tmp_path)]


def fake_download(monkeypatch, fetch):
    utils = SimpleNamespace(download_url=fetch)
    monkeypatch.setattr(torchvision_shim, "torchvision", lambda: SimpleNamespace(datasets=SimpleNamespace(utils=utils)))


def test_tiny_imagenet_is_fetched_with_its_checksum_when_asked_and_missing(tmp_path, monkeypatch):
    fetched = []

    def fetch(url, root, md5):
        fetched.append((url, root, md5))
        pack(tmp_path / "tiny-imagenet-200.zip", tiny_imagenet_files())

    fake_download(monkeypatch, fetch)
    load_dataset("tinyimagenet", tmp_path, download=True)
    load_dataset("tinyimagenet", tmp_path, download=True)
    assert fetched == [(URL, str(tmp_path), MD5)]


def test_a_failed_download_says_what_to_do_instead(tmp_path, monkeypatch):
    def offline(url, root, md5):
        raise RuntimeError("File not found or corrupted.")

    fake_download(monkeypatch, offline)
    with pytest.raises(ValueError, match=f"downloading {URL} into .* failed .File not found or corrupted.*--data-root"):
        load_dataset("tinyimagenet", tmp_path, download=True)


def test_what_torchvision_is_asked_for_is_there():
    """The names that the shim calls exist in the installed torchvision."""
    datasets = torchvision_shim.torchvision().datasets
    assert callable(datasets.utils.download_url)
    assert [getattr(datasets, archive.torchvision_name).base_folder for archive in (CIFAR10, CIFAR100)] == [
        CIFAR10.folder,
        CIFAR100.folder,
    ]
