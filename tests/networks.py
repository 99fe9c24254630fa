"""Networks of every kind that people use, small and in float64, and what is said about each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests import network_modules as modules
from tests import sequence_modules as sequences
from tests.factories import LIKELIHOODS, Case, generator, seeded, targets
from tests.network_modules import CLASSES


@dataclass(frozen=True)
class Kind:
    """How a network is made, the shape of one input (integers below ``vocabulary``), and its modules with exact rows."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    exact: tuple[str, ...] = ()
    vocabulary: int | None = None
    vectorised: bool = True

    def build(self) -> nn.Module:
        return seeded(self.make(), scale=1.2).eval()

    def inputs(self, num_inputs: int) -> Tensor:
        if self.vocabulary is not None:
            return torch.randint(self.vocabulary, (num_inputs, *self.shape), generator=generator(5))
        return torch.randn(num_inputs, *self.shape, generator=generator(5), dtype=torch.float64)


NETWORKS = {
    "residual": Kind(modules.Residual, (4,)),
    "in-place ReLU": Kind(
        lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, CLASSES)),
        (4,),
    ),
    "grouped convolution": Kind(
        lambda: nn.Sequential(nn.Conv2d(4, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, CLASSES)), (4, 3, 3)
    ),
    "LayerNorm": Kind(
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.ReLU(inplace=True), nn.Linear(5, CLASSES)), (4,)
    ),
    "LayerNorm without bias over an image": Kind(
        lambda: modules.behind_conv(nn.LayerNorm((4, 2, 2), bias=False)), (2, 4, 4)
    ),
    "GroupNorm": Kind(lambda: modules.behind_conv(nn.GroupNorm(2, 4), nn.Tanh()), (2, 4, 4)),
    "BatchNorm": Kind(modules.batch_normed, (2, 4, 4)),
    "BatchNorm of vectors": Kind(
        lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, CLASSES)), (4,)
    ),
    "Fixup": Kind(modules.FixupBlock, (2, 4, 4)),
    "squeeze and excitation": Kind(modules.Excited, (2, 4, 4)),
    "embedding": Kind(sequences.Words, (5,), vocabulary=6),
    "sparse embedding with padding": Kind(lambda: sequences.Words(padding=1, sparse=True), (5,), vocabulary=6),
    "tied embedding": Kind(
        lambda: sequences.Words(padding=1, tied=True), (5,), exact=("embedding",), vocabulary=6, vectorised=False
    ),
    "bags of words": Kind(lambda: sequences.Bags(mode="sum"), (5,), vocabulary=6),
    "bags of words behind padding": Kind(lambda: sequences.Bags(mode="mean", padding_idx=1), (5,), vocabulary=6),
    "transformer": Kind(sequences.Encoder, (4,), vocabulary=5),
    "transformer, norm first": Kind(lambda: sequences.Encoder(norm_first=True), (4,), vocabulary=5),
    "transformer, steps first": Kind(lambda: sequences.Encoder(steps_first=True), (4,), vocabulary=5),
    "transformer, norm and steps first": Kind(
        lambda: sequences.Encoder(norm_first=True, steps_first=True, padding=0), (4,), vocabulary=5
    ),
    "transformer behind padding": Kind(lambda: sequences.Encoder(padding=0), (4,), vocabulary=5),
    **{
        f"attention: {of or 'plain'}": Kind(partial(sequences.Attending, of), (3, 4))
        for of in ("", "causal", "two masks", "a mask for every head", "steps first", "twice")
    },
    "attention without bias": Kind(lambda: sequences.Attending(bias=False), (3, 4)),
    **{
        f"attention: {of}": Kind(partial(sequences.Attending, of), (3, 4), exact=("attention", "attention.out_proj"))
        for of in ("other inputs", "keywords")
    },
    "attention with keys added": Kind(
        lambda: sequences.Attending(add_bias_kv=True), (3, 4), exact=("attention", "attention.out_proj")
    ),
    "attention to zeros": Kind(
        lambda: sequences.Attending(add_zero_attn=True), (3, 4), exact=("attention", "attention.out_proj")
    ),
    "attention with keys of another size": Kind(
        lambda: sequences.Attending("fewer channels", kdim=3, vdim=3), (3, 4), exact=("attention", "attention.out_proj")
    ),
    "attention: weights": Kind(lambda: sequences.Attending("weights"), (3, 4), exact=("attention",)),
    "raw parameters": Kind(modules.OwnParameters, (4,), exact=("",)),
    "module used twice": Kind(modules.Reused, (4,)),
    "images at two sizes": Kind(modules.TwoSizes, (2, 6, 6)),
    "sentence pairs": Kind(sequences.Pairs, (5,), vocabulary=5),
    "layer used until it is enough": Kind(modules.Until, (4,), exact=("layer",), vectorised=False),
    "module used twice, and its weight": Kind(modules.Twice, (4,), exact=("layer",)),
    "tied weights": Kind(modules.Tied, (4,), exact=("first", "second")),
    "layer under two names": Kind(modules.two_names, (4,)),
    "weight beside its layer": Kind(lambda: modules.Outside(False), (4,), exact=("layer",)),
    "weight without its layer": Kind(lambda: modules.Outside(True), (4,), exact=("layer",)),
    "head before another layer": Kind(modules.Gated, (4,)),
    "sliced outputs": Kind(modules.Sliced, (4,)),
    "flattened tokens": Kind(lambda: sequences.Called("flattened"), (3, 4), exact=("layer",)),
    **{
        f"steps first, {steps} of them": Kind(lambda: sequences.Called("steps first"), (steps, 4))
        for steps in (1, 2, 4)
    },
    "steps first, overwritten": Kind(lambda: sequences.Called("steps first, overwritten"), (3, 4)),
    "batch sorted by length": Kind(sequences.SortedByLength, (4,), exact=("embedding", "middle"), vocabulary=5),
    "batch cut to its longest": Kind(sequences.Trimmed, (4,), vocabulary=3),
    "batch sorted by a value": Kind(modules.Dispatched, (4,), exact=("layer",)),
    "layer for a part of the batch": Kind(modules.Routed, (4,), exact=("expert",), vectorised=False),
    "layer under vmap": Kind(modules.UnderVmap, (4,), exact=("layer",)),
    "padding of a raw table": Kind(sequences.PaddedTable, (5,), exact=("",), vocabulary=6, vectorised=False),
    "called by keyword": Kind(lambda: sequences.Called("keyword"), (3, 4), exact=("layer",)),
    "branch on a value": Kind(modules.Looking, (4,), exact=("",), vectorised=False),
    "recurrent": Kind(sequences.Recurrent, (3, 2)),
    "recurrent: LSTM": Kind(partial(sequences.Recurrent, nn.LSTM), (3, 2)),
    "recurrent: LSTM both ways": Kind(
        partial(sequences.Recurrent, nn.LSTM, "first states", num_layers=2, bidirectional=True, dropout=0.5), (3, 2)
    ),
    "recurrent: GRU both ways": Kind(
        partial(sequences.Recurrent, nn.GRU, "first states", num_layers=2, bidirectional=True), (3, 2)
    ),
    "recurrent: RNN": Kind(partial(sequences.Recurrent, nn.RNN, bidirectional=True), (3, 2)),
    "recurrent: RNN of ReLUs without bias": Kind(
        partial(sequences.Recurrent, nn.RNN, nonlinearity="relu", bias=False, num_layers=2), (3, 2)
    ),
    "recurrent: written over": Kind(partial(sequences.Recurrent, nn.LSTM, "written over"), (3, 2)),
    "recurrent: steps first": Kind(partial(sequences.Recurrent, of="steps first", bidirectional=True), (3, 2)),
    "recurrent: keywords": Kind(partial(sequences.Recurrent, of="keywords"), (3, 2), exact=("cell",), vectorised=False),
    "recurrent: projected": Kind(
        partial(sequences.Recurrent, nn.LSTM, proj_size=2), (3, 2), exact=("cell",), vectorised=False
    ),
    "recurrent: cells": Kind(partial(sequences.Stepwise, nn.GRUCell), (3, 2)),
    "recurrent: cells of LSTM": Kind(partial(sequences.Stepwise, nn.LSTMCell), (3, 2)),
    "recurrent: cells of ReLUs without bias": Kind(
        partial(sequences.Stepwise, nn.RNNCell, bias=False, nonlinearity="relu"), (3, 2)
    ),
    "weight norm": Kind(modules.weight_normed, (4,), exact=("0.parametrizations.weight",)),
    "subclass": Kind(lambda: nn.Sequential(modules.Renamed(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)), (4,)),
    "subclass of LayerNorm": Kind(
        lambda: modules.behind_conv(modules.ChannelsLast(4), nn.Tanh()), (2, 4, 4), exact=("1",)
    ),
    "subclass of Linear": Kind(
        lambda: nn.Sequential(modules.Positive(4, 5), nn.Linear(5, CLASSES)), (4,), exact=("0",)
    ),
    "subclass of Conv2d": Kind(
        lambda: nn.Sequential(modules.Standardised(1, 2, 2), nn.Flatten(), nn.Linear(8, CLASSES)),
        (1, 3, 3),
        exact=("0",),
    ),
    "hook": Kind(modules.hooked, (4,)),
    "one-dimensional convolution": Kind(
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, CLASSES)), (2, 4)
    ),
    "convolution of volumes": Kind(
        lambda: nn.Sequential(
            nn.Conv3d(2, 3, 2, dilation=(1, 2, 1)),
            nn.InstanceNorm3d(3, affine=True),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(12, CLASSES),
        ),
        (2, 2, 4, 3),
    ),
    "circular convolution": Kind(
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Tanh(), nn.Flatten(), nn.Linear(18, CLASSES)
        ),
        (1, 3, 3),
        exact=("0",),
    ),
}

WITH_EXACT_ROWS = [name for name, kind in NETWORKS.items() if kind.exact]

#: Networks of every kind of rows (captured, elementwise, exact, vectorised and not); the default run takes them in full.
COVERING = (
    "Fixup",
    "BatchNorm",
    "transformer",
    "raw parameters",
    "module used twice",
    "tied weights",
    "branch on a value",
)


def pairs(names, first, *others):
    """Every network with every choice; the choices after the first are slow but for the covering networks."""
    slow = pytest.mark.slow
    further = [(name, one) for one in others for name in names]
    return [
        *((name, first) for name in names),
        *(pytest.param(name, one, marks=() if name in COVERING else slow) for name, one in further),
    ]


def case_of(name, num_inputs=5):
    kind = NETWORKS[name]
    y = targets("categorical", num_inputs, CLASSES)
    return Case(kind.build(), kind.inputs(num_inputs), y, "categorical", LIKELIHOODS["categorical"])
