"""A batch in the place of the data set: the mean over batches is a bound, and a batch's estimate is that of its block, scaled."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

import ntkml
from ntkml.specs import is_certified, parse_estimator
from tests.factories import LIKELIHOODS, assert_rising, assert_same, generator, make_case, make_prior
from tests.objectives import COUNT, Brightness, problem

TERMS = ("log_likelihood", "log_prior", "log_det", "total")


def prior_alone(name):
    """An objective that learns nothing in the forward pass, so that its steps can be cached."""
    objective, x, y = problem(None, name, partitioned=False)
    for slope in objective.in_network:
        slope.requires_grad_(False)
    return objective, x, y


def of_batch(case, name, prior, inputs, seed=0):
    chosen = torch.tensor(inputs)
    return ntkml.log_marginal_likelihood(
        case.model,
        case.x[chosen],
        case.y[chosen],
        name,
        prior,
        case.likelihood,
        generator=generator(seed),
        num_data=len(case.x),
    )


@pytest.mark.parametrize(("likelihood", "outputs"), [("categorical", "C"), ("categorical", "tree"), ("gaussian", "1")])
@pytest.mark.parametrize("structure", ["ntk", "blockdiag", "diag"])
def test_the_mean_over_all_batches_of_a_size_is_a_bound_and_rises_with_the_size(structure, likelihood, outputs):
    """Han's inequality: 4 inputs, every subset of 1 to 4, sizes of 3 that do not divide 4 among them."""
    case = make_case("mlp", likelihood, num_inputs=4)
    prior, name = make_prior("layerwise", case), f"{structure}-N-{outputs}"
    assert is_certified(parse_estimator(name), case.likelihood.softmax)
    means = [
        torch.stack([of_batch(case, name, prior, batch).total for batch in combinations(range(4), size)]).mean()
        for size in range(1, 5)
    ]
    assert_rising(*means, case.estimate("ntk-N-C", prior).total)
    assert means[1] < means[3] - 1e-3, "batches of two lose nothing: the case shows nothing"


@pytest.mark.parametrize("name", ["ntk-2-C", "ntk-2-tree", "ntk-2-tree+iid", "ntk-2-C+class", "ntk-2-C+kmeans"])
def test_blocks_inside_batches_keep_the_bound(name):
    case = make_case("mlp", num_inputs=5)
    mean = torch.stack([of_batch(case, name, 0.3, batch).total for batch in combinations(range(5), 3)]).mean()
    assert_rising(mean, case.estimate("ntk-N-C", 0.3).total)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("structure", ["ntk", "ggn", "blockdiag", "kfac", "diag"])
def test_equal_batches_are_the_blocks_of_a_partition(structure, likelihood):
    """The mean of their estimates is the estimate of all blocks of that partition."""
    case = make_case("mlp", likelihood, num_inputs=6)
    prior = make_prior("layerwise", case)
    _, partition = case.partition(f"{structure}-2-C")
    whole = case.estimate(f"{structure}-2-C", prior)
    estimates = [of_batch(case, f"{structure}-N-C", prior, block.inputs.tolist()) for block in partition.blocks]
    for term in TERMS:
        assert_same(torch.stack([getattr(estimate, term) for estimate in estimates]).mean(), getattr(whole, term))
    assert {estimate.certified for estimate in estimates} == {whole.certified}


@pytest.mark.parametrize("name", ["ntk-N-C", "ntk-2-1", "ntk-N-tree", "blockdiag-2-C", "kfac-N-1", "diag-3-C+kmeans"])
@pytest.mark.parametrize("blocks", [None, 1])
def test_an_objective_and_the_function_agree_on_a_batch(name, blocks):
    objective, x, y = prior_alone(name)
    given = x[1:6], y[1:6], blocks
    expected = ntkml.log_marginal_likelihood(
        objective.model, x[1:6], y[1:6], name, objective.prior, blocks=blocks, generator=generator(4), num_data=COUNT
    )
    found = objective.estimate(*given, generator(4), num_data=COUNT)
    gone = objective.backward(*given, generator(4), num_data=COUNT)
    cached = objective.cached_backward(*given, generator(4), num_data=COUNT)()
    for term in TERMS:
        for value in (found, gone, cached):
            assert_same(getattr(value, term), getattr(expected, term))


@pytest.mark.parametrize("name", ["ntk-N-C", "ntk-N-tree", "ntk-2-1", "kfac-N-C", "diag-N-C"])
def test_gradients_on_a_batch_are_those_of_finite_differences(name):
    objective, x, y = problem(Brightness(), name, partitioned=False)
    x, y = x[:3], y[:3]

    def loss() -> float:
        return -objective.estimate(x, y, None, generator(1), num_data=20).total.item() / 20

    objective.backward(x, y, None, generator(1), num_data=20)
    for parameter in objective.parameters():
        value, step = parameter.data.view(-1)[0].item(), 1e-5
        around = []
        for moved in (value + step, value - step):
            parameter.data.view(-1)[0] = moved
            around.append(loss())
        parameter.data.view(-1)[0] = value
        difference = (around[0] - around[1]) / (2 * step)
        assert parameter.grad.view(-1)[0].item() == pytest.approx(difference, rel=1e-5, abs=1e-8)


