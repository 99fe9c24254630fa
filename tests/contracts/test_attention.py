"""Attention whose surroundings are unusual: hooks, orders, frozen projections, activations that are computed again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from ntkml import MarginalLikelihood, log_marginal_likelihood
from ntkml.rows.model_contract import check_model
from tests.dense import dense_jacobian
from tests.factories import LIKELIHOODS, Case, assert_same, generator, seeded, targets
from tests.network_modules import CLASSES
from tests.objectives import Slope, assert_equal, everything
from tests.sequence_modules import Attending, Called, Encoder

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

X, Y = torch.randn(40, 3, 4, generator=generator(5), dtype=torch.float64), targets("categorical", 40, CLASSES)


def dense_log_det(model: nn.Module, x: Tensor) -> Tensor:
    """Of ``ntk-N-C`` at a prior precision of one."""
    case = Case(model, x, Y[: len(x)], "categorical", LIKELIHOODS["categorical"])
    jacobian = dense_jacobian(model, x)
    ggn = torch.einsum("ncp,ncd,ndq->pq", jacobian, case.hessians, jacobian)
    return torch.linalg.slogdet(torch.eye(len(ggn)) + ggn).logabsdet


def fail(*_: object) -> None:
    raise AssertionError("torch does not call the layer that projects the outputs")


def doubled(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(2 * tensor for tensor in given)


HOOKS = {
    "forward": lambda layer: layer.register_forward_hook(fail),
    "before": lambda layer: layer.register_forward_pre_hook(doubled),
    "backward": lambda layer: layer.register_full_backward_hook(
        lambda module, given, gradients: doubled(module, given)
    ),
}


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_on_the_projection_of_the_outputs_stay_without_effect(name):
    """torch computes attention without calling that layer."""
    model = seeded(Attending()).eval()
    expected = dense_log_det(model, X[:5])
    HOOKS[name](model.attention.out_proj)
    assert check_model(model, X[:5]).exact == {}
    assert_same(log_marginal_likelihood(model, X[:5], Y[:5], "ntk-N-C").log_det, expected)


def test_an_estimate_leaves_a_pruned_projection_as_it_was():
    """torch never makes that weight anew, since it never calls the layer: outputs would be others afterwards."""
    model = seeded(Attending()).eval()
    prune.l1_unstructured(model.attention.out_proj, "weight", 0.5)
    model.attention.out_proj.weight_orig.data.mul_(2.0)
    before = model(X).detach()
    estimate = log_marginal_likelihood(model, X, Y, "ntk-5-C", blocks=1, generator=generator())
    assert torch.isfinite(estimate.total)
    assert torch.equal(model(X).detach(), before)


class Sorted(Attending):
    """Attends to its batch in the order of a value of each input."""

    def attended(self, x: Tensor) -> Tensor:
        order = x[:, 0, 0].argsort()
        return super().attended(x[order])[order.argsort()]


def test_both_projections_take_exact_rows_where_a_batch_is_sorted():
    """Also where the few inputs that the network is checked on are in order already."""
    model, x = seeded(Sorted()).eval(), X.clone()
    few = [0, 1, 20, 39]
    order = model.norm(x)[few, 0, 0].argsort()
    x[few] = x[few][order]
    assert {name.rpartition(".")[0] for name in check_model(model, x).exact} == {"attention", "attention.out_proj"}
    assert_same(log_marginal_likelihood(model, x, Y, "ntk-N-C").log_det, dense_log_det(model, x))


class InPlace(Attending):
    """Overwrites what it attended to, which nothing needs where the projection of the inputs is frozen."""

    def attended(self, x: Tensor) -> Tensor:
        x = x.detach()
        x += self.attention(x, x, x)[0]
        return x


@pytest.mark.parametrize("frozen", [("in_proj_weight",), ("in_proj_weight", "in_proj_bias")])
def test_inputs_of_a_frozen_projection_may_be_overwritten(frozen):
    model = seeded(InPlace()).eval()
    model.norm.requires_grad_(False)
    for key in frozen:
        model.attention.get_parameter(key).requires_grad_(False)
    assert check_model(model, X[:5]).exact == {}
    assert_same(log_marginal_likelihood(model, X[:5], Y[:5], "ntk-N-C").log_det, dense_log_det(model, X[:5]))


def test_inputs_of_a_learned_projection_may_not():
    model = seeded(InPlace()).eval()
    model.norm.requires_grad_(False)
    model.attention.in_proj_bias.requires_grad_(False)
    with pytest.raises(ValueError, match="input of layer .attention. is overwritten in place"):
        log_marginal_likelihood(model, X[:5], Y[:5], "ntk-N-C")


@pytest.mark.parametrize("given", [3, 1])
def test_a_forward_of_its_own_takes_exact_rows(given):
    """With arguments of other names, or in another number."""
    model = seeded(Attending()).eval()
    original = model.attention.forward

    def doubled(*same: Tensor) -> tuple[Tensor, Tensor | None]:
        return original(2 * same[0], 2 * same[0], 2 * same[0])

    model.attention.forward = doubled
    if given == 1:
        model.attended = lambda x: model.attention(x)[0]
    expected = seeded(Attending("doubled")).eval()
    expected.attended = lambda x: expected.attention(*[2 * x] * 3)[0]
    assert set(check_model(model, X[:5]).exact) == {n for n, _ in model.named_parameters() if n.startswith("attention")}
    ours, theirs = (log_marginal_likelihood(m, X[:5], Y[:5], "ntk-N-C").log_det for m in (model, expected))
    assert_same(ours, theirs)


class Recomputed(nn.Module):
    """An encoder layer whose activations are computed again in the backward pass."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True)
        self.slope, self.head, self.again = Slope(), nn.Linear(4, CLASSES), again

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(x)
        h = checkpoint(self.layer, x, use_reentrant=False) if self.again else self.layer(x)
        return self.head(h.mean(1))


