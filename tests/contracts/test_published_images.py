"""CIFAR and TinyImageNet from small files in the published formats: pixels, classes, parts and normalisation."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from ntkml.datasets import load_dataset
from ntkml.datasets.normalisation import CIFAR, IMAGENET
from tests.image_files import encoded, pack, write_files
from tests.published_files import CIFARS, tiny_imagenet_files, write_cifar


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NTKML_CACHE", str(tmp_path / "cache"))


def as_pixels(dataset, inputs):
    mean, std = dataset.normalisation.as_tensors(inputs)
    return inputs * std + mean


@pytest.mark.parametrize("name", CIFARS)
def test_cifar_is_read_as_it_is_published(tmp_path, name):
    images, labels = write_cifar(tmp_path, CIFARS[name])
    data = load_dataset(name, tmp_path)
    count = len(data.train_inputs)
    assert (count, len(data.test_inputs)) == (3 * len(CIFARS[name].train_files), 3)
    assert data.input_shape == (3, 32, 32)
    assert data.num_classes == {"cifar10": 10, "cifar100": 100}[name]
    assert data.normalisation == CIFAR
    assert torch.cat([data.train_targets, data.test_targets]).tolist() == labels.tolist()
    expected = torch.tensor(images).view(-1, 3, 32, 32) / 255  # channels first, then rows
    torch.testing.assert_close(as_pixels(data, data.train_inputs), expected[:count], atol=1e-6, rtol=0)
    torch.testing.assert_close(as_pixels(data, data.test_inputs), expected[count:], atol=1e-6, rtol=0)


def test_the_test_files_are_pickles_that_the_standard_library_reads(tmp_path):
    images, labels = write_cifar(tmp_path, CIFARS["cifar10"])
    batch = pickle.loads((tmp_path / "cifar-10-batches-py" / "data_batch_2").read_bytes(), encoding="latin1")
    assert np.array_equal(batch["data"], images[3:6])
    assert batch["labels"] == labels[3:6].tolist()


def test_the_constants_of_cifar_are_those_of_the_protocol():
    assert (CIFAR.mean, CIFAR.std) == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def test_variants_of_colour_images_are_normalised_after_they_are_made(tmp_path):
    write_cifar(tmp_path, CIFARS["cifar10"])
    for name in ("cifar10_r90", "translated_cifar10", "scaled_cifar10"):
        data = load_dataset(name, tmp_path)
        assert (data.name, data.normalisation) == (name, CIFAR)
        pixels = as_pixels(data, data.train_inputs)
        assert pixels.min().abs() < 1e-6  # black outside the image
        assert (pixels == pixels.flatten(1).min(dim=1).values.view(-1, 1, 1, 1)).any()


@pytest.mark.parametrize("packed", [True, False], ids=["zip", "folder"])
def test_tiny_imagenet_is_read_as_it_is_published(tmp_path, packed):
    if packed:
        pack(tmp_path / "tiny-imagenet-200.zip", tiny_imagenet_files())
    else:
        write_files(tmp_path, tiny_imagenet_files())
    data = load_dataset("tinyimagenet", tmp_path)
    assert data.input_shape == (3, 64, 64)
    assert data.num_classes == 3
    assert data.normalisation == IMAGENET
    assert data.train_targets.tolist() == [0, 0, 1, 1, 2, 2]  # in the order of names, not of wnids.txt
    assert data.test_targets.tolist() == [0, 1, 2]
    for inputs, red in ((data.train_inputs, [0, 1, 10, 11, 20, 21]), (data.test_inputs, [5, 15, 25])):
        shown = as_pixels(data, inputs)[:, 0, 32, 32] * 255
        torch.testing.assert_close(shown, torch.tensor(red).float(), atol=1.1, rtol=0)  # JPEG rounds


def test_grey_images_of_tiny_imagenet_get_three_channels(tmp_path):
    files = tiny_imagenet_files()
    grey = dict.fromkeys(
        [name for name in files if name.endswith(".JPEG")], encoded(np.zeros((64, 64), np.uint8), "JPEG")
    )
    write_files(tmp_path, files | grey)
    assert load_dataset("tinyimagenet", tmp_path).input_shape == (3, 64, 64)
