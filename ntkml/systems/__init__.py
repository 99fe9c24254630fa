"""The ways of learning hyperparameters: bounds on the marginal likelihood, and other systems beside them, one file each.

All share the training loop through one contract (:class:`System`). Names are those of :mod:`ntkml.system_specs`; adding a
system is one file, one line in ``registry.SYSTEMS`` and one in ``system_specs.FAMILIES``.
"""

from __future__ import annotations

from torch import nn

from ntkml.machine.processes import ALONE, Processes
from ntkml.protocols.train import TrainProtocol
from ntkml.registry import SYSTEMS, resolve
from ntkml.system_specs import is_bound, parse_system
from ntkml.systems.contract import MarginalLikelihoodSystem, System

__all__ = ["System", "make_system"]


def make_system(
    protocol: TrainProtocol, model: nn.Module, chunk: int | None = None, processes: Processes = ALONE
) -> System:
    """The system that ``protocol.estimator`` names, with its hyperparameters at their start.

    Raises:
        ValueError: an unknown name, prior or likelihood, or a precision that is not positive.
    """
    name = protocol.estimator
    kind = MarginalLikelihoodSystem if is_bound(name) else resolve(SYSTEMS, parse_system(name).family, "system")
    return kind(protocol, model, chunk, processes)
