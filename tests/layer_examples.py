"""Layers of every captured type with the shape of one of their inputs, in small networks, and their dense rows."""

from __future__ import annotations

import torch
from torch import nn

from ntkml.layers.fixup import Bias, Scale
from tests.dense import dense_jacobian
from tests.factories import (
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
    "conv of sequences": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 6)),
    "conv of sequences, more positions than fan-in": (lambda: nn.Conv1d(1, 2, 2, bias=False), (1, 9)),
    "conv of sequences in groups, dilated": (lambda: nn.Conv1d(4, 6, 2, groups=2, dilation=2), (4, 5)),
    "conv of sequences padded to the same size": (lambda: nn.Conv1d(2, 2, 3, padding="same"), (2, 5)),
    "conv of volumes": (lambda: nn.Conv3d(2, 3, 2), (2, 3, 3, 2)),
    "conv of volumes, more positions than fan-in": (lambda: nn.Conv3d(1, 2, (1, 2, 1)), (1, 3, 4, 2)),
    "conv of volumes in groups, with all settings": (
        lambda: nn.Conv3d(4, 2, (2, 1, 3), (1, 2, 1), (1, 0, 2), (2, 1, 1), groups=2),
        (4, 3, 3, 2),
    ),
    "conv of volumes padded to the same size": (lambda: nn.Conv3d(1, 2, 3, padding="same", bias=False), (1, 2, 3, 2)),
    "recurrent": (lambda: nn.RNN(3, 2, batch_first=True), (2, 3)),
    "recurrent, more steps than fan-in": (lambda: nn.LSTM(2, 2, batch_first=True, bidirectional=True), (4, 2)),
    "recurrent, gates of their own": (lambda: nn.GRU(2, 3, 2, batch_first=True), (3, 2)),
    "recurrent cell": (lambda: nn.RNNCell(3, 2), (3,)),
    "recurrent cell, gates of their own": (lambda: nn.GRUCell(2, 3, bias=False), (2,)),
    "recurrent cell and its last state": (lambda: nn.LSTMCell(3, 2), (3,)),
    "layer norm": (lambda: nn.LayerNorm(4, eps=0.5), (4,)),
    "layer norm over tokens": (lambda: nn.LayerNorm(4), (3, 4)),
    "layer norm over an image": (lambda: nn.LayerNorm((2, 3, 3)), (2, 3, 3)),
    "root mean square norm": (lambda: nn.RMSNorm((3, 4)), (2, 3, 4)),
    "root mean square norm with eps": (lambda: nn.RMSNorm(4, eps=0.5), (4,)),
    "PReLU": (lambda: nn.PReLU(), (4,)),
    "PReLU of channels": (lambda: nn.PReLU(3), (3, 2, 2)),
    "group norm": (lambda: nn.GroupNorm(2, 4, eps=0.5), (4, 3, 3)),
    "batch norm of vectors": (lambda: normalised(nn.BatchNorm1d(4)), (4,)),
    "batch norm of sequences": (lambda: normalised(nn.BatchNorm1d(4)), (4, 3)),
    "batch norm of images": (lambda: normalised(nn.BatchNorm2d(2, eps=0.5)), (2, 3, 3)),
    "batch norm of volumes": (lambda: normalised(nn.BatchNorm3d(2)), (2, 2, 2, 2)),
    "batch norm of many processes": (lambda: normalised(nn.SyncBatchNorm(2)), (2, 3)),
    "instance norm": (lambda: nn.InstanceNorm1d(3, eps=0.5, affine=True), (3, 4)),
    "instance norm of images, with running statistics": (
        lambda: normalised(nn.InstanceNorm2d(2, affine=True, track_running_stats=True)),
        (2, 3, 3),
    ),
    "instance norm of volumes": (lambda: nn.InstanceNorm3d(2, affine=True), (2, 2, 2, 2)),
    "scalar bias": (lambda: Bias(), (2, 3, 3)),
    "scalar scale": (lambda: Scale(), (2, 3, 3)),
}


def normalised(layer):
    """Batch norm in evaluation, with statistics that are not those of a fresh one."""
    layer.running_mean.copy_(torch.linspace(-0.5, 0.5, len(layer.running_mean)))
    layer.running_var.copy_(torch.linspace(0.5, 2.0, len(layer.running_var)))
    return layer.eval()


def surrounded(layer, shape, num_outputs=3, trainable_head=True):
    """The layer behind a nonlinearity and in front of another one and a head."""
    parts = [
        nn.Tanh(),
        layer,
        *([Steps()] if isinstance(layer, (nn.RNNBase, nn.LSTMCell)) else []),
        nn.Tanh(),
        nn.Flatten(),
    ]
    width = nn.Sequential(*parts)(torch.zeros(1, *shape)).numel()
    head = nn.Linear(width, num_outputs).requires_grad_(trainable_head)
    return seeded(nn.Sequential(*parts, head), seed=2)


class Steps(nn.Module):
    """Of what a recurrent layer gives, all but its last states; of an LSTM's cell, the state."""

    def forward(self, given):
        return given[0]


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
