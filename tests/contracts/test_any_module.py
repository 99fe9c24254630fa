"""Every structure of any network equals the dense float64 value, or is refused by name."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from torch import nn

from ntkml.grouping import last_layer_features
from ntkml.layers import elementwise
from ntkml.objective import MarginalLikelihood
from ntkml.rows.block import CapturedRows
from ntkml.rows.capture import capture
from ntkml.rows.model_contract import check_model
from ntkml.rows.tabulated import TabulatedRows, tabulate
from ntkml.structures import structure_named
from tests.dense import dense_jacobian
from tests.factories import LIKELIHOODS, STRUCTURES, Case, assert_same, generator, make_prior, seeded, targets
from tests.networks import CLASSES, NETWORKS, WITH_EXACT_ROWS, case_of, pairs

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT_STRUCTURES = [name for name in STRUCTURES if name != "kfac"]


def module_of(parameter):
    return parameter.rpartition(".")[0]


@pytest.mark.parametrize(("name", "outputs"), pairs(NETWORKS, "C", "1", "tree"))
def test_every_structure_is_the_dense_value(name, outputs):
    case = case_of(name)
    prior = make_prior("layerwise", case)
    _, partition = case.partition(f"ntk-3-{outputs}")
    for structure in EXACT_STRUCTURES:
        expected = case.bound_log_det(structure, outputs, partition, case.precision(prior))
        assert_same(case.estimate(f"{structure}-3-{outputs}", prior).log_det, expected)


@pytest.mark.parametrize(("name", "num_views"), pairs(NETWORKS, 3, 1))
def test_rows_are_those_of_jacrev_and_the_plan_is_as_expected(name, num_views):
    kind = NETWORKS[name]
    model, x = kind.build(), kind.inputs(4 * num_views)
    plan = check_model(model, x)
    assert {module_of(parameter) for parameter in plan.exact} == set(kind.exact)
    assert plan.vectorised == kind.vectorised
    shapes = {key: weight.shape for key, weight in model.named_parameters()}
    every = torch.eye(CLASSES, dtype=torch.float64).expand(4, -1, -1)
    rows = CapturedRows(capture(model, x, num_views, plan=plan), every, shapes, keep_graph=True)
    jacobian = torch.cat([rows.explicit(key) for key in shapes], dim=1)
    expected = dense_jacobian(model, x, num_views).flatten(0, 1)
    assert_same(jacobian, expected)
    assert_same(rows.total_gram(), expected @ expected.T)


@pytest.mark.parametrize(("name", "outputs"), pairs(NETWORKS, "C", "1", "tree"))
def test_kfac_takes_what_is_no_kronecker_product_as_exact_blocks(name, outputs):
    """A sum over tensors: leaving scales, biases and exact rows out leaves their terms of blockdiag out."""
    case = case_of(name)
    blocks = elementwise_parameters(case.model) | {key for key in case.shapes if module_of(key) in NETWORKS[name].exact}
    expected = torch.zeros((), dtype=torch.float64)
    if len(blocks) < len(case.shapes):
        set_trainable(case.model, lambda key: key not in blocks)
        expected += case_of_model(case).estimate(f"kfac-3-{outputs}").log_det
    if blocks:
        set_trainable(case.model, lambda key: key in blocks)
        alone = case_of_model(case)
        _, partition = alone.partition(f"blockdiag-3-{outputs}")
        exact = alone.bound_log_det("blockdiag", outputs, partition, torch.ones(alone.num_params))
        assert_same(alone.estimate(f"kfac-3-{outputs}").log_det, exact)
        expected += exact
    set_trainable(case.model, lambda key: True)
    assert_same(case_of_model(case).estimate(f"kfac-3-{outputs}").log_det, expected)


def elementwise_parameters(model):
    kinds = elementwise.TYPES
    return {key for key, _ in model.named_parameters() if isinstance(model.get_submodule(module_of(key)), kinds)}


def set_trainable(model, chosen):
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(chosen(key))


def case_of_model(case):
    """The same network and data, nothing cached."""
    return Case(case.model, case.x, case.y, case.kind, case.likelihood)


@pytest.mark.parametrize("name", NETWORKS)
def test_frozen_parameters_stay_out(name):
    """Every other one: half of a module may be captured, or take exact rows, without the other half."""
    case = case_of(name)
    keys = [key for key, _ in case.model.named_parameters()]
    for frozen in (keys[::2], keys[1::2]):
        set_trainable(case.model, lambda key, frozen=frozen: key not in frozen)
        half = case_of_model(case)
        assert set(half.shapes) == set(keys) - set(frozen)
        _, partition = half.partition("ntk-N-C")
        for structure in ("ntk", "blockdiag", "diag"):
            expected = half.bound_log_det(structure, "C", partition, torch.ones(half.num_params))
            assert_same(half.estimate(f"{structure}-N-C").log_det, expected)


#: Tables hold layer inputs of one length: those of our own networks, which cut no batch.
TABULATED = [name for name in NETWORKS if name != "batch cut to its longest"]


@pytest.mark.parametrize("estimator", ["ntk-N-C", "ntk-3-1", "blockdiag-N-C", "diag-3-C", "ggn-N-C"])
def test_a_batch_that_is_cut_has_other_positions_in_every_chunk(estimator):
    kind = NETWORKS["batch cut to its longest"]
    x = torch.tensor([[1, 2, 0, 0], [1, 0, 0, 0], [2, 1, 1, 2], [1, 1, 0, 0], [2, 2, 1, 0], [1, 2, 2, 2]])
    y = torch.arange(6) % CLASSES
    values = [
        MarginalLikelihood(kind.build(), estimator, chunk=chunk).backward(x, y, None, generator(1)).total
        for chunk in (6, 1, 2)
    ]
    assert_same(values[1], values[0], 1e-12)
    assert_same(values[2], values[0], 1e-12)


def test_kfac_refuses_other_positions_in_every_chunk_of_a_block():
    x = torch.tensor([[1, 2, 0, 0], [1, 0, 0, 0], [2, 1, 1, 2], [1, 1, 0, 0]])
    model, y = NETWORKS["batch cut to its longest"].build(), torch.arange(4) % CLASSES
    assert MarginalLikelihood(model, "kfac-N-C", chunk=4).estimate(x, y).log_det > 0
    with pytest.raises(
        ValueError, match="layer '.*' has 2 positions in one chunk of a block and 4 in another, .*one length"
    ):
        MarginalLikelihood(model, "kfac-N-C", chunk=2).estimate(x, y)


@pytest.mark.parametrize(("name", "num_views"), pairs(TABULATED, 3, 1))
def test_tables_hold_the_same_rows(name, num_views):
    case = case_of(name, num_inputs=4)
    kind = NETWORKS[name]
    x = kind.inputs(4 * num_views) if kind.vocabulary is None else kind.inputs(4).repeat_interleave(num_views, 0)
    table = tabulate(
        case.model, lambda start, stop: x[start * num_views : stop * num_views], 4, case.plan, num_views, chunk=3
    )
    jacobian = torch.cat([table.rows[key] for key in case.shapes], dim=-1)
    assert_same(jacobian, dense_jacobian(case.model, x, num_views))
    factor = case.likelihood.factor(table.outputs, "C", None)
    block = torch.tensor([0, 2, 3])
    cut = TabulatedRows(table, block, factor[block])
    views = x.unflatten(0, (4, num_views))[block].flatten(0, 1)
    captured = capture(case.model, views, num_views, plan=check_model(case.model, x))
    fresh = CapturedRows(captured, factor[block], case.shapes, keep_graph=True)
    for structure in STRUCTURES:
        prior = make_prior("layerwise", case)
        kept, made = (structure_named(structure)(rows).log_det(prior) for rows in (cut, fresh))
        assert_same(kept, made)


@pytest.mark.parametrize("grouping", ["kmeans", "greedy"])
@pytest.mark.parametrize("name", ["Fixup", "transformer", "raw parameters", "tied embedding"])
def test_groupings_take_any_network(name, grouping):
    estimate = case_of(name).estimate(f"ntk-3-C+{grouping}")
    assert torch.isfinite(estimate.total)


def test_without_a_captured_linear_layer_features_are_outputs():
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 3))

        def forward(self, x):
            return x @ self.weight

    model, x = Raw(), torch.randn(5, 4)
    assert_same(last_layer_features(model, x, check_model(model, x)), model(x), 1e-6)


@pytest.mark.parametrize("name", WITH_EXACT_ROWS)
def test_the_log_names_exact_rows_once(name, caplog):
    case = case_of(name)
    with caplog.at_level(logging.INFO, logger="ntkml"):
        for _ in range(3):
            case.estimate("ntk-3-1")
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "slower" in message
    for key in case.shapes:
        assert (re.search(rf"(^|[ ,;]){re.escape(key)}[ ,]", message) is not None) == (
            module_of(key) in NETWORKS[name].exact
        )


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in WITH_EXACT_ROWS])
def test_captured_networks_say_nothing(name, caplog):
    case_of(name).estimate("ntk-3-1")
    assert not caplog.records


def test_use_outside_a_layer_is_seen_where_gradients_vanish():
    """A head that starts at zero hides every gradient behind it; the plan must hold for the weights to come."""
    case = case_of("weight beside its layer")
    torch.nn.init.zeros_(case.model.head.weight)
    plan = check_model(case.model, case.x)
    assert {module_of(parameter) for parameter in plan.exact} == {"layer"}


@pytest.mark.parametrize("name", ["padding of a raw table", "tied embedding"])
def test_padding_that_the_inputs_of_the_check_do_not_show_is_remembered(name):
    """vmap forgets it, which rows of other inputs do not tell."""
    x = torch.randint(2, 6, (5, 5), generator=generator(5))
    assert not check_model(NETWORKS[name].build(), x).vectorised


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("normed", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_norm_is_no_loop_over_the_inputs(normed, dim):
    """Without a rule for it vmap takes input by input, each out of all copies: time grew with the square of their number."""
    check_without_loops(nn.Sequential(normed(nn.Linear(4, 5), dim=dim), nn.Tanh(), nn.Linear(5, CLASSES)))


@pytest.mark.parametrize("bias", [True, False])
def test_bilinear_maps_are_no_loop_over_the_inputs(bias):
    class Bilinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.map, self.head = nn.Bilinear(1, 3, 5, bias=bias), nn.Linear(5, CLASSES)

        def forward(self, x):
            return self.head(torch.tanh(self.map(x[:, :1], x[:, 1:])))

    check_without_loops(Bilinear())


def check_without_loops(model):
    model, x = seeded(model), torch.randn(6, 4, generator=generator(), dtype=torch.float64)
    torch._C._functorch._set_vmap_fallback_enabled(False)
    try:
        assert check_model(model, x).vectorised
    finally:
        torch._C._functorch._set_vmap_fallback_enabled(True)
    every = torch.eye(CLASSES, dtype=torch.float64).expand(6, -1, -1)
    shapes = {key: weight.shape for key, weight in model.named_parameters()}
    rows = CapturedRows(capture(model, x, plan=check_model(model, x)), every, shapes, keep_graph=True)
    outputs, weights = model(x).flatten(), list(model.parameters())
    for index, output in enumerate(
        outputs
    ):  # one graph for all: torch's older weight norm lets nobody copy the network
        expected = torch.autograd.grad(output, weights, retain_graph=True)
        for key, gradient in zip(shapes, expected, strict=True):
            assert_same(rows.explicit(key)[index], gradient.flatten())


def test_exact_rows_leave_the_settings_of_attention_alone():
    before = torch.backends.mha.get_fastpath_enabled()
    case_of("transformer").estimate("ntk-3-1")
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_recurrent_layers_run_without_cudnn_which_has_no_derivative_of_them_in_evaluation_mode():
    before, case, seen = torch.backends.cudnn.enabled, case_of("recurrent"), set()
    case.model.cell.register_forward_pre_hook(
        lambda module, given: seen.add((torch.is_grad_enabled(), torch.backends.cudnn.enabled))
    )
    case.estimate("ntk-3-1")
    assert (True, False) in seen
    assert (True, True) not in seen
    assert torch.backends.cudnn.enabled == before


def test_a_capture_without_a_plan_refuses_what_it_would_miss():
    kind = NETWORKS["raw parameters"]
    with pytest.raises(ValueError, match="parameter 'gain' has no captured layer: take the plan of check_model"):
        capture(kind.build(), kind.inputs(4))
    kind = NETWORKS["flattened tokens"]
    with pytest.raises(ValueError, match="layer 'layer' cannot be captured: it does not see the batch in its first"):
        capture(kind.build(), kind.inputs(4))


class Rarely(nn.Module):
    """An expert for the inputs of which one value is large."""

    def __init__(self):
        super().__init__()
        self.first, self.expert = nn.Linear(4, CLASSES), nn.Linear(4, CLASSES)

    def forward(self, x):
        rare = (x[:, 0] > 5.0).nonzero().squeeze(1)
        return self.first(x).index_add(0, rare, self.expert(x[rare])) if len(rare) else self.first(x)


@pytest.mark.parametrize("structure", EXACT_STRUCTURES)
def test_an_expert_that_few_inputs_lead_to_takes_exact_rows(structure):
    """The first input, and three others in equal distances from it, lead past it."""
    model = seeded(Rarely()).eval()
    x = torch.randn(12, 4, generator=generator(5), dtype=torch.float64)
    x[:, 0].clamp_(max=4.0)
    x[2, 0] = 6.0
    case = Case(model, x, targets("categorical", 12, CLASSES), "categorical", LIKELIHOODS["categorical"])
    assert {module_of(name) for name in check_model(model, x).exact} == {"expert"}
    prior = make_prior("layerwise", case)
    _, partition = case.partition("ntk-3-C")
    expected = case.bound_log_det(structure, "C", partition, case.precision(prior))
    assert_same(case.estimate(f"{structure}-3-C", prior).log_det, expected)
