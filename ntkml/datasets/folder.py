"""Anybody's images in class folders: ``folder:PATH``, or ``folder:PATH@64`` to resize them.

PATH is a folder or an archive of one (tar, zip) with ``train/CLASS/*`` and ``test/CLASS/*``, or ``CLASS/*`` alone
(:mod:`ntkml.datasets.class_folders`). A relative PATH is looked for in the working folder, then in the data root. Without a
size the images must have one size of their own; ``@64`` makes all of them 64 x 64, ``@64x48`` 64 rows of 48 pixels
(:mod:`ntkml.datasets.pictures`). Decoded images are kept (:mod:`ntkml.datasets.image_cache`).

The data set is named after the last part of PATH without the suffix of an archive, and after the size where one is given:
``cifar10-jpeg``, ``photos-64x64``. Classes are numbered in the order of their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ntkml.dataset_names import split_name
from ntkml.datasets import FOLDER_SCHEME, ImageDataset
from ntkml.datasets.class_folders import arrange, checksum, names_of, targets_of
from ntkml.datasets.image_cache import DecodedImages, cached
from ntkml.datasets.image_sources import archive_suffix, fingerprint, read_entries
from ntkml.datasets.pictures import Size, decode_all, is_picture
from ntkml.machine.messages import as_utf8
from ntkml.registry import DATASETS

_SIZE = re.compile(r"(?P<path>.+)@(?P<height>\d+)(?:x(?P<width>\d+))?")
_LITTER = ("thumbs.db", "desktop.ini")  # what file managers leave behind


@dataclass(frozen=True)
class FolderName:
    """What a name ``folder:PATH@SIZE`` says: where the images are and their size, None for their own."""

    path: Path
    size: Size | None

    @property
    def dataset_name(self) -> str:
        """How rows and results call the data set: as the folder, but never as one that ntkml knows."""
        path = self.path.resolve() if self.path.name == ".." else self.path.absolute()
        base = as_utf8(path.name)
        base = base[: len(base) - len(archive_suffix(self.path))]  # in whatever case it is written
        if split_name(base)[0] in DATASETS:  # tables would take it for the published data
            base += "-folder"
        return base if self.size is None else f"{base}-{self.size[0]}x{self.size[1]}"


def parse_name(name: str, data_root: Path) -> FolderName:
    """The parts of ``folder:PATH`` or ``folder:PATH@SIZE``; a PATH that exists as it is spelled has no size in it.

    Raises:
        ValueError: no path, a size of zero, or nothing lies there.
    """
    spelled = name.removeprefix(FOLDER_SCHEME)
    size = None
    if (sized := _SIZE.fullmatch(spelled)) and _find(spelled, data_root) is None:
        spelled, height = sized["path"], int(sized["height"])
        size = (height, int(sized["width"] or height))
        if 0 in size:
            raise ValueError(f"data set {name!r}: a size must be positive, as in {FOLDER_SCHEME}{spelled}@64")
    path = _find(spelled, data_root) if spelled else None
    if path is None:
        raise ValueError(
            f"data set {name!r}: found no folder or archive {spelled!r} in the working folder or in {data_root}; give "
            f"the path of a folder with train/CLASS/* and test/CLASS/*, as in {FOLDER_SCHEME}photos or {FOLDER_SCHEME}photos@64"
        )
    return FolderName(path, size)


def exists(name: str, data_root: Path) -> bool:
    """Whether ``folder:PATH`` names something that is there, spelled as it is."""
    return _find(name.removeprefix(FOLDER_SCHEME), data_root) is not None


def load(name: str, data_root: Path) -> ImageDataset:
    """The images of ``folder:PATH`` or ``folder:PATH@SIZE`` with values in [0, 1], one channel where all are grey.

    Its checksum is the sha256 over part, class and file contents in the order of the images: a folder and its archive
    have the same.

    Raises:
        ValueError: nothing there, class folders that make no data set, images that cannot be decoded or differ in size.
    """
    parsed = parse_name(name, data_root)
    key = f"folder\0{parsed.path.resolve()}\0{parsed.size}"
    return cached(key, fingerprint(parsed.path), lambda: _decode(parsed)).as_dataset(parsed.dataset_name)


def _find(spelled: str, data_root: Path) -> Path | None:
    path = Path(spelled).expanduser()
    places = (path,) if path.is_absolute() else (path, data_root / path)
    return next((place for place in places if spelled and place.exists()), None)


def _decode(parsed: FolderName) -> DecodedImages:
    where, folders, others = str(parsed.path), list[str](), list[str]()

    def files() -> Iterator[tuple[str, bytes]]:
        for entry in read_entries(parsed.path, is_picture):
            if entry.is_folder:
                folders.append(entry.name)
            elif entry.content is not None:
                yield entry.name, entry.content
            elif entry.name.rpartition("/")[2].lower() not in _LITTER:
                others.append(entry.name)

    ask = f"ask for one, as in {FOLDER_SCHEME}{where}@64 or @64x48 (height x width)"
    # Drawn on a terminal only: how many images there are is not known before the end.
    progress = tqdm(files(), desc=f"reading {parsed.path.name}", unit=" images", disable=None, leave=False)
    pictures = decode_all(progress, parsed.size, where, ask)
    layout = arrange(pictures.digests, folders, where)
    notes = layout.notes
    if others:
        notes = (*notes, f"{len(others)} files that are no JPEG or PNG were left out (the first: {min(others)}).")
    channels = pictures.channels
    return DecodedImages(
        pictures.stack(names_of(layout.train), channels),
        targets_of(layout.train),
        pictures.stack(names_of(layout.test), channels),
        targets_of(layout.test),
        tuple(layout.train),
        checksum(layout.train, layout.test, pictures.digests),
        notes,
    )
