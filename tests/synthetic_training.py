"""Rows of training and Pareto runs that never were: the right schema, a plausible course, no estimator behind them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ntkml.records import pareto as pareto_records
from ntkml.records import train as train_records
from ntkml.records.manifests import settings_id, write_manifest
from ntkml.records.tables import write_rows
from ntkml.specs import is_certified, parse_estimator
from ntkml.system_specs import parts_of

NUM_OUTPUTS = 10
DATASETS = {"prior": "mnist", "invariance": "mnist_r180"}
FINISHED_AT = "2026-01-01T00:00:00Z"


def training_rows(
    estimator: str,
    hparam: str,
    seed: int = 0,
    *,
    epochs: int = 60,
    burn_in: int = 10,
    eval_every: int = 10,
    dataset: str | None = None,
    samples: int = 30,
) -> list[dict[str, Any]]:
    """One run: estimates from the epoch ``burn_in`` on, test values every ``eval_every`` epochs."""
    settings = settings_of(estimator, hparam, seed, epochs=epochs, dataset=dataset, samples=samples)
    common = _common(estimator, hparam) | {
        "run_id": settings_id(settings), "command": "train", "dataset": settings["dataset"], "seed": seed,
        "likelihood": "categorical", "observation_noise": None,
        "train_loss": 0.5, "test_ece": None, "prior_precision_min": 0.1, "prior_precision_median": 1.0,
        "prior_precision_max": 10.0, "prior_precisions": None, "seconds_weights": 0.2, "seconds_hyper": 0.1,
        "seconds_eval": 0.1, "peak_bytes": None, "device": "cpu", "dtype": "float32",
        **{f"eta_{index}": None for index in range(6)},
    }  # fmt: skip
    slack = slack_of(estimator)
    rows = []
    for epoch in range(1, epochs + 1):
        start = math.exp(-6 * epoch / epochs)
        wiggle = 0.06 * (1 + slack) * math.sin(2.3 * epoch + 5 * seed) + 0.05 * math.cos(seed * 3 + slack)
        estimate = -0.7 - slack - 3 * start + wiggle
        test = -0.35 - 0.1 * slack - 1.5 * start + 0.3 * wiggle
        tested = epoch % eval_every == 0 or epoch == epochs
        rows.append(
            common
            | {
                "epoch": epoch,
                "log_marginal_likelihood": estimate if epoch >= burn_in else None,
                "test_log_likelihood": test if tested else None,
                "test_accuracy": 0.9 if tested else None,
            }
        )
    return rows


def slack_of(estimator: str) -> float:
    """How far below the exact value an estimator lies, in nats per datum."""
    spec = parse_estimator(estimator)
    loose = 0.35 * math.log(1000 / (spec.inputs or 1000))
    loose += {"ntk": 0.0, "ggn": 0.0, "blockdiag": 0.15, "kfac": 0.3, "diag": 7.5}[spec.structure]
    return loose + {"1": 0.25, "tree": 0.3}.get(spec.outputs, 0.0)


def settings_of(
    estimator: str, hparam: str, seed: int, *, epochs: int = 60, dataset: str | None = None, samples: int = 30
) -> dict[str, Any]:
    return {
        "hparam": hparam, "dataset": dataset or DATASETS[hparam], "model": "mininet", "num_data": 1000, "seed": seed,
        "estimator": estimator, "epochs": epochs, "samples": samples if hparam == "invariance" else 1,
    }  # fmt: skip


def write_training_run(
    results: Path, estimator: str, hparam: str, seed: int = 0, *, finished_at: str | None = FINISHED_AT, **options: Any
) -> Path:
    """A run of ``ntkml train`` below ``results``; the path of its rows."""
    rows = training_rows(estimator, hparam, seed, **options)
    first = rows[0]
    folder = results / "train" / f"{estimator}-{first['dataset']}-{first['run_id']}"
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder / "manifest.json", training_manifest(estimator, hparam, seed, finished_at, **options))
    return write_rows(folder / "rows.csv", rows, train_records.COLUMNS)


def training_manifest(
    estimator: str, hparam: str, seed: int, finished_at: str | None = FINISHED_AT, **options: Any
) -> dict[str, Any]:
    kept = {key: options[key] for key in ("epochs", "dataset", "samples") if key in options}
    settings = settings_of(estimator, hparam, seed, **kept)
    return {
        "run_id": settings_id(settings), "command": "train", "settings": settings, "environment": {},
        "estimators": {estimator: {"certified": True, "num_blocks": 1}}, "notes": ["Synthetic training."],
        "finished_at": finished_at,
    }  # fmt: skip


def pareto_rows(
    estimators: Iterable[str], hparam: str, seeds: Iterable[int] = (0, 1, 2), run_id: str = "12e4567890", **changes: Any
) -> list[dict[str, Any]]:
    """One row per estimator; larger blocks and more outputs are tighter and slower."""
    seeds = list(seeds)
    rows = []
    for place, estimator in enumerate(estimators):
        spec = parse_estimator(estimator)
        pairs = (spec.inputs or 1000) * {"C": NUM_OUTPUTS, "1": 1, "tree": 1}[spec.outputs]
        speed = {"ntk": 1.0, "ggn": 3.0, "blockdiag": 1.1, "kfac": 0.7, "diag": 0.6}[spec.structure]
        seconds = speed * (0.02 + 2e-4 * pairs + 3e-8 * pairs**2 * (spec.structure in ("ntk", "blockdiag")))
        seconds *= (30 if hparam == "invariance" else 1) * (1 + 0.03 * math.sin(place))
        value = -0.7 - slack_of(estimator) + 0.05 * math.sin(7 * place)
        rows.append(
            _common(estimator, hparam)
            | {
                "run_id": run_id, "command": "pareto", "dataset": DATASETS[hparam], "num_seeds": len(seeds),
                "seeds": " ".join(map(str, seeds)), "epochs": 500, "samples": 30 if hparam == "invariance" else 1,
                "log_marginal_likelihood": value, "standard_error": 0.03 if len(seeds) > 1 else None,
                "exact_log_marginal_likelihood": -0.7 - 0.25 * slack_of(estimator) if pairs > 100 else None,
                "test_log_likelihood": -0.3, "test_accuracy": 0.95, "eta_2": 3.0, "seconds": seconds,
                "seconds_low": 0.95 * seconds, "seconds_high": 1.08 * seconds, "repeats": 20, "num_pairs": pairs,
                "peak_bytes": None, "threads": 2, "device": "cpu", "dtype": "float32",
            }
            | changes
        )  # fmt: skip
    best = pareto_records.frontier([row["seconds"] for row in rows], [row["log_marginal_likelihood"] for row in rows])
    return [row | {"on_frontier": flag} for row, flag in zip(rows, best, strict=True)]


def write_pareto_run(
    results: Path,
    estimators: Iterable[str],
    hparam: str,
    seeds: Iterable[int] = (0, 1),
    *,
    run_id: str = "12e4567890",
    finished_at: str | None = FINISHED_AT,
    epochs: int = 60,
) -> Path:
    """A Pareto run below ``results`` with its training rows; the path of its rows."""
    estimators, seeds = list(estimators), list(seeds)
    folder = results / "pareto" / f"{hparam}-{DATASETS[hparam]}-{run_id}"
    folder.mkdir(parents=True, exist_ok=True)
    cells = [(estimator, seed) for estimator in estimators for seed in seeds]
    training = [row for cell in cells for row in training_rows(cell[0], hparam, cell[1], epochs=epochs)]
    manifests = [training_manifest(estimator, hparam, seed, finished_at, epochs=epochs) for estimator, seed in cells]
    settings = {
        "hparam": hparam,
        "dataset": DATASETS[hparam],
        "model": "mininet",
        "num_data": 1000,
        "samples": 30,
        "epochs": epochs,
    }
    manifest = {
        "run_id": run_id, "command": "pareto", "settings": settings, "notes": ["Reduced: synthetic cells."],
        "environment": {"versions": {"torch": "2.13.0+cpu"}, "cpu": "Abacus 3000"},
        "estimators": {name: {"certified": True, "num_blocks": 1} for name in estimators}, "finished_at": finished_at,
        "runs": {one["run_id"]: one for one in manifests},
    }  # fmt: skip
    write_manifest(folder / "manifest.json", manifest)
    write_rows(folder / "training.csv.gz", training, train_records.COLUMNS)
    rows = pareto_rows(estimators, hparam, seeds, run_id, epochs=epochs)
    return write_rows(folder / "rows.csv", rows, pareto_records.COLUMNS)


def _common(estimator: str, hparam: str) -> dict[str, Any]:
    return {
        "model": "mininet", "num_data": 1000, "num_params": 14538, "hparam": hparam, "estimator": estimator,
        **parts_of(estimator), "certified": is_certified(parse_estimator(estimator)),
    }  # fmt: skip
