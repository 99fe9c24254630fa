"""The only place that imports torchvision, and only when something is asked of it.

The torchvision of the package index is compiled against a CUDA torch. Beside a CPU-only torch its compiled operators do
not load, and torchvision then fails while it is imported: it registers shape functions for operators whose schemas
nobody has declared ("operator torchvision::nms does not exist"). Nothing here needs those operators, so on exactly that
error the schemas are declared and the import is tried once more. Calling such an operator still fails, as it must.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

#: Operators for which some torchvision in 0.21 to 0.28 registers a shape function unconditionally.
SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

_MISSING = "operator torchvision::nms does not exist"
_declared: list[torch.library.Library] = []  # a schema lives as long as the Library that declared it


def torchvision() -> ModuleType:
    """The torchvision package with its ``datasets``, imported now if it was not.

    Raises:
        ValueError: torchvision is not installed, or cannot be imported for another reason than the one mended here.
    """
    try:
        try:
            return _import()
        except RuntimeError as error:
            if str(error) != _MISSING:
                raise
            _declare_missing_operators()
            return _import()
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"torchvision cannot be imported ({error}); install the version that belongs to torch {torch.__version__}"
        ) from error


def download(class_name: str, data_root: Path) -> None:
    """Fetch the data set ``torchvision.datasets.<class_name>`` into ``data_root``; torchvision checks the checksums.

    Raises:
        ValueError: the download failed (no network, unwritable folder, checksum); the message says what to do instead.
    """
    dataset_class = getattr(torchvision().datasets, class_name)
    with _named_failure(class_name, data_root):
        dataset_class(str(data_root), download=True)


def download_file(url: str, data_root: Path, md5: str) -> None:
    """Fetch one file into ``data_root`` under its own name, with a progress bar; torchvision checks the checksum.

    Raises:
        ValueError: see :func:`download`.
    """
    fetch = torchvision().datasets.utils.download_url
    with _named_failure(url, data_root):
        fetch(url, str(data_root), md5=md5)


@contextmanager
def _named_failure(what: str, data_root: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"downloading {what} into {data_root} failed ({error}); copy its files there by hand, "
            f"or name a folder that has them with --data-root"
        ) from error


def _import() -> ModuleType:
    importlib.import_module("torchvision.datasets")
    return importlib.import_module("torchvision")


def _declare_missing_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _declared.append(library)
