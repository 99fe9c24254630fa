"""How well a classifier predicts held-out data: log likelihood, accuracy and calibration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ntkml.likelihoods import Likelihood

#: Bins of equal width that confidences are sorted into.
CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Scores:
    """Mean log likelihood in nats per datum, accuracy and expected calibration error in [0, 1].

    ``ece`` is None where outputs are no class probabilities.
    """

    log_likelihood: float
    accuracy: float
    ece: float | None


def score(outputs: Tensor, targets: Tensor, likelihood: Likelihood | None = None) -> Scores:
    """Scores of outputs (n, C) against classes (n,): logits of a softmax, or outputs of another ``likelihood``.

    Other likelihoods are scored on one-hot targets; the class with the largest output is the predicted one.
    """
    if likelihood is not None and not likelihood.softmax:
        log_p = likelihood.log_prob(outputs, one_hot(targets, outputs.shape[1])).double()
        return Scores(float(log_p.mean()), float((outputs.argmax(-1) == targets).double().mean()), None)
    log_p = outputs.double().log_softmax(-1)
    confidence, predicted = log_p.exp().max(-1)
    correct = predicted == targets
    return Scores(
        float(log_p.gather(1, targets.unsqueeze(1)).mean()),
        float(correct.double().mean()),
        expected_calibration_error(confidence, correct),
    )


def one_hot(targets: Tensor, num_classes: int) -> Tensor:
    """Classes (n,) as zeros and ones, (n, C)."""
    return F.one_hot(targets.long(), num_classes).to(torch.get_default_dtype())


def expected_calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """sum over bins of |share of correct predictions - mean confidence|, weighted by the bin's share (Guo et al. 2017).

    confidence: (n,) in [0, 1], correct: (n,) booleans. Bins of equal width; a confidence of 1 belongs to the last.
    """
    bins = (confidence * CALIBRATION_BINS).long().clamp_max(CALIBRATION_BINS - 1)
    gaps = torch.zeros(CALIBRATION_BINS, dtype=torch.float64, device=confidence.device)
    gaps.index_add_(0, bins, correct.double() - confidence.double())
    return float(gaps.abs().sum() / len(confidence))
