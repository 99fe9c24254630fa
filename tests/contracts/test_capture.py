"""Which modules can be captured, that their rows are those of jacrev, and that capturing leaves no trace."""

from __future__ import annotations

from threading import Thread

import pytest
import torch
from torch import Tensor, nn

from ntkml import log_marginal_likelihood
from ntkml.layers.fixup import Bias, Scale
from ntkml.layers.uses import average_views
from ntkml.objective import MarginalLikelihood
from ntkml.parameters import parameter_shapes
from ntkml.rows.block import CapturedRows
from ntkml.rows.capture import capture
from ntkml.rows.exact import RowPlan
from ntkml.rows.model_contract import check_model
from ntkml.rows.recorder import layer_hooks
from tests.dense import dense_jacobian
from tests.factories import (
    assert_same,
    convnet,
    generator,
    make_case,
    seeded,
)
from tests.stacks import images, network, tokens, vectors


def rows_of(model, x, num_views=1, plan=None):
    """All rows of all outputs, (n, C, P), by the capture."""
    captured = capture(model, x, num_views, plan=plan)
    n, num_outputs = captured.outputs.shape
    shapes = parameter_shapes(model)
    every = torch.eye(num_outputs, dtype=torch.float64).expand(n, -1, -1)
    rows = CapturedRows(captured, every, shapes)
    return torch.cat([rows.explicit(name).reshape(n, num_outputs, -1) for name in shapes], dim=-1)


