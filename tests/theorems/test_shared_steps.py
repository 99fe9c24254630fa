"""Steps that many processes share: their parts add up to what one process computes."""

import dataclasses
from functools import partial

import pytest
import torch

from ntkml.linalg import NotPositiveDefiniteError
from ntkml.machine.processes import ALONE, Processes
from ntkml.parameters import trainable_parameters
from ntkml.structures.ntk import NTK
from tests.factories import generator
from tests.objectives import Brightness, parts_of, problem

BLOCKS = 4


@dataclasses.dataclass(frozen=True)
class Unconnected(Processes):
    """One of many processes, whose sums are its own part alone."""

    def total(self, value):
        return value.detach().clone()


def hyper_parts(name, processes, augmentation, cached):
    """Terms and gradients of one of the processes."""
    objective, x, y = problem(augmentation, name, chunk=2)
    if cached:
        objective.in_network.requires_grad_(False)
        estimate = objective.cached_backward(x, y, BLOCKS, generator(1), processes)()
    else:
        estimate = objective.backward(x, y, BLOCKS, generator(1), processes)
    gradients = {key: p.grad for key, p in objective.named_parameters() if p.grad is not None}
    return parts_of(estimate)[[1, 3]], gradients


def assert_adds_up(parts, whole):
    assert (sum(parts) - whole).abs().max() <= 1e-12 * whole.abs().max()


@pytest.mark.parametrize(
    ("name", "cached", "count"),
    [("ntk-2-1", False, BLOCKS + 1), ("kfac-4-tree", False, 2), ("ntk-2-tree+iid", True, 2)],
)
def test_hyper_gradients_of_all_processes_add_up_to_those_of_one(name, cached, count):
    views = (lambda: None) if cached else Brightness
    whole, gradients = hyper_parts(name, ALONE, views(), cached)
    parts = [hyper_parts(name, Unconnected(rank, count), views(), cached) for rank in range(count)]
    assert_adds_up([terms for terms, _ in parts], whole)
    for key, gradient in gradients.items():
        assert gradient.abs().max() > 0
        assert_adds_up([own[key] for _, own in parts if key in own], gradient)  # one without a block has none of eta
        assert (parts[0][1][key] - gradient).abs().max() > 1e-6 * gradient.abs().max()


@pytest.mark.parametrize("count", [2, 11])  # eleven share a batch of nine
def test_weight_gradients_of_all_processes_add_up_to_those_of_one(count):
    def part(processes):
        objective, x, y = problem(Brightness(), "ntk-4-1", partitioned=False)
        stream = generator(1)
        loss = objective.weight_loss(x, y, 100, stream, processes)
        loss.backward()
        gradients = [weight.grad for weight in trainable_parameters(objective.model).values()]
        return loss.detach(), gradients, stream.get_state()

    loss, gradients, state = part(ALONE)
    parts = [part(Unconnected(rank, count)) for rank in range(count)]
    assert_adds_up([own[0] for own in parts], loss)
    for index, gradient in enumerate(gradients):
        assert_adds_up([own[1][index] for own in parts], gradient)
    assert all(torch.equal(own[2], state) for own in parts)  # all have drawn the same views


@pytest.mark.parametrize("processes", [ALONE, Unconnected(0, 2)])
def test_gradients_that_were_there_stay_and_are_not_summed(processes):
    parameter = torch.nn.Parameter(torch.ones(3))
    untouched = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((3,), 5.0)
    with processes.summed_gradients([parameter, untouched]):
        (2 * parameter).sum().backward()
    assert parameter.grad.tolist() == [7.0] * 3
    assert untouched.grad is None


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("processes", [ALONE, Unconnected(0, 2)])
def test_a_step_that_fails_on_a_later_block_leaves_gradients_as_they_were(processes, cached, monkeypatch):
    objective, x, y = problem(None if cached else Brightness(), "ntk-2-1")
    objective.in_network.requires_grad_(not cached)
    if cached:
        step = objective.cached_backward(x, y, None, generator(1), processes)
    else:
        step = partial(objective.backward, x, y, None, generator(1), processes)
    there, *others = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    there.grad = torch.full_like(there, 5.0)
    monkeypatch.setattr(NTK, "log_det", failing_after(3, NTK.log_det))
    with pytest.raises(NotPositiveDefiniteError):
        step()
    assert there.grad.tolist() == [5.0] * len(there)
    assert all(parameter.grad is None for parameter in others)
    assert bool(others) is not cached


def failing_after(count, log_det):
    calls = []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) > count:
            raise NotPositiveDefiniteError("not this one")
        return log_det(*arguments)

    return failing