@pytest.mark.parametrize("estimator", ["ntk-3-C", "diag-3-1"])
def test_a_checkpointed_layer_gives_the_same_estimate(estimator):
    again, once = (seeded(Recomputed(again)).eval() for again in (True, False))
    for chunk in (None, 2):
        objectives = [MarginalLikelihood(model, estimator, chunk=chunk) for model in (again, once)]
        for objective in objectives:
            objective.resample(X[:5], Y[:5], generator(2))
        ours, theirs = (everything(objective, X[:5], Y[:5]) for objective in objectives)
        assert_equal(ours, theirs)
    assert set(check_model(again, X[:5]).exact) == {
        name for name, _ in again.named_parameters() if "attn" in name or "norm" in name
    }


class Padded(nn.Module):
    """An encoder whose first layer is frozen, behind a mask of padding; torch's own forward pass fails in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(4, CLASSES)
        self.encoder.layers[0].requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        padded = (x[..., 0] > 0.5) & (torch.arange(3) > 0)
        hidden = self.encoder(x, src_key_padding_mask=padded)
        return self.head(hidden.masked_fill(padded.unsqueeze(-1), 0.0).mean(1))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_encoders_with_a_frozen_first_layer_have_rows():
    model = seeded(Padded()).eval()
    ours = log_marginal_likelihood(model, X[:5], Y[:5], "ntk-N-C").log_det
    model.encoder.enable_nested_tensor = False
    assert_same(ours, dense_log_det(model, X[:5]))


class Masked(Attending):
    """Pads the inputs whose first value is positive, in full."""

    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        padded = (x[:, :1, 0] > 0).expand(-1, x.shape[1])
        attended = self.attention(x, x, x, key_padding_mask=padded, need_weights=self.need_weights)[0]
        return self.head(torch.tanh(self.norm(attended)).mean(1))


def test_a_query_without_keys_is_no_number_where_it_is_none_for_torch():
    """In an input that the network was not checked on."""
    x = X.clone()
    x[:, 0, 0] = -1.0
    x[7, 0, 0] = 1.0
    model = seeded(Masked(need_weights=False)).eval()
    assert_same(log_marginal_likelihood(model, x, Y, "ntk-N-C").log_det, dense_log_det(model, x))
    model = seeded(Masked(need_weights=True)).eval()
    assert check_model(model, x).exact == {}
    with pytest.raises(ValueError, match="the rows hold NaN"):
        log_marginal_likelihood(model, x, Y, "ntk-N-C")


@pytest.mark.parametrize("estimator", ["kfac-3-C", "kfac-N-1", "ntk-3-tree"])
def test_an_estimate_is_the_same_wherever_the_steps_lie(estimator):
    """Also of KFAC, whose factors are means over the steps."""
    behind, first = (seeded(Encoder(steps_first=steps_first)).eval() for steps_first in (False, True))
    x = torch.randint(5, (5, 4), generator=generator(5))
    assert check_model(first, x).exact == {}
    theirs, ours = (
        log_marginal_likelihood(model, x, Y[:5], estimator, generator=generator()) for model in (behind, first)
    )
    assert_same(ours.log_det, theirs.log_det)


@pytest.mark.parametrize("estimator", ["ntk-N-C", "diag-N-C", "kfac-N-C"])
def test_a_plan_made_on_one_input_of_one_step_knows_where_the_steps_lie(estimator):
    """Later batches may have as many steps as inputs, when shapes say nothing."""
    model, x = seeded(Called("steps first")).eval(), X[:2, :2]
    made_on_one, made_on_both = (MarginalLikelihood(model, estimator) for _ in range(2))
    made_on_one.estimate(X[:1, :1], Y[:1], num_data=10)
    ours, theirs = (one.estimate(x, Y[:2], num_data=10).log_det for one in (made_on_one, made_on_both))
    assert_same(ours, theirs)
