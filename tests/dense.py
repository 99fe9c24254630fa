"""Dense values that share no code with ntkml: autodiff of everything, slogdet, and formulas as they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from ntkml.dichotomies import NestedDichotomy
from ntkml.grouping import tree_for
from ntkml.likelihoods import Bernoulli, Categorical, Likelihood
from ntkml.partitions import Block


def dense_jacobian(model: nn.Module, x: Tensor, num_views: int = 1) -> Tensor:
    """d f / d w of the outputs averaged over adjacent views, by reverse-mode autodiff of everything. (N, C, P)."""
    model = deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = False  # how a gradient is stored, which torch.func does not know
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}

    def averaged(weights: dict[str, Tensor]) -> Tensor:
        outputs = functional_call(model, weights, (x.clone(),))  # a network may work on its input in place
        return outputs.unflatten(0, (-1, num_views)).mean(1)

    jacobians = jacrev(averaged)(weights).values()  # (N, C, *shape) each
    return torch.cat([jacobian.reshape(*jacobian.shape[:2], -1) for jacobian in jacobians], dim=-1)


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
        tree = tree_for(model, num_outputs) or sequential(num_outputs)
        factor = naive_tree_factor(outputs, tree.splits)
        chosen = factor.gather(2, columns.unsqueeze(1).expand(-1, num_outputs, -1))
        return chosen @ chosen.transpose(1, 2)
    kept = nn.functional.one_hot(columns, num_outputs).sum(1).double()
    return hessians * kept.unsqueeze(1) * kept.unsqueeze(2)


def sequential(num_classes: int) -> NestedDichotomy:
    """Class 0 against the rest, class 1 against what is left, and so on."""
    return NestedDichotomy(tuple(((c,), tuple(range(c + 1, num_classes))) for c in range(num_classes - 1)))


def naive_tree_factor(outputs: Tensor, splits: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    """sqrt(pl pr / (pl + pr)) (p_left / pl - p_right / pr) as docs/mathematics.md has it, without logarithms. (n, C, C - 1)."""
    p = outputs.softmax(-1)
    columns = []
    for left, right in splits:
        sides = torch.zeros(2, p.shape[1], dtype=p.dtype)
        sides[0, list(left)], sides[1, list(right)] = 1.0, 1.0
        mass_left, mass_right = (p @ sides.T).unsqueeze(-1).unbind(1)
        weight = (mass_left * mass_right / (mass_left + mass_right)).sqrt()
        columns.append(weight * p * (sides[0] / mass_left - sides[1] / mass_right))
    return torch.stack(columns, dim=-1)
