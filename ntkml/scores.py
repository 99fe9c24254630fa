"""How well a classifier predicts held-out data: log likelihood, accuracy and calibration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Bins of equal width that confidences are sorted into.
CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Scores:
    """Mean log likelihood in nats per datum, accuracy and expected calibration error in [0, 1]."""

    log_likelihood: float
    accuracy: float
    ece: float


def score(outputs: Tensor, targets: Tensor) -> Scores:
    """Scores of logits (n, C) against classes (n,)."""
    log_p = outputs.double().log_softmax(-1)
    confidence, predicted = log_p.exp().max(-1)
    correct = predicted == targets
    return Scores(
        float(log_p.gather(1, targets.unsqueeze(1)).mean()),
        float(correct.double().mean()),
        expected_calibration_error(confidence, correct),
    )


def expected_calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """sum over bins of |share of correct predictions - mean confidence|, weighted by the bin's share (Guo et al. 2017).

    confidence: (n,) in [0, 1], correct: (n,) booleans. Bins of equal width; a confidence of 1 belongs to the last.
    """
    bins = (confidence * CALIBRATION_BINS).long().clamp_max(CALIBRATION_BINS - 1)
    gaps = torch.zeros(CALIBRATION_BINS, dtype=torch.float64, device=confidence.device)
    gaps.index_add_(0, bins, correct.double() - confidence.double())
    return float(gaps.abs().sum() / len(confidence))
