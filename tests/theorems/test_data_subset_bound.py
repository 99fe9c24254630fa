"""Theorem 2, data-wise: blocks of inputs with all their outputs, and with single outputs where Lambda is diagonal."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ntkml.evidence import evaluate_partition
from ntkml.partitions import make_partition
from tests.factories import (
    LIKELIHOODS,
    Case,
    assert_rising,
    assert_same,
    few_examples,
    generator,
    make_case,
    make_prior,
    seeded,
    targets,
)
from tests.strategies import likelihoods, networks, scales, seeds

NUM_INPUTS = 8
#: Which of at most four batches every input falls into, and which half of it after refining.
assignments = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), min_size=NUM_INPUTS, max_size=NUM_INPUTS)


def batches_of(labels):
    """The inputs of every label, as batches."""
    return [torch.tensor([n for n, own in enumerate(labels) if own == label]) for label in sorted(set(labels))]


def total_of(case, name, batches, groups, prior):
    spec, _ = case.partition(name)
    partition = make_partition(batches, groups, False, None)
    return evaluate_partition(case.model, case.x, case.y, spec, partition, prior, case.likelihood, case.plan).total


@few_examples
@given(networks, likelihoods, st.sampled_from(["ntk", "ggn", "blockdiag", "diag"]), scales, seeds, assignments)
def test_refining_the_inputs_only_loosens(network, likelihood, structure, scale, seed, assignment):
    case = make_case(network, likelihood, NUM_INPUTS, seed=seed)
    prior = make_prior("layerwise", case, seed, scale)
    groups = [range(2 if likelihood == "categorical" else 3)]
    coarse = batches_of([batch for batch, _ in assignment])
    fine = batches_of(assignment)
    values = [total_of(case, f"{structure}-2-C", batches, groups, prior) for batches in (fine, coarse)]
    assert_rising(*values, case.estimate(f"{structure}-N-C", prior).total, case.estimate("ntk-N-C", prior).total)


@few_examples
@given(networks, st.sampled_from(["bernoulli", "gaussian"]), scales, seeds, assignments)
def test_single_outputs_are_a_bound_where_lambda_is_diagonal(network, likelihood, scale, seed, assignment):
    """Without a softmax every partition of index pairs is proven, outputs included: 1 below 2 below C."""
    case = make_case(network, likelihood, NUM_INPUTS, seed=seed)
    prior = make_prior("scalar", case, seed, scale)
    batches = batches_of([batch for batch, _ in assignment])
    single = total_of(case, "ntk-2-1", batches, [(0,), (1,), (2,)], prior)
    pairs = total_of(case, "ntk-2-2", batches, [(0, 1), (2,)], prior)
    every = total_of(case, "ntk-2-C", batches, [(0, 1, 2)], prior)
    assert_rising(single, pairs, every, case.estimate("ntk-N-C", prior).total)


@pytest.mark.parametrize("grouping", ["", "+class", "+kmeans", "+greedy"])
@pytest.mark.parametrize("structure", ["ntk", "blockdiag", "diag"])
def test_a_partition_chosen_from_the_data_is_still_a_bound(structure, grouping):
    case = make_case("convnet")
    for precision in (0.01, 1.0, 100.0):
        estimate = case.estimate(f"{structure}-3-C{grouping}", precision)
        assert estimate.certified
        assert_rising(estimate.total, case.estimate("ntk-N-C", precision).total)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_blocks_that_share_no_feature_lose_nothing(likelihood):
    """Inputs of the two halves of a partition use different weights of a linear network: the kernel is block-diagonal."""
    x = torch.randn(6, 4, generator=generator(), dtype=torch.float64)
    x[:3, 2:] = 0.0
    x[3:, :2] = 0.0
    model = seeded(nn.Linear(4, 3, bias=False))
    case = Case(model, x, targets(likelihood, 6, 3), likelihood, LIKELIHOODS[likelihood])
    groups = [range(2 if likelihood == "categorical" else 3)]
    apart = total_of(case, "ntk-3-C", [torch.arange(3), torch.arange(3, 6)], groups, 0.2)
    mixed = total_of(case, "ntk-3-C", [torch.tensor([0, 1, 5]), torch.tensor([2, 3, 4])], groups, 0.2)
    exact = case.estimate("ntk-N-C", 0.2).total
    assert_same(apart, exact)
    assert mixed < exact - 0.01
