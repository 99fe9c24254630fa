"""Rows of a bound grid that never was: the right schema, the right order of the curves, no estimator behind them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ntkml.protocols.bound_grid import load_bound_grid
from ntkml.records import bound_grid as bound_records
from ntkml.records.manifests import write_manifest
from ntkml.specs import EstimatorSpec, is_certified, parse_estimator
from ntkml.system_specs import parts_of

NUM_OUTPUTS = 10
DATASETS = {"prior": "mnist", "rotation": "mnist_r180"}


def rows_of(
    estimators: Iterable[str],
    hparam: str,
    *,
    points: int = 12,
    seeds: Iterable[int] = (0,),
    dataset: str | None = None,
    num_data: int = 1000,
    run_id: str = "12e4567890",
) -> list[dict[str, Any]]:
    """Aggregate rows of every estimator and seed over the grid of the paper, and one block row for each."""
    grid = load_bound_grid("mnist-bounds", hparam).grid
    steps = [index / (points - 1) for index in range(points)]
    low, high = (math.log10(grid.start), math.log10(grid.stop)) if hparam == "prior" else (grid.start, grid.stop)
    values = [low + (high - low) * step for step in steps]
    rows = []
    for name in estimators:
        for seed in seeds:
            for value in values:
                common = {
                    "run_id": run_id, "command": "bound-grid", "dataset": dataset or DATASETS[hparam], "model": "mininet",
                    "seed": seed, "num_data": num_data, "num_params": 14538, "hparam": hparam,
                    "hparam_value": 10**value if hparam == "prior" else value, "seconds": 0.25, "peak_bytes": None,
                    "device": "cpu", "dtype": "float32",
                }  # fmt: skip
                rows += _cell(name, value, seed, num_data, common)
    return rows


def _cell(name: str, value: float, seed: int, num_data: int, common: dict[str, Any]) -> Iterator[dict[str, Any]]:
    spec = parse_estimator(name)
    blocks = math.ceil(num_data / (spec.inputs or num_data)) * {"1": NUM_OUTPUTS, "tree": NUM_OUTPUTS - 1}.get(
        spec.outputs, 1
    )
    likelihood, prior, log_det = _terms(spec, value, num_data, common["hparam"])
    total = likelihood + prior - log_det / 2 + 0.01 * seed
    error = None if blocks == 1 else 0.004 * math.sqrt(blocks) * (2 if spec.grouping else 1)
    row = common | {
        "estimator": name, **parts_of(name), "num_blocks": blocks,
        "certified": is_certified(spec), "log_marginal_likelihood": total, "log_likelihood": likelihood,
        "log_prior": prior, "log_det": log_det,
    }  # fmt: skip
    yield row | {"block": None, "standard_error": error, "exceeds_exact": spec.outputs == "1" and value > 2.5}
    yield row | {"block": 0, "standard_error": None, "exceeds_exact": None, "log_marginal_likelihood": total + 0.1}


def _terms(spec: EstimatorSpec, value: float, num_data: int, hparam: str) -> tuple[float, float, float]:
    """Log likelihood, log prior and log-determinant ratio per datum: looser structures and smaller blocks cost more."""
    looseness = 0.35 * math.log(num_data / (spec.inputs or num_data)) * (1.0 if not spec.grouping else 0.7)
    looseness += {"ntk": 0.0, "ggn": 0.0, "blockdiag": 0.15, "kfac": 0.3, "diag": 8.0}[spec.structure]
    looseness += {"1": 0.25, "tree": 0.3}.get(spec.outputs, 0.0)
    if hparam == "rotation":
        return -2.0 + 0.7 * math.sin(value / 2), -0.1, 0.4 + looseness
    complexity = math.log1p(10 ** (1.5 - value))
    return -0.3, -0.002 * 10 ** min(value, 3.5), complexity + looseness * min(1.0, complexity)


def write_run(
    folder: Path,
    estimators: Iterable[str],
    hparam: str,
    finished_at: str | None = "2026-01-01T00:00:00Z",
    **options: Any,
) -> Path:
    """A finished run below ``folder``, with manifest; the path of its rows."""
    estimators = list(estimators)
    rows = rows_of(estimators, hparam, **options)
    first = rows[0]
    run = folder / "bound-grid" / f"{hparam}-{first['dataset']}-{first['run_id']}"
    run.mkdir(parents=True, exist_ok=True)
    keys = ("hparam", "dataset", "model", "num_data", "seed")
    manifest = {
        "run_id": first["run_id"], "command": "bound-grid", "settings": {key: first[key] for key in keys} | {"samples": 30},
        "environment": {}, "data_checksum": "0", "estimators": {name: {"certified": True, "num_blocks": 1} for name in estimators},
        "notes": ["Synthetic rows."], "finished_at": finished_at,
    }  # fmt: skip
    write_manifest(run / "manifest.json", manifest)
    return bound_records.write_rows(run / "rows.csv", rows)
