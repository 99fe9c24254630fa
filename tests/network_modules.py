"""Modules of every kind that people write, whose outputs are of three classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ntkml.layers.fixup import Bias, Scale

CLASSES = 3


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = x + torch.tanh(self.first(x))
        return self.head(h + torch.tanh(self.second(h)))


class FixupBlock(nn.Module):
    """A residual block of a Fixup network: scalars around convolutions, an in-place ReLU, no normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.conv1, self.between = Bias(), nn.Conv2d(2, 3, 3, padding=1, bias=False), Bias()
        self.middle, self.conv2 = Bias(()), nn.Conv2d(3, 2, 3, padding=1, bias=False)
        self.scale, self.after, self.head = Scale(), Bias((1, 2, 1, 1)), nn.Linear(8, CLASSES)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.between(self.conv1(self.before(x))))
        h = self.after(self.scale(self.conv2(self.middle(h))))
        return self.head(nn.functional.adaptive_avg_pool2d(self.relu(h + x), 2).flatten(1))


class Excited(nn.Module):
    """Squeeze and excitation as in MobileNetV3, whose in-place hard sigmoid has no second derivative in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.narrow, self.wide = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.activation, self.gate, self.head = nn.Hardswish(), nn.Hardsigmoid(inplace=True), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.conv(x))
        narrow = torch.relu(self.narrow(nn.functional.adaptive_avg_pool2d(h, 1)))
        return self.head((h * self.gate(self.wide(narrow))).mean((2, 3)))


class OwnParameters(nn.Module):
    """Raw parameters beside layers."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.shift, self.head = (
            nn.Parameter(torch.ones(4)),
            nn.Parameter(torch.ones(())),
            nn.Linear(4, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x * self.gain + self.shift))


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layer(torch.tanh(self.norm(self.layer(x))))))


class TwoSizes(nn.Module):
    """A convolution and a GroupNorm of an image and of the image at half the size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 4, 3, groups=2), nn.GroupNorm(2, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scales = x, nn.functional.avg_pool2d(x, 2)
        return self.head(sum(torch.tanh(self.norm(self.conv(scale))).mean((2, 3)) for scale in scales))


class Until(nn.Module):
    """Calls a layer as often as the longest input of its batch needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        needed = 1 + (x > 0.5).sum(1, keepdim=True)
        h = x
        for call in range(int(needed.max())):
            h = torch.where(call < needed, torch.tanh(self.layer(h)), h)
        return self.head(h)


class Twice(nn.Module):
    """A layer that is called twice, and its weight without it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.layer(torch.tanh(self.layer(x))))
        return self.head(h @ self.layer.weight)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(torch.tanh(self.first(x))))


class Outside(nn.Module):
    """Uses the weight of a layer beside calling it, or in place of calling it."""

    def __init__(self, bypass: bool) -> None:
        super().__init__()
        self.layer, self.head, self.bypass = nn.Linear(4, 4), nn.Linear(4, CLASSES), bypass

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.bypass else self.layer(x)
        return self.head(torch.tanh(h) @ self.layer.weight + (self.layer.bias if self.bypass else 0))


class Gated(nn.Module):
    """Its head is not the linear layer that was made last."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.gate = nn.Linear(4, CLASSES), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x * torch.sigmoid(self.gate(x)))


class Sliced(nn.Module):
    """Its last layer has more outputs than the network."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, CLASSES + 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))[:, :CLASSES]


def two_names() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(4, CLASSES))


class Dispatched(nn.Module):
    """A layer sees the inputs in the order of a value of each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h, order = self.first(x), x[:, 0].argsort()
        return self.head(h + torch.tanh(self.layer(h[order]))[order.argsort()])


class Routed(nn.Module):
    """An expert for the inputs of which one value is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.expert, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        chosen = (x[:, 0] > 0).nonzero().squeeze(1)
        return self.head(torch.tanh(self.first(x).index_add(0, chosen, self.expert(x[chosen]))))


class UnderVmap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(torch.vmap(self.layer)(x)))


class Looking(nn.Module):
    """Branches on a value, which no vmap can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.head = nn.Parameter(torch.ones(4)), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        gain = self.gain if bool(x.abs().sum() > 0) else 2 * self.gain
        return self.head(x * gain)


class ChannelsLast(nn.LayerNorm):
    """Normalises the channels of an image, as in ConvNeXt: a subclass that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Renamed(nn.Linear):
    """A subclass that computes what its class does."""


class Positive(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.square(), self.bias)


class Standardised(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean(), bias)


def hooked() -> nn.Module:
    """Hooks that were there before change what layers give, one of them in place."""
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, CLASSES))
    model[0].register_forward_hook(lambda module, given, output: output.mul_(2))
    model[1].register_forward_hook(lambda module, given, output: 2 * output)
    return model


def weight_normed() -> nn.Module:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(4, CLASSES))


def behind_conv(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), *layers, nn.Flatten(), nn.Linear(16, CLASSES))


def batch_normed() -> nn.Module:
    model = behind_conv(nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    model[1].running_mean.copy_(torch.linspace(-0.5, 0.5, 4))
    model[1].running_var.copy_(torch.linspace(0.5, 2.0, 4))
    return model
