"""Residual networks without normalisation, initialised as Fixup prescribes (Zhang, Dauphin, Ma 2019).

A block of a ResNet (He et al. 2016) is relu(shortcut + branch), with the branch

    scale * conv2(relu(conv1(x + b1) + b2) + b3) + b4        (basic; a bottleneck has one more convolution and two biases)

of scalar biases and scale. One of a Wide ResNet (Zagoruyko and Komodakis 2016) activates before its convolutions: the branch
starts from relu(x + b1), nothing follows the sum, and one ReLU stands before the mean over pixels. A shortcut that changes
the shape takes what the branch's first convolution takes; one that does not takes x itself.

Convolutions have no bias. The last convolution of every branch and the classifier start at zero. The other convolutions of a
branch of m start at their He deviation times L^(-1 / (2 m - 2)), L the number of blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ntkml.layers.fixup import Bias, Scale
from ntkml.models.input_checks import check_counts, wrong_size


class Block(nn.Module):
    """A residual block: a branch of convolutions with their scalars, and a shortcut.

    ``kernels`` and ``widths`` describe the branch's convolutions; the first 3 x 3 one takes the stride. Where the shape
    changes, the shortcut is a 1 x 1 convolution (``projected``) or the subsampled input with zeros for new channels.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], kernels: Sequence[int], stride: int, projected: bool):
        super().__init__()
        self.before = Bias()
        layers: list[nn.Module] = []
        channels, strided = in_channels, kernels.index(max(kernels))
        for index, (width, kernel) in enumerate(zip(widths, kernels, strict=True)):
            layers += [Bias(), nn.ReLU(), Bias()] if index else []
            layers.append(_convolution(channels, width, kernel, stride if index == strided else 1))
            channels = width
        self.branch = nn.Sequential(*layers, Scale(), Bias())
        self.shortcut: nn.Module | None = None
        if stride != 1 or channels != in_channels:
            new = channels - in_channels
            self.shortcut = _convolution(in_channels, channels, 1, stride) if projected else Widened(new, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self._sum(x, self.before(x)))
        return out

    def _sum(self, x: Tensor, given: Tensor) -> Tensor:
        """Branch and shortcut of a block's input ``x``; ``given`` is what its first convolution takes."""
        kept = x if self.shortcut is None else self.shortcut(given)
        out: Tensor = self.branch(given) + kept
        return out


class PreActivationBlock(Block):
    """A block that activates before its first convolution, and not after the sum."""

    def forward(self, x: Tensor) -> Tensor:
        return self._sum(x, self.relu(self.before(x)))


class Widened(nn.Module):
    """The input at every ``stride``-th pixel, with ``new_channels`` channels of zeros."""

    def __init__(self, new_channels: int, stride: int):
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(x, (0, 0, 0, 0, 0, self.new_channels))


#: (blocks, widths of a block's convolutions, their kernels), one for every stage.
Stages = Sequence[tuple[int, tuple[int, ...], tuple[int, ...]]]


def wrn16_4(
    input_shape: tuple[int, int, int], num_classes: int, generator: torch.Generator | None = None
) -> nn.Sequential:
    """Wide ResNet 16-4: 16, then 64, 128, 256 channels, two blocks each; 2 745 306 parameters at 3 channels, C = 10."""
    stages = _basic((64, 128, 256), 2)
    return _network("wrn16-4", input_shape, num_classes, generator, stages, projected=True, block=PreActivationBlock)


def resnet8_16(
    input_shape: tuple[int, int, int], num_classes: int, generator: torch.Generator | None = None
) -> nn.Sequential:
    """The smallest one, for CPUs: 16, 32, 64 channels, one basic block each; 74 827 parameters at 3 channels, C = 10."""
    return _network("resnet8-16", input_shape, num_classes, generator, _basic((16, 32, 64), 1), projected=False)


def resnet18_16(
    input_shape: tuple[int, int, int], num_classes: int, generator: torch.Generator | None = None
) -> nn.Sequential:
    """ResNet-18 of 16, 32, 64, 128 channels, two basic blocks each; 688 356 parameters at 3 channels, C = 10."""
    return _network("resnet18-16", input_shape, num_classes, generator, _basic((16, 32, 64, 128), 2), projected=False)


