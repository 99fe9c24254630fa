"""The manifest of a run: a JSON file beside its rows that says how they were made, with entries that readers can rely on.

All hold ``run_id, command, settings, environment, estimators, notes, finished_at``. ``settings`` has at least ``hparam, dataset,
model, num_data``; the keys of ``estimators`` are names; ``notes`` are sentences that every caption of the run must show; without
``finished_at`` a run is not finished and no figure is drawn from it. Training runs and bound grids have ``data_checksum`` and
the settings ``seed`` and ``samples``, a Pareto run holds the manifests of its cells in ``runs``. Other entries may be anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from ntkml.machine import files

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


def damaged(folder: Path, error: ValueError) -> ValueError:
    """The error of a manifest, with what to remove: not every command that reads runs has a --force."""
    return ValueError(f"{error}: the run is damaged; remove {folder} and compute it again")


def check_manifest(manifest: Mapping[str, Any], path: Path, within: str = "") -> None:
    """Check the manifest of ``path``, or what is in its entry ``within``, against the types above.

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


def write_manifest(path: str | Path, manifest: Mapping[str, Any]) -> Path:
    """Write the manifest of a run as JSON with sorted keys, atomically; text that is not UTF-8 is escaped as in JSON."""
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    return files.write_atomically(path, text.encode(errors="backslashreplace"))


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read a manifest; ValueError names the file where it is missing, no JSON object, or has an entry of a wrong type."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(manifest, dict):
        raise ValueError(f"{path}: expected a JSON object, got a {type(manifest).__name__}")
    check_manifest(manifest, path)
    return manifest


def settings_id(settings: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits that name the settings of a run: the same settings, in any order, the same name."""
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]
