"""What a manifest says of the machine and software of a run: as :mod:`ntkml.records.provenance`, which knows no torch, and the GPU."""

from __future__ import annotations

from typing import Any

import torch

from ntkml.records import provenance


def environment(device: torch.device) -> dict[str, Any]:
    """:func:`ntkml.records.provenance.environment`, and on CUDA the name of the GPU."""
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return provenance.environment() | gpu
