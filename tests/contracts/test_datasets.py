"""What every data set, whatever its source, must be; the digits stand for all, for they need no files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ntkml import registry
from ntkml.datasets import ImageDataset, dataset_names, load_dataset, resolve_data_root, subset
from ntkml.datasets.variants import VARIANTS, rotate, rotate_randomly


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load_dataset("digits")


@pytest.mark.parametrize("name", ["digits", "digits_r90", "digits_r180"])
def test_digits_and_variants_keep_the_contract(name):
    dataset = load_dataset(name)
    assert dataset.name == name
    assert dataset.train_inputs.shape == (1297, 1, 8, 8)
    assert dataset.test_inputs.shape == (500, 1, 8, 8)
    assert dataset.input_shape == (1, 8, 8)
    assert dataset.train_targets.unique().tolist() == list(range(10)) == dataset.test_targets.unique().tolist()
    assert dataset.num_classes == 10
    assert 0 <= dataset.train_inputs.min() < dataset.train_inputs.max() <= 1


def test_digits_are_the_file_that_was_packed(digits):
    assert digits.checksum == "a0712fbfc3b6e8004f042855b57870d7007072b33190cb37b9d46d2f247ebff2"
    assert digits.train_inputs.max() == 1
    assert (digits.train_inputs * 16 == (digits.train_inputs * 16).round()).all()
    counts = digits.train_targets.bincount() + digits.test_targets.bincount()
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as the source documents


def test_variants_rotate_the_images_and_nothing_else(digits):
    rotated = load_dataset("digits_r180")
    assert torch.equal(rotated.train_targets, digits.train_targets)
    assert torch.equal(rotated.train_inputs, load_dataset("digits_r180").train_inputs)
    unchanged = (rotated.train_inputs == digits.train_inputs).flatten(1).all(dim=1)
    assert unchanged.float().mean() < 0.01
    assert rotated.checksum == digits.checksum


def test_train_and_test_are_rotated_by_different_angles(digits):
    same = replace(digits, test_inputs=digits.train_inputs[:500])
    train = rotate_randomly(same.train_inputs[:500], 180.0, torch.Generator().manual_seed(1))
    test = rotate_randomly(same.test_inputs, 180.0, torch.Generator().manual_seed(0))
    assert torch.equal(train, load_dataset("digits_r180").train_inputs[:500])
    assert not torch.equal(train, test)


def test_a_right_angle_moves_pixels_counter_clockwise_exactly(digits):
    images = digits.train_inputs[:5]
    torch.testing.assert_close(rotate(images, torch.full((5,), 90.0)), images.rot90(1, (2, 3)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("limit", sorted(VARIANTS.values()))
def test_angles_stay_within_the_limit_and_fill_it(limit):
    # A bright spot right of the centre tells by its position how far the image was turned.
    spot = torch.zeros(1, 1, 65, 65)
    spot[..., 32, 52] = 1.0
    turned = rotate_randomly(spot.expand(400, 1, 65, 65), limit, torch.Generator().manual_seed(5))
    row, column = turned.flatten(1).argmax(dim=1) // 65 - 32, turned.flatten(1).argmax(dim=1) % 65 - 32
    degrees = torch.atan2(-row.double(), column.double()) * 180 / math.pi
    assert degrees.abs().max() <= limit + 3
    assert degrees.min() < -0.95 * limit
    assert degrees.max() > 0.95 * limit


def test_subset_is_drawn_without_replacement_and_only_from_its_generator(digits):
    first, again, other = (subset(digits, 100, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert first.train_inputs.shape == (100, 1, 8, 8)
    assert torch.equal(first.train_inputs, again.train_inputs)
    assert not torch.equal(first.train_inputs, other.train_inputs)
    assert torch.equal(first.test_inputs, digits.test_inputs)
    whole = subset(digits, 1297, torch.Generator().manual_seed(0))
    torch.testing.assert_close(whole.train_inputs.double().sum(), digits.train_inputs.double().sum())
    assert torch.equal(whole.train_targets.bincount(), digits.train_targets.bincount())


def test_data_root_is_the_argument_then_the_environment_then_the_cache(monkeypatch):
    monkeypatch.setenv("NTKML_DATA", "/from/environment")
    assert resolve_data_root("/from/argument") == Path("/from/argument")
    assert resolve_data_root() == Path("/from/environment")
    monkeypatch.delenv("NTKML_DATA")
    assert resolve_data_root() == Path.home() / ".cache" / "ntkml"


def test_every_registered_data_set_is_offered_with_its_variants():
    assert set(registry.DATASETS) <= set(dataset_names())
    assert "mnist_r180" in dataset_names()
    for name in registry.DATASETS:
        assert callable(registry.resolve(registry.DATASETS, name, "data set"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_inputs": torch.full((2, 1, 8, 8), torch.nan)}, "training part.*inputs hold NaN"),
        ({"test_inputs": torch.full((2, 1, 8, 8), 255.0)}, r"test part.*must lie in \[0, 1\].*255"),
        ({"train_inputs": torch.zeros(2, 8, 8)}, r"float32 of shape \(N, channels, height, width\)"),
        ({"train_inputs": torch.zeros(2, 1, 8, 8, dtype=torch.float64)}, "float32.*got torch.float64"),
        ({"test_targets": torch.zeros(3, dtype=torch.int64)}, r"targets must be int64 of shape \(2,\).*\(3,\)"),
        ({"test_targets": torch.tensor([0, 10])}, r"targets must lie in 0\.\.9, got values from 0 to 10"),
        (
            {"train_inputs": torch.zeros(0, 1, 8, 8), "train_targets": torch.zeros(0, dtype=torch.int64)},
            "training part.*is empty",
        ),
    ],
)
def test_malformed_data_is_refused_by_part_and_reason(change, message):
    inputs, targets = torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    sound = ImageDataset("made-up", inputs, targets, inputs, targets, num_classes=10, checksum="")
    with pytest.raises(ValueError, match=message):
        replace(sound, **change)


@pytest.mark.parametrize("num_data", [0, -1, 1298])
def test_subset_of_an_impossible_size_says_what_is_possible(digits, num_data):
    with pytest.raises(ValueError, match="ask for 1 to 1297"):
        subset(digits, num_data, torch.Generator())


@pytest.mark.parametrize(
    ("name", "hint"), [("mnsit_r90", "mnist_r90"), ("digits_r45", "digits_r"), ("digit", "digits")]
)
def test_an_unknown_name_gets_the_nearest_known_one(name, hint):
    with pytest.raises(ValueError, match=f"unknown data set '{name}'; did you mean '{hint}.*fashion-mnist_r180"):
        load_dataset(name)
