"""L L^T = Lambda for every factor, and Lambda is the Hessian of the log-probability."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import linkage
from torch import nn
from torch.func import vmap

from ntkml import dichotomies
from ntkml.dichotomies import average_linkage, balanced
from ntkml.evidence import log_marginal_likelihood
from ntkml.likelihoods import Bernoulli, Categorical, Gaussian, factor_columns, groups_of, num_columns
from ntkml.objective import MarginalLikelihood
from ntkml.partitions import make_partition
from tests.dense import dense_hessians, dense_log_prob, naive_tree_factor, sequential
from tests.factories import (
    LIKELIHOODS,
    assert_same,
    few_examples,
    generator,
    targets,
    tree_of,
)
from tests.largest_tensor import LargestTensor

SPLITS = {  # of 5 outputs: the groups of columns that share a block, under a softmax and without
    "1": ([[0], [1], [2], [3], [4]],) * 2,
    "2": ([[0, 1], [2, 3], [4]],) * 2,
    "4": ([[0, 1, 2, 3], [4]],) * 2,
    "C": ([[0, 1, 2, 3]], [[0, 1, 2, 3, 4]]),
    "tree": ([[0], [1], [2], [3]], None),
}


def logits(num_inputs=6, num_outputs=5, scale=2.0, seed=0):
    return scale * torch.randn(num_inputs, num_outputs, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_lambda_is_the_hessian_of_the_log_probability(name):
    likelihood, f, y = LIKELIHOODS[name], logits(), targets(name, 6, 5)
    assert_same(likelihood.hessian(f), dense_hessians(likelihood, f, y))
    assert_same(likelihood.log_prob(f, y), vmap(lambda f, y: dense_log_prob(likelihood, f, y))(f, y))


def test_learned_noise_enters_the_gaussian_hessian_and_log_probability():
    noise = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    likelihood, f, y = Gaussian(noise), logits(), targets("gaussian", 6, 5)
    assert_same(likelihood.hessian(f), torch.eye(5, dtype=torch.float64).expand(6, 5, 5) / 0.16)
    (gradient,) = torch.autograd.grad(likelihood.log_prob(f, y).sum(), noise)
    assert_same(gradient, ((y - f) ** 2).sum() / 0.4**3 - f.numel() / 0.4)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_group_of_columns_gives_its_block_of_lambda(name, split):
    """Lambda_gg for 1 and k; all of Lambda for C, and for tree summed over its rows."""
    likelihood, f = LIKELIHOODS[name], logits()
    groups = SPLITS[split][0 if likelihood.softmax else 1]
    if groups is None:
        groups = SPLITS["1"][1]  # without a softmax tree is refused by its name; its factor is that of single outputs
    else:
        assert [list(group) for group in groups_of(likelihood, split, f)] == groups
    factor = likelihood.factor(f, split, balanced(range(5)))
    assert factor.shape == (6, 5, sum(len(group) for group in groups))
    hessians = likelihood.hessian(f) * likelihood.noise_variance
    if likelihood.softmax and split in ("C", "tree"):
        assert_same(factor @ factor.transpose(1, 2), hessians, 1e-12)
        return
    for group in groups:
        kept = torch.zeros(5, dtype=torch.float64)
        kept[group] = 1.0
        columns = factor[:, :, group]
        assert_same(columns @ columns.transpose(1, 2), hessians * torch.outer(kept, kept), 1e-12)


@few_examples
@given(st.data(), st.integers(2, 7), st.integers(0, 999))
def test_any_tree_is_a_factor_and_has_the_printed_columns(data, num_classes, seed):
    classes = data.draw(st.permutations(range(num_classes)))
    tree = tree_of(classes, lambda last: data.draw(st.integers(1, last)))
    f = logits(num_outputs=num_classes, seed=seed)
    factor = tree.factor(f.log_softmax(-1))
    assert_same(factor, naive_tree_factor(f, tree.splits), 1e-12)
    assert_same(factor @ factor.transpose(1, 2), Categorical().hessian(f), 1e-12)


@pytest.mark.parametrize("split", SPLITS)
def test_small_masses_keep_all_their_digits(split):
    """At p = 1 - 1e-13, 1 - p has three digits left; the products p_c p_d that Lambda is made of have all of them."""
    f = torch.tensor([[30.0, 0.0, -1.0, 2.0, -300.0], [-30.0, 400.0, 370.0, 0.0, 1.0]], dtype=torch.float64)
    factor = Categorical().factor(f, split, balanced(range(5)))
    p = f.softmax(-1)
    others = 1.0 - torch.eye(5, dtype=torch.float64)
    expected = p * (p @ others)  # p_c (1 - p_c) without a subtraction
    actual = (factor**2).sum(-1)
    assert expected.min() < 1e-100
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli()])
def test_saturated_logits_have_finite_factors_and_gradients(likelihood, split, dtype):
    f = torch.tensor(
        [[1e3, -1e3, -1e3, 1e3, 0.0], [1e3, 1e3, 1e3, 1e3, 1e3], [-1e3, -1e3, -1e3, -1e3, 1e3]], dtype=dtype
    ).requires_grad_()
    factor = likelihood.factor(f, split, balanced(range(5)))
    (gradient,) = torch.autograd.grad(factor.sum(), f)
    assert factor.dtype == dtype
    assert torch.isfinite(factor).all()
    assert torch.isfinite(gradient).all()


def test_factors_are_differentiable_in_the_outputs():
    for name in ("categorical", "bernoulli"):
        for split in SPLITS:
            f = logits(2).requires_grad_()
            tree = balanced(range(5))
            assert torch.autograd.gradcheck(lambda f, s=split, n=name, t=tree: LIKELIHOODS[n].factor(f, s, t), f)


def column_gradient(compute, f, weights):
    """Columns (n, C, k), and the gradient of their sum under fixed weights."""
    f = f.clone().requires_grad_()
    columns = compute(f)
    if not columns.requires_grad:
        return columns, torch.zeros_like(f)
    (gradient,) = torch.autograd.grad((columns * weights[:, :, : columns.shape[2]]).sum(), f)
    return columns.detach(), gradient


@pytest.mark.parametrize("scale", [2.0, 2000.0])
@pytest.mark.parametrize("iid", [False, True])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_columns_alone_are_those_of_the_whole_factor(name, split, iid, scale):
    likelihood, f, tree = LIKELIHOODS[name], logits(scale=scale), balanced([3, 1, 4, 0, 2])
    weights = logits(seed=1).unsqueeze(-1) * logits(5, seed=2)
    partition = make_partition([torch.arange(6)], groups_of(likelihood, split, f), iid, generator())
    for block in partition.blocks:
        alone = column_gradient(lambda f, c=block.columns: factor_columns(likelihood, f, split, tree, c), f, weights)
        cut = column_gradient(lambda f, b=block: b.select(likelihood.factor(f, split, tree)), f, weights)
        for own, whole in zip(alone, cut, strict=True):
            assert torch.isfinite(own).all()
            assert_same(own, whole, 1e-12)


class Halved(Categorical):
    """A factor of its own, without ``columns``, beside one that takes them."""

    def factor(self, outputs, split, tree):
        return 0.5 * super().factor(outputs, split, tree)


@pytest.mark.parametrize("columns", [torch.tensor([3, 1]), torch.tensor([[3], [0], [1], [2], [2], [0]])])
def test_the_columns_of_a_factor_that_gives_all_are_selected(columns):
    found = factor_columns(Halved(), logits(), "tree", None, columns)
    assert_same(found, 0.5 * factor_columns(Categorical(), logits(), "tree", None, columns))


SINGLE = ["ntk-N-1", "ntk-N-1+iid", "diag-10-1", "ntk-N-2"]


@pytest.mark.parametrize(
    ("likelihood", "name"),
    [
        *((likelihood, name) for likelihood in LIKELIHOODS for name in SINGLE),
        ("categorical", "ntk-N-tree"),
        ("categorical", "kfac-10-tree+iid"),
    ],
)
def test_a_step_on_some_columns_makes_no_others(likelihood, name):
    """Nothing as large as the columns of all C outputs of a chunk, n C C numbers: the members of a tree are 2 C C, once."""
    num_inputs, chunk, num_outputs = 20, 10, 100
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, num_outputs)).double()
    x = torch.randn(num_inputs, 2, generator=generator(), dtype=torch.float64)
    y = targets(likelihood, num_inputs, num_outputs)
    objective = MarginalLikelihood(model, name, likelihood=likelihood, chunk=chunk)
    objective.resample(x, y, generator())
    with LargestTensor() as largest:
        objective.backward(x, y, 1, generator())
    assert largest.numel < chunk * num_outputs**2 / 4


def many_classes(head=None, num_outputs=100):
    """A network of 100 outputs, its 20 inputs and their classes."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), head or nn.Linear(3, num_outputs)).double()
    return model, torch.randn(20, 2, generator=generator(), dtype=torch.float64), torch.arange(20)


