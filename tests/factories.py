"""Seeded float64 networks, priors and data, and how results are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from hypothesis import settings
from torch import Tensor, nn
from torch.func import vmap

from ntkml.dichotomies import NestedDichotomy
from ntkml.evidence import log_marginal_likelihood
from ntkml.grouping import partition_for
from ntkml.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from ntkml.partitions import Block, Partition
from ntkml.priors import PriorPrecision
from ntkml.rows.exact import RowPlan
from ntkml.rows.model_contract import check_model
from ntkml.specs import parse_estimator, resolve_estimator
from tests.dense import block_lambda, dense_hessians, dense_jacobian, dense_log_det, dense_log_prob

#: Few examples, the same ones every time, and nothing written to the disk.
few_examples = settings(max_examples=12, derandomize=True, deadline=None, database=None)

STRUCTURES = ("ntk", "ggn", "blockdiag", "kfac", "diag")
PRIOR_KINDS = ("scalar", "layerwise", "diagonal")
LIKELIHOODS: dict[str, Likelihood] = {
    "categorical": Categorical(),
    "bernoulli": Bernoulli(),
    "gaussian": Gaussian(observation_noise=0.7),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seeded(model: nn.Module, seed: int = 0, scale: float = 1.0) -> nn.Module:
    """``model`` in float64 with normal weights of about unit gain, drawn from the seed alone."""
    random, model = generator(seed), model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(scale * torch.randn(parameter.shape, generator=random, dtype=torch.float64) / fan_in**0.5)
    return model


def mlp(num_outputs: int = 3, seed: int = 0, scale: float = 1.5) -> nn.Module:
    """(n, 4) -> (n, C), 43 parameters for C = 3."""
    return seeded(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, num_outputs)), seed, scale)


def convnet(num_outputs: int = 3, seed: int = 0, scale: float = 1.5) -> nn.Module:
    """(n, 1, 5, 5) -> (n, C), 86 parameters for C = 3; smooth, so that finite differences hold."""
    layers = [nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(2, 3, 2), nn.Tanh()]
    return seeded(nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, num_outputs)), seed, scale)


NETWORKS = {"mlp": (mlp, (4,)), "convnet": (convnet, (1, 5, 5))}


def targets(likelihood: str, num_inputs: int, num_outputs: int, seed: int = 0) -> Tensor:
    random = generator(seed + 1)
    if likelihood == "categorical":
        return torch.randint(num_outputs, (num_inputs,), generator=random)
    values = torch.randn(num_inputs, num_outputs, generator=random, dtype=torch.float64)
    return (values > 0).double() if likelihood == "bernoulli" else values


@dataclass(frozen=True)
class Case:
    """A network, its data and everything dense about them."""

    model: nn.Module
    x: Tensor
    y: Tensor
    kind: str
    likelihood: Likelihood

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        return {name: weight.shape for name, weight in self.model.named_parameters() if weight.requires_grad}

    @property
    def sizes(self) -> list[int]:
        return [shape.numel() for shape in self.shapes.values()]

    @property
    def num_params(self) -> int:
        return sum(self.sizes)

    @cached_property
    def outputs(self) -> Tensor:
        return self.model(self.x).detach()

    @property
    def num_outputs(self) -> int:
        return self.outputs.shape[1]

    @cached_property
    def weights(self) -> Tensor:
        """w, (P,)."""
        return torch.cat([weight.detach().flatten() for weight in self.model.parameters() if weight.requires_grad])

    @cached_property
    def jacobian(self) -> Tensor:
        """J, (N, C, P)."""
        return dense_jacobian(self.model, self.x)

    @cached_property
    def hessians(self) -> Tensor:
        """Lambda, (N, C, C)."""
        return dense_hessians(self.likelihood, self.outputs, self.y)

    @cached_property
    def ggn(self) -> Tensor:
        """H = J^T Lambda J, (P, P)."""
        return torch.einsum("ncp,ncd,ndq->pq", self.jacobian, self.hessians, self.jacobian)

    @property
    def log_likelihood(self) -> Tensor:
        return vmap(lambda f, y: dense_log_prob(self.likelihood, f, y))(self.outputs, self.y).sum()

    def estimate(self, name: str, prior: Any = 1.0, seed: int = 0, blocks: int | None = None):
        """The public entry with everything filled in."""
        return log_marginal_likelihood(
            self.model, self.x, self.y, name, prior, self.likelihood, blocks=blocks, generator=generator(seed)
        )

    @property
    def plan(self) -> RowPlan:
        """How every parameter gets its rows."""
        return check_model(self.model, self.x)

    def partition(self, name: str, seed: int = 0):
        """The resolved spec and the partition that :meth:`estimate` uses for the same seed."""
        spec = resolve_estimator(parse_estimator(name), len(self.x), self.num_outputs, self.likelihood.softmax)
        return spec, partition_for(spec, self.model, self.x, self.y, self.likelihood, generator(seed), self.plan)

    def precision(self, prior: PriorPrecision) -> Tensor:
        """The diagonal of P0, (P,)."""
        repeats = {"scalar": [self.num_params], "layerwise": self.sizes, "diagonal": [1] * self.num_params}[prior.kind]
        return prior.values.detach().repeat_interleave(torch.tensor(repeats))

    def block_ggn(self, block: Block, outputs: str) -> Tensor:
        """H_B of one block, (P, P), from the sub-blocks of Lambda or the tree's naive columns."""
        jacobian = self.jacobian[block.inputs]
        lam = block_lambda(self.hessians[block.inputs], self.outputs[block.inputs], block, outputs, self.model)
        return torch.einsum("ncp,ncd,ndq->pq", jacobian, lam, jacobian)

    def bound_log_det(self, structure: str, outputs: str, partition: Partition, precision: Tensor) -> Tensor:
        """sum over blocks of the dense log-determinant of a structure (ntk and ggn are the same one)."""
        groups = {"blockdiag": self.sizes, "diag": [1] * self.num_params}.get(structure, [self.num_params])
        return torch.stack(
            [dense_log_det(self.block_ggn(block, outputs), precision, groups) for block in partition.blocks]
        ).sum()


