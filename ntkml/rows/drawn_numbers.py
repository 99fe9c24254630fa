"""A forward pass that draws random numbers (dropout, stochastic depth) has no rows, whatever draws them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def no_random_numbers(device: torch.device, again: Callable[[], object]) -> Iterator[None]:
    """Refuse a forward pass inside the block that draws random numbers, and put torch's generators back.

    That they moved is seen in microseconds, and a GPU is not waited for; but another thread may have moved them, or a draw that
    the network keeps. So ``again`` is then asked to run the pass once more, and its own operations tell.

    Raises:
        ValueError: it drew random numbers of the CPU or of ``device``.
    """
    before = _generator_states(device)
    yield
    if all(torch.equal(one, other) for one, other in zip(before, _generator_states(device), strict=True)):
        return
    with torch.no_grad(), _Draws() as draws:
        again()
    if not draws.seen:
        return
    torch.set_rng_state(before[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(before[1], device)
    raise ValueError(
        "the network draws random numbers in its forward pass (dropout, stochastic depth), so outputs and rows are random: call "
        "model.eval(), and let functions follow it, as in dropout(h, training=self.training)"
    )


class _Draws(TorchDispatchMode):
    """Whether operations of this thread draw random numbers."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def _generator_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states
