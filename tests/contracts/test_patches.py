"""Inputs of a layer at every position: taken, added up and paired, and the padding that they do not know."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ntkml.layers import conv, linear, patches
from ntkml.layers.patches import Patches
from ntkml.layers.positions import Positions
from ntkml.rows.model_contract import check_model
from tests.factories import (
    assert_same,
    generator,
    seeded,
)
from tests.layer_examples import LAYERS, surrounded

CONVOLUTIONS = {
    name: (module, shape)
    for name, (make, shape) in LAYERS.items()
    if isinstance(module := seeded(make()), (nn.Conv1d, nn.Conv2d))
}


@pytest.mark.parametrize("num_views", [1, 3])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_patches_of_windows_are_those_of_im2col(name, num_views, monkeypatch):
    """A GPU takes the one, a CPU the other."""
    module, shape = CONVOLUTIONS[name]
    x = torch.randn(2 * num_views, *shape, generator=generator())
    columns = conv.taken(module, num_views, x)
    monkeypatch.setattr(conv, "by_im2col", lambda module, inputs: False)
    assert torch.equal(conv.taken(module, num_views, x), columns)


@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith(("linear", "conv", "depthwise"))])
def test_adding_patches_up_is_the_transpose_of_taking_them(name):
    make, shape = LAYERS[name]
    module = seeded(make())
    code = conv if isinstance(module, conv.TYPES) else linear
    x = torch.randn(6, *shape, generator=generator(), dtype=torch.float64)
    taken = code.taken(module, 3, x)
    given = torch.randn(taken.shape, generator=generator(), dtype=torch.float64)
    added = code.added(module, given, x.shape)
    assert added.shape == x.shape
    assert_same((taken * given).sum(), (x * added).sum())


@pytest.mark.parametrize("by_view", [True, False])
@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith(("linear", "conv", "depthwise"))])
def test_a_pairing_has_the_gradients_of_explicit_rows(name, by_view, monkeypatch):
    """In what the layer was given and in what was pulled back to it, with views as positions and without."""
    make, shape = LAYERS[name]
    module, num_views, k = seeded(make()).double(), 3, 2
    monkeypatch.setattr(patches, "by_view", lambda gradients: by_view)
    source = torch.randn(2 * num_views, *shape, generator=generator(), dtype=torch.float64, requires_grad=True)
    code, outputs = (conv if isinstance(module, conv.TYPES) else linear), module(source.detach())
    pulled = torch.randn(len(source), k, *outputs.shape[1:], generator=generator(), dtype=torch.float64)
    gradients = code.gradients(module, pulled, num_views).requires_grad_()
    taking = Patches(lambda x: code.taken(module, num_views, x), lambda p, like: code.added(module, p, like))
    layer = Positions(source, taking, code.fan_in(module), gradients, "weight", "")
    given = torch.randn(layer.row("weight").shape, generator=generator(), dtype=torch.float64)
    paired, explicit = layer.pair({"weight": given}), (given * layer.row("weight")).sum()
    assert_same(paired, explicit)
    for own, plain in zip(
        torch.autograd.grad(paired, (source, gradients)),
        torch.autograd.grad(explicit, (source, gradients)),
        strict=True,
    ):
        assert_same(own, plain)


def test_a_pairing_refuses_a_second_derivative():
    """What it saves does not know where it comes from: a wrong number would follow."""
    source = torch.randn(2, 4, generator=generator(), requires_grad=True)
    taking = Patches(lambda x: linear.taken(None, 1, x), lambda p, like: linear.added(None, p, like))
    layer = Positions(source, taking, 4, torch.ones(2, 1, 1, 1, 3, 1), "weight", "")
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(layer.pair({"weight": torch.ones(2, 1, 12)}), source, create_graph=True)


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_padding_that_im2col_does_not_know_takes_exact_rows(mode):
    model = surrounded(nn.Conv2d(1, 2, 3, padding=1, padding_mode=mode), (1, 4, 4))
    plan = check_model(model, torch.randn(2, 1, 4, 4, generator=generator(), dtype=torch.float64))
    assert plan.exact == dict.fromkeys(("1.weight", "1.bias"), f"it pads with {mode!r}")


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_uneven_padding_takes_exact_rows():
    model = surrounded(nn.Conv2d(1, 2, 2, padding="same"), (1, 4, 4))
    plan = check_model(model, torch.randn(2, 1, 4, 4, generator=generator(), dtype=torch.float64))
    assert plan.exact == dict.fromkeys(("1.weight", "1.bias"), "it has padding='same' with an even kernel")