def convolutional_head(num_outputs=100):
    return nn.Sequential(nn.Unflatten(1, (3, 1, 1)), nn.Conv2d(3, num_outputs, 1), nn.Flatten())


@pytest.mark.parametrize("name", ["ntk-4-1", "ntk-4-C", "ntk-4-7", "ntk-4-1+iid", "ntk-4-tree"])
def test_a_partition_is_made_without_any_factor(name):
    model, x, y = many_classes()
    objective = MarginalLikelihood(model, name)
    objective.estimate(x, y, 1)  # which checks the network
    with LargestTensor() as largest:
        objective.resample(x, y, generator())
    assert largest.numel <= max(len(objective.partition), 4 * 100)


@pytest.mark.parametrize("name", ["ntk-4-1", "ntk-4-C", "ntk-4-7"])
def test_only_tree_rows_take_a_tree(name):
    model, x, y = many_classes()
    objective = MarginalLikelihood(model, name)
    objective.estimate(x, y, 1)
    assert objective.tree is None


@pytest.mark.parametrize("name", ["ntk-10-1", "ntk-10-tree", "ntk-10-7", "ntk-10-1+iid"])
def test_the_plain_estimate_of_some_blocks_makes_their_columns_alone(name):
    model, x, y = many_classes(convolutional_head())
    log_marginal_likelihood(model, x, y, name, blocks=1, generator=generator())  # members of groups are kept
    with LargestTensor() as largest:
        log_marginal_likelihood(model, x, y, name, blocks=1, generator=generator())
    assert largest.numel < 10 * 100**2 / 4


