"""What the entries of a manifest are, so that whoever reads one may rely on it; other entries may be anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

#: Entry, or entry of an entry -> its types. Any may be missing; what holds others stands before them.
_TYPES: dict[str, tuple[type, ...]] = {
    "run_id": (str,),
    "command": (str,),
    "finished_at": (str, NoneType),  # null: not finished
    "settings": (dict,),
    "protocol": (dict,),
    "protocol.name": (str,),
    "protocol.variant": (str,),
    "conditions": (dict,),
    "conditions.threads": (int,),
    "environment": (dict,),
    "environment.git": (dict, NoneType),  # outside a checkout
    "environment.versions": (dict,),
    "estimators": (dict,),
    "budget": (dict,),
    "budget.fits": (int,),
    "budget.data_passes": (int, float),
    "budget.seconds": (int, float),
    "notes": (list,),
    "runs": (dict,),
}
_WORDS = {dict: "an object", list: "a list", str: "text", bool: "a flag", int: "a number", float: "a number"}


def check_manifest(manifest: Mapping[str, Any], path: Path, within: str = "") -> None:
    """Hold the manifest of ``path``, or what lies in its entry ``within``, against the types above.

    Raises:
        ValueError: an entry of another type; names the file and the entry.
    """
    for name, types in _TYPES.items():
        holder, _, last = name.rpartition(".")
        inside = manifest.get(holder, {}) if holder else manifest
        if last in inside:
            check_type(inside[last], types, path, within + name)
    for note in manifest.get("notes", []):
        check_type(note, (str,), path, f"{within}notes")
    for run_id, run in manifest.get("runs", {}).items():  # a Pareto run holds the manifests of its cells
        check_type(run, (dict,), path, f"{within}runs.{run_id}")
        check_manifest(run, path, f"{within}runs.{run_id}.")


def check_type(value: Any, types: tuple[type, ...], path: Path, name: str) -> None:
    """Raise ValueError where the entry ``name`` of the manifest ``path`` has none of the types."""
    if not isinstance(value, types):
        raise ValueError(f"{path}: {name} should be {_WORDS[types[0]]}, got {_WORDS.get(type(value), 'null')}")
