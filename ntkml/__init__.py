"""Stochastic lower bounds on the log marginal likelihood of neural networks.

    ntkml.log_marginal_likelihood(model, x, y, "ntk-100-C", prior=1.0, likelihood="categorical")

The public names are imported on first use, so that ``import ntkml``, and with it ``ntkml --help``, stays free of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntkml.evidence import log_marginal_likelihood
    from ntkml.hyperparameters.affine import AffineInvariance
    from ntkml.objective import MarginalLikelihood
    from ntkml.priors import PriorPrecision
    from ntkml.rows.capture import Hyperparameter

__version__ = "0.1.0"
__all__ = [
    "AffineInvariance",
    "Hyperparameter",
    "MarginalLikelihood",
    "PriorPrecision",
    "__version__",
    "log_marginal_likelihood",
]

_HOMES = {
    "AffineInvariance": "ntkml.hyperparameters.affine",
    "Hyperparameter": "ntkml.rows.capture",
    "MarginalLikelihood": "ntkml.objective",
    "log_marginal_likelihood": "ntkml.evidence",
    "PriorPrecision": "ntkml.priors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ntkml' has no attribute {name!r}; it offers {', '.join(sorted(_HOMES))}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