class Branches(nn.Module):
    """A residual network whose layers are registered in another order than they are used, with one in a sub-module."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.stem = nn.ModuleDict({"wide": nn.Linear(4, 4), "deep": nn.Linear(4, 4, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        h = x + torch.tanh(self.stem["wide"](x))
        return self.head(h + torch.tanh(self.stem["deep"](h)))


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (network(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)), vectors()),
        (network(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 2)), images()),
        (network(nn.ReLU(inplace=True), nn.Linear(4, 6), nn.LeakyReLU(0.1, inplace=True), nn.Linear(6, 3)), vectors()),
        (seeded(Branches()), vectors()),
        (seeded(nn.Linear(4, 3)), vectors()),
        (network(nn.Linear(4, 5), nn.Tanh(), nn.AdaptiveAvgPool2d((1, 5)), nn.Flatten(), nn.Linear(5, 3)), tokens()),
        (network(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4, affine=False), nn.Flatten(), nn.Linear(16, 3)), images()),
        (network(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=False), nn.Flatten(), nn.Linear(12, 3)).eval(), images()),
        (network(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3)).eval(), vectors()),
        (network(nn.Linear(4, 6), nn.Dropout(0.0), nn.Linear(6, 3)), vectors()),
    ],
    ids=[
        "relu_",
        "relu_ of conv",
        "relu_ of input",
        "branches",
        "root",
        "tokens",
        "group norm",
        "batch norm",
        "dropout",
        "dropout 0",
    ],
)
def test_rows_are_those_of_jacrev(model, x):
    check_model(model, x)
    assert_same(rows_of(model, x), dense_jacobian(model, x))
    assert_same(capture(model, x).outputs, model(x.clone()))


@pytest.mark.parametrize(
    ("of_all_modules", "scale"), [(False, 1.0), (False, 1e-5), (False, 0.0), (True, 1.0), (True, 1e-5)]
)
@pytest.mark.parametrize("changed", [lambda output: 3 * output + 1e-5, lambda output: output.mul_(3)])
def test_what_a_hook_makes_of_the_output_of_a_layer_is_seen_at_any_scale(changed, of_all_modules, scale):
    model, x = network(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)), vectors()
    with torch.no_grad():
        model[1].weight.mul_(scale)
        model[1].bias.mul_(scale)

    def hook(module, given, output):
        return changed(output) if isinstance(module, nn.LayerNorm) else None

    register = nn.modules.module.register_module_forward_hook if of_all_modules else model[1].register_forward_hook
    handle = register(hook)
    try:
        plan = check_model(model, x)
        assert set(plan.exact) == ({"1.weight", "1.bias"} if of_all_modules else set())
        assert_same(rows_of(model, x, plan=plan), dense_jacobian(model, x))
    finally:
        handle.remove()


def test_a_network_that_works_on_its_input_in_place_leaves_the_data_alone():
    model = network(nn.ReLU(inplace=True), nn.Linear(4, 3))
    x = vectors()
    for name in ("ntk-N-C", "kfac-3-tree+kmeans", "ntk-3-1+greedy"):
        log_marginal_likelihood(model, x, torch.zeros(6, dtype=torch.long), name, generator=generator())
    objective = MarginalLikelihood(model, "ntk-N-C")
    objective.outputs(x)
    objective.weight_loss(x, torch.zeros(6, dtype=torch.long), num_data=6)
    assert torch.equal(x, vectors())


class Overwritten(nn.Module):
    """A layer whose input is overwritten, or replaced, once the layer has used it."""

    def __init__(self, layer, in_place=True):
        super().__init__()
        self.first, self.layer, self.head, self.in_place = nn.Linear(4, 4), layer, nn.Linear(4, 3), in_place

    def forward(self, x: Tensor) -> Tensor:
        h = 2 * torch.tanh(self.first(x)).reshape(len(x), 1, 2, 2)
        u = self.layer(h)
        return self.head((h.add_(u) if self.in_place else h + u).flatten(1))


def with_frozen_weight(layer):
    layer.weight.requires_grad_(False)
    return layer


@pytest.mark.parametrize("estimator", ["ntk-N-C", "kfac-3-1", "ntk-3-C+kmeans"])
def test_a_bias_beside_a_frozen_weight_needs_no_input(estimator):
    y, found = torch.zeros(6, dtype=torch.long), []
    for in_place in (True, False):
        model = seeded(Overwritten(with_frozen_weight(nn.Linear(2, 2)), in_place))
        found.append(log_marginal_likelihood(model, vectors(), y, estimator, generator=generator()).total)
    assert_same(*found)


@pytest.mark.parametrize(
    "layer", [nn.Linear(2, 2), nn.Conv2d(1, 1, 3, padding=1), with_frozen_weight(nn.Conv2d(1, 1, 3, padding=1))]
)
def test_an_input_that_is_overwritten_before_its_gradient_is_taken_is_refused(layer):
    with pytest.raises(ValueError, match="the input of layer 'layer' is overwritten in place .*: use the out-of-place"):
        check_model(seeded(Overwritten(layer)), vectors())


def test_a_pass_in_another_thread_is_not_taken_for_the_one_that_is_captured():
    model, seen = network(nn.Linear(4, 3)), []
    with layer_hooks(model, RowPlan(), lambda call: seen.append(call.name)):
        other = Thread(target=model, args=(vectors(),))
        other.start()
        other.join()
        assert not seen
        model(vectors())
    assert seen == ["0"]


class Reversed(nn.Module):
    """A bias that sees the batch in reverse, and whose input is overwritten afterwards."""

    def __init__(self):
        super().__init__()
        self.first, self.bias, self.head = nn.Linear(4, 4), Bias((4,)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).flip(0)
        y = self.bias(h)
        h.zero_()
        return self.head(torch.tanh(y.flip(0)))


class Scaled(nn.Module):
    """A layer that is called with one number, whatever the batch."""

    def __init__(self):
        super().__init__()
        self.scale, self.head = Scale(()), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x * self.scale(torch.tensor(2.0, dtype=x.dtype)))


@pytest.mark.parametrize(
    ("kind", "exact"),
    [
        (Reversed, {"bias.bias": "it does not see every input at its place in the batch"}),
        (Scaled, {"scale.weight": "it does not see the batch in its first dimension"}),
    ],
)
def test_a_layer_that_does_not_see_the_batch_as_it_is_takes_exact_rows(kind, exact):
    assert check_model(seeded(kind()), vectors()).exact == exact


def test_a_gradient_that_is_zero_but_for_rounding_is_not_taken_for_one_that_changes_with_the_batch():
    """A softmax does not see a shift of all its inputs."""
    for seed in range(3):
        shifted = nn.Sequential(nn.Linear(4, 64), Bias(), nn.Softmax(-1), nn.Linear(64, 3))
        assert not check_model(seeded(shifted, seed), vectors()).exact


@pytest.mark.parametrize("num_views", [1, 3])
def test_outputs_are_averaged_over_adjacent_views(num_views):
    x = nn.functional.pad(images(6, 1), (0, 1, 0, 1))
    model = convnet()
    expected = torch.stack([model(x[n * num_views : (n + 1) * num_views]).mean(0) for n in range(6 // num_views)])
    assert_same(average_views(model(x), num_views), expected)
    assert_same(capture(model, x, num_views).outputs, expected)
    assert_same(rows_of(model, x, num_views), dense_jacobian(model, x, num_views))


def test_capturing_leaves_no_trace():
    model = network(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Dropout(0.0), nn.Linear(6, 3)).train()
    x = vectors()
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    random_state = torch.random.get_rng_state()
    log_marginal_likelihood(model, x, torch.zeros(6, dtype=torch.long), "kfac-N-1+iid", generator=generator())
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert torch.equal(x, vectors())
    assert all(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_a_failed_forward_pass_leaves_no_hook():
    model = network(nn.Linear(4, 6), nn.Linear(5, 3))
    with pytest.raises(RuntimeError):
        capture(model, vectors())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["ntk-3-1", "kfac-N-C", "ntk-3-tree+kmeans", "ggn-3-C+greedy"])
def test_estimates_work_where_gradients_are_switched_off(name):
    """An evaluation loop often stands under no_grad as a whole."""
    case = make_case("mlp")
    expected = case.estimate(name)
    with torch.no_grad():
        assert_same(case.estimate(name).total, expected.total)


class InPlace(nn.Module):
    """Overwrites in place what linear layers give for tokens, which are views: by an activation, a residual and a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.register_forward_hook(lambda module, given, output: output.mul_(2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.elu(self.first(x), inplace=True)
        output = self.second(hidden)
        output += hidden
        return self.head(output.tanh().mean(1))


@pytest.mark.parametrize("differentiable", [False, True])
def test_what_a_layer_gives_for_tokens_may_be_overwritten(differentiable):
    model, x = seeded(InPlace()), torch.randn(5, 3, 4, generator=generator(1), dtype=torch.float64)
    assert check_model(model, x).exact == {}
    every = torch.eye(3, dtype=torch.float64).expand(5, -1, -1)
    rows = CapturedRows(capture(model, x, differentiable=differentiable), every, parameter_shapes(model))
    jacobian = torch.cat([rows.explicit(name) for name in parameter_shapes(model)], dim=1)
    assert_same(jacobian, dense_jacobian(model, x).flatten(0, 1))
