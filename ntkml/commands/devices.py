"""Which device a command runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import torch


def device_named(name: str) -> torch.device:
    """The device for ``auto``, ``cpu`` or ``cuda``; a click error where there is no GPU and one is asked for."""
    import torch

    from ntkml.machine.devices import torch_device

    if name == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter("torch sees no GPU: choose cpu or auto", param_hint="--device")
    return torch_device(name)
