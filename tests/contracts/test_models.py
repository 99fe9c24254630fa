"""What every model must be: stated parameter count, logits, and initial weights from an explicit generator."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ntkml import registry
from ntkml.layers.fixup import Bias, Scale
from ntkml.models import build_model
from ntkml.models.fixup_resnets import Block
from ntkml.rows.block import CapturedRows
from ntkml.rows.capture import capture
from ntkml.rows.model_contract import check_model
from tests.factories import generator, seeded

# (name, input shape, outputs, parameters as the documentation states them)
STATED = [
    ("mininet", (1, 28, 28), 10, 14_538),
    ("mininet", (1, 8, 8), 10, 3_658),
    ("mininet", (3, 28, 28), 2, 14_538 + 2 * 8 * 25 - 8 * 33),
    ("mlp", (1, 28, 28), 10, 89_610),
    ("lenet", (1, 28, 28), 10, 61_706),
    ("lenet", (3, 32, 32), 10, 61_706 + 2 * 6 * 25),
    ("wrn16-4", (3, 32, 32), 10, 2_745_306),
    ("wrn16-4", (3, 32, 32), 100, 2_768_436),
    ("resnet8-16", (3, 32, 32), 10, 74_827),
    ("resnet18-16", (3, 32, 32), 10, 688_356),
    ("resnet50", (3, 64, 64), 200, 2_279_666),
    ("resnet50-bottleneck", (3, 64, 64), 200, 23_840_490),
]

#: Networks with residual blocks, on images small enough to compare their rows with autograd's.
RESIDUAL = ["wrn16-4", "resnet8-16", "resnet18-16", "resnet50"]


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
        constant = bool((a == a.flatten()[0]).all())  # what Fixup sets to zero or one
        assert constant or not torch.equal(a, c)


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
    for name in registry.MODELS:
        shape = (shape[0], 28, 28)
        with pytest.raises(ValueError, match=f"{name} needs at least one channel and one class"):
            build(name, shape, num_classes)


def test_an_unknown_model_gets_the_nearest_known_one():
    with pytest.raises(ValueError, match="unknown model 'mininett'; did you mean 'mininet'"):
        build("mininett", (1, 8, 8), 10)


@pytest.mark.parametrize("name", RESIDUAL)
def test_fixup_starts_as_its_shortcuts_with_an_undecided_head(name):
    model = build(name, (3, 16, 16), 10)
    assert not model(torch.rand(3, 3, 16, 16)).any()
    blocks = [module for module in model if isinstance(module, Block)]
    for block in blocks:
        first, *_, last = [layer for layer in block.branch if isinstance(layer, nn.Conv2d)]
        assert not last.weight.any()
        fan_out = first.out_channels * first.kernel_size[0] ** 2
        assert first.weight.std().item() == pytest.approx((2 / fan_out / len(blocks)) ** 0.5, rel=0.05)
    scales = [module.weight.item() for module in model.modules() if isinstance(module, Scale)]
    biases = [module.bias.item() for module in model.modules() if isinstance(module, Bias)]
    assert scales == [1.0] * len(blocks)
    assert biases == [0.0] * (4 * len(blocks) + 2)


def branch_written_out(block, given):
    """scale * conv2(relu(conv1(given) + b2) + b3) + b4 from the tensors of a basic block."""
    conv1, between, after, conv2, scale, last = block.branch.parameters()
    stride = block.branch[0].stride
    hidden = F.relu(F.conv2d(given, conv1, stride=stride, padding=1) + between) + after
    return scale * F.conv2d(hidden, conv2, padding=1) + last


def test_a_wide_resnet_activates_before_its_convolutions():
    """Zagoruyko and Komodakis 2016: x + branch(relu(x + b1)), 1 x 1 convolutions of relu(x + b1), one ReLU before the mean."""
    model = seeded(build("wrn16-4", (3, 8, 8), 10))
    x = torch.randn(2, 3, 8, 8, generator=generator(1), dtype=torch.float64)
    blocks = [module for module in model if isinstance(module, Block)]
    assert len(blocks) == 6
    stem, bias, head_bias, head = model[0], model[1], model[-2], model[-1]
    h = F.conv2d(x, stem.weight, padding=1) + bias.bias
    for block in blocks:
        given = F.relu(h + block.before.bias)
        kept = h if block.shortcut is None else F.conv2d(given, block.shortcut.weight, stride=block.shortcut.stride)
        h = kept + branch_written_out(block, given)
    expected = F.linear(F.relu(h).mean((2, 3)) + head_bias.bias, head.weight, head.bias)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert [block.shortcut is None for block in blocks] == [False, True] * 3


def test_a_resnet_activates_after_its_sums_and_its_identities_take_the_input_itself():
    """He et al. 2016 with Fixup's scalars: relu(x + branch(x + b1)), the subsampled x + b1 where the shape changes."""
    model = seeded(build("resnet18-16", (3, 8, 8), 10))
    x = torch.randn(2, 3, 8, 8, generator=generator(1), dtype=torch.float64)
    stem, bias, head_bias, head = model[0], model[1], model[-2], model[-1]
    h = F.relu(F.conv2d(x, stem.weight, padding=1) + bias.bias)
    for index, block in enumerate(module for module in model if isinstance(module, Block)):
        given = h + block.before.bias
        kept = h
        if index in (2, 4, 6):
            kept = torch.cat([given[:, :, ::2, ::2], torch.zeros_like(given[:, :, ::2, ::2])], dim=1)
        h = F.relu(kept + branch_written_out(block, given))
    expected = F.linear(h.mean((2, 3)) + head_bias.bias, head.weight, head.bias)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