def test_without_class_weights_the_members_of_no_tree_are_made():
    model, x, y = many_classes(convolutional_head())
    objective = MarginalLikelihood(model, "ntk-4-tree")
    with LargestTensor() as largest:
        objective.backward(x, y, 1, generator())
    assert largest.numel < 100**2


def test_the_members_of_a_tree_are_made_once_for_all_steps(monkeypatch):
    """And the tree is not hashed, which takes all of its splits."""
    made = []
    original = dichotomies.members_of
    monkeypatch.setattr(dichotomies, "members_of", lambda *given: made.append(given) or original(*given))
    monkeypatch.setattr(dichotomies.NestedDichotomy, "__hash__", None)
    model, x, y = many_classes()
    objective = MarginalLikelihood(model, "ntk-4-tree")
    for _ in range(3):
        objective.backward(x, y, 1, generator())
    assert len(made) == 1


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_number_of_columns_is_that_of_the_factor(name, split):
    likelihood = LIKELIHOODS[name]
    assert num_columns(likelihood, split, logits()) == likelihood.factor(logits(), split, None).shape[2]


def test_the_columns_of_a_factor_of_ones_own_are_counted():
    class Doubled(Categorical):
        """Lambda twice, in halves."""

        def factor(self, outputs, split, tree, columns=None):
            whole = super().factor(outputs, split, tree)
            both = torch.cat([whole, whole], dim=2) / 2**0.5
            return both if columns is None else both[:, :, columns]

    assert len(groups_of(Doubled(), "1", logits())) == 10
    assert groups_of(Doubled(), "C", logits()) == (tuple(range(8)),)


@pytest.mark.parametrize("columns", [None, torch.tensor([3, 0]), torch.tensor([[3], [0], [1], [2], [2], [0]])])
def test_columns_in_sequence_are_those_of_the_tree(columns):
    for scale in (2.0, 2000.0):
        log_p = logits(scale=scale).log_softmax(-1)
        assert torch.equal(dichotomies.sequential_columns(log_p, columns), sequential(5).factor(log_p, columns))


@pytest.mark.parametrize(
    "tree",
    [sequential(5), balanced([3, 1, 4, 0, 2]), average_linkage(torch.randn(5, 3, generator=generator()))],
    ids=["sequential", "balanced", "average-linkage"],
)
def test_a_tree_splits_every_node_in_two_down_to_single_classes(tree):
    assert tree.num_classes == 5
    nodes = {frozenset(range(5))}
    for left, right in tree.splits:
        assert frozenset(left + right) in nodes
        assert not set(left) & set(right)
        nodes |= {frozenset(left), frozenset(right)}
    assert {frozenset([c]) for c in range(5)} <= nodes


def test_average_linkage_splits_confused_classes_last():
    """Class weights near each other end in one small node; a shift of all of them, which no softmax sees, changes nothing."""
    weights = torch.tensor([[1.0, 0.0], [-1.0, 0.2], [0.9, 0.1], [-1.1, 0.1]])
    tree = average_linkage(weights)
    assert {frozenset(side) for side in tree.splits[0]} == {frozenset([0, 2]), frozenset([1, 3])}
    assert average_linkage(weights + torch.tensor([5.0, -3.0])) == tree


def test_weights_of_zero_are_not_taken_for_a_matrix_of_distances():
    """As many units as classes, and a head that starts at zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert average_linkage(torch.zeros(4, 4)).num_classes == 4


def test_average_linkage_averages_cosine_distances():
    weights = torch.randn(6, 3, generator=generator(7), dtype=torch.float64)
    members, centred = [(c,) for c in range(6)], weights - weights.mean(0)
    for left, right, *_ in linkage(centred.numpy(), method="average", metric="cosine"):
        members.append(members[int(left)] + members[int(right)])
    assert [left + right for left, right in reversed(average_linkage(weights).splits)] == members[6:]


def test_average_linkage_stands_degenerate_weights():
    assert average_linkage(torch.zeros(4, 3)).num_classes == 4
    assert average_linkage(torch.ones(2, 1)).splits == (((0,), (1,)),)


def test_without_a_tree_the_classes_split_in_sequence():
    f = logits()
    assert_same(Categorical().factor(f, "tree", None), naive_tree_factor(f, sequential(5).splits))
