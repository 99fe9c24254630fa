"""What a device that a user or a worker of a sweep is told is to torch."""

from __future__ import annotations

import torch


def torch_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is a GPU where there is one."""
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(auto if name == "auto" else name)
