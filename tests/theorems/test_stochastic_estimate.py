"""Algorithm 1: the mean of one block's estimate over the blocks is the bound, whatever the blocks and probabilities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ntkml.evidence import evaluate_partition
from ntkml.grouping import partition_for
from ntkml.partitions import Partition
from tests.factories import LIKELIHOODS, STRUCTURES, assert_same, few_examples, generator, make_case, make_prior
from tests.objectives import problem

NAMES = ["3-C", "3-1", "2-2", "N-1", "3-tree", "3-1+iid", "2-tree+iid", "3-C+class", "2-1+kmeans", "3-tree+greedy"]
TERMS = ("log_likelihood", "log_prior", "log_det", "total")


def one_block(case, spec, partition, prior, m):
    return evaluate_partition(case.model, case.x, case.y, spec, partition, prior, case.likelihood, case.plan, [m])


def assert_mean_is_bound(case, spec, partition, prior):
    bound = evaluate_partition(case.model, case.x, case.y, spec, partition, prior, case.likelihood, case.plan)
    assert_same(bound.log_likelihood, case.log_likelihood)
    singles = [one_block(case, spec, partition, prior, m) for m in range(len(partition))]
    for term in TERMS:
        mean = sum(q * getattr(single, term) for q, single in zip(partition.probabilities, singles, strict=True))
        assert_same(mean, getattr(bound, term))


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", NAMES)
def test_the_mean_over_all_blocks_is_the_bound(name, structure):
    """7 inputs in blocks of 3 or 2: the last block is smaller, and q is uniform all the same."""
    case = make_case("mlp")
    spec, partition = case.partition(f"{structure}-{name}")
    assert partition.uniform
    assert_mean_is_bound(case, spec, partition, make_prior("layerwise", case))


@few_examples
@given(st.sampled_from(NAMES), st.sampled_from(STRUCTURES), st.integers(0, 999))
def test_importance_weights_change_the_variance_only(name, structure, seed):
    case = make_case("mlp", seed=seed)
    spec, partition = case.partition(f"{structure}-{name}")
    weights = torch.rand(len(partition), generator=generator(seed), dtype=torch.float64) + 0.05
    weighted = partition.weighted(weights)
    assert not weighted.uniform
    assert_mean_is_bound(case, spec, weighted, make_prior("scalar", case, seed))


def test_ideal_weights_leave_no_variance():
    """Drawn in proportion to its own contribution, every block gives the bound itself."""
    case = make_case("mlp")
    spec, partition = case.partition("ntk-2-1")
    uniform = [one_block(case, spec, partition, 1.0, m) for m in range(len(partition))]
    contributions = torch.stack([0.5 * single.log_det - single.log_likelihood for single in uniform])
    ideal = partition.weighted(contributions)
    bound = case.estimate("ntk-2-1").total
    assert uniform[0].total - bound != pytest.approx(0, abs=1e-3)
    for m in range(len(partition)):
        assert_same(one_block(case, spec, ideal, 1.0, m).total, bound)


def test_equal_blocks_give_algorithm_1_as_printed():
    """(N/|D_m|) log p(D_m|w) + log p(w) + (P/2) log 2 pi - 1/2 log|P0| - (M/2) log|K_m + I|."""
    case = make_case("mlp", num_inputs=9)
    prior = make_prior("scalar", case)
    spec, partition = case.partition("ntk-3-C")
    precision = case.precision(prior)
    for m, block in enumerate(partition.blocks):
        ggn = case.block_ggn(block, "C")
        log_det = torch.linalg.slogdet(ggn / precision + torch.eye(case.num_params)).logabsdet
        log_prob = case.outputs[block.inputs].log_softmax(-1).gather(1, case.y[block.inputs].unsqueeze(1)).sum()
        expected = 9 / 3 * log_prob - 0.5 * (precision * case.weights**2).sum() - 3 / 2 * log_det
        assert_same(one_block(case, spec, partition, prior, m).total, expected)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_several_blocks_average_their_estimates(likelihood, count):
    """``blocks=k`` in the public entry is the mean of the k one-block estimates of the same draw."""
    case = make_case("mlp", likelihood)
    estimate = case.estimate("ntk-3-1", 0.4, seed=5, blocks=count)
    stream = generator(5)
    spec, _ = case.partition("ntk-3-1")
    partition = partition_for(spec, case.model, case.x, case.y, case.likelihood, stream, case.plan)
    drawn = partition.draw(count, stream)
    singles = [one_block(case, spec, partition, 0.4, m) for m in drawn]
    for term in TERMS:
        assert_same(getattr(estimate, term), sum(getattr(single, term) for single in singles) / count)


@pytest.mark.parametrize("name", ["ntk-3-1", "kfac-2-C", "blockdiag-3-tree+iid"])
def test_drawing_every_block_without_replacement_is_the_bound(name):
    case = make_case("mlp")
    _, partition = case.partition(name, seed=3)
    drawn = case.estimate(name, 0.4, seed=3, blocks=len(partition))
    assert_same(drawn.total, case.estimate(name, 0.4, seed=3).total)


def test_a_block_drawn_twice_counts_twice():
    case = make_case("mlp")
    spec, partition = case.partition("ntk-3-1")
    weighted = partition.weighted(torch.arange(1.0, len(partition) + 1))
    twice = evaluate_partition(case.model, case.x, case.y, spec, weighted, 1.0, case.likelihood, case.plan, [2, 5, 2])
    singles = {m: one_block(case, spec, weighted, 1.0, m).total for m in (2, 5)}
    assert_same(twice.total, (2 * singles[2] + singles[5]) / 3)


def test_an_objective_draws_from_the_weighted_partition_that_is_put_into_it(monkeypatch):
    """The mean of its single blocks' estimates, each as often as it is drawn, is the estimate of all blocks."""
    objective, x, y = problem(None, "ntk-3-1", partitioned=False)
    count = torch.arange(1.0, 13.0)
    objective.partition = weighted = objective.resample(x, y, generator(3)).weighted(count)
    whole = objective.estimate(x, y).total
    singles = []
    for m in range(len(weighted)):
        monkeypatch.setattr(Partition, "draw", lambda self, count, stream, m=m: [m])
        singles.append(objective.estimate(x, y, blocks=1).total)
    assert_same(weighted.probabilities @ torch.stack(singles), whole)
