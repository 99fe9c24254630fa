"""``folder:PATH``: images in class folders become one data set, from a folder as from an archive, once and then cached."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from ntkml.datasets import folder as folders
from ntkml.datasets import image_cache, load_dataset
from ntkml.datasets.class_folders import checksum
from ntkml.datasets.normalisation import statistics
from tests.image_files import encoded, pack, picture, pixels, sound_files, write_files


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NTKML_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path):
    return write_files(tmp_path / "photos", sound_files())


def as_pixels(dataset, inputs):
    mean, std = dataset.normalisation.as_tensors(inputs)
    return inputs * std + mean


def test_images_keep_their_pixels_classes_and_parts(photos):
    data = load_dataset(f"folder:{photos}")
    assert data.name == "photos"
    assert data.input_shape == (3, 8, 8)
    assert data.num_classes == 2
    assert data.train_targets.tolist() == data.test_targets.tolist() == [0, 0, 1, 1]
    for inputs, first in ((data.train_inputs, 0), (data.test_inputs, 4)):
        expected = torch.stack([torch.tensor(pixels(first + k)).permute(2, 0, 1) / 255 for k in range(4)])
        torch.testing.assert_close(as_pixels(data, inputs), expected, atol=1e-6, rtol=0)
    assert data.notes == ()


def test_inputs_are_normalised_by_the_statistics_of_the_training_images(photos):
    data = load_dataset(f"folder:{photos}")
    values = torch.stack([torch.tensor(pixels(k)) for k in range(4)]).double() / 255  # (n, height, width, channel)
    assert data.normalisation.mean == pytest.approx(values.mean((0, 1, 2)).tolist(), abs=6e-5)
    assert data.normalisation.std == pytest.approx(values.std((0, 1, 2), unbiased=False).tolist(), abs=6e-5)
    torch.testing.assert_close(data.train_inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)


def test_a_channel_without_contrast_keeps_its_scale():
    assert statistics(torch.full((3, 1, 2, 2), 0.25)).std == (1.0,)


@pytest.mark.parametrize("suffix", [".tar", ".tar.xz", ".tar.gz", ".zip"])
@pytest.mark.parametrize("top", ["", "./", "photos/"])
def test_an_archive_is_the_folder_it_was_packed_from(photos, tmp_path, suffix, top):
    backwards = {top + name: content for name, content in reversed(sound_files().items())}
    packed = load_dataset(f"folder:{pack(tmp_path / f'photos{suffix}', backwards)}")
    unpacked = load_dataset(f"folder:{photos}")
    assert (packed.name, packed.checksum) == ("photos", unpacked.checksum)
    assert torch.equal(packed.train_inputs, unpacked.train_inputs)
    assert torch.equal(packed.test_targets, unpacked.test_targets)


def test_a_relative_path_is_looked_for_in_the_working_folder_then_in_the_data_root(photos, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_dataset("folder:photos", tmp_path).train_inputs.shape == (4, 3, 8, 8)
    write_files(tmp_path / "elsewhere" / "photos", sound_files(size=(4, 4)))
    assert load_dataset("folder:photos", tmp_path).input_shape == (3, 4, 4)


def test_a_size_fills_the_frame_and_cuts_both_sides_evenly(tmp_path):
    wide = np.zeros((8, 16, 3), dtype=np.uint8)
    wide[:, 4:12] = 255  # the middle square is white, both sides are black
    files = {name: encoded(wide) for name in sound_files()} | {"train/cat/dark.png": encoded(0 * wide)}
    data = load_dataset(f"folder:{write_files(tmp_path / 'wide', files)}@4")
    assert data.name == "wide-4x4"
    assert data.input_shape == (3, 4, 4)
    assert as_pixels(data, data.test_inputs).min() > 0.85  # the resampling reaches a little beyond the cut
    assert load_dataset(f"folder:{tmp_path / 'wide'}@4x6").input_shape == (3, 4, 6)


@pytest.mark.parametrize(("where", "spelled"), [("", "."), ("train", ".."), ("train/cat", "../..")])
def test_a_folder_that_is_spelled_in_dots_is_called_by_its_name(photos, monkeypatch, where, spelled):
    monkeypatch.chdir(photos / where)
    assert load_dataset(f"folder:{spelled}").name == "photos"


@pytest.mark.parametrize("name", ["cifar10", "mnist_r180", "scaled_cifar10"])
def test_a_folder_is_not_called_like_published_data(photos, tmp_path, name):
    photos.rename(tmp_path / name)
    assert load_dataset(f"folder:{tmp_path / name}").name == f"{name}-folder"
    assert load_dataset(f"folder:{tmp_path / name}@4").name == f"{name}-folder-4x4"


def test_grey_images_have_one_channel_and_mixed_ones_three(tmp_path):
    grey = sound_files(grey=True)
    assert load_dataset(f"folder:{write_files(tmp_path / 'grey', grey)}").input_shape == (1, 8, 8)
    mixed = load_dataset(f"folder:{write_files(tmp_path / 'mixed', grey | {'train/cat/0.png': picture(0)})}")
    assert mixed.input_shape == (3, 8, 8)
    shown = as_pixels(mixed, mixed.train_inputs)[1]
    torch.testing.assert_close(shown, shown[:1].expand(3, 8, 8), atol=1e-6, rtol=0)


def test_a_photo_is_turned_as_its_camera_held_it(tmp_path):
    from PIL import Image

    turned = Image.Exif()
    turned[0x0112] = 6  # to be rotated by 90 degrees clockwise
    upright = np.zeros((8, 16, 3), dtype=np.uint8)
    upright[:, :8] = 255  # left half white; turned clockwise it is the upper half
    files = {name: encoded(upright, exif=turned) for name in sound_files()}
    files["train/cat/dark.png"] = encoded(0 * upright, exif=turned)
    data = load_dataset(f"folder:{write_files(tmp_path / 'camera', files)}")
    assert data.input_shape == (3, 16, 8)
    shown = as_pixels(data, data.test_inputs)[0]
    assert shown[:, :8].min() > 0.99
    assert shown[:, 8:].max() < 0.01


def test_folders_without_parts_are_split_by_content_alone(tmp_path):
    images = {f"{label}/{k}.png": picture(10 * ord(label) + k) for label in "ab" for k in range(11)}
    renamed = {f"{name[0]}/{9 - k % 11}{k}.png": content for k, (name, content) in enumerate(images.items())}
    data = load_dataset(f"folder:{write_files(tmp_path / 'plain', images)}")
    again = load_dataset(f"folder:{write_files(tmp_path / 'renamed', renamed)}")
    assert data.train_targets.bincount().tolist() == [9, 9]
    assert data.test_targets.bincount().tolist() == [2, 2]
    assert "smallest sha256" in data.notes[0]
    ours, theirs = (
        sorted(map(tuple, as_pixels(d, d.test_inputs).mul(255).round().flatten(1).tolist())) for d in (data, again)
    )
    assert ours == theirs


def test_other_files_are_counted_and_hidden_ones_ignored(photos):
    write_files(photos, {"train/cat/notes.txt": b"x", "README": b"x", "train/.DS_Store": b"x", "Thumbs.db": b"x"})
    data = load_dataset(f"folder:{photos}")
    assert data.notes == ("2 files that are no JPEG or PNG were left out (the first: README).",)


def test_decoding_happens_once_until_a_file_changes(photos, monkeypatch, cache):
    decoded = []
    decode_all = folders.decode_all
    monkeypatch.setattr(folders, "decode_all", lambda *given: decoded.append(1) or decode_all(*given))
    first = load_dataset(f"folder:{photos}")
    again = load_dataset(f"folder:{photos}")
    assert len(decoded) == 1
    assert torch.equal(first.train_inputs, again.train_inputs)
    assert (first.checksum, first.notes) == (again.checksum, again.notes)
    write_files(photos, {"test/dog/new.png": picture(99)})
    changed = load_dataset(f"folder:{photos}")
    assert len(decoded) == 2
    assert len(changed.test_inputs) == 5
    assert changed.checksum != first.checksum
    os.utime(photos / "test/dog/new.png", (1, 1))  # as if it had been written again
    assert load_dataset(f"folder:{photos}").checksum == changed.checksum
    assert len(decoded) == 3
    assert [path.suffix for path in cache.iterdir()] == [".npz"]  # replaced, and nothing left beside it


def test_a_checksum_tells_the_parts_apart():
    digests = {"a": "1", "b": "2"}
    assert checksum({"cat": ["a"]}, {"cat": ["b"]}, digests) != checksum({"cat": ["a", "b"]}, {"cat": []}, digests)


@pytest.mark.parametrize("spoil", ["cut", "flip", "junk", "older"])
def test_a_damaged_or_older_cache_is_replaced(photos, cache, spoil, monkeypatch, caplog):
    first = load_dataset(f"folder:{photos}")
    (path,) = cache.iterdir()
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[content.index(b"train_images") + 400] ^= 1
    damaged = {"cut": content[:-200], "flip": bytes(flipped), "junk": b"no archive", "older": content}
    path.write_bytes(damaged[spoil])
    if spoil == "older":
        monkeypatch.setattr(image_cache, "_VERSION", 2)
    again = load_dataset(f"folder:{photos}")
    assert torch.equal(first.train_inputs, again.train_inputs)
    assert ("is damaged" in caplog.text) == (spoil != "older")
    assert path.read_bytes() != damaged[spoil]


def test_without_a_place_for_the_cache_the_data_is_read_all_the_same(photos, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NTKML_CACHE", str(tmp_path / "file" / "cache"))
    assert len(load_dataset(f"folder:{photos}").train_inputs) == 4
    assert "set NTKML_CACHE" in caplog.text


def test_variants_are_made_of_pixels_before_they_are_normalised(photos, tmp_path):
    plain, turned = load_dataset(f"folder:{photos}"), load_dataset(f"folder:{photos}_r180")
    assert turned.name == "photos_r180"
    assert turned.normalisation == plain.normalisation
    corners = as_pixels(turned, turned.train_inputs)[..., 0, 0]
    assert corners.abs().min() < 1e-6  # black, where a view of the training would show the mean colour
    write_files(tmp_path / "photos_r180", sound_files(size=(4, 4)))
    assert load_dataset(f"folder:{tmp_path / 'photos_r180'}").input_shape == (3, 4, 4)  # a folder of that name is meant
