"""Stochastic lower bounds on the log marginal likelihood of neural networks.

    ntkml.log_marginal_likelihood(model, x, y, "ntk-100-C", prior=1.0, likelihood="categorical")

The public names, and the modules of the package, are imported on first use, so that ``import ntkml``, and with it
``ntkml --help``, stays free of torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntkml.evidence import LogMarginalLikelihood, log_marginal_likelihood
    from ntkml.hyperparameters.affine import AffineInvariance
    from ntkml.likelihoods import Bernoulli, Categorical, Gaussian
    from ntkml.machine.allocator import keep_freed_memory
    from ntkml.objective import MarginalLikelihood
    from ntkml.parameters import Hyperparameter
    from ntkml.priors import PriorPrecision
    from ntkml.specs import parse_estimator

__version__ = "0.1.0"
__all__ = [
    "AffineInvariance",
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "Hyperparameter",
    "LogMarginalLikelihood",
    "MarginalLikelihood",
    "PriorPrecision",
    "__version__",
    "keep_freed_memory",
    "log_marginal_likelihood",
    "parse_estimator",
]

_HOMES = {
    "AffineInvariance": "ntkml.hyperparameters.affine",
    "Bernoulli": "ntkml.likelihoods",
    "Categorical": "ntkml.likelihoods",
    "Gaussian": "ntkml.likelihoods",
    "Hyperparameter": "ntkml.parameters",
    "LogMarginalLikelihood": "ntkml.evidence",
    "MarginalLikelihood": "ntkml.objective",
    "PriorPrecision": "ntkml.priors",
    "keep_freed_memory": "ntkml.machine.allocator",
    "log_marginal_likelihood": "ntkml.evidence",
    "parse_estimator": "ntkml.specs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        if name.isidentifier() and not name.startswith("_") and importlib.util.find_spec(f"ntkml.{name}"):
            return importlib.import_module(f"ntkml.{name}")
        raise AttributeError(f"module 'ntkml' has no attribute {name!r}; it offers {', '.join(sorted(_HOMES))}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
