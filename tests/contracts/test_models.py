"""What every model must be: stated parameter count, logits, and initial weights from an explicit generator."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ntkml import registry
from ntkml.models import build_model

# (name, input shape, outputs, parameters as the documentation states them)
STATED = [
    ("mininet", (1, 28, 28), 10, 14_538),
    ("mininet", (1, 8, 8), 10, 3_658),
    ("mininet", (3, 28, 28), 2, 14_538 + 2 * 8 * 25 - 8 * 33),
]


def build(name, shape, num_classes, seed=3):
    return build_model(name, shape, num_classes, torch.Generator().manual_seed(seed))


def test_every_registered_model_is_covered_here():
    assert {name for name, *_ in STATED} == set(registry.MODELS)


@pytest.mark.parametrize(("name", "shape", "num_classes", "num_params"), STATED)
def test_size_and_output_are_as_stated(name, shape, num_classes, num_params):
    model = build(name, shape, num_classes)
    assert sum(p.numel() for p in model.parameters()) == num_params
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    assert model(torch.rand(5, *shape)).shape == (5, num_classes)


@pytest.mark.parametrize(("name", "shape", "num_classes", "num_params"), STATED)
def test_initial_weights_come_from_the_generator_alone(name, shape, num_classes, num_params):
    before = torch.random.get_rng_state()
    first, again, other = (build(name, shape, num_classes, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_the_distribution_is_the_default_of_torch():
    """The same generator state gives torch's own layers the same numbers, up to how the limit is rounded."""
    ours = build("mininet", (1, 28, 28), 10, seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        theirs = nn.ModuleList([nn.Conv2d(1, 8, 5), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 32, 5), nn.Linear(32, 10)])
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_without_a_generator_the_global_one_is_used():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build_model("mininet", (1, 8, 8), 10)
    expected = build("mininet", (1, 8, 8), 10, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


def test_an_unsupported_image_size_names_the_supported_ones():
    with pytest.raises(ValueError, match="takes images of 28x28 and 8x8 pixels, got 32x16"):
        build("mininet", (3, 32, 16), 10)


@pytest.mark.parametrize(("shape", "num_classes"), [((0, 8, 8), 10), ((1, 8, 8), 0)])
def test_no_channel_or_no_class_is_refused(shape, num_classes):
    with pytest.raises(ValueError, match="at least one channel and one class"):
        build("mininet", shape, num_classes)


def test_an_unknown_model_gets_the_nearest_known_one():
    with pytest.raises(ValueError, match="unknown model 'mininett'; did you mean 'mininet'"):
        build("mininett", (1, 8, 8), 10)
