"""Twelve inputs of three classes and a network of two layers for them, with what a test puts between."""

from __future__ import annotations

import torch
from torch import nn

import ntkml
from tests.factories import generator, seeded

N, CLASSES = 12, 3
X = torch.randn(N, 4, generator=generator(3), dtype=torch.float64)
Y = torch.arange(N) % CLASSES


def network(*between):
    return seeded(nn.Sequential(nn.Linear(4, 5), *between, nn.Tanh(), nn.Linear(5, CLASSES))).eval()


class Sloped(nn.Module):
    """A learnable slope between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 5), nn.Linear(5, CLASSES)
        self.slope = ntkml.Hyperparameter(torch.tensor(0.7))

    def forward(self, x):
        return self.head(torch.tanh(self.slope * self.first(x)))
