"""Networks and objectives that are saved, whole or as their state, and read again."""

from __future__ import annotations

import io
import pickle

import pytest
import torch

import ntkml
from tests.factories import assert_same, generator, seeded
from tests.objectives import everything
from tests.small_networks import CLASSES, Sloped, X, Y, network


def through_pickle(thing):
    return pickle.loads(pickle.dumps(thing))


def through_a_file(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [through_pickle, through_a_file])
def test_hyperparameters_stay_so_where_a_network_or_an_objective_is_saved_whole(copied):
    objective = ntkml.MarginalLikelihood(seeded(Sloped()), "ntk-4-C", prior="scalar")
    expected = everything(objective, X, Y)
    assert not copied(ntkml.Hyperparameter(torch.ones(2), requires_grad=False)).requires_grad
    fresh = ntkml.MarginalLikelihood(copied(objective.model), "ntk-4-C", prior="scalar")
    for again in (fresh, copied(objective)):
        assert isinstance(again.model.slope, ntkml.Hyperparameter)
        assert again.model.slope.requires_grad
        found = everything(again, X, Y)
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert_same(found[name], value, 1e-12)


def test_a_network_that_is_saved_whole_holds_the_public_name():
    """So that it is read by versions that keep the class elsewhere."""
    written = pickle.dumps(seeded(Sloped()))
    assert ntkml.Hyperparameter.__module__ == "ntkml"
    assert b"ntkml.parameters" not in written
    assert b"ntkml" in written
    with torch.serialization.safe_globals([ntkml.Hyperparameter]):
        buffer = io.BytesIO()
        torch.save({"slope": ntkml.Hyperparameter(torch.tensor(0.7))}, buffer)
        buffer.seek(0)
        assert isinstance(torch.load(buffer, weights_only=True)["slope"], ntkml.Hyperparameter)


def test_the_state_of_an_objective_and_the_weights_give_the_same_estimate():
    """The tree was made of the weights as they were at the first partition."""
    model = network()
    objective = ntkml.MarginalLikelihood(model, "ntk-4-tree")
    objective.estimate(X, Y)
    with torch.no_grad():
        model[-1].weight.copy_(torch.randn(CLASSES, 5, generator=generator(6)))
    buffer = io.BytesIO()
    torch.save(objective.state_dict(), buffer)
    buffer.seek(0)
    fresh = ntkml.MarginalLikelihood(model, "ntk-4-tree")
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    for own in (objective, fresh):
        own.resample(X, Y, generator(2))
    assert torch.equal(fresh.estimate(X, Y).total, objective.estimate(X, Y).total)
    assert fresh.tree == objective.tree is not None


def test_estimators_without_tree_rows_read_states_with_a_tree_and_without():
    """Older versions made a tree for every estimator. A partition without tree rows waits for none."""
    model = network()
    objective, with_tree = (ntkml.MarginalLikelihood(model, name) for name in ("ntk-4-1", "ntk-4-tree"))
    expected = objective.estimate(X, Y, generator=generator(1)).total
    partition = objective.partition
    with_tree.estimate(X, Y)
    assert objective.get_extra_state() == {"tree": None}
    for state in (objective.state_dict(), objective.state_dict() | {"_extra_state": with_tree.get_extra_state()}):
        objective.load_state_dict(state)
        assert objective.partition is partition
        assert torch.equal(objective.estimate(X, Y).total, expected)


def test_a_partition_may_be_put_into_an_objective_that_has_estimated_nothing():
    model = network()
    first = ntkml.MarginalLikelihood(model, "ntk-4-tree")
    partition = first.resample(X, Y, generator(3))
    fresh = ntkml.MarginalLikelihood(model, "ntk-4-tree")
    fresh.load_state_dict(first.state_dict())
    fresh.partition = through_pickle(partition)
    found, expected = fresh.estimate(X, Y), first.estimate(X, Y)
    assert_same(found.total, expected.total, 1e-12)
    assert found.certified


def test_the_state_before_the_first_estimate_has_no_tree_and_the_next_partition_makes_one():
    model = network()
    objective = ntkml.MarginalLikelihood(model, "ntk-4-tree")
    start = objective.state_dict()
    older = {name: value for name, value in start.items() if name != "_extra_state"}
    objective.estimate(X, Y)
    made = objective.tree
    for state in (start, older):
        objective.load_state_dict(state)
        assert objective.tree is None
        objective.estimate(X, Y)
        assert objective.tree == made is not None
