"""Networks that store, branch, count, or carry hooks of their owner: estimates leave them as they were and see what changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import ntkml
from ntkml.rows.model_contract import check_model
from tests.factories import assert_same, generator, seeded
from tests.small_networks import CLASSES, X, Y, network


class Stores(nn.Module):
    """Keeps what it computes: as an attribute, as a buffer, in a list and in a dictionary. A gain takes exact rows by vmap."""

    def __init__(self, fails_under_vmap=False) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 5), nn.Linear(5, CLASSES)
        self.gain, self.fails_under_vmap = nn.Parameter(torch.ones(5)), fails_under_vmap
        self.register_buffer("buffered", None)
        self.features, self.listed, self.by_name = None, [], {}

    def forward(self, x):
        h = self.first(x) * self.gain
        self.features = self.buffered = h
        self.listed.append(h)
        self.by_name["h"] = self.new = h
        if self.fails_under_vmap and float(h.detach().sum()) > 1e9:  # a branch on a value
            return self.head(h)
        return self.head(torch.tanh(h))


@pytest.mark.parametrize("fails_under_vmap", [False, True])
@pytest.mark.parametrize("call", ["estimate", "backward"])
def test_what_a_network_stores_in_its_forward_pass_can_be_read_after_an_estimate(call, fails_under_vmap):
    """Tensors of a pass under vmap cannot."""
    model = seeded(Stores(fails_under_vmap))
    objective = ntkml.MarginalLikelihood(model, "ntk-4-C")
    getattr(objective, call)(X, Y)
    assert check_model(model, X).vectorised != fails_under_vmap
    kept = model.listed
    stored = [model.features, model.buffered, model.new, model.by_name["h"], *kept]
    assert all(torch.isfinite(torch.tensor(h.tolist())).all() for h in stored)
    with torch.no_grad():
        model(X)
    assert model.listed is kept
    assert_same(model.features, model.first(X) * model.gain)


def test_a_pruned_layer_keeps_the_weight_that_its_hook_computes():
    model = network()
    prune.l1_unstructured(model[0], "weight", 0.5)
    ntkml.log_marginal_likelihood(model, X, Y, "ntk-N-C")
    assert (model[0].weight == 0).double().mean().item() == 0.5


class Branching(nn.Module):
    """Its gain takes exact rows input by input: vmap knows no branch on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head, self.gain = nn.Linear(4, 5), nn.Linear(5, CLASSES), nn.Parameter(torch.ones(5))

    def forward(self, x):
        h = self.first(x)
        return self.head(torch.tanh(h if float(h.detach().sum()) > 1e9 else h * self.gain))


@pytest.mark.parametrize("planned_before", [False, True])
@pytest.mark.parametrize("kind", [network, Stores, Branching])
def test_hooks_on_the_gradients_of_weights_are_for_training_alone(kind, planned_before):
    """A clamp of gradients, say: rows are derivatives of the outputs, whatever else is made of them."""
    model = seeded(kind())
    expected = ntkml.MarginalLikelihood(model, "ntk-4-C").estimate(X, Y, None, generator(1)).total
    objective = ntkml.MarginalLikelihood(model, "ntk-4-C")
    if planned_before:
        objective.estimate(X, Y)
        objective.partition = None
    handles = [weight.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01)) for weight in model.parameters()]
    assert_same(objective.estimate(X, Y, None, generator(1)).total, expected)
    objective.weight_loss(X, Y, num_data=len(X)).backward()
    assert all(weight.grad.abs().max() <= 0.01 for weight in model.parameters())
    for handle in handles:
        handle.remove()
    model.zero_grad()
    objective.weight_loss(X, Y, num_data=len(X)).backward()
    assert any(weight.grad.abs().max() > 0.01 for weight in model.parameters())


