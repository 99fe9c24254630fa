"""Networks whose rows would be wrong are refused by name, with what to do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ntkml import MarginalLikelihood, log_marginal_likelihood
from ntkml.rows.capture import capture
from tests.factories import assert_same, generator, make_case, mlp, seeded
from tests.objectives import Brightness, problem
from tests.stacks import images, network, vectors


class Unused(nn.Module):
    def __init__(self, called: bool):
        super().__init__()
        self.idle, self.head, self.called = nn.Linear(4, 4), nn.Linear(4, 3), called

    def forward(self, x: Tensor) -> Tensor:
        if self.called:
            self.idle(x)
        return self.head(x)


class Expert(nn.Module):
    """A layer for inputs that are rare."""

    def __init__(self):
        super().__init__()
        self.expert, self.head = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        rare = (x[:, 0] > 100).nonzero().squeeze(1)
        return self.head(x).index_add(0, rare, self.expert(x[rare])) if len(rare) else self.head(x)


class Coupled(nn.Module):
    """Outputs that depend on the batch by a module that no type check knows."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x - x.mean(0))


class WeaklyCoupled(nn.Module):
    """Outputs that hardly depend on the rest of the batch, while the gradient of a raw parameter does."""

    def __init__(self):
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.ones(4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x * self.scale) + 1e-4 * (100 * x * self.scale).mean(0).sin()[:3]


