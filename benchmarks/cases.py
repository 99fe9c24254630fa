"""What is measured: a network, a batch of inputs and one piece of work, a value with its gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.networks import build
from ntkml.datasets import load_dataset
from ntkml.layers.fixup import Bias, Scale


@dataclass(frozen=True)
class Case:
    """One row of the comparison.

    ``estimator``: what ntkml calls it. ``views``: augmentation views of every input, 0 without augmentation; with some, the
    gradient in the six affine half-widths is part of the work. ``data``: ``mnist``, or ``random`` pixels of that shape.
    """

    network: str
    num_inputs: int
    estimator: str
    views: int = 0
    data: str = "random"

    @property
    def name(self) -> str:
        views = f"-{self.views}views" if self.views else ""
        return f"{self.network}-{self.num_inputs}{views}-{self.estimator}"

    @property
    def work(self) -> str:
        """What other systems must compute to be compared, such as ``kfac-N-C`` or ``ntk-N-1+eta``."""
        return self.estimator + ("+eta" if self.views else "")


@dataclass(frozen=True)
class Problem:
    """A case with its network and data in memory."""

    case: Case
    model: nn.Module
    x: Tensor
    y: Tensor


def problem(case: Case, data_root: str | None = None) -> Problem:
    """The network at seeded weights and the data; the same for every system."""
    generator = torch.Generator().manual_seed(0)
    model, shape, num_classes = build(case.network, generator)
    _nothing_zero(model, generator)
    if case.data == "mnist":
        data = load_dataset("mnist", data_root)
        return Problem(case, model, data.train_inputs[: case.num_inputs], data.train_targets[: case.num_inputs])
    x = torch.rand(case.num_inputs, *shape, generator=generator)
    y = torch.randint(num_classes, (case.num_inputs,), generator=generator)
    return Problem(case, model, x, y)


@torch.no_grad()
def _nothing_zero(model: nn.Module, generator: torch.Generator) -> None:
    """Weights as after some training: Fixup's zeros would make whole branches cost nothing and mean nothing.

    Its scalar biases and scales are frozen, for all systems alike: no other package has Kronecker factors for them.
    """
    for module in model.modules():
        if isinstance(module, (Bias, Scale)):
            module.requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1 and not bool(parameter.any()):
            parameter.normal_(0.0, 0.1 * parameter[0].numel() ** -0.5, generator=generator)


def _mininet(sizes: tuple[int, ...], estimator: str, views: int = 0) -> list[Case]:
    return [Case("mininet", size, estimator, views, "mnist") for size in sizes]


def _wrn(sizes: tuple[int, ...], estimator: str, views: int = 0) -> list[Case]:
    return [Case("wrn16-4", size, estimator, views) for size in sizes]


#: Seconds: what the tests run.
TINY = [
    Case("mininet-8", 6, estimator) for estimator in ("ntk-N-1", "ntk-N-C", "blockdiag-N-C", "kfac-N-C", "diag-N-C")
]
TINY.append(Case("mininet-8", 6, "ntk-N-1", views=2))

#: ``make bench``.
QUICK = [
    *_mininet((10, 100, 500), "ntk-N-1"),
    *_mininet((100,), "ntk-N-C"),
    *_mininet((100,), "kfac-N-1"),
    *_mininet((100,), "kfac-N-C"),
    *_mininet((100,), "diag-N-C"),
    *_mininet((50,), "ntk-N-1", views=8),
    *_mininet((50,), "kfac-N-1", views=8),
    *_wrn((4,), "ntk-N-1"),
]

#: ``make bench-full``: every row of the table of targets.
FULL = [
    *_mininet((10, 100, 500, 1000), "ntk-N-1"),
    *_mininet((100,), "ntk-N-C"),
    *_mininet((10, 100, 1000), "kfac-N-1"),
    *_mininet((10, 100, 1000), "kfac-N-C"),
    *_mininet((10, 100, 1000), "diag-N-C"),
    *_mininet((400,), "ntk-N-1", views=8),
    *_mininet((400,), "kfac-N-1", views=8),
    *_wrn((8, 32, 64), "ntk-N-1"),
    *_wrn((8, 32, 64), "kfac-N-1"),
    *_wrn((8, 32, 64), "diag-N-C"),
    *_wrn((8, 32, 64), "ntk-N-1", views=2),
    *_wrn((8, 32, 64), "kfac-N-C"),
]

#: How cost grows in M, C, S and P, the last by channels.
GROWTH = [
    case
    for structure in ("ntk", "kfac")
    for case in (
        *_mininet((50, 100, 200, 400), f"{structure}-N-1"),
        *_mininet((50,), f"{structure}-N-3"),
        *_mininet((50,), f"{structure}-N-C"),
        *(Case("mininet", 50, f"{structure}-N-1", views, "mnist") for views in (2, 4, 8)),
        *(Case(f"mininet-x{width}", 50, f"{structure}-N-1", 0, "mnist") for width in (2, 4, 8)),
    )
]

SUITES = {"tiny": TINY, "quick": QUICK, "full": FULL, "growth": GROWTH}
