"""Class folders that make no data set, and images that are none: one ValueError each that says what to do."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ntkml.datasets import load_dataset
from tests.image_files import encoded, pack, picture, sound_files, write_files


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NTKML_CACHE", str(tmp_path / "cache"))


def refusal(name, root=None) -> str:
    with pytest.raises(ValueError, match=".") as caught:
        load_dataset(f"folder:{name}", root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda files: {}, "no JPEG or PNG file; expected train/CLASS"),
        (lambda files: {"train/cat/a.gif": b"GIF89a"}, "no JPEG or PNG file; expected train/CLASS"),
        (lambda files: {k: v for k, v in files.items() if "test" not in k}, "a folder train/ but none test/; expected"),
        (
            lambda files: {k: v for k, v in files.items() if "train" not in k},
            "a folder test/ but none train/; expected",
        ),
        (lambda files: {k: v for k, v in files.items() if "dog" not in k}, r"one class \(cat\), expected two or more"),
        (lambda files: {"cat/1.png": picture(0), "cat/2.png": picture(1)}, r"one class \(cat\), expected two or more"),
        (lambda files: files | {"train/cow/1.png": picture(9)}, "same classes, but cow only in train/"),
        (lambda files: files | {"test/emu/1.png": picture(9)}, "same classes, but emu only in test/"),
        (lambda files: files | {"val/cat/1.png": picture(9)}, "val/cat/1.png lies in neither train/ nor test/"),
        (lambda files: files | {"train/1.png": picture(9)}, "train/1.png lies in no class folder; expected"),
        (lambda files: files | {"train/cow/notes.txt": b"x"}, "class train/cow holds no JPEG or PNG file"),
        (lambda files: {"a/1.png": picture(0), "b/1.png": picture(1), "b/2.png": picture(2)}, "class a has one image"),
    ],
)
def test_a_layout_that_makes_no_data_set_is_refused(tmp_path, change, words):
    (tmp_path / "photos").mkdir()
    message = refusal(write_files(tmp_path / "photos", change(sound_files())))
    assert message.startswith(f"{tmp_path / 'photos'}: ")
    assert re.search(words, message)


def test_an_empty_class_folder_is_named(tmp_path):
    folder = write_files(tmp_path / "photos", sound_files())
    (folder / "test" / "cow").mkdir()
    (folder / "test" / "emu").mkdir()
    assert "class test/cow (and 1 more) holds no JPEG or PNG file: add images or remove the folder" in refusal(folder)


def test_corrupt_images_are_named_and_counted_in_one_error(tmp_path):
    files = sound_files(per_class=4)
    files["train/cat/0.png"] = b"no picture"
    files["train/dog/1.png"] = files["train/dog/1.png"][:-60]
    files["test/cat/2.png"] = encoded(np.full((8, 8), 40_000, dtype=np.uint16))
    message = refusal(write_files(tmp_path / "photos", files))
    assert "3 images cannot be decoded: " in message
    assert "train/cat/0.png (not a JPEG or PNG)" in message
    assert re.search(r"train/dog/1.png \([^)]*trunc", message)
    assert "test/cat/2.png (its pixels are of kind I;16, expected 8 bits a channel)" in message


def test_many_corrupt_images_are_counted_and_some_named(tmp_path):
    message = refusal(write_files(tmp_path / "photos", dict.fromkeys(sound_files(per_class=4), b"x")))
    assert "16 images cannot be decoded" in message
    assert message.endswith(", and 11 more")


def test_images_of_other_kinds_behind_a_known_suffix_are_not_opened(tmp_path):
    files = sound_files() | {"train/cat/0.png": encoded(np.zeros((8, 8, 3), dtype=np.uint8), "BMP")}
    assert "1 image cannot be decoded: train/cat/0.png (not a JPEG or PNG)" in refusal(
        write_files(tmp_path / "photos", files)
    )


def test_several_sizes_are_listed_with_how_to_ask_for_one(tmp_path):
    folder = write_files(tmp_path / "photos", sound_files() | {"train/cat/0.png": picture(0, (4, 6))})
    assert f"the images have 2 sizes, 8x8 (7), 4x6 (1): ask for one, as in folder:{folder}@64 or @64x48" in refusal(
        folder
    )


@pytest.mark.parametrize("spelled", ["nowhere", "nowhere@64", "", "@64"])
def test_nothing_there_says_where_it_was_looked_for(tmp_path, spelled):
    message = refusal(spelled, tmp_path)
    assert f"in the working folder or in {tmp_path}" in message
    assert "as in folder:photos or folder:photos@64" in message


def test_a_size_of_zero_is_refused(tmp_path):
    folder = write_files(tmp_path / "photos", sound_files())
    assert f"a size must be positive, as in folder:{folder}@64" in refusal(f"{folder}@0")


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    write_files(tmp_path, {"photos.rar": b"x"})
    assert "is neither a folder nor an archive (.tar, " in refusal(tmp_path / "photos.rar")


@pytest.mark.parametrize("name", ["photos.tar", "photos.tar.xz", "photos.tar.gz", "photos.zip"])
@pytest.mark.parametrize("keep", [0.5, 0.0], ids=["cut off", "replaced"])
def test_a_damaged_archive_is_named(tmp_path, name, keep):
    path = pack(tmp_path / name, sound_files())
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))] or b"something else")
    assert f"{path} is not a whole archive" in refusal(path)


def test_links_in_an_archive_are_not_followed(tmp_path):
    import tarfile

    path = pack(tmp_path / "photos.tar", sound_files())
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("train/cat/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert len(load_dataset(f"folder:{path}").train_inputs) == 4
