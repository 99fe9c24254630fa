"""What an objective may be given: estimators, precisions, counts, likelihoods and augmentations of every kind, or a refusal."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy
import pytest
import torch
from torch import nn

import ntkml
from ntkml.likelihoods import Gaussian
from ntkml.specs import parse_estimator
from tests.factories import assert_same, generator
from tests.objectives import everything
from tests.small_networks import CLASSES, N, X, Y, network


def test_a_text_that_is_too_long_is_not_told_to_become_real_numbers():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places, self.head = nn.Embedding(4, 3), nn.Parameter(torch.zeros(5, 3)), nn.Linear(3, 2)

        def forward(self, x):
            return self.head((self.words(x) + self.places).mean(1))

    with pytest.raises(RuntimeError, match="size of tensor"):
        ntkml.log_marginal_likelihood(Text(), torch.zeros(4, 7, dtype=torch.long), torch.zeros(4).long(), "ntk-N-C")


def test_whole_numbers_of_other_libraries_are_numbers():
    objective = ntkml.MarginalLikelihood(network(), "ntk-4-C", chunk=numpy.int64(3))
    assert math.isfinite(objective.backward(X, Y, numpy.int64(2)).total)


def test_a_likelihood_object_starts_from_its_own_noise():
    model, targets = network(), torch.randn(N, CLASSES, generator=generator(4), dtype=torch.float64)
    objective = ntkml.MarginalLikelihood(model, "ntk-N-C", likelihood=Gaussian(0.1), prior="scalar")
    assert objective.log_observation_noise.item() == pytest.approx(math.log(0.1))
    expected = ntkml.log_marginal_likelihood(model, X, targets, "ntk-N-C", likelihood=Gaussian(0.1))
    assert_same(objective.estimate(X, targets).total, expected.total, 1e-10)
    with pytest.raises(ValueError, match="observation noise must be positive and finite; got -1"):
        ntkml.MarginalLikelihood(model, "ntk-N-C", likelihood=Gaussian(-1.0))
    with pytest.raises(ValueError, match="observation noise is one number for all outputs; got 3"):
        ntkml.MarginalLikelihood(model, "ntk-N-C", likelihood=Gaussian(torch.ones(3)))


def test_an_estimator_may_be_a_name_or_what_it_means():
    spec = parse_estimator("ntk-4-tree")
    assert ntkml.MarginalLikelihood(network(), spec).estimator == spec
    with pytest.raises(ValueError, match="unknown structure '100'"):
        ntkml.MarginalLikelihood(network(), 100)


@pytest.mark.parametrize(
    ("prior", "given", "expected"),
    [
        ("scalar", torch.tensor([2.0], requires_grad=True), [2.0]),
        ("layerwise", torch.tensor(3), [3.0] * 4),
        ("layerwise", torch.arange(1.0, 5.0), [1.0, 2.0, 3.0, 4.0]),
        ("layerwise", [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]),
        ("diagonal", torch.arange(1.0, 44.0), list(range(1, 44))),
    ],
)
def test_the_first_prior_precision_is_one_number_or_as_many_as_the_prior_has(prior, given, expected):
    objective = ntkml.MarginalLikelihood(network(), "ntk-4-C", prior=prior, prior_precision=given)
    assert objective.prior.values.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.ones(3), r"4 \(layerwise: one per parameter tensor\) .*; got 3 with kind 'layerwise'"),
        (torch.tensor([1.0, 1.0, -2.0, 1.0]), "must be positive and finite; got -2"),
        ("one", "a prior precision is a number or a tensor of numbers; got 'one'"),
        (None, "a prior precision is a number or a tensor of numbers; got None"),
        (torch.ones(4).to(torch.cfloat), "a prior precision is a number or a tensor of numbers; got complex ones"),
    ],
)
def test_other_first_prior_precisions_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ntkml.MarginalLikelihood(network(), "ntk-4-C", prior_precision=given)


@pytest.mark.parametrize("chunk", [0, 2.5, "4", True])
def test_a_chunk_that_is_no_number_of_inputs_is_refused(chunk):
    with pytest.raises(ValueError, match=f"chunk must be a positive number of inputs, got {chunk}"):
        ntkml.MarginalLikelihood(network(), "ntk-4-C", chunk=chunk)


@pytest.mark.parametrize("blocks", [2.0, "2", 0, True])
def test_a_number_of_blocks_that_is_none_is_refused(blocks):
    with pytest.raises(ValueError, match=f"blocks={blocks}: write a number from 1 to 3, or None for all 3 blocks"):
        ntkml.MarginalLikelihood(network(), "ntk-4-C").backward(X, Y, blocks)


@dataclass(frozen=True)
class Tempered(Gaussian):
    """A subclass with a likelihood of its own."""

    temperature: float = 1.0

    def log_prob(self, outputs, targets):
        return super().log_prob(outputs, targets) / self.temperature


class Scaled:
    """No relative of ours: a Gaussian whose noise is called a scale, with twice its log density."""

    softmax = False

    def __init__(self, scale):
        self.observation_noise = scale

    def with_noise(self, noise):
        return Scaled(noise)

    @property
    def noise_variance(self):
        return torch.as_tensor(self.observation_noise, dtype=torch.float64).square() / 2

    def check_targets(self, outputs, targets):
        Gaussian().check_targets(outputs, targets)

    def log_prob(self, outputs, targets):
        return 2 * Gaussian(self.observation_noise).log_prob(outputs, targets)

    def factor(self, outputs, split, tree):
        return Gaussian().factor(outputs, split, tree)


@pytest.mark.parametrize("own", [Tempered(0.1, temperature=3.0), Scaled(0.1)])
def test_the_noise_of_an_own_likelihood_is_learned_by_its_own_density(own):
    model, targets = network(), torch.randn(N, CLASSES, generator=generator(4), dtype=torch.float64)
    objective = ntkml.MarginalLikelihood(model, "ntk-N-C", likelihood=own, prior="scalar")
    assert type(objective.likelihood) is type(own)
    assert objective.weight_loss(X, targets, N).item() == pytest.approx(
        (-own.log_prob(model(X), targets).sum() + objective.prior.energy(dict(model.named_parameters()))).item() / N
    )
    noise = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    expected = ntkml.log_marginal_likelihood(model, X, targets, "ntk-N-C", likelihood=own.with_noise(noise))
    (-expected.total / N).backward()
    assert_same(objective.backward(X, targets).total, expected.total.detach(), 1e-10)
    assert_same(objective.log_observation_noise.grad, 0.1 * noise.grad, 1e-10)


def test_an_objective_may_be_converted_to_float32():
    objective = ntkml.MarginalLikelihood(network(), "ntk-4-C")
    expected = everything(objective, X, Y)
    found = everything(objective.float(), X, Y)
    for name, value in expected.items():
        assert_same(found[name], value, 1e-5)
    objective.cached_backward(X, Y)()


@pytest.mark.parametrize("num_views", [0, -1, 1.5])
def test_a_number_of_views_that_is_none_is_refused_at_once(num_views):
    with pytest.raises(ValueError, match="num_views must be a positive integer, got"):
        ntkml.AffineInvariance(num_views)


@pytest.mark.parametrize(
    "eta", [torch.zeros(1), torch.zeros(3), torch.tensor(0.5), torch.zeros(6, 1), torch.zeros(6).long()]
)
def test_half_widths_are_one_for_each_generator(eta):
    with pytest.raises(
        ValueError, match=r"eta holds 6 .*\(x-translation, y-translation, rotation, .*shear\); got shape"
    ):
        ntkml.AffineInvariance(2, eta)


class Coupled:
    """A regression whose outputs are coupled by a full 3 x 3 Hessian; its factor is Cholesky's, with three columns."""

    noise_variance = 1.0
    precision = torch.tensor([[2.0, 0.6, 0.1], [0.6, 1.0, 0.3], [0.1, 0.3, 1.5]], dtype=torch.float64)

    def __init__(self, softmax):
        self.softmax = softmax

    def check_targets(self, outputs, targets):
        pass

    def log_prob(self, outputs, targets):
        return -0.5 * torch.einsum("nc,cd,nd->n", targets - outputs, self.precision, targets - outputs)

    def hessian(self, outputs):
        return self.precision.expand(len(outputs), CLASSES, CLASSES)

    def factor(self, outputs, split, tree):
        return torch.linalg.cholesky(self.hessian(outputs))


