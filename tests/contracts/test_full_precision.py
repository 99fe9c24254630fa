"""No TF32 and no autocast in what enters an estimate, and every switch as it was before."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import ntkml
from ntkml.datasets import load_dataset, subset
from ntkml.learning.loop import learn
from ntkml.learning.state import new_learner
from ntkml.likelihoods import Categorical
from ntkml.machine.full_precision import full_precision
from ntkml.models import build_model
from ntkml.objective import MarginalLikelihood
from ntkml.protocols.train import load_train
from ntkml.randomness import generator_for
from ntkml.rows.model_contract import check_model
from ntkml.rows.tabulated import tabulate

MATMUL, CUDNN, BOTH = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends
NEWER = hasattr(MATMUL, "fp32_precision")


def read(owner, name):
    """A switch; torch refuses to read the older ones after the newer were used."""
    try:
        return getattr(owner, name)
    except RuntimeError:
        return "refused"


def switches():
    found = [read(MATMUL, "allow_tf32"), read(CUDNN, "allow_tf32")]
    if NEWER:
        found += [BOTH.fp32_precision, MATMUL.fp32_precision, CUDNN.conv.fp32_precision, CUDNN.rnn.fp32_precision]
        found += [BOTH.mkldnn.matmul.fp32_precision, BOTH.mkldnn.conv.fp32_precision]
    return found


def rounds():
    """Whether products of matrices or convolutions may be rounded to TF32."""
    if NEWER:
        kinds = (MATMUL, CUDNN.conv, BOTH.mkldnn.matmul, BOTH.mkldnn.conv)
        return any(kind.fp32_precision not in ("none", "ieee") for kind in kinds)
    return MATMUL.allow_tf32 or CUDNN.allow_tf32


@pytest.fixture(autouse=True)
def as_before():
    older = MATMUL.allow_tf32, CUDNN.allow_tf32
    newer = [(BOTH, BOTH.fp32_precision)] + [(kind, kind.fp32_precision) for kind in kinds()] if NEWER else []
    yield
    for owner, value in newer:
        owner.fp32_precision = value
    MATMUL.allow_tf32, CUDNN.allow_tf32 = older
    for owner, value in newer:
        owner.fp32_precision = value


def kinds():
    return (MATMUL, CUDNN, CUDNN.conv, CUDNN.rnn, BOTH.mkldnn.matmul, BOTH.mkldnn.conv)


def older_on():
    MATMUL.allow_tf32 = CUDNN.allow_tf32 = True


def older_off():
    MATMUL.allow_tf32 = CUDNN.allow_tf32 = False


def newer_products():
    MATMUL.fp32_precision = "tf32"


def newer_everything():
    BOTH.fp32_precision = "tf32"


SETTINGS = [lambda: None, older_on, older_off, lambda: torch.set_float32_matmul_precision("medium")]
SETTINGS += [newer_products, newer_everything] if NEWER else []
NAMES = ["default", "older on", "older off", "medium", "newer products", "newer everything"][: len(SETTINGS)]


@pytest.mark.parametrize("choose", SETTINGS, ids=NAMES)
def test_nothing_is_rounded_inside_and_all_is_as_before_outside(choose):
    choose()
    before = switches()
    with full_precision():
        assert not rounds()
        torch.rand(3, 3) @ torch.rand(3, 3)  # which reads the switches, and must not find them contradictory
        with full_precision():
            assert not rounds()
        assert not rounds()
    assert switches() == before
    with pytest.raises(KeyError), full_precision():
        raise KeyError
    assert switches() == before


class Probe(nn.Module):
    """Hands its input on and notes how it is computed, forwards and backwards."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.note()
        if x.requires_grad:
            x.register_hook(lambda _: self.note())
        return x * 1.0

    def note(self):
        self.seen.append((rounds(), torch.is_autocast_enabled("cpu")))


def network():
    torch.manual_seed(0)
    probe = Probe()
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), probe, nn.Linear(4, 3)), probe


X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1, 2])


def function(model):
    return ntkml.log_marginal_likelihood(model, X, Y, "ntk-3-C", generator=torch.Generator().manual_seed(2)).total


def objective(model):
    loss = MarginalLikelihood(model, "kfac-3-C")
    value = loss.backward(X, Y, None, torch.Generator().manual_seed(2)).total
    again = loss.cached_backward(X, Y, None, torch.Generator().manual_seed(2))().total
    assert again == value == loss.estimate(X, Y, None, torch.Generator().manual_seed(2)).total
    return value


def table(model):
    return tabulate(model, lambda start, stop: X[start:stop], len(X), check_model(model, X)).rows["0.weight"].sum()


@pytest.mark.parametrize("compute", [function, objective, table])
def test_what_enters_an_estimate_ignores_tf32_and_autocast(compute):
    model, _ = network()
    expected = compute(model)
    model, probe = network()
    older_on()
    with torch.autocast("cpu", torch.bfloat16):
        found = compute(model)
    assert found == expected
    assert len(probe.seen) > 2
    assert set(probe.seen) == {(False, False)}
    assert rounds()


class Views(Probe):
    num_views = 1

    def draw(self, num_inputs, generator=None):
        return torch.zeros(num_inputs)

    def forward(self, x, noise):
        return super().forward(x)


def test_of_a_loss_of_the_weights_autocast_is_for_the_network_alone(monkeypatch):
    (model, probe), views, seen = network(), Views(), []
    log_prob = Categorical.log_prob
    monkeypatch.setattr(Categorical, "log_prob", lambda self, f, y: seen.append(f.dtype) or log_prob(self, f, y))
    older_on()
    with torch.autocast("cpu", torch.bfloat16):
        MarginalLikelihood(model, "ntk-3-C", augmentation=views).weight_loss(X, Y, num_data=len(X))
    assert views.seen == [(False, False)]
    assert probe.seen == [(True, True)]
    assert seen == [torch.float32]


def test_every_hyperparameter_step_is_in_full_precision():
    """Those of the systems that are no bound too."""
    data = subset(load_dataset("digits"), 20, generator_for(0, "data"))
    settings = {"estimator": "hoag", "num_data": 20, "epochs": 1, "batch_size": 20, "burn_in": 0}
    protocol = replace(load_train("train-digits", "prior"), update_every=1, hyper_steps=1, **settings)
    learner = new_learner(protocol, build_model("mlp", (1, 8, 8), 10, generator_for(0, "init")), torch.device("cpu"))
    seen, update = [], learner.system.backward

    def noted(*given):
        seen.append((rounds(), torch.is_autocast_enabled("cpu")))
        return update(*given)

    learner.system.backward = noted
    older_on()
    with torch.autocast("cpu", torch.bfloat16):
        list(learn(learner, data))
    assert seen == [(False, False)]
