"""Devices by the names that users and workers of a sweep give them, and the sizes that were measured to suit them."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def torch_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is a GPU where there is one."""
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(auto if name == "auto" else name)


def suited(sizes: Mapping[str, int], device: torch.device) -> int:
    """The one of ``sizes`` for a device: that of "cpu", or that of "cuda" for whatever else computes."""
    return sizes["cpu" if device.type == "cpu" else "cuda"]