@pytest.mark.parametrize("softmax", [True, False])
def test_blocks_hold_all_columns_of_an_own_factor(softmax):
    model, targets, likelihood = network(), torch.randn(N, CLASSES, dtype=torch.float64), Coupled(softmax)
    jacobian = jacobian_of(model)
    rows = (likelihood.factor(model(X), "C", None).mT.detach() @ jacobian).flatten(0, 1)
    exact = torch.logdet(torch.eye(len(rows), dtype=torch.float64) + rows @ rows.T)
    objective = ntkml.MarginalLikelihood(model, "ntk-N-C", likelihood=likelihood)
    for whole in (
        objective.estimate(X, targets),
        ntkml.log_marginal_likelihood(model, X, targets, "ntk-N-C", likelihood=likelihood),
    ):
        assert_same(whole.log_det, exact, 1e-10)
        assert whole.certified
    for parts in (
        ntkml.MarginalLikelihood(model, "ntk-N-1", likelihood=likelihood).estimate(X, targets),
        ntkml.log_marginal_likelihood(model, X, targets, "ntk-N-1", likelihood=likelihood),
    ):
        assert parts.num_blocks == CLASSES
        assert parts.log_det > exact
        assert parts.certified is not softmax


def jacobian_of(model):
    """The Jacobian of a network, (N, C, P)."""
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(output, list(model.parameters()), retain_graph=True)])
        for output in model(X).flatten()
    ]
    return torch.stack(rows).unflatten(0, (N, CLASSES))