class Encoder(nn.Module):
    """Forgets batch_first=True."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.TransformerEncoderLayer(4, 2, 6), nn.Linear(4, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x.unsqueeze(1)).squeeze(1))


class Returns(nn.Module):
    """A linear network whose outputs pass through ``finish``."""

    def __init__(self, finish):
        super().__init__()
        self.layer, self.finish = nn.Linear(4, 3), finish

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.layer(x))


REFUSED = {
    "batch norm in training": (
        lambda: network(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 3)).train(),
        r"BatchNorm2d '1' is in training mode, so an output depends on the whole batch: call model.eval\(\)",
    ),
    "batch norm without statistics": (
        lambda: network(
            nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(), nn.Linear(12, 3)
        ).eval(),
        "BatchNorm2d '1' keeps no running statistics",
    ),
    "dropout in training": (
        lambda: network(nn.Flatten(), nn.Dropout(0.1), nn.Linear(32, 3)).train(),
        r"Dropout '1' is in training mode, so outputs are random: call model.eval\(\)",
    ),
}

REFUSED_ON_VECTORS = {
    "idle layer": (lambda: Unused(False), r"do not depend on parameter 'idle.weight': freeze it"),
    "idle layer that is called": (
        lambda: Unused(True),
        r"do not depend on (layer 'idle'|parameter 'idle.weight'): freeze",
    ),
    "coupled batch": (Coupled, "the outputs of an input depend on the other inputs of its batch"),
    "random outputs": (
        lambda: Returns(lambda h: h + torch.randn_like(h)),
        r"draws random numbers in its forward pass .*: call model.eval\(\), and let functions follow it",
    ),
    "one output less": (
        lambda: Returns(lambda h: h[:, 0]),
        r"map \(n, ...\) inputs to \(n, C\) outputs; .* gave \(4,\): end it with unsqueeze\(1\)$",
    ),
    "image outputs": (
        lambda: Returns(lambda h: h.reshape(-1, 3, 1)),
        r"inputs to \(n, C\) outputs; \(4, 4\) gave \(4, 3, 1\): end it with flatten\(1\)$",
    ),
    "outputs at every position": (
        lambda: Returns(lambda h: h.unsqueeze(1).expand(-1, 2, -1)),
        r"gave \(4, 2, 3\): reduce all dimensions but n and C, as by a mean, or flatten\(1\) them",
    ),
    "flattened outputs": (lambda: Returns(lambda h: h.reshape(-1, 1)), r"gave \(12, 1\)$"),
    "several outputs": (
        lambda: Returns(lambda h: (h, h)),
        r"\(n, C\) outputs; \(4, 4\) gave tuple: put it into a module that returns its logits alone",
    ),
    "expert of other inputs": (
        Expert,
        r"do not depend on parameter 'expert.weight': freeze it .* compute it for all and mask what is not for them \(torch.where\)",
    ),
    "batch of raw parameters": (WeaklyCoupled, "parameter 'scale' has a gradient that changes with the other inputs"),
    "encoder that takes the batch for the sequence": (Encoder, "the outputs of an input depend on the other inputs"),
    "bfloat16 outputs": (
        lambda: Returns(Tensor.bfloat16),
        "the network's outputs are torch.bfloat16, but rows need float32 or float64: leave torch.autocast out of forward",
    ),
    "detached outputs": (lambda: Returns(torch.detach), "outputs do not depend on any trainable layer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_image_networks_are_refused_by_name(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        log_marginal_likelihood(make(), images(), torch.zeros(6, dtype=torch.long), "ntk-N-C")


@pytest.mark.parametrize("name", REFUSED_ON_VECTORS)
def test_networks_are_refused_by_name(name):
    make, message = REFUSED_ON_VECTORS[name]
    with pytest.raises(ValueError, match=message):
        log_marginal_likelihood(seeded(make()), vectors(), torch.zeros(6, dtype=torch.long), "ntk-N-C")


def test_inference_mode_is_refused_with_the_way_out():
    case = make_case("mlp")
    with torch.inference_mode(), pytest.raises(ValueError, match=r"leave torch.inference_mode\(\)"):
        case.estimate("ntk-N-C")


def test_what_is_made_in_inference_mode_is_refused_with_the_way_out():
    """Neither the precisions of such an objective nor the half-widths of such views would ever have a gradient: no step would move them."""
    network = mlp()
    with torch.inference_mode(), pytest.raises(ValueError, match=r"leave torch.inference_mode\(\)"):
        MarginalLikelihood(network, "ntk-N-C")
    with torch.inference_mode():
        lost, views = mlp(), Brightness()
    with pytest.raises(ValueError, match=r"parameter '0.weight' was made under torch.inference_mode\(\)"):
        MarginalLikelihood(lost, "ntk-N-C")
    with pytest.raises(ValueError, match=r"parameter 'eta' was made under torch.inference_mode\(\)"):
        MarginalLikelihood(network, "ntk-N-C", augmentation=views)


def test_inference_mode_is_refused_after_a_first_step_and_with_views_too():
    objective, x, y = problem(Brightness(), "ntk-4-1")
    objective.backward(x, y)
    for call in (objective.backward, objective.estimate, objective.resample):
        with torch.inference_mode(), pytest.raises(ValueError, match=r"leave torch.inference_mode\(\)"):
            call(x, y)
    with torch.inference_mode():
        objective.outputs(x)
    objective.backward(x, y)


def test_a_network_without_trainable_parameters_is_refused():
    case = make_case("mlp")
    case.model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter: set requires_grad=True on what the prior is about"):
        case.estimate("ntk-N-C")


@pytest.mark.parametrize("name", ["ntk-N-C", "kfac-3-1", "diag-3-tree+kmeans"])
@pytest.mark.parametrize("parameter", ["0.weight", "2.weight", "2.bias"])
def test_weights_that_are_no_numbers_are_named(parameter, name):
    """Before a tree is made of them, or a Cholesky factorisation fails on what they lead to."""
    case = make_case("mlp")
    with torch.no_grad():
        case.model.get_parameter(parameter)[0] = torch.nan
    with pytest.raises(ValueError, match=f"parameter '{parameter}' holds NaN or infinite values"):
        case.estimate(name)


def test_pulling_back_through_an_idle_layer_is_refused():
    captured = capture(seeded(Unused(True)), vectors())
    with pytest.raises(ValueError, match="the outputs do not depend on layer 'idle': freeze or remove it"):
        captured.pull_back(torch.ones(6, 3, dtype=torch.float64))


def test_other_precisions_than_float32_and_float64_are_refused():
    model, y = nn.Linear(4, 3), torch.zeros(5, dtype=torch.long)
    with pytest.raises(ValueError, match=r"the network is torch.bfloat16: .*convert it with .float\(\)"):
        log_marginal_likelihood(model.bfloat16(), torch.randn(5, 4).bfloat16(), y, "ntk-N-C")
    with pytest.raises(ValueError, match=r"the inputs are torch.float32 but the network is torch.float64"):
        log_marginal_likelihood(model.double(), torch.randn(5, 4), y, "ntk-N-C")


@pytest.mark.parametrize("finish", [Tensor.float, lambda h: h])
def test_autocast_inside_forward_is_refused_unless_training_alone_takes_it(finish):
    class Cast(nn.Module):
        def __init__(self, in_estimates: bool):
            super().__init__()
            self.layer, self.in_estimates = nn.Linear(4, 3), in_estimates

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.training or self.in_estimates):
                return finish(self.layer(x))

    x, y = vectors().float(), torch.zeros(6, dtype=torch.long)
    log_marginal_likelihood(Cast(False).eval(), x, y, "ntk-N-C")
    words = "layer 'layer' computes in torch.bfloat16, .*: leave torch.autocast out of forward, or give it enabled=self.training"
    with pytest.raises(ValueError, match=words):
        log_marginal_likelihood(Cast(True).eval(), x, y, "ntk-N-C")


def test_autocast_around_raw_parameters_is_refused_and_around_frozen_layers_is_not():
    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.head = nn.Parameter(torch.eye(4)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                x = x @ self.weight
            return self.head(x.float())

    x, y, model = vectors().float(), torch.zeros(6, dtype=torch.long), Cast()
    with pytest.raises(
        ValueError, match="an operation of the network computes in torch.bfloat16, but rows need float32"
    ):
        log_marginal_likelihood(model, x, y, "ntk-N-C")
    model.weight.requires_grad_(False)
    assert log_marginal_likelihood(model, x, y, "ntk-N-C").log_det > 0


def test_complex_weights_are_refused_with_the_way_to_hold_them():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.weight = nn.Linear(4, 3), nn.Parameter(torch.randn(3, 3, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return (self.layer(x) @ self.weight.real) + (self.layer(x) @ self.weight.imag)

    with pytest.raises(ValueError, match="parameter 'weight' is complex: hold it as torch.view_as_real gives it"):
        log_marginal_likelihood(Spectral(), vectors().float(), torch.zeros(6, dtype=torch.long), "ntk-N-C")


def test_reentrant_checkpoints_are_refused_by_name():
    class Checkpointed(nn.Module):
        def __init__(self, use_reentrant):
            super().__init__()
            self.first, self.head, self.use_reentrant = nn.Linear(4, 4), nn.Linear(4, 3), use_reentrant

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.head, torch.tanh(self.first(x)), use_reentrant=self.use_reentrant)

    y = torch.zeros(6, dtype=torch.long)
    with pytest.raises(ValueError, match="layer 'head' ran without autograd: .*checkpoint use_reentrant=False"):
        log_marginal_likelihood(seeded(Checkpointed(True)), vectors(), y, "ntk-N-C")
    assert torch.isfinite(log_marginal_likelihood(seeded(Checkpointed(False)), vectors(), y, "ntk-N-C").total)


def test_mixing_of_a_batch_is_noticed_behind_equal_first_inputs():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            h = self.linear(x)
            return h - 0.1 * (h - h.mean(0))

    x = torch.randn(6, 4)
    x[1] = x[0]
    with pytest.raises(ValueError, match="depend on the other inputs of its batch"):
        log_marginal_likelihood(Mixing(), x, torch.zeros(6, dtype=torch.long), "ntk-N-C")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_network_is_refused_and_a_traced_one_is_not():
    model = seeded(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    x, y = torch.randn(5, 4, generator=generator(), dtype=torch.float64), torch.arange(5) % 3
    with pytest.raises(ValueError, match=r"torch.jit.script hides the layers .*: make the objective from the module"):
        log_marginal_likelihood(torch.jit.script(model), x, y, "ntk-N-C")
    traced = log_marginal_likelihood(torch.jit.trace(model, x), x, y, "ntk-N-C")
    assert_same(traced.total, log_marginal_likelihood(model, x, y, "ntk-N-C").total)
