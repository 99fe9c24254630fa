"""Diagonal Gaussian priors: what a number or tensor means, and which are refused."""

from __future__ import annotations

import re

import pytest
import torch

from ntkml.priors import PriorPrecision, as_prior
from tests.factories import PRIOR_KINDS, assert_same, generator, make_case, make_prior

SHAPES = {"a.weight": torch.Size([3, 2]), "a.bias": torch.Size([3]), "b.weight": torch.Size([1, 3])}


@pytest.mark.parametrize(
    ("given", "kind", "values"),
    [
        (2, "scalar", [2.0]),
        (0.1, "scalar", [0.1]),
        (torch.tensor(0.5), "scalar", [0.5]),
        (torch.tensor([3]), "scalar", [3.0]),
        (torch.tensor([1.0, 2.0, 3.0]), "layerwise", [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 3.0], "layerwise", [1.0, 2.0, 3.0]),
        (torch.arange(1.0, 13.0), "diagonal", list(range(1, 13))),
        (torch.arange(1.0, 13.0).reshape(3, 4), "diagonal", list(range(1, 13))),
        (PriorPrecision(torch.tensor([2.0]), "scalar"), "scalar", [2.0]),
        (PriorPrecision([2.0], "scalar"), "scalar", [2.0]),
        (PriorPrecision(2.0, "scalar"), "scalar", [2.0]),
    ],
)
def test_the_number_of_values_says_the_kind(given, kind, values):
    prior = as_prior(given, SHAPES)
    assert prior.kind == kind
    assert prior.values.tolist() == values


def test_a_float_keeps_its_float64_digits():
    assert as_prior(0.1, SHAPES).of(SHAPES)["a.bias"].item() == 0.1


def test_precisions_go_to_parameters_in_the_order_of_the_network():
    layerwise = as_prior(torch.tensor([1.0, 2.0, 3.0]), SHAPES).of(SHAPES)
    assert {name: value.item() for name, value in layerwise.items()} == {
        "a.weight": 1.0,
        "a.bias": 2.0,
        "b.weight": 3.0,
    }
    diagonal = as_prior(torch.arange(1.0, 13.0), SHAPES).of(SHAPES)
    assert diagonal["a.bias"].tolist() == [7.0, 8.0, 9.0]
    assert all(value.dtype == torch.float64 for value in (*layerwise.values(), *diagonal.values()))


@pytest.mark.parametrize("kind", PRIOR_KINDS)
def test_diagonal_quadratic_form_and_scaling(kind):
    case = make_case("mlp")
    prior = make_prior(kind, case)
    dense = case.precision(prior)
    weights = dict(case.model.named_parameters())
    assert torch.equal(prior.diagonal(case.shapes), dense)
    assert_same(prior.quadratic_form(weights), case.weights @ (dense * case.weights))
    assert_same(case.precision(prior.scaled(3.0)), 3 * dense)
    assert prior.scaled(3.0).kind == kind


@pytest.mark.parametrize("kind", PRIOR_KINDS)
def test_the_energy_of_the_weights_is_half_the_quadratic_form_with_its_derivatives(kind):
    case = make_case("mlp")
    prior = make_prior(kind, case)
    dense, names = case.precision(prior), list(case.shapes)
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in case.model.named_parameters()}
    energy = prior.energy(weights)
    assert_same(energy, 0.5 * prior.quadratic_form(weights))
    found = torch.autograd.grad(3.0 * energy, list(weights.values()), create_graph=True)
    assert_same(torch.cat([gradient.reshape(-1) for gradient in found]), 3.0 * dense * case.weights)
    again = torch.autograd.grad(sum(gradient.sum() for gradient in found), list(weights.values()))
    assert_same(torch.cat([gradient.reshape(-1) for gradient in again]), 3.0 * dense)
    assert prior.energy({name: weights[name].float() for name in names}).dtype == torch.float32


