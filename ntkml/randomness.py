"""One random stream per purpose, so that changing one consumer (an estimator, say) never changes another (the data).

torch's own generators belong to whoever owns the process: they are looked at alone.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator_for(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator that depends on the seed and the purpose ("data", "init", "partition", "augmentation") only."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def generator_states(device: torch.device) -> list[Tensor]:
    """The states of the generators that layers draw from, the CPU's and the device's; a GPU is not waited for."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


def restore_generators(states: list[Tensor], device: torch.device) -> None:
    """Put back what :func:`generator_states` gave."""
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1], device)