@pytest.mark.parametrize("estimator", ["ntk-4-C", "diag-4-1"])
@pytest.mark.parametrize(
    ("name", "value"), [("prior_precision", 900.0), ("prior_precision", -900.0), ("observation_noise", 400.0)]
)
def test_a_precision_or_noise_out_of_range_is_refused_with_every_estimate(estimator, name, value):
    objective = ntkml.MarginalLikelihood(network(), estimator, "gaussian")
    targets = torch.zeros(N, CLASSES, dtype=torch.float64)
    cached = objective.cached_backward(X, targets)
    getattr(objective, f"log_{name}").data.fill_(value)
    objective.zero_grad()
    for compute in (lambda: objective.backward(X, targets), lambda: objective.estimate(X, targets), cached):
        with pytest.raises(
            ValueError, match=f"log_{name} holds {value:g}, .*: set it back, and lower its learning rate"
        ):
            compute()
    assert all(parameter.grad is None for parameter in objective.parameters())


def test_gradients_come_under_no_grad_too():
    objective = ntkml.MarginalLikelihood(network(), "ntk-4-C")
    objective.resample(X, Y, generator(2))
    expected = everything(objective, X, Y)
    with torch.no_grad():
        found = everything(objective, X, Y)
        objective.zero_grad()
        objective.cached_backward(X, Y, None)()
    for name, value in expected.items():
        assert_same(found[name], value)
    assert_same(objective.log_prior_precision.grad, expected["log_prior_precision"])


class Shifts:
    """Views without the members of a module."""

    num_views = 2

    def draw(self, num_inputs, generator=None):
        return torch.randn(num_inputs, 2, 4, generator=generator)

    def forward(self, x, noise):
        return (x.unsqueeze(1) + noise).flatten(0, 1)


class ShiftsWithoutViews(torch.nn.Module):
    def draw(self, num_inputs, generator=None):
        return torch.zeros(num_inputs)


@pytest.mark.parametrize("given", [Shifts(), ShiftsWithoutViews(), ntkml.AffineInvariance])
def test_an_augmentation_is_a_module_with_views(given):
    name = "the class AffineInvariance: call it" if isinstance(given, type) else type(given).__name__
    with pytest.raises(ValueError, match=f"is an nn.Module and has num_views, draw, forward, as .*; got {name}$"):
        ntkml.MarginalLikelihood(network(), "ntk-4-C", augmentation=given)


def of_a_function(model, x, y, generator=None, **given):
    return ntkml.log_marginal_likelihood(model, x, y, "ntk-4-C", generator=generator, **given)


