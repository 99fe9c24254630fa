"""Rows of convolutions by one convolution with a group for every input: float64, against im2col and products."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ntkml.layers import uses
from ntkml.layers.grouped_convolution import grouped_is_faster
from ntkml.rows.capture import capture
from ntkml.rows.pulled import rows_by_layer
from tests.factories import assert_same, generator, seeded

CONVOLUTIONS = {
    "plain": {},
    "stride and padding": {"stride": 2, "padding": 1},
    "dilation": {"dilation": 2, "padding": (2, 1)},
    "channel groups": {"groups": 2, "padding": "same"},
    "channel groups and stride": {"groups": 2, "stride": (1, 2)},
    "depthwise": {"groups": 4, "padding": 1},
    "valid": {"padding": "valid", "bias": False},
}
SEQUENCES = {
    "sequences": {"padding": 0},
    "sequences, stride and padding": {"stride": 2, "padding": 1},
    "sequences, dilated groups": {"dilation": 2, "groups": 2, "padding": "same"},
}


def captured_layers(settings, grouped, num_views, columns, monkeypatch, dtype=torch.float64):
    """Rows of a convolution behind another one, with the inputs that they are to be differentiated in.

    ``grouped`` None leaves the choice of the route to the layers.
    """
    source = generator()
    kind, size = (nn.Conv1d, (9,)) if settings in SEQUENCES.values() else (nn.Conv2d, (8, 7))
    model = nn.Sequential(kind(2, 4, 2), nn.Tanh(), kind(4, 8, 3, **settings), nn.Tanh(), nn.Flatten())
    model.append(nn.Linear(model(torch.zeros(1, 2, *size)).shape[1], 3))
    seeded(model).to(dtype)
    x = torch.randn(3 * num_views, 2, *size, generator=source, dtype=torch.float64).to(dtype).requires_grad_()
    factor = torch.randn(3, 3, columns, generator=source, dtype=torch.float64)
    with monkeypatch.context() as patched:
        if grouped is not None:
            patched.setattr(uses, "grouped_is_faster", lambda *_: grouped)
        captured = capture(model, x, num_views, differentiable=True)
        return rows_by_layer(captured, factor, keep_graph=True), x


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("num_views", [1, 4])
@pytest.mark.parametrize("settings", [*CONVOLUTIONS.values(), *SEQUENCES.values()], ids=[*CONVOLUTIONS, *SEQUENCES])
def test_rows_products_and_their_gradients_are_those_of_im2col(settings, num_views, columns, monkeypatch):
    found = []
    for grouped in (True, False):
        layers, x = captured_layers(settings, grouped, num_views, columns, monkeypatch)
        given = {}
        for name in ("0", "2"):
            assert (layers[name].grouped is not None) is grouped
            rows = layers[name].rows()
            given[name] = {
                key: torch.randn(row.shape, generator=generator(), dtype=row.dtype) for key, row in rows.items()
            }
        value = sum(layers[name].pair(gradients) for name, gradients in given.items())
        by_rows = sum((given[n][key] * row).sum() for n in given for key, row in layers[n].rows().items())
        assert_same(value, by_rows)
        found.append(
            [
                *(layers[name].rows()[key] for name in given for key in given[name]),
                *torch.autograd.grad(value, x, retain_graph=True),
                *torch.autograd.grad(by_rows, x),
            ]
        )
    for fast, plain in zip(*found, strict=True):
        assert_same(fast, plain)


def test_the_route_is_taken_in_float32_on_a_cpu_and_agrees_with_float64(monkeypatch):
    layers, _ = captured_layers({}, False, 2, 1, monkeypatch)
    single, _ = captured_layers({}, None, 2, 1, monkeypatch, torch.float32)
    for name in ("0", "2"):
        assert single[name].grouped is not None
        for key, row in layers[name].rows().items():
            torch.testing.assert_close(single[name].rows()[key].double(), row, rtol=1e-4, atol=1e-5)


def test_few_positions_many_filters_double_numbers_and_other_devices_keep_im2col():
    image, pulled, one = torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, 5, 4, 4), torch.zeros(2, 2, 5, 1, 1)
    available = torch.backends.mkldnn.is_available()
    assert grouped_is_faster(image, pulled, 1, 1) is available
    assert not grouped_is_faster(image, one, 1, 1)
    assert not grouped_is_faster(image.repeat(1, 2, 1, 1), pulled, 1, 1)
    assert grouped_is_faster(image.repeat(1, 2, 1, 1), pulled, 1, 2) is available
    assert grouped_is_faster(image.repeat(1, 2, 1, 1), pulled, 2, 1) is available
    assert not grouped_is_faster(image.double(), pulled.double(), 1, 1)
    assert not grouped_is_faster(image.to("meta"), pulled.to("meta"), 1, 1)
