"""Outputs and rows that depend on the other inputs of a batch are seen at any input, in small units and behind a head of zeros."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ntkml import Gaussian, log_marginal_likelihood
from ntkml.rows.model_contract import check_model
from tests.factories import generator, seeded
from tests.networks import NETWORKS

COUPLED = "(the outputs of an input depend on|has a gradient that changes with) the other inputs of (its|a) batch"


class Hidden(nn.Module):
    """A network whose hidden layer passes through ``mixed``."""

    def __init__(self, mixed):
        super().__init__()
        self.layer, self.mixed, self.head = nn.Linear(4, 5), mixed, nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mixed(torch.tanh(self.layer(x))))


class TimeFirst(nn.Module):
    """Forgets batch_first=True: its first input is as if alone."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.unsqueeze(1).expand(-1, 3, -1))[0][:, -1])


NETWORKS_THAT_COUPLE = {
    "sum so far": lambda: Hidden(lambda h: h.cumsum(0)),
    "standardised": lambda: Hidden(lambda h: (h - h.mean(0)) / h.std(0, correction=0).clamp_min(1e-2)),
    "time first": TimeFirst,
}


def value_of(model, noise=1.0, num_inputs=6):
    x = torch.randn(num_inputs, 4, generator=generator(1), dtype=torch.float64)
    targets = torch.zeros(num_inputs, 3, dtype=torch.float64)
    return log_marginal_likelihood(seeded(model), x, targets, "ntk-N-C", likelihood=Gaussian(noise))


@pytest.mark.parametrize("name", NETWORKS_THAT_COUPLE)
def test_coupling_is_refused_and_freezing_is_no_way_out(name):
    model = NETWORKS_THAT_COUPLE[name]()
    with pytest.raises(ValueError, match=COUPLED) as refusal:
        value_of(model)
    assert "requires_grad" not in str(refusal.value)
    assert "batch_first=True" in str(refusal.value)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key.startswith("head"))
    with pytest.raises(ValueError, match=COUPLED):
        value_of(model)


@pytest.mark.parametrize("name", NETWORKS_THAT_COUPLE)
@pytest.mark.parametrize("scale", [0.0, 1e-4])
def test_a_head_of_zeros_or_small_units_hide_nothing(name, scale):
    model = seeded(NETWORKS_THAT_COUPLE[name]())
    model.head.weight.data.mul_(scale)
    model.head.bias.data.mul_(scale)
    x = torch.randn(6, 4, generator=generator(1), dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):
        with pytest.raises(ValueError, match=COUPLED):
            check_model(model.to(dtype), x.to(dtype))


def test_rounding_is_no_coupling():
    """In float32 a ReLU whose input is zero but for rounding may be open alone and closed in a batch."""

    class Kinked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(4, 400), nn.Linear(400, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.layer(x)
            rounding = torch.full_like(h[:, :1], 1e-9)
            rounding[0] *= 1 if len(x) == 1 else -1
            kink = h[:, :1] - h[:, :1].detach() + rounding
            return self.head(torch.relu(torch.cat([kink, h[:, 1:]], 1)))

    check_model(seeded(Kinked()).float(), torch.randn(6, 4, generator=generator(1)))


@pytest.mark.parametrize("num_inputs", [2, 3, 40])
@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_sorting_is_seen_behind_equal_first_inputs_and_a_head_of_zeros(scale, num_inputs):
    model = NETWORKS["batch sorted by a value"].build()
    model.head.weight.data.mul_(scale)
    x = torch.randn(num_inputs, 4, generator=generator(1), dtype=torch.float64)
    assert set(check_model(model, x[x[:, 0].argsort()]).exact) == {"layer.weight", "layer.bias"}


def test_sorting_is_seen_where_only_one_input_in_many_is_moved():
    model = NETWORKS["batch sorted by length"].build()
    x = torch.randint(1, 5, (40, 4), generator=generator(1))
    x[17, 2:] = 0
    assert {key.split(".")[0] for key in check_model(model, x).exact} == {"embedding", "middle"}


def test_a_flipped_batch_is_seen():
    class Flipped(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.layer(x.flip(0))).flip(0))

    x = torch.randn(6, 4, generator=generator(1), dtype=torch.float64)
    assert set(check_model(seeded(Flipped()), x).exact) == {"layer.weight", "layer.bias"}


def test_a_part_of_the_batch_that_the_check_did_not_see_is_refused_with_a_way_out():
    model = NETWORKS["layer for a part of the batch"].build()
    x = torch.randn(200, 4, generator=generator(1), dtype=torch.float64)
    x[:, 0] = x[:, 0].abs()
    x[2, 0] = -1.0  # is not among those that the check takes
    with pytest.raises(ValueError, match=r"layer 'expert' cannot be captured: .*masked \(torch.where\)"):
        log_marginal_likelihood(model, x, torch.zeros(200, dtype=torch.long), "ntk-10-1")
