"""What every layer must be: rows equal to jacrev's, and Grams and positions consistent with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ntkml.capture import capture
from ntkml.layers import LAYER_TYPES, positions
from ntkml.layers.positions import Positions
from ntkml.model_contract import check_model
from ntkml.rows import CapturedRows
from tests.dense import dense_jacobian
from tests.factories import (
    assert_same,
    generator,
    seeded,
)

#: (layer, shape of one of its inputs), with few and with many positions compared to the fan-in.
LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "linear without bias": (lambda: nn.Linear(4, 3, bias=False), (4,)),
    "linear over tokens": (lambda: nn.Linear(4, 3), (3, 4)),
    "linear over a grid, wider than deep": (lambda: nn.Linear(2, 3), (2, 3, 2)),
    "conv": (lambda: nn.Conv2d(2, 3, 3), (2, 5, 5)),
    "conv without bias": (lambda: nn.Conv2d(2, 3, 3, bias=False), (2, 5, 5)),
    "conv, more positions than fan-in": (lambda: nn.Conv2d(1, 2, 2, padding=1), (1, 5, 5)),
    "conv with stride and padding": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 5, 4)),
    "conv with dilation": (lambda: nn.Conv2d(2, 2, 2, dilation=(2, 1)), (2, 5, 4)),
    "conv in groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 3, 3)),
    "conv in groups, many positions": (lambda: nn.Conv2d(4, 6, 1, groups=2), (4, 4, 4)),
    "depthwise conv": (lambda: nn.Conv2d(3, 3, 2, groups=3, stride=2), (3, 4, 4)),
    "conv padded to the same size": (lambda: nn.Conv2d(1, 2, 3, padding="same", dilation=2), (1, 5, 5)),
    "conv with valid padding": (lambda: nn.Conv2d(1, 2, 3, padding="valid"), (1, 5, 5)),
    "circular conv without padding": (lambda: nn.Conv2d(1, 2, 3, padding_mode="circular"), (1, 4, 4)),
}


def surrounded(layer, shape, num_outputs=3, trainable_head=True):
    """The layer behind a nonlinearity and in front of another one and a head."""
    width = layer(torch.zeros(1, *shape)).numel()
    head = nn.Linear(width, num_outputs).requires_grad_(trainable_head)
    return seeded(nn.Sequential(nn.Tanh(), layer, nn.Tanh(), nn.Flatten(), head), seed=2)


def example(name, num_views, num_inputs=4):
    """Network, inputs (n * S, ...) with the views adjacent, and two random cotangents per input."""
    make, shape = LAYERS[name]
    model = surrounded(make(), shape)
    x = torch.randn(num_inputs * num_views, *shape, generator=generator(3), dtype=torch.float64)
    return model, x, torch.randn(num_inputs, 3, 2, generator=generator(4), dtype=torch.float64)


def shapes_of(model):
    return {name: weight.shape for name, weight in model.named_parameters() if weight.requires_grad}


def dense_rows(model, x, factor, num_views):
    """L^T J by parameter, (n * k, size)."""
    jacobian = torch.einsum("ncp,nck->nkp", dense_jacobian(model, x, num_views), factor).flatten(0, 1)
    shapes = shapes_of(model)
    return dict(zip(shapes, jacobian.split([shape.numel() for shape in shapes.values()], dim=1), strict=True))


def test_every_supported_layer_type_is_covered_here():
    assert {type(make()) for make, _ in LAYERS.values()} == set(LAYER_TYPES)


@pytest.mark.parametrize("num_views", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_rows_are_those_of_jacrev(name, num_views):
    model, x, factor = example(name, num_views)
    rows = CapturedRows(capture(model, x, num_views), factor, shapes_of(model))
    for key, expected in dense_rows(model, x, factor, num_views).items():
        assert_same(rows.explicit(key), expected)
    check_model(model, x)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("num_views", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_both_routes_to_the_gram_matrix_are_one(name, num_views, direct, monkeypatch):
    """Positions against positions in tiles, or rows against rows: the cheaper is taken, the value is the same."""
    monkeypatch.setattr(Positions, "direct_is_cheaper", lambda self: direct)
    monkeypatch.setattr(positions, "_DIRECT_TILE_ENTRIES", 3000)
    model, x, factor = example(name, num_views)
    rows = CapturedRows(capture(model, x, num_views), factor, shapes_of(model))
    dense = dense_rows(model, x, factor, num_views)
    for key, expected in dense.items():
        assert_same(rows.gram(key), expected @ expected.T)
    assert_same(rows.total_gram(), sum(expected @ expected.T for expected in dense.values()))


@pytest.mark.parametrize("name", LAYERS)
def test_float32_positions_give_float64_grams(name, monkeypatch):
    model, x, factor = example(name, 2)
    single = capture(model.float(), x.float(), 2)
    for direct in (True, False):
        monkeypatch.setattr(Positions, "direct_is_cheaper", lambda self, direct=direct: direct)
        rows = CapturedRows(single, factor, shapes_of(model), keep_graph=True)
        assert rows.total_gram().dtype == torch.float64
        assert rows.explicit("1.weight").dtype == torch.float32


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize("name", ["linear", "linear over tokens", "conv with stride and padding", "conv in groups"])
def test_a_frozen_parameter_stays_out(name, frozen):
    model, x, factor = example(name, 1)
    model[1].get_parameter(frozen).requires_grad_(False)
    shapes = shapes_of(model)
    assert f"1.{frozen}" not in shapes
    assert len(shapes) == 3
    check_model(model, x)
    rows = CapturedRows(capture(model, x), factor, shapes)
    dense = dense_rows(model, x, factor, 1)
    for key, expected in dense.items():
        assert_same(rows.explicit(key), expected)
    assert_same(rows.total_gram(), sum(expected @ expected.T for expected in dense.values()))
    assert set(rows.kronecker_factors()) == set(shapes)


def test_the_cheaper_route_is_chosen():
    """Many inputs of one position and a wide layer: kernels of a and g; many positions and few weights: rows."""
    wide = Positions(torch.ones(9, 1, 1, 200, 1), torch.ones(9, 1, 1, 1, 200, 1), True, True)
    narrow = Positions(torch.ones(9, 1, 1, 2, 100), torch.ones(9, 1, 1, 1, 2, 100), True, True)
    assert wide.direct_is_cheaper()
    assert not narrow.direct_is_cheaper()


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_padding_that_im2col_does_not_know_is_refused(mode):
    model = surrounded(nn.Conv2d(1, 2, 3, padding=1, padding_mode=mode), (1, 4, 4))
    message = f"Conv2d '1' pads with '{mode}': pad explicitly in front of it and set padding=0"
    with pytest.raises(ValueError, match=message):
        check_model(model, torch.zeros(2, 1, 4, 4, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_uneven_padding_is_refused():
    model = surrounded(nn.Conv2d(1, 2, 2, padding="same"), (1, 4, 4))
    with pytest.raises(ValueError, match="Conv2d '1' has padding='same' with an even kernel: pad explicitly"):
        check_model(model, torch.zeros(2, 1, 4, 4, dtype=torch.float64))