@pytest.mark.parametrize("kind", PRIOR_KINDS)
def test_the_energy_goes_through_the_transforms_of_torch_func(kind):
    case = make_case("mlp")
    prior = make_prior(kind, case)
    weights = {name: weight.detach() for name, weight in case.model.named_parameters()}
    gradient = torch.func.grad(prior.energy)(weights)
    expected = case.precision(prior) * case.weights
    assert_same(torch.cat([gradient[name].reshape(-1) for name in weights]), expected)
    direction = {name: torch.ones_like(weight) for name, weight in weights.items()}
    value, moved = torch.func.jvp(prior.energy, (weights,), (direction,))
    assert_same(value, prior.energy(weights))
    assert_same(moved, expected.sum())


def test_the_energy_of_weights_of_two_types_rounds_no_precision():
    prior = PriorPrecision(torch.tensor([1.2345678, 2.3456789], dtype=torch.float64), "layerwise")
    weights = {"a": torch.ones(3, dtype=torch.bfloat16, requires_grad=True), "b": torch.ones(2, requires_grad=True)}
    gradients = torch.autograd.grad(prior.energy(weights), list(weights.values()))
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.float32]
    assert_same(gradients[1], torch.full((2,), 2.3456789), 1e-6)


@pytest.mark.parametrize("kind", PRIOR_KINDS)
def test_the_energy_has_no_gradient_in_the_precision(kind):
    case = make_case("mlp")
    prior = PriorPrecision(make_prior(kind, case).values.requires_grad_(), kind)
    weights = {name: weight.detach() for name, weight in case.model.named_parameters()}
    assert not prior.energy(weights).requires_grad


@pytest.mark.parametrize("kind", PRIOR_KINDS)
def test_the_energy_of_weights_that_are_zero_has_a_gradient(kind):
    case = make_case("mlp")
    weights = {name: torch.zeros(shape, dtype=torch.float64, requires_grad=True) for name, shape in case.shapes.items()}
    gradients = torch.autograd.grad(make_prior(kind, case).energy(weights), list(weights.values()))
    assert all(bool((gradient == 0).all()) for gradient in gradients)


def test_everything_is_differentiable_in_the_precision_and_not_in_the_weights():
    case = make_case("mlp")
    values = make_prior("layerwise", case).values.float().requires_grad_()
    prior = PriorPrecision(values, "layerwise")
    weights = dict(case.model.named_parameters())
    (prior.diagonal(case.shapes).log().sum() + prior.quadratic_form(weights)).backward()
    squares = torch.stack([weight.detach().square().sum() for weight in weights.values()])
    assert_same(values.grad, torch.tensor(case.sizes) / values.double() + squares, 1e-6)
    assert all(weight.grad is None for weight in weights.values())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (-1.0, "a prior precision must be positive and finite; got -1"),
        (0, "a prior precision must be positive and finite; got 0"),
        (float("nan"), "must be positive and finite; got nan"),
        (float("inf"), "must be positive and finite; got inf"),
        (torch.tensor([1.0, -2.5, 3.0]), "must be positive and finite; got -2.5"),
        (
            torch.ones(2),
            "a prior precision has 1 value (scalar), 3 (layerwise: one per parameter tensor) or 12 (diagonal: one per "
            "parameter) for this network; got 2",
        ),
        (torch.ones(0), "for this network; got 0"),
        (PriorPrecision(torch.ones(4), "layerwise"), "for this network; got 4 with kind 'layerwise'"),
        (PriorPrecision(torch.ones(3), "diagonal"), "got 3 with kind 'diagonal'"),
        (PriorPrecision(torch.ones(3), "full"), "got 3 with kind 'full'"),
    ],
)
def test_what_is_no_prior_is_refused(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        as_prior(given, SHAPES)


def test_a_network_of_one_tensor_takes_any_of_the_three():
    shapes = {"weight": torch.Size([2, 2])}
    rows = torch.rand(4, generator=generator()) + 0.5
    assert as_prior(torch.ones(1), shapes).kind == "scalar"
    assert as_prior(rows, shapes).kind == "diagonal"
    assert as_prior(PriorPrecision(torch.ones(1), "layerwise"), shapes).kind == "layerwise"
