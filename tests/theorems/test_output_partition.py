"""Theorem 2, output-wise, under a softmax: the paper's blocks are no bound, the rows of a nested dichotomy are one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ntkml import log_marginal_likelihood
from ntkml.dichotomies import average_linkage, balanced
from ntkml.evidence import block_log_det
from ntkml.partitions import Block
from ntkml.rows.capture import capture
from ntkml.specs import parse_estimator
from tests.dense import sequential
from tests.factories import NETWORKS, assert_rising, assert_same, few_examples, make_case, make_prior, tree_of
from tests.strategies import scales, seeds

NUM_INPUTS, NUM_CLASSES = 6, 4
PAIRS = [(n, r) for n in range(NUM_INPUTS) for r in range(NUM_CLASSES - 1)]


@st.composite
def trees(draw, num_classes=NUM_CLASSES):
    """Any binary tree over the classes, by random splits; or one of the three that the package makes."""
    order = draw(st.permutations(range(num_classes)))
    kind = draw(st.sampled_from(["random", "balanced", "sequential", "average linkage"]))
    if kind == "balanced":
        return balanced(order)
    if kind == "sequential":
        return sequential(num_classes)
    if kind == "average linkage":
        weights = draw(st.lists(st.floats(-1, 1), min_size=2 * num_classes, max_size=2 * num_classes))
        return average_linkage(torch.tensor(weights).reshape(num_classes, 2))
    return tree_of(order, lambda last: draw(st.integers(1, last)))


def tree_log_det(case, tree, partition, prior, structure="ntk"):
    """sum over blocks of log|I + K_m|; a block is any list of (input, row of the tree) pairs."""
    spec = parse_estimator(f"{structure}-N-tree")
    total = 0.0
    for pairs in partition:
        inputs, columns = (torch.tensor(side) for side in zip(*pairs, strict=True))
        captured = capture(case.model, case.x[inputs])
        factor = case.likelihood.factor(captured.outputs.detach(), "tree", tree)
        block = Block(inputs, columns.unsqueeze(1))
        total += block_log_det(spec, captured, block.select(factor), case.shapes, prior, case.likelihood)
    return total


def cut(assignment):
    """The blocks that an assignment of every pair to a label makes."""
    return [
        [pair for pair, own in zip(PAIRS, assignment, strict=True) if own == label] for label in sorted(set(assignment))
    ]


def the_counterexample():
    """C = 2, f = (w, -w) x, x = 1, w = 0."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    both_signs = nn.Linear(1, 2, bias=False).double().requires_grad_(False)
    both_signs.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    return nn.Sequential(model, both_signs), torch.ones(1, 1, dtype=torch.float64), torch.tensor([0])


@pytest.mark.parametrize("structure", ["ntk", "ggn", "blockdiag", "diag"])
def test_single_outputs_can_exceed_the_exact_value(structure):
    """Known fault of the paper: Lambda couples the outputs, so that 2 ln 1.25 < ln 2 and the 'bound' is no bound."""
    model, x, y = the_counterexample()
    exact = log_marginal_likelihood(model, x, y, "ntk-N-C")
    single = log_marginal_likelihood(model, x, y, f"{structure}-N-1")
    assert_same(exact.log_det, math.log(2))
    assert_same(single.log_det, 2 * math.log(1.25))
    assert single.total > exact.total
    assert exact.certified
    assert not single.certified


def test_groups_of_outputs_can_exceed_the_exact_value():
    """f = (w, 0, -w) at w = 0: groups {0, 1} and {2} give 2 ln (11/9) < ln (5/3)."""
    model, x, y = the_counterexample()
    model[1] = nn.Linear(1, 3, bias=False).double().requires_grad_(False)
    model[1].weight.copy_(torch.tensor([[1.0], [0.0], [-1.0]]))
    exact, grouped = (log_marginal_likelihood(model, x, y, name) for name in ("ntk-N-C", "ntk-N-2"))
    assert_same(exact.log_det, math.log(5 / 3))
    assert_same(grouped.log_det, 2 * math.log(11 / 9))
    assert grouped.total > exact.total
    assert not grouped.certified


def test_tree_rows_mend_the_counterexample_and_are_exact():
    model, x, y = the_counterexample()
    tree = log_marginal_likelihood(model, x, y, "ntk-N-tree")
    assert_same(tree.log_det, math.log(2))
    assert tree.certified


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", ["scalar", "layerwise", "diagonal"])
def test_a_tree_over_two_classes_is_exact(network, kind):
    case = make_case(network, num_outputs=2)
    prior = make_prior(kind, case)
    assert_same(case.estimate("ntk-N-tree", prior).total, case.estimate("ntk-N-C", prior).total)


@few_examples
@given(trees(), scales, seeds)
def test_all_rows_of_any_tree_in_one_block_are_exact(tree, scale, seed):
    case = make_case("mlp", num_inputs=NUM_INPUTS, num_outputs=NUM_CLASSES, seed=seed)
    prior = make_prior("layerwise", case, seed, scale)
    assert_same(tree_log_det(case, tree, [PAIRS], prior), case.estimate("ggn-N-C", prior).log_det)


@few_examples
@given(trees(), st.sampled_from(["ntk", "blockdiag", "diag"]), scales, seeds, st.data())
def test_refining_tree_rows_only_loosens(tree, structure, scale, seed, data):
    """Any partition of (input, row) pairs, iid ones included, and any refinement of it."""
    case = make_case("mlp", num_inputs=NUM_INPUTS, num_outputs=NUM_CLASSES, seed=seed)
    prior = make_prior("layerwise", case, seed, scale)
    labels = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1)), min_size=len(PAIRS), max_size=len(PAIRS))
    fine = data.draw(labels)
    coarse = [label for label, _ in fine]
    log_dets = [
        tree_log_det(case, tree, partition, prior, structure) for partition in ([PAIRS], cut(coarse), cut(fine))
    ]
    assert_rising(case.estimate("ntk-N-C", prior).log_det, *log_dets)


@few_examples
@given(st.sampled_from(["N-tree", "2-tree", "2-tree+iid", "3-tree+kmeans", "N-tree+iid"]), scales, seeds)
def test_every_tree_estimator_is_a_bound(name, scale, seed):
    case = make_case("convnet", num_inputs=NUM_INPUTS, num_outputs=NUM_CLASSES, seed=seed)
    prior = make_prior("scalar", case, seed, scale)
    chain = [case.estimate(f"{structure}-{name}", prior, seed) for structure in ("diag", "blockdiag", "ntk")]
    assert all(estimate.certified for estimate in chain)
    assert_rising(*(estimate.total for estimate in chain), case.estimate("ntk-N-C", prior).total)
