"""The systems side by side. Each is a function ``problem -> step``; a step does the whole work once, as a user would.

A step returns (value, gradient): the log marginal likelihood estimate in nats, and the gradient of -value / N in the log
prior precision of every parameter tensor, by which the systems are checked against ntkml before they are timed.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from benchmarks.cases import Problem
from benchmarks.networks import family
from benchmarks.systems import backpack, laplace_torch, ours, recipes
from ntkml.specs import parse_estimator

#: (value, gradient in the log prior precisions); None where there is nothing to compare (plain training).
Result = tuple[float, Tensor] | None
Step = Callable[[], Result]


@dataclass(frozen=True)
class System:
    """``works``: what it can do, by structure and outputs (``kfac-C``, ``k`` for groups), with ``+eta`` for augmentation gradients.

    ``package``: the distribution it needs, None where torch is enough.
    """

    name: str
    prepare: Callable[[Problem], Step]
    works: tuple[str, ...]
    package: str | None = None
    networks: tuple[str, ...] = ("mininet", "mininet-8", "wrn16-4")
    #: Beyond this many rows in a block it takes minutes, or more memory than there is.
    max_rows: int = 10**9

    def can(self, problem_work: str, network: str, num_inputs: int) -> bool:
        estimator, _, eta = problem_work.partition("+")
        spec = parse_estimator(estimator)
        outputs = 9 if spec.outputs == "C" else 1
        outputs_of = "k" if spec.outputs.isdigit() and spec.outputs != "1" else spec.outputs
        work = f"{spec.structure}-{outputs_of}" + (f"+{eta}" if eta else "")
        return family(network) in self.networks and work in self.works and num_inputs * outputs <= self.max_rows

    @property
    def version(self) -> str | None:
        """Of its package, or None where that is missing."""
        try:
            return importlib.metadata.version(self.package or "torch")
        except importlib.metadata.PackageNotFoundError:
            return None


_EVERYTHING = tuple(f"{s}-{o}" for s in ("ntk", "blockdiag", "kfac", "diag") for o in ("1", "k", "C"))
_MININET = ("mininet", "mininet-8")

PLAIN = System("plain", ours.plain, (*_EVERYTHING, *(f"{work}+eta" for work in _EVERYTHING)))
OURS = System("ntkml", ours.estimate, PLAIN.works)

SYSTEMS = [
    PLAIN,
    OURS,
    System("ntkml cached", ours.cached, _EVERYTHING),
    System("torch.func per-tensor Gram", recipes.per_tensor_gram, ("ntk-1", "ntk-C"), max_rows=1000),
    System("torch.func whole Jacobian", recipes.whole_jacobian, ("ntk-C",), networks=_MININET, max_rows=1000),
    System("one graph", recipes.one_graph, ("ntk-1+eta", "kfac-1+eta"), networks=_MININET),
    System("laplace-torch curvlinops", laplace_torch.kron_curvlinops, ("kfac-C",), "laplace-torch"),
    System("laplace-torch asdl", laplace_torch.kron_asdl, ("kfac-C",), "asdfghjkl"),
    System("laplace-torch asdl", laplace_torch.diag_asdl, ("diag-C",), "asdfghjkl"),
    System(
        "BackPACK", backpack.diagonal, ("diag-C",), "backpack-for-pytorch", networks=_MININET
    ),  # no rules for Fixup blocks
]


def system_for(name: str, case_work: str, network: str, num_inputs: int) -> System:
    """The system called ``name`` that can do this work."""
    return next(s for s in SYSTEMS if s.name == name and s.can(case_work, network, num_inputs))
