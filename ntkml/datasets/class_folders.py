"""Which part and class an image belongs to, by the folders that it lies in.

Either ``train/CLASS/...`` and ``test/CLASS/...``, or ``CLASS/...`` alone, which is then split: of every class, a fifth of the
images (rounded down, at least one) is the test part, those whose files have the smallest sha256. That split depends on the
contents alone, not on names, places or their order, and is the same on every machine. All of it may lie in one top folder.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

PARTS = ("train", "test")
TEST_SHARE = 5  # one in five where the folders do not say
_EXPECTED = "expected train/CLASS/* and test/CLASS/*, or CLASS/* alone, with JPEG or PNG files"

#: class -> names of its images, sorted
Classes = dict[str, list[str]]


@dataclass(frozen=True)
class Layout:
    """The images of both parts by class, and sentences on what was decided that a manifest must show."""

    train: Classes
    test: Classes
    notes: tuple[str, ...]


def arrange(images: Mapping[str, str], folders: Iterable[str], where: str) -> Layout:
    """Both parts of a set of images.

    Args:
        images: name -> sha256 of the file.
        folders: names of all folders, so that an empty class is noticed.
        where: what the images belong to, for the messages.

    Raises:
        ValueError: no images, images outside class folders, one of the two parts missing, fewer than two classes, a class
            without images, or classes that are not the same in both parts.
    """
    if not images:
        raise ValueError(f"{where}: no JPEG or PNG file; {_EXPECTED}")
    named = {_split(name): name for name in images}
    held = set(map(_split, folders)) | {parts[:-1] for parts in named}
    top = _top_folder(named, held)
    named = {parts[top:]: name for parts, name in named.items()}
    held = {parts[top:] for parts in held if len(parts) > top}
    present = [part for part in PARTS if any(parts[0] == part for parts in held)]
    if len(present) == 1:
        missing = "test" if present == ["train"] else "train"
        raise ValueError(f"{where}: there is a folder {present[0]}/ but none {missing}/; {_EXPECTED}")
    if present:
        strangers = sorted(name for parts, name in named.items() if parts[0] not in PARTS)
        if strangers:
            raise ValueError(f"{where}: {strangers[0]} lies in neither train/ nor test/; {_EXPECTED}")
        train, test = (_classes(named, held, (part,), where) for part in PARTS)
        _check_same(train, test, where)
        notes: tuple[str, ...] = ()
    else:
        train, test = _split_classes(_classes(named, held, (), where), images, where)
        notes = (
            f"Test part: one in {TEST_SHARE} images of every class, those whose files have the smallest sha256 "
            "(the folders name no parts).",
        )
    if len(train) < 2:
        raise ValueError(f"{where}: one class ({next(iter(train))}), expected two or more; {_EXPECTED}")
    return Layout(train, test, notes)


def names_of(classes: Classes) -> list[str]:
    """All images, class by class."""
    return [name for names in classes.values() for name in names]


def targets_of(classes: Classes) -> np.ndarray:
    """The number of the class of every image of :func:`names_of`. Shape (n,), int64."""
    return np.repeat(np.arange(len(classes), dtype=np.int64), [len(names) for names in classes.values()])


def checksum(train: Classes, test: Classes, digests: Mapping[str, str]) -> str:
    """sha256 over part, class and sha256 of every image in their order; names of files and archives do not enter."""
    digest = hashlib.sha256()
    for part, classes in zip(PARTS, (train, test), strict=True):
        for label, names in classes.items():
            for name in names:
                line = f"{part}\0{label}\0{digests[name]}\n"
                digest.update(line.encode(errors="surrogateescape"))  # a name need not be UTF-8
    return digest.hexdigest()


def _split(name: str) -> tuple[str, ...]:
    return tuple(name.split("/"))


def _top_folder(named: Iterable[tuple[str, ...]], held: Iterable[tuple[str, ...]]) -> int:
    """1 where all lies in one folder that only wraps the rest, else 0."""
    firsts = {parts[0] for parts in [*named, *held] if parts}
    if len(firsts) > 1 or firsts & set(PARTS):
        return 0
    second = {parts[1] for parts in held if len(parts) > 1}
    return 1 if second else 0


def _classes(
    named: Mapping[tuple[str, ...], str], held: Iterable[tuple[str, ...]], part: tuple[str, ...], where: str
) -> Classes:
    """The images below ``part`` by class; classes and images in the order of their names."""
    depth, found = len(part), defaultdict[str, list[str]](list)
    for parts, name in named.items():
        if parts[:depth] == part:
            if len(parts) < depth + 2:
                raise ValueError(f"{where}: {name} lies in no class folder; {_EXPECTED}")
            found[parts[depth]].append(name)
    empty = sorted({parts[depth] for parts in held if parts[:depth] == part and len(parts) > depth} - set(found))
    if empty:
        place = "/".join((*part, empty[0]))
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise ValueError(f"{where}: class {place}{more} holds no JPEG or PNG file: add images or remove the folder")
    if not found:
        raise ValueError(f"{where}: {'/'.join(part)}/ holds no class folders; {_EXPECTED}")
    return {label: sorted(found[label]) for label in sorted(found)}


def _check_same(train: Classes, test: Classes, where: str) -> None:
    if train.keys() != test.keys():
        differing = [
            f"{', '.join(sorted(some - other)[:5])} only in {part}/"
            for some, other, part in ((set(train), set(test), "train"), (set(test), set(train), "test"))
            if some - other
        ]
        raise ValueError(f"{where}: train/ and test/ must have the same classes, but {' and '.join(differing)}")


def _split_classes(classes: Classes, digests: Mapping[str, str], where: str) -> tuple[Classes, Classes]:
    train, test = Classes(), Classes()
    for label, names in classes.items():
        if len(names) < 2:
            raise ValueError(
                f"{where}: class {label} has one image and no train/ and test/ are given: a class takes two or more"
            )
        chosen = set(sorted(names, key=lambda name: (digests[name], name))[: max(1, len(names) // TEST_SHARE)])
        train[label] = [name for name in names if name not in chosen]
        test[label] = [name for name in names if name in chosen]
    return train, test
