"""What the owner of a network may do to it and to the objective between two estimates: right, or refused by name."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import ntkml
from ntkml.rows.model_contract import check_model
from tests.dense import sequential
from tests.factories import assert_same, generator, seeded
from tests.objectives import everything
from tests.small_networks import CLASSES, Sloped, X, Y, network


class Slope(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = ntkml.Hyperparameter(torch.tensor(0.7))

    def forward(self, x):
        return torch.tanh(self.slope * x)


def test_batch_normalisation_in_training_mode_sees_the_whole_batch_of_the_weights_loss():
    """Outputs on a CPU come in parts, whose statistics would be those of smaller batches."""
    model = seeded(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, CLASSES)))
    x, y = (
        torch.randn(1001, 4, generator=generator(2)).double(),
        torch.randint(CLASSES, (1001,), generator=generator(3)),
    )
    objective = ntkml.MarginalLikelihood(model, "ntk-4-1", prior_precision=1e-12)
    expected = nn.functional.cross_entropy(copy.deepcopy(model)(x), y)
    torch.testing.assert_close(objective.weight_loss(x, y, num_data=len(x)), expected)
    assert model[1].num_batches_tracked == 1


def test_normalisation_without_running_statistics_sees_the_whole_batch_in_evaluation_mode_too():
    model = seeded(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, CLASSES)))
    x = torch.randn(1001, 4, generator=generator(2), dtype=torch.float64)
    objective = ntkml.MarginalLikelihood(model.eval(), "ntk-4-1")
    torch.testing.assert_close(objective.outputs(x), model(x))


def test_modules_under_two_names_keep_their_parameters():
    """torch.func.functional_call leaves its stand-ins in them."""
    layer, slope = nn.Linear(4, 4), Slope()
    model = seeded(nn.Sequential(layer, slope, layer, slope, nn.Linear(4, CLASSES)))
    before = dict(model.named_parameters())
    objective = ntkml.MarginalLikelihood(model, "ntk-4-1")
    objective.weight_loss(X, Y, num_data=len(X)).backward()
    assert slope.slope.grad is None
    objective.outputs(X)
    objective.backward(X, Y, 1, generator(1))
    assert slope.slope.grad is not None
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is parameter for name, parameter in before.items())


def test_a_network_in_data_parallel_has_a_loss_of_its_weights(monkeypatch):
    # Also where a device is simulated.
    monkeypatch.setattr(sys.modules["torch.nn.parallel.data_parallel"], "_get_available_device_type", lambda: None)
    model = seeded(nn.Sequential(nn.Linear(4, 5), Slope(), nn.Linear(5, CLASSES)))
    plain = ntkml.MarginalLikelihood(model, "ntk-4-1").weight_loss(X, Y, num_data=len(X))
    parallel = ntkml.MarginalLikelihood(nn.DataParallel(model), "ntk-4-1")
    assert_same(parallel.weight_loss(X, Y, num_data=len(X)), plain)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(5), nn.Dropout(0.5)])
@pytest.mark.parametrize("call", ["backward", "estimate", "cached_backward", "resample"])
def test_training_mode_is_refused_at_every_call(layer, call):
    model = network(layer)
    objective = ntkml.MarginalLikelihood(model, "ntk-4-1")
    objective.backward(X, Y, 1, generator(1))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    with pytest.raises(ValueError, match=r"'1' is in training mode, .*call model.eval\(\)"):
        getattr(objective, call)(X, Y)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.eval()
    objective.backward(X, Y, 1, generator(1))


def test_normalisation_without_running_statistics_is_told_apart_from_training_mode():
    with pytest.raises(ValueError, match=r"keeps no running statistics, .*track_running_stats=True"):
        ntkml.MarginalLikelihood(network(nn.BatchNorm1d(5, track_running_stats=False)), "ntk-4-1").backward(X, Y)


@pytest.mark.parametrize("frozen_first", [True, False])
@pytest.mark.parametrize("prior", ["scalar", "layerwise", "diagonal"])
@pytest.mark.parametrize("name", ["ntk-4-1", "blockdiag-4-C", "diag-4-C"])
def test_weights_that_were_frozen_or_unfrozen_since_are_named(name, prior, frozen_first):
    model = network()
    model[0].requires_grad_(not frozen_first)
    objective = ntkml.MarginalLikelihood(model, name, prior=prior)
    objective.backward(X, Y, 1, generator(1))
    model[0].requires_grad_(frozen_first)
    words = r"parameter '0.weight' was frozen or unfrozen since .*: make a new one"
    with pytest.raises(ValueError, match=words):
        objective.backward(X, Y, 1, generator(1))
    with pytest.raises(ValueError, match=words):
        objective.weight_loss(X, Y, num_data=len(X))


def doubled(module, inputs, output):
    return 2.0 * output


def used_again(module, inputs, output):
    return output + inputs[0] @ module.weight.T


def squared_first(module, inputs):
    return (inputs[0].square(),)


CHANGES = {
    "hook": lambda model: model[0].register_forward_hook(doubled),
    "hook that uses a weight": lambda model: model[0].register_forward_hook(used_again),
    "hook before": lambda model: model[2].register_forward_pre_hook(squared_first),
    "module replaced": lambda model: model.__setitem__(1, nn.Softplus()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_network_that_was_changed_since_is_looked_at_again(change):
    """A hook on a captured layer would make its rows wrong without a word."""
    model = network()
    objective = ntkml.MarginalLikelihood(model, "ntk-4-C")
    objective.backward(X, Y, 1, generator(1))
    CHANGES[change](model)
    fresh = ntkml.MarginalLikelihood(model, "ntk-4-C")
    for own in (objective, fresh):
        own.resample(X, Y, generator(2))
    ours, theirs = (everything(own, X, Y, 1) for own in (objective, fresh))
    for name, expected in theirs.items():
        assert_same(ours[name], expected)


def test_a_hook_of_all_modules_is_seen_too():
    model = network()
    objective = ntkml.MarginalLikelihood(model, "ntk-4-C")
    objective.resample(X, Y, generator(2))
    objective.backward(X, Y, 1, generator(1))
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: 2.0 * output if isinstance(module, nn.Tanh) else None
    )
    try:
        fresh = ntkml.MarginalLikelihood(model, "ntk-4-C")
        fresh.resample(X, Y, generator(2))
        ours, theirs = (everything(own, X, Y, 1) for own in (objective, fresh))
    finally:
        hook.remove()
    for name, expected in theirs.items():
        assert_same(ours[name], expected)


def test_a_hook_that_is_made_anew_for_every_step_is_the_same_hook(monkeypatch):
    model, looks = network(), []
    objective = ntkml.MarginalLikelihood(model, "ntk-4-1")
    monkeypatch.setattr("ntkml.blockwise_model.check_model", lambda *given: looks.append(given) or check_model(*given))
    for _ in range(3):
        hook = model[1].register_forward_hook(doubled)
        objective.backward(X, Y, 1, generator(1))
        hook.remove()
    assert len(looks) == 1


def test_a_hook_that_is_gone_again_leaves_the_captured_rows():
    model = network()
    objective = ntkml.MarginalLikelihood(
        model, "kfac-4-1"
    )  # which takes exact rows as blocks, not as Kronecker products
    objective.resample(X, Y, generator(2))
    before = everything(objective, X, Y, 1)
    hook = model[0].register_forward_hook(used_again)
    assert not torch.equal(everything(objective, X, Y, 1)["value"], before["value"])
    hook.remove()
    for name, found in everything(objective, X, Y, 1).items():
        assert_same(found, before[name])


def test_targets_of_another_number_are_refused_later_too():
    objective = ntkml.MarginalLikelihood(network(), "ntk-4-1")
    objective.estimate(X, Y)
    with pytest.raises(ValueError, match="got 12 inputs and 5 targets"):
        objective.estimate(X, Y[:5])


def test_another_number_of_data_is_partitioned_anew():
    used, fresh = (ntkml.MarginalLikelihood(network(), "ntk-4-C") for _ in range(2))
    used.estimate(X, Y)
    ours, theirs = (objective.estimate(X[:6], Y[:6], None, generator(1)).total for objective in (used, fresh))
    assert torch.equal(ours, theirs)


def test_a_tree_over_other_classes_is_refused():
    objective = ntkml.MarginalLikelihood(network(), "ntk-4-tree", prior="scalar")
    objective.tree = sequential(CLASSES + 1)
    with pytest.raises(ValueError, match=f"is over {CLASSES + 1} classes, the network has {CLASSES} outputs"):
        objective.estimate(X, Y)


class Checkpointed(Sloped):
    """The slope is used in a segment whose activations are computed again in the backward pass."""

    def forward(self, x):
        return self.head(checkpoint(lambda x: torch.tanh(self.slope * self.first(x)), x, use_reentrant=False))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", [Sloped, Checkpointed])
def test_the_loss_and_the_outputs_leave_no_gradient_in_hyperparameters(kind, frozen):
    """Or the next backward of the objective would add to it."""
    model, targets = seeded(kind()), torch.zeros(len(X), CLASSES, dtype=torch.float64)
    model.slope.requires_grad_(not frozen)
    objective = ntkml.MarginalLikelihood(model, "ntk-4-C", likelihood="gaussian")
    for loss in (objective.weight_loss(X, targets, num_data=len(X)), objective.outputs(X).square().sum()):
        model.zero_grad()
        loss.backward()
        assert all(parameter.grad is None for parameter in objective.parameters())
        found = model.first.weight.grad
    (expected,) = torch.autograd.grad(model(X).square().sum(), [model.first.weight])
    assert_same(found, expected)
    assert model.slope.requires_grad is not frozen


REPLACED = {
    "replaced": lambda model: setattr(model, "slope", ntkml.Hyperparameter(torch.tensor(0.7))),
    "added": lambda model: setattr(model, "other", ntkml.Hyperparameter(torch.tensor(0.7))),
    "removed": lambda model: delattr(model, "slope"),
    "assigned": lambda model: model.load_state_dict(model.state_dict(), assign=True),
}


@pytest.mark.parametrize("change", REPLACED)
def test_hyperparameters_that_an_objective_would_miss_are_refused(change):
    model = seeded(Sloped())
    objective = ntkml.MarginalLikelihood(model, "ntk-4-C")
    objective.backward(X, Y)
    REPLACED[change](model)
    for call in (objective.backward, objective.estimate):
        with pytest.raises(
            ValueError, match="a Hyperparameter of the network was .* replaced since .*: make a new objective"
        ):
            call(X, Y)


def test_a_parameter_that_is_gone_is_named():
    model = network()
    objective = ntkml.MarginalLikelihood(model, "ntk-4-C")
    model[-1] = nn.Linear(5, CLASSES, bias=False).double()
    with pytest.raises(
        ValueError, match=r"parameter '2.bias' was removed since the objective was made: make a new one"
    ):
        objective.backward(X, Y)


@pytest.mark.parametrize("prior", ["scalar", "layerwise", "diagonal"])
def test_a_layer_of_another_shape_is_named(prior):
    model = network()
    objective = ntkml.MarginalLikelihood(model, "ntk-4-C", prior=prior)
    objective.backward(X, Y)
    model[-1] = nn.Linear(5, CLASSES + 1).double()
    with pytest.raises(ValueError, match=r"parameter '2.weight' became one of shape \(4, 5\) since .*: make a new one"):
        objective.backward(X, Y)
