"""Layers that are called several times in a forward pass: every call is further positions of one layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ntkml import MarginalLikelihood, log_marginal_likelihood
from ntkml.rows.model_contract import check_model
from tests.dense import dense_jacobian
from tests.factories import LIKELIHOODS, STRUCTURES, Case, assert_same, generator, seeded, targets
from tests.network_modules import CLASSES

N = 6
Y = targets("categorical", N, CLASSES)


class Tokens(nn.Module):
    """A layer on all three tokens of an input, ``together`` or in a call for each. dim: of the tokens in what it is given and gives."""

    def __init__(self, layer: nn.Module, together: bool, width: int, dim: int) -> None:
        super().__init__()
        self.layer, self.head, self.together, self.dim = layer, nn.Linear(width, CLASSES), together, dim

    def forward(self, x: Tensor) -> Tensor:
        calls = [x] if self.together else x.split(1, self.dim)
        return self.head(torch.tanh(torch.cat([self.layer(call) for call in calls], self.dim).flatten(1)))


#: How a layer is made, the shape of an input, the size of what all its calls give, and the dimension of the tokens.
KINDS = {
    "linear": (lambda: nn.Linear(4, 2), (3, 4), 6, 1),
    "convolution": (lambda: nn.Conv2d(1, 2, (1, 4)), (1, 3, 4), 6, 2),
    "convolution in groups": (lambda: nn.Conv2d(2, 4, (1, 3), groups=2), (2, 3, 4), 24, 2),
    "norm": (lambda: nn.LayerNorm(4), (3, 4), 12, 1),
    "embedding": (lambda: nn.Embedding(5, 2, padding_idx=0), (3,), 6, 1),
}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", KINDS)
def test_a_call_for_every_token_is_one_call_for_all_of_them(name, structure):
    """Also of KFAC, whose factors are sums and means over positions, and in chunks."""
    layer, shape, width, dim = KINDS[name]
    x = torch.randn(N, *shape, generator=generator(5), dtype=torch.float64)
    x = torch.randint(5, (N, 3), generator=generator(5)) if name == "embedding" else x
    found = []
    for together in (True, False):
        model = seeded(Tokens(layer(), together, width, dim)).eval()
        assert check_model(model, x).exact == {}
        for chunk in (N, 2):
            found.append(MarginalLikelihood(model, f"{structure}-N-C", chunk=chunk).estimate(x, Y).log_det)
    for other in found[1:]:
        assert_same(other, found[0])


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["linear", "norm", "embedding"])
def test_a_call_for_no_token_adds_nothing(name, structure):
    layer, shape, width, dim = KINDS[name]
    x = torch.randn(N, *shape, generator=generator(5), dtype=torch.float64)
    x = torch.randint(5, (N, 3), generator=generator(5)) if name == "embedding" else x
    model = seeded(Tokens(layer(), True, width, dim)).eval()
    expected = log_marginal_likelihood(model, x, Y, f"{structure}-N-C").log_det
    model.forward = lambda x: model.head(torch.tanh(torch.cat([model.layer(x[:, :0]), model.layer(x)], 1).flatten(1)))
    assert check_model(model, x).exact == {}
    assert_same(log_marginal_likelihood(model, x, Y, f"{structure}-N-C").log_det, expected)


@pytest.mark.parametrize("chunk", [N, 2])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["linear", "norm", "embedding"])
def test_a_layer_whose_only_call_has_no_token_adds_nothing(name, structure, chunk):
    layer, shape, width, dim = KINDS[name]
    x = torch.randn(N, width, generator=generator(5), dtype=torch.float64)
    model = seeded(Tokens(layer(), True, width, dim)).eval()
    expected = MarginalLikelihood(model.head, f"{structure}-N-C", chunk=chunk).estimate(x, Y).log_det
    none = torch.zeros(N, 0, *shape[1:], dtype=torch.long if name == "embedding" else x.dtype)
    model.forward = lambda x: model.head(x + model.layer(none[: len(x)]).sum((1, 2))[:, None])
    assert_same(MarginalLikelihood(model, f"{structure}-N-C", chunk=chunk).estimate(x, Y).log_det, expected)


class Overwriting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        first = x + 0.0
        h = self.layer(first)
        first.mul_(2.0)
        return self.head(torch.tanh(h + self.layer(x)))


def test_the_input_of_the_first_call_must_not_be_overwritten_either():
    x = torch.randn(N, 4, generator=generator(5), dtype=torch.float64)
    with pytest.raises(ValueError, match="the input of layer 'layer' is overwritten in place after the layer used it"):
        log_marginal_likelihood(seeded(Overwriting()).eval(), x, Y, "ntk-N-C")


class Branching(nn.Module):
    """The result of the second call is used in batches alone that hold an input for it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        first = self.layer(x)
        second = self.layer(torch.tanh(first))
        wanted = x[:, 0] > 0
        return self.head(torch.where(wanted[:, None], second, first) if wanted.any() else first)


@pytest.mark.parametrize(
    "layer", [lambda: nn.Linear(4, 4), lambda: nn.LayerNorm(4), nn.PReLU, lambda: nn.GRUCell(4, 4)]
)
def test_a_call_whose_result_is_not_used_adds_nothing(layer):
    model = seeded(Branching(layer())).eval()
    x = torch.randn(N, 4, generator=generator(5), dtype=torch.float64)
    x[:, 0] = torch.linspace(-1.0, 1.0, N, dtype=torch.float64)
    assert check_model(model, x).exact == {}
    for structure in STRUCTURES:
        whole, alone = (MarginalLikelihood(model, f"{structure}-N-C", chunk=chunk).estimate(x, Y) for chunk in (N, 1))
        assert_same(alone.log_det, whole.log_det)
    unused = x[: N // 2]
    assert check_model(model, unused).exact == {}
    estimate = log_marginal_likelihood(model, unused, Y[: N // 2], "ntk-N-C", prior=1.0)
    jacobian = dense_jacobian(model, unused)
    case = Case(model, unused, Y[: N // 2], "categorical", LIKELIHOODS["categorical"])
    ggn = torch.einsum("ncp,ncd,ndq->pq", jacobian, case.hessians, jacobian)
    assert_same(estimate.log_det, torch.linalg.slogdet(torch.eye(len(ggn)) + ggn).logabsdet)