def test_a_bottleneck_has_the_deviation_of_three_convolutions():
    model = build("resnet50-bottleneck", (3, 16, 16), 10)
    blocks = [module for module in model if isinstance(module, Block)]
    assert [len(block.branch) for block in blocks] == [11] * 16
    second = blocks[5].branch[4]
    assert second.stride == (1, 1)
    assert second.weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5 * 16**-0.25, rel=0.05)
    assert blocks[3].branch[4].stride == (2, 2)


@pytest.mark.parametrize("name", [*RESIDUAL, "mlp", "lenet"])
def test_every_parameter_is_captured_and_its_rows_are_those_of_autograd(name):
    """The model contract, at weights where no part of a residual branch is zero."""
    shape = (3, 32, 32) if name == "lenet" else (3, 8, 8)
    model = seeded(build(name, shape, 3))
    x = torch.randn(2, *shape, generator=generator(1), dtype=torch.float64)
    assert not check_model(model, x).exact
    factor = torch.randn(2, 3, 1, generator=generator(2), dtype=torch.float64)
    rows = CapturedRows(capture(model, x), factor, {k: v.shape for k, v in model.named_parameters()})
    for index in range(2):
        truth = torch.autograd.grad(model(x)[index] @ factor[index, :, 0], list(model.parameters()))
        for (key, _), gradient in zip(model.named_parameters(), truth, strict=True):
            error = (rows.explicit(key)[index] - gradient.flatten()).abs().max()
            assert error <= 1e-12 * gradient.abs().max().clamp_min(1.0), key


WRONG_SIZES = [
    ("mininet", (3, 32, 32), "mininet takes images of 28x28 and 8x8 pixels, got 32x32 with 3 channels"),
    ("lenet", (1, 8, 8), "lenet takes images of 28x28 and 32x32 pixels, got 8x8 with 1 channel"),
    ("wrn16-4", (3, 32, 3), "wrn16-4 takes images of 4x4 pixels or more, got 32x3 with 3 channels"),
    ("resnet18-16", (3, 4, 32), "resnet18-16 takes images of 8x8 pixels or more, got 4x32 with 3 channels"),
    ("resnet50", (3, 4, 4), "resnet50 takes images of 8x8 pixels or more, got 4x4 with 3 channels"),
    ("resnet50-bottleneck", (3, 4, 4), "resnet50-bottleneck takes images of 8x8 pixels or more, got 4x4 with 3"),
]


@pytest.mark.parametrize(("name", "shape", "words"), WRONG_SIZES)
def test_images_of_a_wrong_size_get_the_model_the_sizes_and_what_to_choose(name, shape, words):
    with pytest.raises(ValueError, match=f"{words}.*: choose --model mlp .*resnet18-16.*folder:PATH@28"):
        build(name, shape, 10)


@pytest.mark.parametrize("name", sorted(registry.MODELS))
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_are_those_of_the_data(name, channels):
    shape = (channels, 28, 28)
    assert build(name, shape, 2)(torch.rand(1, *shape)).shape == (1, 2)
