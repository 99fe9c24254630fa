"""Systems in the training loop: the hypergradient of a network, resuming, and the samplers of a search."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from ntkml.datasets import load_dataset, subset
from ntkml.learning.loop import learn, steps
from ntkml.learning.state import new_learner, restore, state_of
from ntkml.models import build_model
from ntkml.protocols.train import load_train
from ntkml.randomness import generator_for
from ntkml.system_specs import parse_system
from ntkml.systems import make_system
from ntkml.systems.search import best_value, folds, grid_values
from tests.factories import generator
from tests.objectives import Brightness
from tests.systems.bilevel import Bilevel, fully_solved, solve_inner

pytestmark = pytest.mark.usefixtures("one_thread")


def learner_on(name, hparam="prior", **settings):
    settings = {"num_data": 30, "epochs": 4, "batch_size": 10, "burn_in": 2, "update_every": 1} | settings
    settings |= {"samples": 2, "aug_steps": 2} if hparam == "invariance" else {"hyper_steps": 2}
    protocol = replace(load_train("train-digits", hparam), estimator=name, **settings)
    data = subset(load_dataset(protocol.dataset), protocol.num_data, generator_for(0, "data"))
    model = build_model("mininet", (1, 8, 8), 10, generator_for(0, "init"))
    return new_learner(protocol, model, torch.device("cpu")), data


def assert_hypergradient_is_the_slope(system, problem, x, y, learned):
    """In the first of the ``learned`` values, from their present ones, for a network of one weight."""
    (weight,) = system.objective.model.parameters()
    zeros, values = torch.zeros(weight.numel(), dtype=torch.float64), learned.detach().clone()
    with torch.no_grad():
        weight.copy_(solve_inner(problem, zeros, values, 1e-9).view_as(weight))
    parts, spent = [(x[part], y[part]) for part in (system.train, system.validation)], []
    for _ in range(4):
        system.objective.zero_grad()
        system.backward(*parts, generator())
        spent.append(system.data_passes)
    own = (3 * len(system.train) + 2 * len(system.validation)) / len(x)
    one_product = 2 * len(system.train) / len(x)  # conjugate gradients go on from the last q, which is right by now
    assert spent[-1] - spent[-2] == pytest.approx(own + one_product)
    step = 1e-3 * nn.functional.one_hot(torch.tensor(0), len(values))
    slope = (fully_solved(problem, zeros, values + step) - fully_solved(problem, zeros, values - step)) / 2e-3
    assert float(learned.grad[0]) == pytest.approx(slope / len(parts[1][0]), rel=1e-3)


def test_the_hypergradient_of_a_linear_network_is_the_slope_of_the_reoptimised_loss():
    protocol = replace(load_train("train-digits", "prior"), estimator="hoag-exact", num_data=30, prior_kind="scalar")
    data = subset(load_dataset("digits"), 30, generator_for(0, "data"))
    x, y = data.train_inputs.flatten(1)[:, 20:30].double(), data.train_targets
    system = make_system(protocol, nn.Sequential(nn.Linear(10, 10, bias=False)).double())

    def loss(part, w):
        return nn.functional.cross_entropy(x[part] @ w.view(10, 10).T, y[part], reduction="sum")

    problem = Bilevel(
        inner=lambda w, lam: loss(system.train, w) + 0.5 * (lam.exp() * w.square().sum()).sum(),
        outer=lambda w, lam: loss(system.validation, w),
    )
    assert_hypergradient_is_the_slope(system, problem, x, y, system.objective.log_prior_precision)


def test_the_hypergradient_in_an_augmentation_is_the_slope_of_the_reoptimised_loss():
    protocol = replace(load_train("train-digits", "invariance"), estimator="hoag-exact", num_data=30)
    data = subset(load_dataset("digits"), 30, generator_for(0, "data"))
    x, y = data.train_inputs[..., 2:5, 2:5].double(), data.train_targets
    system = make_system(protocol, nn.Sequential(nn.Flatten(), nn.Linear(9, 10, bias=False)).double())
    views, stream = Brightness(), generator()
    system.objective.augmentation = views
    noises = {part: views.draw(len(part), stream) for part in (system.train, system.validation)}

    def loss(part, w, eta):
        gain, offset = (eta * noises[part]).unbind(-1)
        seen = x[part].flatten(1).unsqueeze(1) * gain.exp().unsqueeze(-1) + offset.unsqueeze(-1)
        return nn.functional.cross_entropy((seen @ w.view(10, 9).T).mean(1), y[part], reduction="sum")

    decay = 0.5 * protocol.prior_init
    problem = Bilevel(
        inner=lambda w, eta: loss(system.train, w, eta) + decay * w.square().sum(),
        outer=lambda w, eta: loss(system.validation, w, eta),
    )
    assert_hypergradient_is_the_slope(system, problem, x, y, views.eta)


@pytest.mark.parametrize(
    ("name", "hparam"),
    [("hoag", "prior"), ("hoag", "invariance"), pytest.param("sampled-2", "prior", marks=pytest.mark.slow), ("augerino", "invariance"), ("partitioned-2", "invariance")],
)  # fmt: skip
def test_a_run_left_between_any_two_steps_goes_on_bit_by_bit(name, hparam):
    whole, data = learner_on(name, hparam)
    list(learn(whole, data))
    first, _ = learner_on(name, hparam)
    walk = steps(first, data)
    for _ in range(12):
        next(walk)
    second, _ = learner_on(name, hparam)
    restore(second, state_of(first))
    list(learn(second, data))
    ours, theirs = state_of(whole), state_of(second)
    for part in ("weights", "hyperparameters"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)
    assert ours["system"]["data_passes"] == theirs["system"]["data_passes"]


def test_hoag_holds_the_validation_part_back_from_the_weights():
    learner, data = learner_on("hoag", burn_in=99)
    x, _ = learner.system.weight_data(data.train_inputs, data.train_targets)
    assert len(x) == 24
    assert sorted([*learner.system.train.tolist(), *learner.system.validation.tolist()]) == list(range(30))


def peak(value):
    return -((torch.tensor(value).log() - 1.0) ** 2).item()


@pytest.mark.parametrize("name", ["grid-7", "random-7"])
def test_a_search_returns_the_best_of_what_it_tried(name):
    tried = []
    best = best_value(parse_system(name), "prior", 0, lambda value: tried.append(value) or peak(value))
    assert len(tried) == 7
    assert best == max(tried, key=peak)


def test_a_search_fits_no_value_twice():
    """Rotations are whole degrees, so that many random draws meet."""
    tried = []
    best_value(parse_system("random-100"), "invariance", 0, lambda value: tried.append(value) or value)
    assert len(set(tried)) == len(tried) < 100


@pytest.mark.parametrize("name", ["tpe-12", "gp-12"])
def test_black_box_search_repeats_itself_and_finds_the_peak(name):
    pytest.importorskip("optuna")
    best = [best_value(parse_system(name), "prior", 0, peak) for _ in range(2)]
    assert best[0] == best[1]
    assert peak(best[0]) > -4


def test_a_short_black_box_search_is_more_than_random_draws():
    """Both samplers begin with the same random trials of one seed; what they have learned tells them apart."""
    pytest.importorskip("optuna")
    tried = {"tpe-5": [], "gp-5": []}
    for name, values in tried.items():
        best_value(parse_system(name), "prior", 0, lambda value, values=values: values.append(value) or peak(value))
    assert tried["tpe-5"][:2] == tried["gp-5"][:2]
    assert tried["tpe-5"][2:] != tried["gp-5"][2:]


def test_without_optuna_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ValueError, match=r"tpe-3 needs optuna: pip install 'ntkml\[search\]'"):
        best_value(parse_system("tpe-3"), "prior", 0, peak)


def test_grids_run_from_end_to_end():
    assert grid_values("prior", 3) == [0.01, 3.162, 1000.0]
    assert grid_values("invariance", 3) == [0.0, 90.0, 180.0]
    assert grid_values("invariance", 1) == [90.0]


def test_folds_are_a_disjoint_cover():
    parts = list(folds(11, 3, 0))
    assert sorted(index for _, part in parts for index in part.tolist()) == list(range(11))
    assert all(sorted([*train.tolist(), *part.tolist()]) == list(range(11)) for train, part in parts)
