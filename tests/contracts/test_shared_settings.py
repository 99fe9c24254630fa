"""Settings of the process that an estimate changes are as before once the last of several threads is done."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
import torch._dynamo
from torch import nn

from ntkml.machine.full_precision import full_precision
from ntkml.rows.plain_passes import attention_by_layers, not_compiled, plain_operations, plain_recurrence


def settings():
    backends = torch.backends
    return (
        backends.mha.get_fastpath_enabled(),
        backends.cuda.flash_sdp_enabled(),
        backends.cuda.mem_efficient_sdp_enabled(),
        backends.cuda.math_sdp_enabled(),
        backends.cudnn.enabled,
        torch.get_float32_matmul_precision(),
        torch._dynamo.eval_frame._stance.stance,
    )


CHANGES = {
    "attention by layers": attention_by_layers,
    "plain operations": plain_operations,
    "plain recurrence": lambda: plain_recurrence(nn.LSTM(2, 3)),
    "full precision": full_precision,
    "not compiled": not_compiled,
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_first_one_to_leave_does_not_take_the_setting_of_those_who_stay(change):
    """Two threads need not leave in the order in which they came, nor the other way round."""
    products = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        before, (first, second) = settings(), (CHANGES[change](), CHANGES[change]())
        first.__enter__()
        changed = settings()
        second.__enter__()
        first.__exit__(None, None, None)
        during = settings()
        second.__exit__(None, None, None)
        after = settings()
        with suppress(ArithmeticError), CHANGES[change]():
            again = settings()
            raise ArithmeticError
        assert before != changed == during == again
        assert settings() == after == before
    finally:
        torch.set_float32_matmul_precision(products)