def test_gradients_over_an_epoch_of_equal_batches_add_up_to_those_of_their_partition():
    objective, x, y = problem(None, "ntk-2-C", partitioned=False)
    x, y = x[:6], y[:6]
    partition = objective.resample(x, y, generator(2))
    objective.backward(x, y, None)
    whole = objective.log_prior_precision.grad.clone()
    objective.zero_grad()
    for block in partition.blocks:
        objective.backward(x[block.inputs], y[block.inputs], num_data=6)
    assert_same(objective.log_prior_precision.grad / len(partition), whole)


def test_a_batch_leaves_the_partition_of_the_data_as_it_was():
    objective, x, y = problem(None, "ntk-2-tree", partitioned=False)
    standing = objective.resample(x, y, generator(2))
    before = objective.estimate(x, y).total
    for batch in (slice(0, 4), slice(4, COUNT)):  # the last batch of a loader may be smaller
        assert objective.backward(x[batch], y[batch], num_data=COUNT).certified
    assert objective.partition is standing
    assert_same(objective.estimate(x, y).total, before)


def test_a_batch_of_everything_is_everything():
    objective, x, y = problem(None, "ntk-N-C", partitioned=False)
    assert_same(objective.estimate(x, y, num_data=COUNT).total, objective.estimate(x, y).total)


@pytest.mark.parametrize("num_data", [2, 0, -1, 20.0, True, "20", 10**30])
def test_a_number_of_data_that_cannot_be_is_refused(num_data):
    objective, x, y = prior_alone("ntk-N-C")
    words = "num_data is the number of all training data, at least the 3 of this batch; got "
    for ask in (objective.backward, objective.estimate, objective.cached_backward, objective.weight_loss):
        with pytest.raises(ValueError, match=words):
            ask(x[:3], y[:3], num_data=num_data)
    with pytest.raises(ValueError, match=words):
        ntkml.log_marginal_likelihood(objective.model, x[:3], y[:3], "ntk-N-C", num_data=num_data)


@pytest.mark.parametrize("modifiers", ["C", "tree", "tree+iid", "C+class", "C+kmeans"])
def test_a_batch_that_is_smaller_than_a_block_is_one_block(modifiers):
    """The last one of a loader."""
    objective, x, y = prior_alone(f"ntk-4-{modifiers}")
    whole = ntkml.MarginalLikelihood(objective.model, f"ntk-N-{modifiers.split('+')[0]}", prior_precision=0.7)
    expected = whole.backward(x[:3], y[:3], None, num_data=COUNT)
    function = ntkml.log_marginal_likelihood(
        objective.model, x[:3], y[:3], str(objective.estimator), objective.prior, num_data=COUNT
    )
    found = objective.backward(x[:3], y[:3], None, num_data=COUNT)
    for value in (found, function, objective.cached_backward(x[:3], y[:3], None, num_data=COUNT)()):
        assert (value.certified, value.num_blocks) == (True, expected.num_blocks)
        for term in TERMS if "iid" not in modifiers else TERMS[:2]:
            assert_same(getattr(value, term), getattr(expected, term))
    if "iid" not in modifiers:
        assert_same(objective.log_prior_precision.grad, 2 * whole.log_prior_precision.grad)


def test_a_batch_that_has_fewer_blocks_than_are_drawn_gives_all_of_them():
    objective, x, y = prior_alone("ntk-2-C")
    expected = objective.estimate(x[:3], y[:3], None, generator(1), num_data=COUNT)
    assert expected.num_blocks == 2
    function = ntkml.log_marginal_likelihood(
        objective.model, x[:3], y[:3], "ntk-2-C", objective.prior, blocks=3, generator=generator(1), num_data=COUNT
    )
    for found in (objective.estimate(x[:3], y[:3], 3, generator(1), num_data=COUNT), function):
        for term in TERMS:
            assert_same(getattr(found, term), getattr(expected, term))
    with pytest.raises(ValueError, match="blocks=0: write a number from 1 to 2, or None"):
        objective.estimate(x[:3], y[:3], 0, num_data=COUNT)


def test_a_block_that_is_larger_than_all_data_is_refused_with_what_to_write():
    objective, x, y = problem(None, "ntk-4-C", partitioned=False)
    with pytest.raises(ValueError, match="ntk-4-C needs 4 inputs but there are 3: name an estimator with 3 or N"):
        objective.backward(x[:3], y[:3])
