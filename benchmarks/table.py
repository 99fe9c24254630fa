"""Measured rows as a tidy CSV, and as lines of ratios for people."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas

from ntkml.records.provenance import environment


@dataclass(frozen=True)
class Row:
    """One system on one case. ``ratio``: CPU seconds to plain training of the same batch in the same rounds.

    ``difference``: the largest relative difference from ntkml of the value and of the gradient in the log prior precision
    (in the maximum norm); None for plain training and ntkml itself. ``peak_mib``: None where it was not measured.
    """

    case: str
    network: str
    num_params: int
    num_inputs: int
    views: int
    estimator: str
    data: str
    system: str
    version: str
    cpu_seconds: float
    wall_seconds: float
    ratio: float
    peak_mib: float | None
    difference: float | None
    repeats: int
    threads: int


def write(rows: list[Row], path: Path) -> None:
    """Replace ``path`` by the rows; numbers to six digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pandas.DataFrame([asdict(row) for row in rows], columns=[field.name for field in fields(Row)])
    frame.to_csv(path, index=False, float_format="%.6g")


def write_manifest(path: Path, **settings: object) -> None:
    """What was asked for, by which code and on which machine. The command line is left out: it may name folders."""
    where = {key: value for key, value in environment().items() if key != "argv"}
    path.write_text(json.dumps({**settings, **where}, indent=2) + "\n", encoding="utf-8")


def line(row: Row) -> str:
    """``    ntkml        1.93 x    12.1 ms     45 MiB    differs by 2e-07``."""
    peak = "" if row.peak_mib is None else f"{row.peak_mib:7.0f} MiB"
    differs = "" if row.difference is None else f"differs by {row.difference:.0e}"
    return f"  {row.system:29}{row.ratio:8.2f} x {1e3 * row.cpu_seconds:10.1f} ms {peak:>12}  {differs}".rstrip()
