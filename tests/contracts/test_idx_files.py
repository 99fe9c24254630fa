"""MNIST and FashionMNIST are read from the idx files of torchvision's layout, plain or gzip, to the bit."""

from __future__ import annotations

import gzip

import pytest
import torch

from ntkml.datasets import load_dataset
from tests.idx_files import write_idx_files


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_images_and_labels_come_back_as_written(tmp_path, name, folder):
    images, labels = write_idx_files(tmp_path / folder / "raw", num_train=7, num_test=3)
    dataset = load_dataset(name, tmp_path)
    assert dataset.train_inputs.shape == (7, 1, 28, 28)
    assert torch.equal(dataset.train_inputs[:, 0], torch.from_numpy(images[:7]).float() / 255)
    assert torch.equal(dataset.test_inputs[:, 0], torch.from_numpy(images[7:]).float() / 255)
    assert dataset.train_targets.tolist() == labels[:7].tolist()
    assert dataset.test_targets.tolist() == labels[7:].tolist()


def test_gzip_files_give_the_same_data_and_checksum(tmp_path):
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    write_idx_files(plain / "MNIST" / "raw")
    (packed / "MNIST" / "raw").mkdir(parents=True)
    for path in (plain / "MNIST" / "raw").iterdir():
        (packed / "MNIST" / "raw" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    first, second = load_dataset("mnist", plain), load_dataset("mnist", packed)
    assert torch.equal(first.train_inputs, second.train_inputs)
    assert first.checksum == second.checksum


def test_the_checksum_notices_a_changed_byte(tmp_path):
    write_idx_files(tmp_path / "MNIST" / "raw")
    before = load_dataset("mnist", tmp_path).checksum
    path = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] = (content[-1] + 1) % 10
    path.write_bytes(content)
    assert load_dataset("mnist", tmp_path).checksum != before


def test_the_folder_may_come_from_the_environment(tmp_path, monkeypatch):
    write_idx_files(tmp_path / "MNIST" / "raw", num_train=7)
    monkeypatch.setenv("NTKML_DATA", str(tmp_path))
    assert len(load_dataset("mnist_r90").train_targets) == 7
