"""The finished runs below a folder of results, by their manifests; figures and tables are made from nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntkml import records
from ntkml.figure_protocols import split_transformation


@dataclass(frozen=True)
class Run:
    """A finished run: its rows and what its manifest says."""

    rows: Path
    manifest: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        return self.manifest["settings"]

    @property
    def setup(self) -> tuple[Any, ...]:
        """What the panels of one bound figure must have in common; ``mnist_r180`` belongs to ``mnist``."""
        return (
            split_transformation(str(self.settings["dataset"]))[0],
            self.settings["model"],
            self.settings["num_data"],
        )


def finished_runs(results: Path, command: str) -> list[Run]:
    """All finished runs of ``command`` below ``results``, newest first."""
    runs = []
    for path in sorted(results.rglob("manifest.json")):
        manifest = records.read_manifest(path)
        # MAP has no estimators.
        whole = manifest.get("settings") and manifest.get("finished_at") and "estimators" in manifest
        if manifest.get("command") == command and whole and (rows := _rows_beside(path)):
            runs.append(Run(rows, manifest))
    return sorted(runs, key=lambda run: run.manifest["finished_at"], reverse=True)


def _rows_beside(manifest: Path) -> Path | None:
    candidates = (manifest.with_name("rows.csv"), manifest.with_name("rows.csv.gz"))
    return next((path for path in candidates if path.is_file()), None)
