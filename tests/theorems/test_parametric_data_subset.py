"""Theorem 3 and Corollary 3.1: on any block the kernel and the GGN are one number, and structured GGNs bound it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntkml.evidence import evaluate_partition
from tests.factories import (
    LIKELIHOODS,
    NETWORKS,
    PRIOR_KINDS,
    assert_rising,
    assert_same,
    few_examples,
    make_case,
    make_prior,
)
from tests.strategies import scales, seeds

#: Every way of cutting index pairs; those with a tree or with classes need a softmax.
BLOCKS = ["N-C", "3-C", "N-1", "3-1", "3-2", "3-1+iid", "N-1+iid", "3-C+kmeans", "2-1+greedy"]
SOFTMAX_BLOCKS = ["N-tree", "3-tree", "3-tree+iid", "3-1+class"]

cases = st.one_of(
    st.tuples(st.just("categorical"), st.sampled_from(BLOCKS + SOFTMAX_BLOCKS)),
    st.tuples(st.sampled_from(["bernoulli", "gaussian"]), st.sampled_from(BLOCKS)),
)


@pytest.mark.parametrize(
    ("likelihood", "block"),
    [(name, block) for name in LIKELIHOODS for block in BLOCKS + (SOFTMAX_BLOCKS if name == "categorical" else [])],
)
def test_kernel_and_ggn_agree_on_every_single_block(likelihood, block):
    """Theorem 3, block by block, with the dense H_B beside the two."""
    case = make_case("mlp", likelihood)
    prior = make_prior("diagonal", case)
    spec, partition = case.partition(f"ntk-{block}")
    ggn, _ = case.partition(f"ggn-{block}")
    for m, q in enumerate(partition.probabilities):
        kernel, primal = (
            evaluate_partition(
                case.model, case.x, case.y, name, partition, prior, case.likelihood, case.plan, [m]
            ).log_det
            for name in (spec, ggn)
        )
        dense = case.bound_log_det(
            "ggn", spec.outputs, type(partition)((partition.blocks[m],), 7, 3, q), case.precision(prior)
        )
        assert_same(kernel, primal)
        assert_same(kernel, dense / q)


@few_examples
@given(st.sampled_from(list(NETWORKS)), cases, st.sampled_from(PRIOR_KINDS), scales, seeds)
def test_kernel_and_ggn_estimators_are_one(network, case_and_block, kind, scale, seed):
    likelihood, block = case_and_block
    case = make_case(network, likelihood, seed=seed)
    prior = make_prior(kind, case, seed, scale)
    kernel, primal = (case.estimate(f"{structure}-{block}", prior, seed) for structure in ("ntk", "ggn"))
    assert_same(primal.log_det, kernel.log_det)
    assert primal.certified == kernel.certified


@few_examples
@given(st.sampled_from(list(NETWORKS)), cases, st.sampled_from(PRIOR_KINDS), scales, seeds)
def test_the_doubly_structured_bound_lies_below_its_kernel(network, case_and_block, kind, scale, seed):
    """Corollary 3.1 on the same blocks; where the blocks are certified, the exact value stands above all of them."""
    likelihood, block = case_and_block
    case = make_case(network, likelihood, seed=seed)
    prior = make_prior(kind, case, seed, scale)
    chain = [case.estimate(f"{structure}-{block}", prior, seed) for structure in ("diag", "blockdiag", "ntk")]
    assert_rising(*(estimate.total for estimate in chain))
    if chain[-1].certified:
        assert_rising(chain[-1].total, case.estimate("ntk-N-C", prior).total)
