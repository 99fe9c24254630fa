"""Theorem 1: leaving out blocks of the GGN between groups of parameters only lowers the log marginal likelihood."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ntkml import log_marginal_likelihood
from tests.dense import dense_log_det
from tests.factories import (
    NETWORKS,
    assert_rising,
    assert_same,
    few_examples,
    generator,
    make_case,
    make_prior,
    seeded,
)
from tests.strategies import kinds, likelihoods, networks, scales, seeds


@few_examples
@given(networks, likelihoods, kinds, scales, seeds)
def test_full_lies_above_blockdiag_and_blockdiag_above_diag(network, likelihood, kind, scale, seed):
    case = make_case(network, likelihood, seed=seed)
    prior = make_prior(kind, case, seed, scale)
    totals = [case.estimate(f"{structure}-N-C", prior).total for structure in ("diag", "blockdiag", "ntk")]
    assert_rising(*totals)


@few_examples
@given(networks, kinds, scales, seeds, st.data())
def test_refining_parameters_only_loosens(network, kind, scale, seed, data):
    """full, then layers (weight and bias together), then tensors, then pieces of tensors, then single parameters."""
    case = make_case(network, seed=seed)
    prior = make_prior(kind, case, seed, scale)
    precision = case.precision(prior)
    layers = [weight + bias for weight, bias in zip(case.sizes[::2], case.sizes[1::2], strict=True)]
    pieces = []
    for size in case.sizes:
        cut = data.draw(st.integers(0, size))
        pieces += [part for part in (cut, size - cut) if part]
    log_dets = [
        case.estimate("ntk-N-C", prior).log_det,
        dense_log_det(case.ggn, precision, layers),
        case.estimate("blockdiag-N-C", prior).log_det,
        dense_log_det(case.ggn, precision, pieces),
        case.estimate("diag-N-C", prior).log_det,
    ]
    assert_rising(*log_dets)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_order_is_strict_on_a_network_that_shares_features(network):
    """The theorem is not held by all structures being the same."""
    case = make_case(network)
    full, blockdiag, diag = (case.estimate(f"{s}-N-C", 0.1).total for s in ("ntk", "blockdiag", "diag"))
    assert full > blockdiag + 0.1
    assert blockdiag > diag + 0.1


def test_one_tensor_is_its_own_block_diagonal():
    case = make_case("mlp")
    model = seeded(nn.Linear(4, 3, bias=False))
    full, blockdiag = (
        log_marginal_likelihood(model, case.x, case.y, f"{s}-N-C", 0.3).total for s in ("ntk", "blockdiag")
    )
    assert_same(blockdiag, full)


def test_features_that_never_meet_are_their_own_diagonal():
    """Linear regression on one-hot inputs: H is diagonal, and the finest structure loses nothing."""
    x = torch.eye(4, dtype=torch.float64).repeat(2, 1) * torch.arange(1.0, 9.0).unsqueeze(1)
    y = torch.randn(8, 2, generator=generator(), dtype=torch.float64)
    model = seeded(nn.Linear(4, 2, bias=False))
    values = [log_marginal_likelihood(model, x, y, f"{s}-N-C", 0.3, "gaussian").total for s in ("ntk", "diag")]
    assert_same(values[1], values[0])
