"""Recurrent layers: their factors, frozen parts, and calls that cannot be captured."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

from ntkml import MarginalLikelihood, log_marginal_likelihood
from ntkml.rows.model_contract import check_model
from tests.dense import dense_jacobian
from tests.factories import LIKELIHOODS, Case, assert_same, generator, seeded, targets
from tests.network_modules import CLASSES
from tests.sequence_modules import Recurrent

N, STEPS, PRECISION = 6, 4, 0.7
X = torch.randn(N, STEPS, 2, generator=generator(5), dtype=torch.float64)
Y = targets("categorical", N, CLASSES)


def dense_log_det(model: nn.Module, jacobian: Tensor) -> Tensor:
    """Of ``ntk-N-C`` from the Jacobian (N, C, P)."""
    case = Case(model, X, Y, "categorical", LIKELIHOODS["categorical"])
    ggn = torch.einsum("ncp,ncd,ndq->pq", jacobian, case.hessians, jacobian)
    return torch.linalg.slogdet(torch.eye(len(ggn)) + ggn / PRECISION).logabsdet


def estimated(model: nn.Module, estimator: str) -> Tensor:
    return log_marginal_likelihood(model, X, Y, estimator, prior=PRECISION).log_det


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_every_parameter_may_be_the_only_one_that_is_trained(kind):
    model = seeded(Recurrent(kind, num_layers=2, bidirectional=True)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(True)
        assert check_model(model, X).exact == {}, name
        assert_same(estimated(model, "ntk-N-C"), dense_log_det(model, dense_jacobian(model, X)))
        parameter.requires_grad_(False)


def test_kfac_takes_the_gates_as_linear_maps_over_the_steps():
    """G = 1/T sum g g^T and A = 1/N sum a a^T over steps, and sum g g^T of every bias, from a cell that is written out."""
    model = seeded(Recurrent(nn.RNN)).eval()
    w = {key.removeprefix("cell."): value.detach() for key, value in model.named_parameters()}
    states, gates = [X.new_zeros(N, 3)], []
    for t in range(STEPS):
        gate = X[:, t] @ w["weight_ih_l0"].T + w["bias_ih_l0"] + states[-1] @ w["weight_hh_l0"].T + w["bias_hh_l0"]
        gates.append(gate.requires_grad_() if t == 0 else gate)
        states.append(gates[-1].tanh())
    steps = torch.stack(states[1:], 1) + states[-1].sum(1)[:, None, None]
    outputs = steps.mean(1) @ w["head.weight"].T + w["head.bias"]
    assert_same(outputs, model(X))
    factor = LIKELIHOODS["categorical"].factor(outputs.detach(), "C", None)
    by_column = [torch.autograd.grad(outputs, gates, column, retain_graph=True) for column in factor.unbind(-1)]
    pulled = torch.stack([torch.stack(found, 1) for found in by_column], 1).flatten(0, 1)  # (N C, T, 3)
    summed = torch.einsum("bti,btj->ij", pulled, pulled)
    g = torch.linalg.eigvalsh(summed)
    expected = 2 * (1 + g / PRECISION).log().sum()
    for taken in (X, torch.stack(states[:-1], 1)):
        a = torch.linalg.eigvalsh(torch.einsum("nti,ntj->ij", taken, taken) / N)
        expected += (1 + torch.outer(g / STEPS, a) / PRECISION).log().sum()
    model.head.requires_grad_(False)
    assert_same(estimated(model, "kfac-N-C"), expected)


class Sentences(nn.Module):
    """Sequences of unlike lengths: behind the last step of an input its values are zero."""

    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.packed, self.cell, self.head = packed, nn.LSTM(2, 3, batch_first=True), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        lengths = (x[..., 0] != 0).sum(1)
        if self.packed:
            x = rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            return self.head(self.cell(x)[1][0][-1])
        steps, _ = self.cell(x[:, : int(lengths.max())])
        return self.head(steps[torch.arange(len(x)), lengths - 1])


def of_unlike_lengths() -> Tensor:
    x = X.clone()
    for i in range(N):
        x[i, 1 + i % STEPS :] = 0.0
    return x


def test_packed_sequences_take_exact_rows_and_give_the_same_estimate():
    packed, cut = (seeded(Sentences(packed)).eval() for packed in (True, False))
    x = of_unlike_lengths()
    plan = check_model(packed, x)
    assert set(plan.exact.values()) == {"it is called with a packed sequence"}
    assert set(plan.exact) == {key for key, _ in packed.named_parameters() if "cell" in key}
    assert check_model(cut, x).exact == {}
    for estimator in ("ntk-N-C", "blockdiag-N-C", "diag-N-C"):
        ours, theirs = (log_marginal_likelihood(model, x, Y, estimator).log_det for model in (cut, packed))
        assert_same(ours, theirs)


def test_batches_that_are_cut_to_their_longest_sequence_have_rows_but_no_factors():
    model, x = seeded(Sentences(packed=False)).eval(), of_unlike_lengths()
    whole, parts = (MarginalLikelihood(model, "ntk-N-C", chunk=chunk).estimate(x, Y).log_det for chunk in (N, 1))
    assert_same(whole, parts)
    with pytest.raises(ValueError, match="layer 'cell' has 1 positions in one chunk of a block and 2 in another"):
        MarginalLikelihood(model, "kfac-N-C", chunk=1).estimate(x, Y)


class Overwriting(Recurrent):
    def called(self, x: Tensor):
        x = x + 0.0
        result = self.cell(x)
        x.mul_(2.0)
        return result


def test_an_input_that_is_overwritten_after_the_layer_is_refused():
    with pytest.raises(ValueError, match="the input of layer 'cell' is overwritten in place after the layer used it"):
        estimated(seeded(Overwriting()).eval(), "ntk-N-C")
    frozen = seeded(Overwriting()).eval()
    frozen.cell.weight_ih_l0.requires_grad_(False)  # nothing needs the input any more
    assert_same(estimated(frozen, "ntk-N-C"), dense_log_det(frozen, dense_jacobian(frozen, X)))


class Halved(Recurrent):
    def called(self, x: Tensor):
        steps, (state, cell) = self.cell(x)
        return steps, (state / 2, cell)


def test_a_layer_that_computes_something_else_takes_exact_rows():
    model, expected = (seeded(kind(nn.LSTM)).eval() for kind in (Recurrent, Halved))
    original = model.cell.forward

    def halved(x: Tensor, extra: bool = True):
        steps, (state, cell) = original(x)
        return steps, (state / 2, cell)

    model.cell.forward = halved
    plan = check_model(model, X)
    assert set(plan.exact.values()) == {"a hook of all modules or a subclass changes what it computes"}
    assert_same(estimated(model, "ntk-N-C"), dense_log_det(expected, dense_jacobian(expected, X)))
    model.called = lambda x: model.cell(x, extra=False)
    assert set(check_model(model, X).exact.values()) == {"it is called with other arguments than nn.LSTM"}
