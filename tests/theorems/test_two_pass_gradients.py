"""The two-pass adjoint: the gradient of an estimate in anything that enters the forward pass, a chunk at a time."""

import re

import pytest
import torch
from torch import nn

from ntkml.hyperparameters.affine import AffineInvariance
from ntkml.objective import MarginalLikelihood
from ntkml.parameters import trainable_parameters
from ntkml.rows.block import merge_factors
from ntkml.rows.capture import capture
from ntkml.rows.pulled import rows_by_layer
from ntkml.specs import PRIOR_KINDS
from tests.objectives import COUNT, VIEWS, Brightness, problem

NAMES = ("ntk-3-C", "ntk-4-1", "ntk-4-tree", "ntk-4-2", "ntk-4-1+iid", "ggn-4-C", "blockdiag-4-C", "diag-4-C")
FACTORED = ("kfac-4-C", "kfac-4-1")


def loss(objective, x, y):
    """-log q / N without its gradients: the same number, at a third of the price."""
    return -objective.estimate(x, y, None, torch.Generator().manual_seed(1)).total.item() / COUNT


def gradients(objective, x, y):
    objective.zero_grad()
    objective.backward(x, y, None, torch.Generator().manual_seed(1))
    return {name: parameter.grad.clone() for name, parameter in objective.named_parameters()}


@pytest.mark.parametrize(
    ("name", "prior", "likelihood"),
    [
        # Every name with every prior and either likelihood, and every prior with either; the other half is slow.
        pytest.param(name, prior, likelihood, marks=pytest.mark.slow if (at + place + number) % 2 else ())
        for at, name in enumerate(NAMES + FACTORED)
        for place, prior in enumerate(PRIOR_KINDS)
        for number, likelihood in enumerate(("categorical", "gaussian"))
    ],
)
def test_every_gradient_is_that_of_finite_differences(name, prior, likelihood):
    if (name in FACTORED and prior == "diagonal") or ("tree" in name and likelihood == "gaussian"):
        with pytest.raises(ValueError, match=r"diagonal|tree"):
            loss(*problem(Brightness(), name, prior, likelihood=likelihood))
        return
    objective, x, y = problem(Brightness(), name, prior, likelihood=likelihood)
    found, step = gradients(objective, x, y), 1e-5
    for parameter_name, parameter in objective.named_parameters():
        flat = parameter.data.view(-1)
        for index in range(min(2, len(flat))):
            value = flat[index].item()
            flat[index] = value + step
            above = loss(objective, x, y)
            flat[index] = value - step
            below = loss(objective, x, y)
            flat[index] = value
            difference = (above - below) / (2 * step)
            assert found[parameter_name].reshape(-1)[index].item() == pytest.approx(difference, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", NAMES + FACTORED)
def test_chunks_change_nothing(name):
    value, whole = (compute(*problem(Brightness(), name)) for compute in (loss, gradients))
    for chunk in (1, 2):
        in_chunks = problem(Brightness(), name, chunk=chunk)
        assert loss(*in_chunks) == pytest.approx(value, rel=1e-12)
        parts = gradients(*in_chunks)
        for key, gradient in whole.items():
            assert (parts[key] - gradient).abs().max() <= 1e-12 * gradient.abs().max().clamp_min(1.0)


def affine():
    return AffineInvariance(VIEWS, torch.tensor([0.1, 0.2, 0.5, 0.1, 0.15, 0.05], dtype=torch.float64))


@pytest.mark.parametrize("name", ["ntk-N-C", "ntk-N-tree", "blockdiag-N-1", "diag-N-C", "kfac-N-C"])
def test_two_passes_equal_one_graph(name):
    """Affine invariances by autograd through the dense log-determinant of every block, all graphs alive at once."""
    objective, x, y = problem(affine(), name, chunk=2)
    found = gradients(objective, x, y)
    one_graph = torch.autograd.grad(dense_loss(objective, x, y), [objective.augmentation.eta, *objective.in_network])
    assert (found["augmentation.eta"] - one_graph[0]).abs().max() < 1e-12
    assert (found["in_network.0"] - one_graph[1]).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["ntk-N-C", "blockdiag-N-1", "kfac-N-C"])
def test_two_passes_in_float32_equal_one_graph_in_float64(name, monkeypatch):
    """As networks are trained: rows in float32, the linear algebra in float64."""
    objective, x, y = problem(affine(), name, chunk=2)
    one_graph = torch.autograd.grad(dense_loss(objective, x, y), [objective.augmentation.eta, *objective.in_network])
    objective.model.float()
    objective.float()
    objective.log_prior_precision.data = objective.log_prior_precision.data.double()
    same = affine()
    monkeypatch.setattr(objective.augmentation, "draw", lambda *arguments: same.draw(*arguments).float())
    found = gradients(objective, x.float(), y)
    for ours, theirs in zip((found["augmentation.eta"], found["in_network.0"]), one_graph, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).abs().max() < 1e-6 * theirs.abs().max()


