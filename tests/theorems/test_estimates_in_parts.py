"""An estimate is the same number with or without its gradient, and whatever parameter tensors are held at a time."""

from __future__ import annotations

import pytest
import torch

from ntkml import two_pass
from ntkml.objective import MarginalLikelihood
from ntkml.rows import chunking
from ntkml.rows.chunking import row_groups
from ntkml.specs import PRIOR_KINDS
from tests.factories import assert_same, generator, mlp
from tests.objectives import PARTS, Brightness, assert_equal, everything, parts_of, problem

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("blocks", [1, 3, None])
@pytest.mark.parametrize(
    ("name", "prior", "likelihood"),
    [
        ("ntk-4-1", "layerwise", "categorical"),
        ("ntk-4-tree+iid", "scalar", "categorical"),
        ("ntk-4-C", "diagonal", "bernoulli"),
        ("ggn-4-2", "layerwise", "gaussian"),
        ("blockdiag-4-C", "diagonal", "categorical"),
        ("diag-4-C+kmeans", "scalar", "gaussian"),
        ("kfac-4-C+greedy", "layerwise", "categorical"),
    ],
)
def test_an_estimate_is_the_value_of_backward_and_leaves_no_gradient(name, prior, likelihood, blocks):
    """With a new partition in both: the generator serves partition, draw and views in one order."""
    values = []
    for call in ("backward", "estimate"):
        objective, x, y = problem(Brightness(), name, prior, likelihood=likelihood, partitioned=False)
        estimate = getattr(objective, call)(x, y, blocks, generator(1))
        values.append(parts_of(estimate))
        assert not any(getattr(estimate, part).requires_grad for part in PARTS)
    assert_same(*values, 1e-12)
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert all(weight.grad is None for weight in objective.model.parameters())


def test_an_estimate_is_of_all_blocks_unless_said_otherwise():
    objective, x, y = problem(None, "ntk-4-1")
    assert_same(parts_of(objective.estimate(x, y)), parts_of(objective.backward(x, y, None)), 1e-14)
    some = objective.estimate(x, y, 1, generator())
    assert abs(float(some.total - objective.estimate(x, y).total)) > 1e-3


def test_an_estimate_leaves_gradients_that_are_there_alone():
    objective, x, y = problem(Brightness(), "ntk-4-1")
    before = everything(objective, x, y)
    objective.estimate(x, y)
    for name, parameter in objective.named_parameters():
        assert torch.equal(parameter.grad, before[name])


def test_an_estimate_makes_the_partition_that_is_missing():
    """From features of the network, also under no_grad."""
    objective = MarginalLikelihood(mlp(), "ntk-3-1+kmeans", prior="scalar")
    x, y = torch.randn(7, 4, generator=generator()).double(), torch.arange(7) % 3
    with torch.no_grad():
        inside = objective.estimate(x, y, None, generator(3))
    fresh = MarginalLikelihood(mlp(), "ntk-3-1+kmeans", prior="scalar").estimate(x, y, None, generator(3))
    assert torch.equal(parts_of(inside), parts_of(fresh))


def counted(monkeypatch, owner, name):
    """How often a function is called from here on."""
    function, calls = getattr(owner, name), []

    def counting(*arguments, **named):
        calls.append(name)
        return function(*arguments, **named)

    monkeypatch.setattr(owner, name, counting)
    return calls


@pytest.mark.parametrize(
    ("name", "prior", "likelihood"),
    [
        *(("ntk-4-C", prior, likelihood) for prior in PRIOR_KINDS for likelihood in ("categorical", "gaussian")),
        ("ntk-4-1+iid", "layerwise", "gaussian"),
        ("ntk-N-C", "scalar", "categorical"),
        ("ggn-4-C", "layerwise", "gaussian"),
        ("blockdiag-4-C", "layerwise", "categorical"),
        ("blockdiag-4-1+iid", "diagonal", "gaussian"),
        ("diag-4-tree", "scalar", "categorical"),
        ("diag-4-C", "diagonal", "gaussian"),
        ("kfac-4-C", "layerwise", "categorical"),
    ],
)
def test_groups_of_parameter_tensors_change_nothing(name, prior, likelihood, monkeypatch):
    captures = counted(monkeypatch, two_pass, "capture")
    together = everything(*problem(Brightness(), name, prior, chunk=2, likelihood=likelihood))
    usual = len(captures)
    monkeypatch.setattr(chunking, "ROWS_BYTES", 1)
    apart = everything(*problem(Brightness(), name, prior, chunk=2, likelihood=likelihood))
    assert_equal(apart, together)
    again = len(captures) - 2 * usual
    # Where rows are kept the layers took turns, and were captured again.
    assert again == 0 if name.startswith(("kfac", "diag")) else again > 0


def test_groups_hold_whole_layers_and_as_many_as_fit(monkeypatch):
    shapes = {name: torch.Size(shape) for name, shape in
              (("a.weight", (10,)), ("a.bias", (2,)), ("b.weight", (4,)), ("c.d.weight", (4,)), ("e.weight", (4,)), ("own", (50,)))}  # fmt: skip
    everything_fits = [tuple(shapes)]
    assert row_groups(shapes, num_rows=5, entry_bytes=8) == everything_fits
    monkeypatch.setattr(chunking, "ROWS_BYTES", 5 * 8 * 16)
    assert row_groups(shapes, 5, 8) == [("a.weight", "a.bias", "b.weight"), ("c.d.weight", "e.weight"), ("own",)]
    assert row_groups(shapes, 1, 8) == everything_fits
    monkeypatch.setattr(chunking, "ROWS_BYTES", 0)
    assert row_groups(shapes, 5, 8) == [("a.weight", "a.bias"), ("b.weight",), ("c.d.weight",), ("e.weight",), ("own",)]