def make_case(
    network: str = "mlp", likelihood: str = "categorical", num_inputs: int = 7, num_outputs: int = 3, seed: int = 0
) -> Case:
    """A seeded case; 7 inputs, so that blocks of 3 leave a smaller last one."""
    build, shape = NETWORKS[network]
    x = torch.randn(num_inputs, *shape, generator=generator(seed + 2), dtype=torch.float64)
    y = targets(likelihood, num_inputs, num_outputs, seed)
    return Case(build(num_outputs, seed), x, y, likelihood, LIKELIHOODS[likelihood])


def in_float32(case: Case) -> Case:
    """The same network and data rounded to float32."""
    y = case.y.float() if case.y.is_floating_point() else case.y
    model = NETWORKS["mlp" if case.x.ndim == 2 else "convnet"][0](case.num_outputs)
    model.load_state_dict(case.model.state_dict())
    return replace(case, model=model.float(), x=case.x.float(), y=y)


def make_prior(kind: str, case: Case, seed: int = 0, centre: float = 1.0) -> PriorPrecision:
    """Random precisions within a factor of about three around ``centre``."""
    size = {"scalar": 1, "layerwise": len(case.sizes), "diagonal": case.num_params}[kind]
    exponents = torch.randn(size, generator=generator(seed + 3), dtype=torch.float64) / 2
    return PriorPrecision(centre * exponents.exp(), kind)


def tree_of(classes: Sequence[int], draw_cut: Callable[[int], int]) -> NestedDichotomy:
    """The tree whose nodes keep the order of ``classes`` and are cut behind their ``draw_cut(size - 1)``-th class."""
    splits: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def split(classes: tuple[int, ...]) -> None:
        if len(classes) > 1:
            cut = draw_cut(len(classes) - 1)
            splits.append((classes[:cut], classes[cut:]))
            split(classes[:cut])
            split(classes[cut:])

    split(tuple(classes))
    return NestedDichotomy(tuple(splits))


def assert_same(actual: Tensor | float, expected: Tensor | float, tolerance: float = 1e-10) -> None:
    """Equal to within ``tolerance``, relative to max(1, |expected|)."""
    actual, expected = (torch.as_tensor(value, dtype=torch.float64).detach() for value in (actual, expected))
    assert actual.shape == expected.shape, f"shapes {tuple(actual.shape)} and {tuple(expected.shape)}"
    error = ((actual - expected).abs() / expected.abs().clamp_min(1.0)).max() if actual.numel() else torch.zeros(())
    assert error <= tolerance, f"largest error {error:.3g} (allowed {tolerance:g}): {actual} against {expected}"


def assert_rising(*values: Tensor | float) -> None:
    """Each value at least the one before, up to rounding."""
    numbers = [float(value) for value in values]
    for lower, upper in zip(numbers, numbers[1:], strict=False):
        assert lower <= upper + 1e-10 * max(1.0, abs(upper)), f"not in rising order: {numbers}"
