"""What every data set, whatever its source, must be; the digits stand for all, for they need no files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ntkml import registry
from ntkml.dataset_names import join_name, split_name
from ntkml.datasets import ImageDataset, dataset_names, load_dataset, resolve_data_root, subset, variants
from ntkml.datasets.variants import ROTATIONS, rotate, rotate_randomly, scale, translate


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load_dataset("digits")


@pytest.mark.parametrize("name", ["digits", "digits_r90", "digits_r180", "scaled_digits"])
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


def test_the_data_set_is_the_one_of_earlier_releases():
    """Fixed seeds fix the images: reference results depend on them."""
    rotated = load_dataset("digits_r180")
    assert rotated.train_inputs.double().sum().item() == pytest.approx(24964.6657, abs=0.01)


def test_train_and_test_are_rotated_by_different_angles(digits):
    same = replace(digits, test_inputs=digits.train_inputs[:500])
    train = rotate_randomly(same.train_inputs[:500], torch.Generator().manual_seed(1), 180.0)
    test = rotate_randomly(same.test_inputs, torch.Generator().manual_seed(0), 180.0)
    assert torch.equal(train, load_dataset("digits_r180").train_inputs[:500])
    assert not torch.equal(train, test)


def test_a_right_angle_moves_pixels_counter_clockwise_exactly(digits):
    images = digits.train_inputs[:5]
    torch.testing.assert_close(rotate(images, torch.full((5,), 90.0)), images.rot90(1, (2, 3)), atol=1e-5, rtol=0)


def test_an_image_that_is_not_square_is_turned_without_shear():
    bar = torch.zeros(1, 1, 9, 17)
    bar[..., 4, 6:11] = 1.0  # five pixels lying
    upright = torch.zeros(1, 1, 9, 17)
    upright[..., 2:7, 8] = 1.0
    torch.testing.assert_close(rotate(bar, torch.tensor([90.0])), upright, atol=1e-5, rtol=0)


def test_a_shift_by_whole_pixels_moves_them_exactly():
    images = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    moved = translate(images, torch.tensor([[3.0, -5.0], [-8.0, 8.0]]))
    torch.testing.assert_close(moved[0, :, :15, 3:], images[0, :, 5:, :-3], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[1, :, 8:, :-8], images[1, :, :-8, 8:], atol=1e-5, rtol=0)
    assert moved[0, :, 15:].abs().max() < 1e-5
    assert moved[0, :, :, :3].abs().max() < 1e-5


def test_a_factor_of_two_shows_the_middle_and_one_half_the_whole_in_it():
    images = torch.zeros(1, 3, 16, 24)
    images[..., 4:12, 6:18] = 1.0
    larger, smaller = scale(images, torch.tensor([2.0])), scale(images, torch.tensor([0.5]))
    assert larger[..., 1:-1, 1:-1].min() > 0.99
    assert smaller.mean().item() == pytest.approx(images.mean().item() / 4, rel=0.05)
    assert smaller[..., 6:10, 9:15].min() > 0.99


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("variant", "move", "limit"), [("translated", translate, 8.0), ("scaled", scale, math.log(2))])
def test_shifts_and_factors_are_drawn_within_their_limits_and_fill_them(variant, move, limit, channels, monkeypatch):
    drawn = []
    monkeypatch.setattr(f"ntkml.datasets.variants.{move.__name__}", lambda x, by: drawn.append(by) or move(x, by))
    images = torch.rand(300, channels, 16, 16)
    data = ImageDataset("made-up", images, torch.zeros(300).long(), images, torch.zeros(300).long(), 2, "")
    moved = variants.apply(data, variant)
    amounts = [by.log() if variant == "scaled" else by for by in drawn]
    assert [len(by) for by in amounts] == [300, 300]  # training and test part
    for by in amounts:
        assert -limit <= by.min() < -0.97 * limit
        assert 0.97 * limit < by.max() <= limit
    assert not torch.equal(*amounts)
    assert not torch.equal(moved.train_inputs, moved.test_inputs)
    assert torch.equal(moved.train_inputs, variants.apply(data, variant).train_inputs)


def test_shifts_that_would_empty_the_images_are_refused():
    with pytest.raises(
        ValueError, match="translated_digits: shifts of up to 8 pixels need images of 16 or more, got 8"
    ):
        load_dataset("translated_digits")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("mnist_r90", ("mnist", "r90")),
        ("translated_cifar10", ("cifar10", "translated")),
        ("scaled_folder:my_photos@32", ("folder:my_photos@32", "scaled")),
        ("folder:my_photos@32_r180", ("folder:my_photos@32", "r180")),
        ("folder:my_photos", ("folder:my_photos", "")),
        ("r90_mnist", ("r90_mnist", "")),
        ("mnist_scaled", ("mnist_scaled", "")),
    ],
)
def test_a_variant_stands_where_its_kind_belongs(name, parts):
    assert split_name(name) == parts
    assert join_name(*parts) == name


@pytest.mark.parametrize("limit", sorted(ROTATIONS.values()))
def test_angles_stay_within_the_limit_and_fill_it(limit):
    # A bright spot right of the centre tells by its position how far the image was turned.
    spot = torch.zeros(1, 1, 65, 65)
    spot[..., 32, 52] = 1.0
    turned = rotate_randomly(spot.expand(400, 1, 65, 65), torch.Generator().manual_seed(5), limit)
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
    assert {"mnist_r180", "translated_cifar10", "scaled_digits"} <= set(dataset_names())
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
