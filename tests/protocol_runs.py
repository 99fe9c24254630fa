"""Finished runs of a training protocol that never were: the manifest of the real thing, rows with given last values."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ntkml.protocols.train import WORDS, departures, load_train
from ntkml.records import train as train_records
from ntkml.records.manifests import settings_id, write_manifest
from ntkml.records.tables import write_rows
from ntkml.specs import NO_ESTIMATOR
from tests.synthetic_training import training_rows


def write_protocol_run(
    results: Path,
    name: str,
    hparam: str,
    estimator: str,
    seed: int = 0,
    *,
    last: tuple[float, float, float] = (-1.0, -0.5, 0.8),
    seconds: float = 1.0,
    device: str = "cpu",
    finished_at: str = "2026-01-01T00:00:00Z",
    **changes: Any,
) -> Path:
    """``last``: log q / N, test log likelihood and accuracy at the end; ``seconds`` of an epoch; ``changes`` of settings."""
    asked = load_train(name, hparam, "paper", estimator, changes.get("dataset"))
    protocol = replace(asked, seed=seed, **changes)
    settings = {field.name: getattr(protocol, field.name) for field in fields(protocol) if field.name not in WORDS}
    run_id = settings_id(settings)
    about = {
        "run_id": run_id, "dataset": protocol.dataset, "num_data": protocol.num_data, "model": protocol.model,
        "seconds_weights": 0.75 * seconds, "seconds_hyper": 0.25 * seconds, "device": device, "hparam": hparam,
    }  # fmt: skip
    like = "ntk-100-1" if estimator == NO_ESTIMATOR else estimator
    rows = [row | about for row in training_rows(like, hparam, seed, epochs=4, burn_in=2, eval_every=2)]
    rows[-1]["epoch"] = protocol.epochs
    rows[-1] |= dict(zip(("log_marginal_likelihood", "test_log_likelihood", "test_accuracy"), last, strict=True))
    if estimator == NO_ESTIMATOR:
        empty = {
            "structure": "none",
            "inputs": None,
            "outputs": None,
            "certified": None,
            "log_marginal_likelihood": None,
        }
        rows = [row | empty | {"estimator": NO_ESTIMATOR} for row in rows]
    folder = results / "train" / f"{estimator}-{run_id}"
    folder.mkdir(parents=True)
    manifest = {
        "run_id": run_id, "command": "train", "settings": settings, "protocol": {"name": name, "variant": "paper"},
        "estimators": {} if estimator == NO_ESTIMATOR else {estimator: {"certified": False, "num_blocks": 1}},
        "notes": departures(protocol, asked), "finished_at": finished_at,
    }  # fmt: skip
    write_manifest(folder / "manifest.json", manifest)
    return write_rows(folder / "rows.csv", rows, train_records.COLUMNS)
