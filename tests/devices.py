"""The devices that tests run on beside the CPU: a GPU where there is one, and the simulated one."""

from __future__ import annotations

import pytest
import torch

from tests.simulated_device import DEVICE, FIRST_TORCH, NAME

ON_A_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICES = [pytest.param("cuda", marks=ON_A_GPU), NAME]


def device_called(name: str) -> torch.device:
    device = DEVICE if name == NAME else torch.device(name)
    if device is None:
        pytest.skip(f"a GPU is tested itself, and torch before {FIRST_TORCH} has no devices made in Python")
    return device


@pytest.fixture
def replaced_parameters(request):
    """A parameter of the simulated device is of another class, which cannot take the old one's place in memory."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    simulated = (
        getattr(request.node, "callspec", None) is not None and request.node.callspec.params.get("device") == NAME
    )
    torch.__future__.set_overwrite_module_params_on_conversion(before or simulated)
    yield
    torch.__future__.set_overwrite_module_params_on_conversion(before)
