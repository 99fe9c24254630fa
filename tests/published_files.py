"""Small files in the formats in which CIFAR and TinyImageNet are published."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ntkml.datasets.cifar import CIFAR10, CIFAR100, Archive
from tests.image_files import encoded

CIFARS = {"cifar10": CIFAR10, "cifar100": CIFAR100}


def python2_string(text: bytes) -> bytes:
    """A ``str`` as Python 2 pickles it at protocol 2."""
    return pickle.BINSTRING + struct.pack("<i", len(text)) + text


def python2_array(array: np.ndarray) -> bytes:
    """A two-dimensional uint8 array as numpy under Python 2 pickles it at protocol 2."""
    rows, columns = array.shape
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + python2_string(b"b") + b"tR"
    dtype = b"cnumpy\ndtype\n(" + python2_string(b"u1") + b"K\x00K\x01tR(K\x03" + python2_string(b"|")
    dtype += b"NNN" + 2 * (pickle.BININT + struct.pack("<i", -1)) + b"K\x00tb"
    shape = b"(" + b"".join(pickle.BININT + struct.pack("<i", size) for size in (rows, columns)) + b"t"
    return empty + b"(K\x01" + shape + dtype + pickle.NEWFALSE + python2_string(array.tobytes()) + b"tb"


def python2_dict(items: dict[bytes, bytes]) -> bytes:
    """A pickled dictionary of string keys; values are pickled already."""
    body = b"".join(python2_string(key) + value + b"s" for key, value in items.items())
    return b"\x80\x02}" + body + b"."


def python2_list(values: Iterable[int]) -> bytes:
    return b"](" + b"".join(pickle.BININT1 + bytes([value]) for value in values) + b"e"


def cifar_batch(images: np.ndarray, labels: np.ndarray, archive: Archive) -> bytes:
    items = {b"data": python2_array(images), archive.label_key.encode(): python2_list(labels)}
    if archive is CIFAR100:
        items[b"coarse_labels"] = python2_list(labels // 5)
    return python2_dict(items | {b"batch_label": python2_string(b"batch")})


def write_cifar(root: Path, archive: Archive, per_file: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """All files of ``archive`` below ``root``; returns images (n, 3072) and labels, training part first."""
    files = (*archive.train_files, *archive.test_files)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (len(files) * per_file, 3072), dtype=np.uint8)
    labels = rng.integers(0, archive.num_classes, len(images))
    folder = root / archive.folder
    folder.mkdir(parents=True)
    for index, name in enumerate(files):
        part = slice(index * per_file, (index + 1) * per_file)
        (folder / name).write_bytes(cifar_batch(images[part], labels[part], archive))
    return images, labels


#: Classes of the small TinyImageNet, in the order of its wnids.txt.
WNIDS = ("n03", "n01", "n02")


def tiny_imagenet_files(top: str = "tiny-imagenet-200/") -> dict[str, bytes]:
    """Name -> content: three classes, two training and one validation image of each, one flat colour an image.

    The colour (k, 0, 0) says which: k = 10 c + i for training image i of class c in sorted order, 10 c + 5 for validation.
    """
    files = {"wnids.txt": "".join(f"{wnid}\n" for wnid in WNIDS).encode(), "words.txt": b"n01\tgoldfish\n"}
    annotations = []
    for number, wnid in enumerate(sorted(WNIDS)):
        for index in range(2):
            files[f"train/{wnid}/images/{wnid}_{index}.JPEG"] = _flat(10 * number + index)
        files[f"train/{wnid}/{wnid}_boxes.txt"] = f"{wnid}_0.JPEG\t0\t0\t63\t63\n".encode()
        file = f"val_{2 - number}.JPEG"
        files[f"val/images/{file}"] = _flat(10 * number + 5)
        annotations.append(f"{file}\t{wnid}\t0\t0\t63\t63\n")
    files["val/val_annotations.txt"] = "".join(annotations).encode()
    files["test/images/test_0.JPEG"] = b"never read"
    return {top + name: content for name, content in files.items()}


def _flat(red: int) -> bytes:
    colour = np.zeros((64, 64, 3), dtype=np.uint8)
    colour[..., 0] = red
    return encoded(colour, "JPEG", quality=100, subsampling=0)