class Switched(nn.Module):
    """A flag that switches a second, functional use of a weight on, and counts of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.deep, self.times = False, 1
        self.calls, self.last_batch, self.largest, self.started = 0, None, 0.0, False

    def forward(self, x):
        self.calls += 1
        self.last_batch, self.started = len(x), True
        for _ in range(self.times):
            x = torch.tanh(self.first(x))
        self.largest = max(self.largest, float(x.detach().max()))
        return self.head(torch.tanh(x @ self.first.weight.T) if self.deep else x)


@pytest.mark.parametrize(("name", "value"), [("deep", True), ("times", 3)])
def test_a_setting_of_a_module_that_changed_since_is_seen(name, value):
    model = seeded(Switched())
    objective = ntkml.MarginalLikelihood(model, "ntk-N-C")
    for _ in range(3):
        objective.estimate(X, Y)
    setattr(model, name, value)
    expected = ntkml.MarginalLikelihood(model, "ntk-N-C").estimate(X, Y).total
    assert_same(objective.estimate(X, Y).total, expected)


def test_a_network_that_counts_its_forward_passes_is_planned_once(monkeypatch):
    model, looks = seeded(Switched()), []
    monkeypatch.setattr("ntkml.blockwise_model.check_model", lambda *given: looks.append(given) or check_model(*given))
    objective = ntkml.MarginalLikelihood(model, "ntk-4-1")
    for _ in range(3):
        objective.backward(X, Y, 1, generator(1))
    assert len(looks) == 1
    model.deep = True
    for _ in range(3):
        objective.backward(X, Y, 1, generator(1))
    assert len(looks) == 2


class Gated(nn.Module):
    """A second, functional use of a weight that opens by what no attribute of a module shows."""

    GATES = {
        "buffer": (lambda model: model.buffer > 0, lambda model: model.buffer.fill_(1)),
        "hyperparameter": (lambda model: model.learned != 0, lambda model: model.learned.data.fill_(1)),
        "dictionary": (lambda model: model.settings["open"], lambda model: model.settings.update(open=True)),
        "counter": (lambda model: model.calls > 1000, lambda model: setattr(model, "calls", 1000)),
    }

    def __init__(self, gate) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.learned = ntkml.Hyperparameter(torch.tensor(0.0))
        self.register_buffer("buffer", torch.tensor(0.0))
        self.gate, self.settings, self.calls = gate, {"open": False}, 0

    def forward(self, x):
        self.calls += 1
        h = torch.tanh(self.first(x))
        return self.head(h + x @ self.first.weight.T if self.GATES[self.gate][0](self) else h) + 0 * self.learned


@pytest.mark.parametrize("estimator", ["ntk-4-1", "ntk-4-1+greedy"])
@pytest.mark.parametrize("gate", Gated.GATES)
def test_a_network_that_changes_unseen_is_planned_anew(gate, estimator):
    model = seeded(Gated(gate))
    with torch.no_grad():
        model.learned.zero_()
    objective = ntkml.MarginalLikelihood(model, estimator)
    objective.estimate(X, Y, None, generator(1))
    Gated.GATES[gate][1](model)
    objective.resample(X, Y, generator(1))
    expected = ntkml.MarginalLikelihood(model, estimator)
    expected.resample(X, Y, generator(1))
    for call in ("estimate", "backward"):
        ours, theirs = (getattr(one, call)(X, Y, None, generator(1)).log_det for one in (objective, expected))
        assert_same(ours, theirs)


def test_a_network_that_changes_between_two_blocks_is_planned_anew():
    """The partition stands, and no resampling comes before the block."""
    model = seeded(Gated("counter"))
    objective = ntkml.MarginalLikelihood(model, "ntk-N-C")
    objective.estimate(X, Y)
    model.calls = 1000
    assert_same(
        objective.backward(X, Y).total, ntkml.log_marginal_likelihood(model, X, Y, "ntk-N-C").total, tolerance=1e-10
    )


def test_a_use_of_a_weight_that_a_rare_input_makes_is_refused():
    class Rare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)

        def forward(self, x):
            h, large = torch.tanh(self.first(x)), x[:, :1] > 50
            return self.head(torch.where(large, h + x @ self.first.weight.T, h) if large.any() else h)

    x = torch.randn(200, 4, generator=generator(1), dtype=torch.float64)
    x[2, 0] = 60.0  # is not among those that the check takes
    y, words = (
        torch.arange(200) % CLASSES,
        r"layer 'first' .* 'first.weight' is also used outside it, .*masked \(torch.where\)",
    )
    with pytest.raises(ValueError, match=words):
        ntkml.log_marginal_likelihood(seeded(Rare()), x, y, "ntk-10-1")


def test_a_network_of_another_precision_than_before_is_refused():
    model = network().float()
    objective = ntkml.MarginalLikelihood(model, "ntk-4-C")
    objective.estimate(X.float(), Y)
    model.bfloat16()
    with pytest.raises(ValueError, match=r"the network is torch.bfloat16: .*convert it with .float\(\)"):
        objective.estimate(X.bfloat16(), Y)
