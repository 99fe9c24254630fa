"""What a training run left for a bound grid: its weights, the hyperparameters that it learned, and where they came from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ntkml.hyperparameters.affine import ROTATION
from ntkml.records import train as train_records
from ntkml.records.manifests import read_manifest
from ntkml.runs.weights import SavedWeights, read_weights
from ntkml.specs import NO_ESTIMATOR


@dataclass(frozen=True)
class Learned:
    """Given weights. From ``ntkml train`` they come with the prior precision of every parameter tensor and half-widths.

    ``prior_precisions`` are those that the run ended with (MAP: that it kept), empty for a diagonal prior; ``eta`` is empty
    where no invariance was learned. Both are empty for weights from anywhere else.
    """

    weights: SavedWeights
    description: str
    prior_precisions: tuple[float, ...] = ()
    eta: tuple[float, ...] = ()


def read_learned(path: Path) -> Learned:
    """Weights from a ``weights.pt``, with what lies beside it where that is a finished run of ``ntkml train``.

    Raises:
        ValueError: no such file, not a file of finite weights, a damaged run beside it, or one of another likelihood than a
            bound grid's.
    """
    weights = read_weights(path)
    source = f"sha256 {weights.checksum[:10]}"
    manifest_path = path.with_name("manifest.json")
    manifest = read_manifest(manifest_path) if manifest_path.exists() else {}
    if manifest.get("command") != "train" or not manifest.get("finished_at"):
        return Learned(weights, f"Weights read from a file ({source}).")
    settings = manifest["settings"]
    if settings.get("likelihood", "categorical") != "categorical":
        raise ValueError(
            f"{path} was trained with the {settings['likelihood']} likelihood, and a bound grid takes the categorical one: give "
            "weights that were trained with it"
        )
    rows = train_records.read_finished(path.with_name("rows.csv"), settings["epochs"], manifest.get("run_id"))
    last = rows.iloc[-1]
    eta = tuple(float(last[f"eta_{index}"]) for index in range(6)) if last.notna()["eta_0"] else ()
    views = f", S\u00a0=\u00a0{settings['samples']}" if eta else ""
    how = (
        "by MAP"
        if settings["estimator"] == NO_ESTIMATOR
        else f"with hyperparameters learned by {settings['estimator']}"
    )
    words = f"epochs: {settings['epochs']}{views}, seed {settings['seed']}, {source}"
    precisions = tuple(json.loads(last["prior_precisions"])) if last["prior_precisions"] else ()
    described = [f"Weights trained {how} on {settings['dataset']} ({words})."]
    described += [f"Training run of these weights: {note}" for note in manifest.get("notes", [])]
    return Learned(weights, " ".join(described), precisions, eta)


def with_rotation(eta: tuple[float, ...], radians: float) -> tuple[float, ...]:
    """Learned half-widths with another rotation, as a rotation grid takes them."""
    return (*eta[:ROTATION], radians, *eta[ROTATION + 1 :])