def resnet50(
    input_shape: tuple[int, int, int], num_classes: int, generator: torch.Generator | None = None
) -> nn.Sequential:
    """What the paper's code calls ResNet-50: six basic blocks of 16, 32, 64, 128 channels; 2 279 666 parameters, C = 200."""
    return _network("resnet50", input_shape, num_classes, generator, _basic((16, 32, 64, 128), 6), projected=False)


def resnet50_bottleneck(
    input_shape: tuple[int, int, int], num_classes: int, generator: torch.Generator | None = None
) -> nn.Sequential:
    """ResNet-50 of 3, 4, 6, 3 bottlenecks behind 16 channels, the size that the paper names; 23 840 490 parameters, C = 200."""
    stages = [(n, (w, w, 4 * w), (1, 3, 1)) for n, w in zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)]
    return _network("resnet50-bottleneck", input_shape, num_classes, generator, stages, projected=True)


def _basic(widths: Sequence[int], count: int) -> Stages:
    return [(count, (width, width), (3, 3)) for width in widths]


def _network(
    name: str,
    input_shape: tuple[int, int, int],
    num_classes: int,
    generator: torch.Generator | None,
    stages: Stages,
    projected: bool,
    block: type[Block] = Block,
) -> nn.Sequential:
    """A 3 x 3 convolution to 16 channels, the stages (from the second on at half the size), mean over pixels, classes.

    A ReLU stands where the network's blocks expect one: before them, or behind those that activate first.

    Raises:
        ValueError: fewer than one channel or class, or images that cannot be halved as often.
    """
    channels, height, width = input_shape
    check_counts(name, input_shape, num_classes)
    smallest = 2 ** (len(stages) - 1)
    if min(height, width) < smallest:
        raise wrong_size(name, f"{smallest}x{smallest} pixels or more", input_shape)
    body: list[nn.Module] = []
    now = 16
    for stage, (count, widths, kernels) in enumerate(stages):
        for index in range(count):
            body.append(block(now, widths, kernels, 2 if stage and not index else 1, projected))
            now = widths[-1]
    head = nn.utils.skip_init(nn.Linear, now, num_classes)
    stem = _convolution(channels, 16, 3, 1)
    activated = [*body, nn.ReLU()] if block is PreActivationBlock else [nn.ReLU(), *body]
    model = nn.Sequential(stem, Bias(), *activated, nn.AdaptiveAvgPool2d(1), nn.Flatten(), Bias(), head)
    _initialise(model, generator)
    return model


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Conv2d:
    """A convolution without bias that keeps the size at stride 1; its weights are not drawn yet."""
    options = {"kernel_size": kernel, "stride": stride, "padding": kernel // 2, "bias": False}
    convolution: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, in_channels, out_channels, **options)
    return convolution


@torch.no_grad()
def _initialise(model: nn.Sequential, generator: torch.Generator | None) -> None:
    blocks = [module for module in model if isinstance(module, Block)]
    _he(model[0], 1.0, generator)
    for block in blocks:
        convolutions = [layer for layer in block.branch if isinstance(layer, nn.Conv2d)]
        share = len(blocks) ** (-1.0 / (2 * len(convolutions) - 2))
        for convolution in convolutions[:-1]:
            _he(convolution, share, generator)
        convolutions[-1].weight.zero_()
        if isinstance(block.shortcut, nn.Conv2d):
            _he(block.shortcut, 1.0, generator)
    for parameter in model[-1].parameters():
        parameter.zero_()


def _he(layer: nn.Module, share: float, generator: torch.Generator | None) -> None:
    """Normal weights of deviation share * sqrt(2 / (fan-out pixels)), as in the Fixup authors' networks."""
    assert isinstance(layer, nn.Conv2d)
    fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
    layer.weight.normal_(0.0, share * (2.0 / fan_out) ** 0.5, generator=generator)