def of_an_objective(model, x, y, generator=None, **given):
    return ntkml.MarginalLikelihood(model, "ntk-4-C", **given).backward(x, y, 1, generator)


def of_a_later_call(model, x, y, generator=None):
    objective = ntkml.MarginalLikelihood(network(), "ntk-4-C")
    objective.backward(X, Y)
    return objective.backward(x, y, 1, generator)


IN_EVERY_CALL = {
    "x without a dimension": ({"x": torch.tensor(1.0)}, "x holds real numbers, first dimension the data; got torch.float32 of shape"),
    "y without a dimension": ({"y": torch.tensor(1)}, "y holds real numbers, first dimension the data; got torch.int64 of shape"),
    "complex x": ({"x": X.to(torch.cfloat)}, "x holds real numbers, .*; got torch.complex64 of shape"),
    "x without numbers": ({"x": X.to("meta")}, "x holds real numbers, .* on meta"),
    "nested x": ({"x": torch.nested.as_nested_tensor(list(X), layout=torch.jagged)}, "x is a dense tensor; got a nested one: use to_padded"),
    "sparse x": ({"x": X.to_sparse()}, "x is a dense tensor; got torch.sparse_coo: use to_dense"),
    "generator": ({"generator": 0}, r"generator is None or a torch.Generator; got int: use torch.Generator\(\).manual_seed"),
}  # fmt: skip
AT_FIRST = {
    "whole numbers": ({"x": X.long()}, r"does not take inputs of type torch.int64 \(.*\): convert them with .float\(\)"),
    "function": ({"model": torch.tanh}, "the model is an nn.Module, .*; got builtin_function_or_method"),
    "class of a model": ({"model": torch.nn.Linear}, "the model is an nn.Module, .*; got the class Linear: call it"),
    "model without numbers": ({"model": network().to("meta")}, "parameter '0.weight' lies on the meta device, .*: use to_empty"),
    "model without outputs": ({"model": torch.nn.Linear(4, 0)}, r"'weight' of shape \(0, 4\) is empty: give its layer outputs"),
    "loss": ({"likelihood": torch.nn.CrossEntropyLoss()}, "a likelihood is a name, or an object that has softmax, .*; got CrossEntropyLoss"),
    "no likelihood": ({"likelihood": None}, "a likelihood is a name, or an object that has softmax, .*; got NoneType"),
    "class of a likelihood": ({"likelihood": Gaussian}, "a likelihood .*; got the class Gaussian: call it"),
}  # fmt: skip


@pytest.mark.parametrize("call", [of_a_function, of_an_objective, of_a_later_call])
@pytest.mark.parametrize(("given", "message"), IN_EVERY_CALL.values(), ids=IN_EVERY_CALL)
def test_what_is_no_argument_of_any_call_is_refused_in_one_line(given, message, call):
    with pytest.raises(ValueError, match=message) as caught:
        call(**{"model": network(), "x": X, "y": Y} | given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", [of_a_function, of_an_objective])
@pytest.mark.parametrize(("given", "message"), AT_FIRST.values(), ids=AT_FIRST)
def test_what_is_no_argument_is_refused_in_one_line(given, message, call):
    with pytest.raises(ValueError, match=message) as caught:
        call(**{"model": network(), "x": X, "y": Y} | given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("targets", [torch.zeros(N, CLASSES), torch.zeros(N, 1).long(), torch.zeros(N)])
def test_classes_are_grouped_by_labels_alone(targets):
    got = re.escape(f"got {targets.dtype} of shape {tuple(targets.shape)}")
    with pytest.raises(ValueError, match=rf"\+class needs class labels, one integer per input; {got}"):
        ntkml.log_marginal_likelihood(network(), X, targets, "ntk-4-C+class", likelihood=Coupled(True))


def test_targets_of_every_input_of_a_block_are_looked_at():
    targets = torch.where(torch.arange(N) == 5, CLASSES, Y)
    with pytest.raises(ValueError, match=r"must lie in 0...2 for a network of 3 outputs; got 0...3"):
        ntkml.MarginalLikelihood(network(), "ntk-N-C").estimate(X, targets)
