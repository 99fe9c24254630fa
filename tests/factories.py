"""Seeded float64 networks and data, and dense values that share no code with ntkml: autodiff of everything, slogdet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from hypothesis import settings
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from ntkml.dichotomies import NestedDichotomy
from ntkml.evidence import log_marginal_likelihood, partition_for, tree_for
from ntkml.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from ntkml.partitions import Block, Partition
from ntkml.priors import PriorPrecision
from ntkml.specs import parse_estimator, resolve_estimator

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

    def partition(self, name: str, seed: int = 0):
        """The resolved spec and the partition that :meth:`estimate` uses for the same seed."""
        spec = resolve_estimator(parse_estimator(name), len(self.x), self.num_outputs, self.likelihood.softmax)
        return spec, partition_for(spec, self.model, self.x, self.y, self.likelihood, generator(seed))

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


def dense_jacobian(model: nn.Module, x: Tensor, num_views: int = 1) -> Tensor:
    """d f / d w of the outputs averaged over adjacent views, by reverse-mode autodiff of everything. (N, C, P)."""
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}

    def averaged(weights: dict[str, Tensor]) -> Tensor:
        outputs = functional_call(model, weights, (x.clone(),))  # a network may work on its input in place
        return outputs.unflatten(0, (-1, num_views)).mean(1)

    return torch.cat([jacobian.flatten(2) for jacobian in jacrev(averaged)(weights).values()], dim=-1)


def dense_log_prob(likelihood: Likelihood, f: Tensor, y: Tensor) -> Tensor:
    """log p(y | f) of one input, written out."""
    if isinstance(likelihood, Categorical):
        return f.gather(0, y.reshape(1)).squeeze(0) - f.logsumexp(0)
    if isinstance(likelihood, Bernoulli):
        return (y * f - (1 + f.exp()).log()).sum()
    variance = torch.as_tensor(likelihood.observation_noise, dtype=torch.float64) ** 2
    return (-((y - f) ** 2) / (2 * variance) - (2 * torch.pi * variance).log() / 2).sum()


def dense_hessians(likelihood: Likelihood, outputs: Tensor, y: Tensor) -> Tensor:
    """Lambda = -d^2 log p / df^2, reverse over reverse. (N, C, C)."""
    return -vmap(jacrev(jacrev(lambda f, y: dense_log_prob(likelihood, f, y))))(outputs, y)


def dense_log_det(ggn: Tensor, precision: Tensor, group_sizes: Sequence[int]) -> Tensor:
    """sum over diagonal blocks of log|H_g P0_g^-1 + I|. ggn: (P, P), precision: (P,)."""
    scaled = ggn / precision
    blocks = zip(scaled.split(list(group_sizes)), _offsets(group_sizes), group_sizes, strict=True)
    return torch.stack(
        [torch.linalg.slogdet(rows[:, at : at + size] + torch.eye(size)).logabsdet for rows, at, size in blocks]
    ).sum()


def _offsets(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:index]) for index in range(len(sizes))]


def block_lambda(hessians: Tensor, outputs: Tensor, block: Block, split: str, model: nn.Module) -> Tensor:
    """What a block keeps of Lambda, (n, C, C): all of it, the sub-block of its outputs, or l l^T of tree columns."""
    n, num_outputs, _ = hessians.shape
    if split == "C":
        return hessians
    columns = block.columns.expand(n, -1)  # (n, k)
    if split == "tree":
        factor = naive_tree_factor(outputs, tree_for(model).splits)
        chosen = factor.gather(2, columns.unsqueeze(1).expand(-1, num_outputs, -1))
        return chosen @ chosen.transpose(1, 2)
    kept = nn.functional.one_hot(columns, num_outputs).sum(1).double()
    return hessians * kept.unsqueeze(1) * kept.unsqueeze(2)


def naive_tree_factor(outputs: Tensor, splits: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    """sqrt(pl pr / (pl + pr)) (p_left / pl - p_right / pr) as printed in PROTOCOLS, without logarithms. (n, C, C - 1)."""
    p = outputs.softmax(-1)
    columns = []
    for left, right in splits:
        sides = torch.zeros(2, p.shape[1], dtype=p.dtype)
        sides[0, list(left)], sides[1, list(right)] = 1.0, 1.0
        mass_left, mass_right = (p @ sides.T).unsqueeze(-1).unbind(1)
        weight = (mass_left * mass_right / (mass_left + mass_right)).sqrt()
        columns.append(weight * p * (sides[0] / mass_left - sides[1] / mass_right))
    return torch.stack(columns, dim=-1)


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
