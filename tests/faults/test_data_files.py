"""Missing and damaged data files: one clear ValueError each, naming the file and what to do."""

from __future__ import annotations

import gzip
import re
import struct

import pytest

from ntkml.datasets import load_dataset
from tests.idx_files import write_idx_files

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture
def raw(tmp_path):
    """A sound MNIST folder; ``tmp_path`` is the data root."""
    write_idx_files(tmp_path / "MNIST" / "raw")
    return tmp_path / "MNIST" / "raw"


def refusal(root) -> str:
    with pytest.raises(ValueError, match=".") as caught:
        load_dataset("mnist", root)
    return str(caught.value)


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist_r90", "FashionMNIST")])
def test_missing_files_say_what_was_looked_for_and_what_to_type(tmp_path, name, folder):
    looked_for = re.escape(str(tmp_path / folder / "raw" / IMAGES))
    with pytest.raises(ValueError, match=f"neither {looked_for} nor {IMAGES}.gz.*--data-root.*NTKML_DATA.*--download"):
        load_dataset(name, tmp_path)


def test_one_missing_file_of_four_is_named(raw, tmp_path):
    (raw / "t10k-labels-idx1-ubyte").unlink()
    assert "t10k-labels-idx1-ubyte" in refusal(tmp_path)


def test_a_truncated_file_says_how_much_is_there_and_how_much_should_be(raw, tmp_path):
    content = (raw / IMAGES).read_bytes()
    (raw / IMAGES).write_bytes(content[:-100])
    message = refusal(tmp_path)
    assert f"{raw / IMAGES} is truncated" in message
    assert f"{len(content) - 100} bytes, its header announces {len(content)}" in message


def test_a_file_shorter_than_its_header_is_truncated_too(raw, tmp_path):
    (raw / LABELS).write_bytes(b"\0\0\x08")
    assert re.search("is truncated: 3 bytes, not even the header of 8", refusal(tmp_path))


def test_surplus_bytes_are_not_ignored(raw, tmp_path):
    (raw / LABELS).write_bytes((raw / LABELS).read_bytes() + b"\0")
    assert "has surplus bytes" in refusal(tmp_path)


def test_a_file_of_another_kind_shows_both_magic_numbers(raw, tmp_path):
    (raw / IMAGES).write_bytes((raw / LABELS).read_bytes() + bytes(100))
    assert "magic number 0x00000801, expected 0x00000803" in refusal(tmp_path)


def test_images_and_labels_of_different_number_do_not_belong_together(raw, tmp_path):
    (raw / LABELS).write_bytes(struct.pack(">2I", 0x00000801, 4) + bytes(4))
    assert "5 training images but 4 labels" in refusal(tmp_path)


def test_a_label_outside_the_classes_is_refused(raw, tmp_path):
    (raw / LABELS).write_bytes(struct.pack(">2I", 0x00000801, 5) + bytes([0, 1, 2, 3, 10]))
    assert "targets must lie in 0..9, got values from 0 to 10" in refusal(tmp_path)


@pytest.mark.parametrize("keep", [slice(None, -20), slice(5, None)], ids=["cut off", "header lost"])
def test_a_damaged_gzip_file_is_named(raw, tmp_path, keep):
    packed = gzip.compress((raw / IMAGES).read_bytes())
    (raw / IMAGES).unlink()
    (raw / f"{IMAGES}.gz").write_bytes(packed[keep])
    assert f"{raw / IMAGES}.gz is not a whole gzip file" in refusal(tmp_path)


def test_an_unreadable_file_says_why(raw, tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", denied)  # chmod would not stop root
    assert f"{raw / IMAGES} cannot be read: Permission denied" in refusal(tmp_path)
