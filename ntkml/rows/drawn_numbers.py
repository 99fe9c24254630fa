"""A forward pass that draws random numbers (dropout, stochastic depth) has no rows, whatever draws them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def no_random_numbers(device: torch.device) -> Iterator[None]:
    """Refuse a forward pass inside the block that moves torch's generators, and put them back; a GPU is not waited for.

    Raises:
        ValueError: it drew random numbers of the CPU or of ``device``.
    """
    before = _generator_states(device)
    yield
    if all(torch.equal(one, other) for one, other in zip(before, _generator_states(device), strict=True)):
        return
    torch.set_rng_state(before[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(before[1], device)
    raise ValueError(
        "the network draws random numbers in its forward pass (dropout, stochastic depth), so outputs and rows are random: call "
        "model.eval(), and let functions follow it, as in dropout(h, training=self.training)"
    )


def _generator_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states