def dense_loss(objective, x, y):
    """-log q / N of a partition whose blocks hold all inputs, from explicit matrices in one graph."""
    generator = torch.Generator().manual_seed(1)
    total, delta = torch.zeros((), dtype=torch.float64), 0.7
    for block in objective.partition.blocks:
        views = objective.augmentation(x, objective.augmentation.draw(len(x), generator))
        captured = capture(objective.model, views, VIEWS, differentiable=True)
        columns = objective.likelihood.factor(captured.outputs, objective.estimator.outputs, objective.tree)
        factor = block.select(columns)
        layers = rows_by_layer(captured, factor, keep_graph=True)
        share = block.columns.shape[-1] / objective.partition.num_columns
        log_prob = objective.likelihood.log_prob(captured.outputs, y).sum()
        total = total + share * log_prob - 0.5 * dense_log_det(objective.estimator.structure, layers, delta)
    return -total / len(x)


def dense_log_det(structure, layers, delta):
    if structure == "kfac":
        factors = merge_factors({name: positions.reduced() for name, positions in layers.items()}).values()
        matrices = [torch.kron(f[0][0], f[1][0]) if len(f) == 2 else f[0][0] for f in factors]
    else:
        rows = [row.flatten(0, 1) for positions in layers.values() for row in positions.rows().values()]
        whole = [torch.cat(rows, dim=1)] if structure == "ntk" else rows
        matrices = [r.T @ r for r in whole]
        if structure == "diag":
            matrices = [m.diagonal().diag() for m in matrices]
    return torch.stack([torch.eye(len(m)).double().add(m / delta).slogdet()[1] for m in matrices]).sum()


def test_drawn_blocks_average_to_the_whole_partition():
    objective, x, y = problem(None, "ntk-4-1")
    whole = objective.backward(x, y, None).total
    num_blocks = len(objective.partition)
    drawn = objective.backward(x, y, num_blocks, torch.Generator().manual_seed(3)).total
    assert drawn.item() == pytest.approx(whole.item(), rel=1e-12)


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
@pytest.mark.parametrize(
    ("name", "prior"), [(n, p) for n in ("ntk-4-1", "ggn-4-C", "blockdiag-3-C") for p in PRIOR_KINDS]
)
def test_cached_steps_equal_recomputed_ones(name, prior, likelihood):
    compare_cached_steps(name, prior, likelihood, blocks=1)


@pytest.mark.parametrize(
    ("name", "prior"), [("kfac-4-C", "layerwise"), ("kfac-N-C", "scalar"), ("diag-4-C", "diagonal")]
)
def test_cached_steps_of_several_blocks_equal_recomputed_ones(name, prior):
    compare_cached_steps(name, prior, "categorical", blocks=None)


def compare_cached_steps(name, prior, likelihood, blocks):
    """Four steps of Adam in prior and noise, the rows kept against the rows made anew."""
    kept, fresh = [], []
    for values, cached in ((kept, True), (fresh, False)):
        objective, x, y = problem(None, name, prior, likelihood=likelihood)
        objective.in_network.requires_grad_(False)
        optimizer = torch.optim.Adam(objective.parameters(), lr=0.3)
        step = objective.cached_backward(x, y, blocks, torch.Generator().manual_seed(2)) if cached else None
        for _ in range(4):
            optimizer.zero_grad()
            estimate = step() if step else objective.backward(x, y, blocks, torch.Generator().manual_seed(2))
            optimizer.step()
            values.append(torch.stack([estimate.total, estimate.log_det, estimate.log_prior]))
            values += [parameter.detach().clone() for parameter in objective.parameters()]
    assert not torch.equal(kept[0], kept[-1 - len(list(objective.parameters()))])
    for ours, theirs in zip(kept, fresh, strict=True):
        assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()


def test_cached_steps_are_refused_where_the_rows_would_change():
    objective, x, y = problem(Brightness(), "ntk-4-1")
    with pytest.raises(
        ValueError, match="cached steps are for the prior and the observation noise alone: call backward"
    ):
        objective.cached_backward(x, y)


def test_weights_get_no_gradient_and_hyperparameters_no_prior():
    objective, x, y = problem(Brightness(), "ntk-4-1")
    gradients(objective, x, y)
    weights = trainable_parameters(objective.model)
    assert "1.slope" not in weights
    assert all(weight.grad is None for weight in weights.values())
    assert len(objective.log_prior_precision) == len(weights) == 6
    assert not {id(p) for p in objective.parameters()} & {id(p) for p in weights.values()}


def test_the_weight_loss_is_the_regularised_mean_loss_and_leaves_hyperparameters_alone():
    objective, x, y = problem(None, "ntk-4-1")
    value = objective.weight_loss(x, y, num_data=100)
    squares = sum(0.7 * float(w.detach().square().sum()) for w in trainable_parameters(objective.model).values())
    expected = nn.functional.cross_entropy(objective.model(x), y) + 0.5 * squares / 100
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    value.backward()
    assert objective.log_prior_precision.grad is None
    assert all(weight.grad is not None for weight in trainable_parameters(objective.model).values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prior": "rowwise"}, "unknown prior 'rowwise'; did you mean 'layerwise'? known: scalar, layerwise, diagonal"),
        ({"prior_precision": -1.0}, "a prior precision must be positive and finite; got -1"),
        ({"chunk": 0}, "chunk must be a positive number of inputs, got 0"),
        ({"estimator": "ntk-4"}, "write <structure>-<inputs>-<outputs>"),
    ],
)
def test_wrong_settings_are_refused(arguments, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        MarginalLikelihood(nn.Linear(2, 3), **{"estimator": "ntk-4-1", **arguments})
