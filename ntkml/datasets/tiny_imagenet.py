"""TinyImageNet, read from its published zip file or the folder that it unpacks to.

``<data_root>/tiny-imagenet-200.zip``, or ``<data_root>/tiny-imagenet-200/``, with ``wnids.txt`` (the classes),
``train/CLASS/images/*.JPEG``, ``val/images/*.JPEG`` and ``val/val_annotations.txt`` (file, class and a box on every line).
The images under ``val`` are the test part, sorted into classes by that file; those under ``test`` have no labels and are
not read. Classes are numbered in the order of their names; the few grey images get three channels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ntkml.datasets import ImageDataset
from ntkml.datasets.class_folders import Classes, checksum, names_of, targets_of
from ntkml.datasets.image_cache import DecodedImages, cached
from ntkml.datasets.image_sources import fingerprint, read_entries
from ntkml.datasets.pictures import decode_all, is_picture
from ntkml.machine import torchvision_shim

FOLDER = "tiny-imagenet-200"
URL = f"http://cs231n.stanford.edu/{FOLDER}.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_CLASSES, _ANNOTATIONS = "wnids.txt", "val/val_annotations.txt"


def load(data_root: Path, download: bool) -> ImageDataset:
    """TinyImageNet: 100 000 training and 10 000 test images (3, 64, 64) in [0, 1], 200 classes.

    Raises:
        ValueError: it is missing, damaged, or not laid out as published.
    """
    if download and _find(data_root) is None:
        torchvision_shim.download_file(URL, data_root, MD5)
    path = _find(data_root)
    if path is None:
        raise ValueError(
            f"data set 'tinyimagenet': found neither {data_root / FOLDER}.zip nor {data_root / FOLDER}/; name the folder that holds "
            f"it with --data-root (or set NTKML_DATA), or fetch it with --download ({URL})"
        )
    return cached(f"tinyimagenet\0{path.resolve()}", fingerprint(path), lambda: _decode(path)).as_dataset(
        "tinyimagenet"
    )


@dataclass
class _Texts:
    """The two lists beside the images, as they were read."""

    by_name: dict[str, str] = field(default_factory=dict)

    def lines(self, name: str, path: Path) -> list[list[str]]:
        """The words of every line.

        Raises:
            ValueError: there is no such file in ``path``.
        """
        if name not in self.by_name:
            raise ValueError(f"{path} is not TinyImageNet as published: {name} is missing; fetch {URL} again")
        return [line.split() for line in self.by_name[name].splitlines() if line.strip()]


def _find(data_root: Path) -> Path | None:
    return next((path for path in (data_root / FOLDER, data_root / f"{FOLDER}.zip") if path.exists()), None)


def _decode(path: Path) -> DecodedImages:
    texts = _Texts()

    def images() -> Iterator[tuple[str, bytes]]:
        for entry in read_entries(path, lambda name: _wanted(_inside(name))):
            name = _inside(entry.name)
            if entry.content is not None and is_picture(name):
                yield name, entry.content
            elif entry.content is not None:
                texts.by_name[name] = entry.content.decode("utf-8", errors="replace")

    progress = tqdm(images(), desc=f"reading {path.name}", unit=" images", disable=None, leave=False)
    pictures = decode_all(progress, None, str(path), f"fetch {URL} again")
    labels = sorted(words[0] for words in texts.lines(_CLASSES, path))
    train, test = _train_classes(pictures.digests, labels, path), _test_classes(pictures.digests, labels, texts, path)
    return DecodedImages(
        pictures.stack(names_of(train), 3),
        targets_of(train),
        pictures.stack(names_of(test), 3),
        targets_of(test),
        tuple(labels),
        checksum(train, test, pictures.digests),
    )


def _inside(name: str) -> str:
    """The name without the top folder of the zip file."""
    return name.removeprefix(f"{FOLDER}/")


def _wanted(name: str) -> bool:
    return name in (_CLASSES, _ANNOTATIONS) or (is_picture(name) and name.startswith(("train/", "val/images/")))


def _train_classes(images: dict[str, str], labels: list[str], path: Path) -> Classes:
    found = defaultdict[str, list[str]](list)
    for name in images:
        if name.startswith("train/"):
            found[name.split("/")[1]].append(name)
    return _in_order(found, labels, "train/", path)


def _test_classes(images: dict[str, str], labels: list[str], texts: _Texts, path: Path) -> Classes:
    found, unlabelled = defaultdict[str, list[str]](list), {name for name in images if name.startswith("val/")}
    for file, label, *_ in texts.lines(_ANNOTATIONS, path):
        name = f"val/images/{file}"
        if name not in unlabelled:
            raise ValueError(
                f"{path}: {_ANNOTATIONS} names {file}, which is not there or there twice; fetch {URL} again"
            )
        unlabelled.remove(name)
        found[label].append(name)
    if unlabelled:
        raise ValueError(f"{path}: {_ANNOTATIONS} names no class of {min(unlabelled)}; fetch {URL} again")
    return _in_order(found, labels, _ANNOTATIONS, path)


def _in_order(found: dict[str, list[str]], labels: list[str], place: str, path: Path) -> Classes:
    if set(found) != set(labels):
        differing = sorted(set(found) ^ set(labels))
        raise ValueError(
            f"{path}: {place} and {_CLASSES} must have the same classes, {differing[0]} (of {len(differing)}) is only in "
            f"one; fetch {URL} again"
        )
    return {label: sorted(found[label]) for label in labels}
