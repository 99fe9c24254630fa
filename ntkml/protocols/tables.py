"""The protocol files, ``experiments/*.toml``: which there are, and their tables.

A file has settings at its top and ``extends = "name"`` where it builds on another file. ``kind`` says what it is about; every
kind has its own reader beside this one.
"""

from __future__ import annotations

import functools
import importlib.resources
import tomllib
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from ntkml.registry import unknown_name

VARIANTS = ("paper", "code")

#: The kind of files that do not name one, and that of ``ntkml train`` (:mod:`ntkml.protocols.train`).
BOUNDS, TRAIN = "bounds", "train"


@functools.cache
def protocol_names() -> tuple[str, ...]:
    """Every protocol file, numbered ones in the order of their numbers."""
    names = [file.name.removesuffix(".toml") for file in experiments_folder().iterdir() if file.name.endswith(".toml")]
    return tuple(sorted(names, key=lambda name: [part.zfill(4) for part in name.split("-")]))


def kind_of(name: str) -> str:
    """What the protocol file ``name`` is about: "bounds" where it does not say."""
    return str(read_tables(name).get("kind", BOUNDS))


def names_of(*kinds: str) -> list[str]:
    """The protocol files that are about one of ``kinds``."""
    return [name for name in protocol_names() if kind_of(name) in kinds]


def experiments_folder() -> Traversable:
    """The folder of the protocol files: beside the package in a checkout, else in the installed package.

    The checkout comes first: ``ntkml.experiments`` may not be importable there, or be that of another checkout, which an
    editable install points to.
    """
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "setup.cfg").is_file() and (checkout / "experiments").is_dir():
        return checkout / "experiments"
    return importlib.resources.files("ntkml.experiments")


def read_tables(name: str, known: list[str] | None = None) -> dict[str, Any]:
    """The tables of one protocol file on top of those that it extends.

    Raises:
        ValueError: the file is not among ``known``; without these it is one that is there.
    """
    if known is not None and name not in known:
        raise ValueError(unknown_name("protocol", name, known))
    table = dict(_tables_in(name))
    parent = table.pop("extends", None)
    return table if parent is None else merge_tables(read_tables(parent), table)


@functools.cache
def _tables_in(name: str) -> dict[str, Any]:
    """What stands in one file, which nobody may change: every run that is looked at asks for the same few files."""
    return tomllib.loads(experiments_folder().joinpath(f"{name}.toml").read_text(encoding="utf-8"))


def merge_tables(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` on top; tables are merged, anything else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge_tables(base[key], value) if both else value
    return merged
