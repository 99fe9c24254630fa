"""Rows of a training run: one per epoch, from its record and the state of the learner after it."""

from __future__ import annotations

import json
from typing import Any

import torch

from ntkml.hyperparameters.affine import GENERATOR_NAMES, AffineInvariance
from ntkml.learning.loop import LearningRecord
from ntkml.learning.state import Learner
from ntkml.parameters import trainable_parameters
from ntkml.specs import is_certified, parse_estimator
from ntkml.system_specs import is_bound, parts_of


def common_columns(learner: Learner, run_id: str, device: torch.device) -> dict[str, Any]:
    """The columns that are the same on every row."""
    protocol = learner.protocol
    sizes = [parameter.numel() for parameter in trainable_parameters(learner.objective.model).values()]
    certified = None
    if is_bound(protocol.estimator):
        certified = is_certified(parse_estimator(protocol.estimator), learner.objective.likelihood.softmax)
    kept = ("dataset", "model", "seed", "num_data", "likelihood", "estimator", "hparam")
    return (
        {"run_id": run_id, "command": "train", "num_params": sum(sizes)}
        | {key: getattr(protocol, key) for key in kept}
        | parts_of(protocol.estimator)
        | {"certified": certified, "device": device.type, "dtype": "float32"}
    )


def measured_columns(record: LearningRecord, bound: bool) -> dict[str, Any]:
    """What the epoch's record says. ``bound``: whether its estimates are of the log marginal likelihood."""
    test = record.test
    return {
        "epoch": record.epoch,
        "train_loss": record.train_loss,
        "log_marginal_likelihood": record.log_marginal_likelihood if bound else None,
        "test_log_likelihood": test.log_likelihood if test else None,
        "test_accuracy": test.accuracy if test else None,
        "test_ece": test.ece if test else None,
        "seconds_weights": record.seconds_weights,
        "seconds_hyper": record.seconds_hyper,
        "seconds_eval": record.seconds_eval,
    }


def hyperparameter_columns(learner: Learner) -> dict[str, Any]:
    """The hyperparameters after the epoch's steps."""
    values = learner.objective.prior.values.detach().cpu()
    few = learner.protocol.prior_kind != "diagonal"
    noise = learner.objective.log_observation_noise
    etas: list[float | None] = _eta(learner) or [None] * len(GENERATOR_NAMES)
    return {
        "observation_noise": None if noise is None else float(noise.detach().exp()),
        "prior_precision_min": float(values.min()),
        "prior_precision_median": float(values.median()),
        "prior_precision_max": float(values.max()),
        "prior_precisions": json.dumps([float(f"{value:.10g}") for value in values.tolist()]) if few else None,
        **{f"eta_{index}": eta for index, eta in enumerate(etas)},
    }


def _eta(learner: Learner) -> list[float | None] | None:
    views = learner.objective.augmentation
    return [float(eta) for eta in views.half_widths.detach().cpu()] if isinstance(views, AffineInvariance) else None
