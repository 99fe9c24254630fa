"""A forward pass that draws random numbers has no rows: it is refused whatever draws them, at any estimate."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from ntkml import MarginalLikelihood, log_marginal_likelihood
from tests.factories import generator, seeded

RANDOM = r"draws random numbers in its forward pass .*: call model.eval\(\)"
X, Y = torch.randn(6, 3, 4, generator=generator(1), dtype=torch.float64), torch.arange(6) % 3


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(4, 4, 2, dropout=0.5, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x)[0].mean(1))


class Function(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.dropout(self.layer(x).tanh(), 0.1, training=self.training).mean(1))


class StochasticDepth(nn.Module):
    """Leaves a branch out for some inputs, so rarely that a few inputs hardly ever show it."""

    def __init__(self):
        super().__init__()
        self.branch, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x)
        if self.training:
            h = h * torch.empty(len(x), 1, 1, dtype=h.dtype).bernoulli_(1 - 1e-6)
        return self.head((x + h).mean(1))


NETWORKS = (Recurrent, Attention, Function, StochasticDepth)


@pytest.mark.parametrize("scale", [1.0, 0.0])
@pytest.mark.parametrize("make", NETWORKS)
def test_random_outputs_are_refused_behind_a_head_of_zeros_too(make, scale):
    model = seeded(make())
    model.head.weight.data.mul_(scale)
    with pytest.raises(ValueError, match=RANDOM):
        log_marginal_likelihood(model, X, Y, "ntk-N-C")
    assert torch.isfinite(log_marginal_likelihood(model.eval(), X, Y, "ntk-N-C").total)


@pytest.mark.parametrize("make", NETWORKS)
def test_a_mode_that_changes_between_two_estimates_is_seen(make):
    model = seeded(make()).eval()
    objective = MarginalLikelihood(model, "ntk-4-C")
    objective.resample(X, Y, generator(2))
    before = objective.estimate(X, Y).total
    model.train()
    for estimate in (objective.estimate, objective.backward):
        with pytest.raises(ValueError, match=RANDOM):
            estimate(X, Y)
    model.eval()
    assert objective.estimate(X, Y).total == before


def test_a_refusal_takes_no_number_of_the_owners_stream():
    model, before = seeded(Function()), torch.get_rng_state()
    with pytest.raises(ValueError, match=RANDOM):
        log_marginal_likelihood(model, X, Y, "ntk-N-C")
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_that_are_drawn_in_evaluation_mode_are_refused_with_what_to_do():
    class Always(Function):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(nn.functional.dropout(self.layer(x)).mean(1))

    with pytest.raises(ValueError, match="let functions follow it, as in dropout.h, training=self.training"):
        log_marginal_likelihood(seeded(Always()).eval(), X, Y, "ntk-N-C")


class Beside(Function):
    """Another thread draws while the network runs, as one that loads data does."""

    def forward(self, x: Tensor) -> Tensor:
        thread = threading.Thread(target=torch.rand, args=(1,))
        thread.start()
        thread.join()
        return self.head(self.layer(x).tanh().mean(1))


class Drawn(Function):
    """Random features, drawn by the first forward pass and kept."""

    features: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.features is None:
            self.features = torch.randn(8, 8, dtype=x.dtype)
        return self.head((self.layer(x) @ self.features).tanh().mean(1))


@pytest.mark.parametrize("make", [Beside, Drawn])
def test_numbers_that_are_not_the_passs_own_do_not_matter(make):
    assert torch.isfinite(log_marginal_likelihood(seeded(make()), X, Y, "ntk-N-C").total)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_numbers_of_a_gpu_are_seen_and_put_back():
    model, before = seeded(Function()).cuda(), torch.cuda.get_rng_state()
    with pytest.raises(ValueError, match=RANDOM):
        log_marginal_likelihood(model, X.cuda(), Y.cuda(), "ntk-N-C")
    assert torch.equal(torch.cuda.get_rng_state(), before)
