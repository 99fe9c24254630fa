"""What one estimate and its gradient hold at once, in bytes of CPU tensors: no more for a larger block under kfac and diag."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ntkml.hyperparameters.affine import AffineInvariance
from ntkml.objective import MarginalLikelihood
from tests.factories import generator, seeded
from tests.objectives import Slope

SIDE, VIEWS, CHUNK, CLASSES = 12, 3, 8, 4
#: Of one input in a block: its pixels, the noise of its views, its outputs and its target.
DATA_BYTES = 8 * (SIDE**2 + 6 * VIEWS + CLASSES + 1)

pytestmark = pytest.mark.usefixtures("one_thread")


def network():
    layers = [nn.Conv2d(1, 4, 3), Slope(), nn.AvgPool2d(2), nn.Conv2d(4, 6, 2), nn.Tanh(), nn.Flatten()]
    return seeded(nn.Sequential(*layers, nn.Linear(96, 100), nn.Tanh(), nn.Linear(100, CLASSES)))


def problem(name, num_inputs, chunk, augmentation=None):
    objective = MarginalLikelihood(network(), name, augmentation=augmentation, chunk=chunk)
    x = torch.randn(num_inputs, 1, SIDE, SIDE, generator=generator(), dtype=torch.float64)
    y = torch.randint(CLASSES, (num_inputs,), generator=generator(1))
    objective.resample(x, y, generator(2))
    return objective, x, y


def held_bytes(compute):
    """What was allocated and not yet freed after every event of ``compute()``, whose result is alive."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = compute()
    events = sorted(
        (event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"),
        key=lambda event: event.start_ns(),
    )
    del kept
    return list(accumulate(event.nbytes() for event in events))


def peak_bytes(name, num_inputs, chunk=CHUNK):
    """The most that was allocated and not yet freed during one ``backward``."""
    objective, x, y = problem(name, num_inputs, chunk, AffineInvariance(VIEWS))
    return max(held_bytes(lambda: objective.backward(x, y, 1, generator(3))))


@pytest.mark.parametrize("name", ["kfac-N-1", "kfac-N-C", "diag-N-1"])
def test_kfac_and_diag_hold_one_chunk_whatever_the_block(name):
    """Of more rows than a layer has outputs (100): a smaller one has its rows in place of the larger factor."""
    small, large = peak_bytes(name, 104), peak_bytes(name, 184)
    assert large - 80 * DATA_BYTES < 1.05 * small
    assert peak_bytes(name, 20) < 1.01 * small
    assert peak_bytes(name, 20, chunk=20) > 1.5 * peak_bytes(name, 20)  # a chunk is what is held


def test_ntk_holds_the_rows_of_its_block():
    """And their adjoint, in the making twice, but no graph."""
    num_params = sum(weight.numel() for weight in network().parameters()) - 1  # without the slope
    growth = peak_bytes("ntk-N-1", 60) - peak_bytes("ntk-N-1", 20)
    assert 1.0 < growth / (40 * num_params * 8) < 3.5


@pytest.mark.parametrize("chunk", [CHUNK, 20])
def test_cached_steps_of_a_layerwise_prior_hold_grams_and_no_rows(chunk):
    objective, x, y = problem("ntk-N-1", 20, chunk)
    for parameter in objective.in_network:
        parameter.requires_grad_(False)  # steps of what enters the forward pass are not cached
    num_tensors = len(objective.prior.values)
    held = held_bytes(lambda: objective.cached_backward(x, y, 1, generator(3)))
    assert held[-1] < 8 * num_tensors * 20**2 + 20 * (DATA_BYTES + 1000)
    assert max(held) > 4 * held[-1]
