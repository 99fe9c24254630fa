"""What every structure must be: the dense value of its own blocks, for every prior, on every block."""

from __future__ import annotations

import pytest
import torch

from ntkml import PriorPrecision
from ntkml.evidence import evaluate_partition
from ntkml.linalg import SPECTRUM_ERROR, NotPositiveDefiniteError
from ntkml.registry import STRUCTURES as REGISTERED
from ntkml.rows.block import CapturedRows
from ntkml.rows.capture import capture
from ntkml.structures import ggn, structure_named
from tests.factories import (
    LIKELIHOODS,
    NETWORKS,
    PRIOR_KINDS,
    STRUCTURES,
    assert_rising,
    assert_same,
    generator,
    make_case,
    make_prior,
)
from tests.largest_tensor import LargestTensor

NAMES = ["N-C", "3-C", "3-1", "3-2", "3-1+iid", "3-tree", "N-tree+iid", "3-C+class", "2-1+kmeans", "3-tree+greedy"]
EXACT = [structure for structure in STRUCTURES if structure != "kfac"]


@pytest.fixture(scope="module")
def rows():
    """14 rows of a convolutional network; fewer than its parameters."""
    case = make_case("convnet")
    captured = capture(case.model, case.x)
    factor = case.likelihood.factor(captured.outputs.detach(), "C", None)
    return CapturedRows(captured, factor, case.shapes, keep_graph=True)


def scalar(value):
    return PriorPrecision(torch.tensor([value], dtype=torch.float64), "scalar")


def test_every_registered_structure_is_covered_here():
    assert set(STRUCTURES) == set(REGISTERED)


def test_an_unknown_structure_is_named():
    with pytest.raises(ValueError, match="unknown structure 'ntkk'; did you mean 'ntk'"):
        structure_named("ntkk")


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("structure", EXACT)
def test_the_value_is_the_dense_one_on_every_partition_and_for_every_prior(structure, network, likelihood):
    """Against slogdet of H_B made from jacrev and the sub-blocks of the Hessian, to 1e-10."""
    case = make_case(network, likelihood)
    for index, name in enumerate(NAMES):
        if likelihood != "categorical" and ("tree" in name or "class" in name):
            continue
        prior = make_prior(PRIOR_KINDS[index % 3], case, index)
        spec, partition = case.partition(f"{structure}-{name}")
        estimate = evaluate_partition(case.model, case.x, case.y, spec, partition, prior, case.likelihood, case.plan)
        dense = case.bound_log_det(structure, spec.outputs, partition, case.precision(prior))
        assert_same(estimate.log_det, dense)
        assert estimate.num_blocks == len(partition)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_spectrum_serves_every_scalar_precision(structure, rows):
    built = structure_named(structure)(rows)
    eigenvalues = built.spectrum()
    assert eigenvalues.dtype == torch.float64
    assert eigenvalues.min() >= 0
    for precision in (1e-4, 0.3, 1e4):
        assert_same((eigenvalues / precision).log1p().sum(), built.log_det(scalar(precision)), 1e-9)


@pytest.mark.parametrize("kind", PRIOR_KINDS)
@pytest.mark.parametrize("structure", EXACT)
def test_preparing_for_many_priors_changes_no_number(structure, kind, rows):
    plain, prepared = structure_named(structure)(rows), structure_named(structure)(rows)
    prepared.prepare(kind)
    for other in PRIOR_KINDS:  # the kind prepared for, and any other that is asked for all the same
        for seed in range(3):
            prior = make_prior(other, make_case("convnet"), seed, centre=0.3)
            precisions = prior.values.requires_grad_()
            values = [built.log_det(prior) for built in (plain, prepared)]
            assert_same(*values)
            assert_same(*(torch.autograd.grad(value, precisions)[0] for value in values))


@pytest.mark.parametrize(
    ("structure", "kind"), [("ntk", "scalar"), ("blockdiag", "scalar"), ("blockdiag", "layerwise")]
)
def test_what_is_prepared_is_not_factorised_again(structure, kind, rows, monkeypatch):
    built = structure_named(structure)(rows)
    built.prepare(kind)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", None)
    assert built.log_det(make_prior(kind, make_case("convnet"))) > 0


@pytest.mark.parametrize(
    ("structure", "kind"), [("ntk", "scalar"), ("blockdiag", "scalar"), ("blockdiag", "layerwise")]
)
def test_precisions_too_small_for_eigenvalues_are_left_to_the_factorisation(structure, kind):
    """Every input twice: half of the eigenvalues are zero, and what rounding makes of them must not be counted."""
    case = make_case("mlp")
    captured = capture(case.model, case.x[:6].repeat(2, 1))
    factor = case.likelihood.factor(captured.outputs.detach(), "C", None)
    rows = CapturedRows(captured, factor, case.shapes)
    plain, prepared = structure_named(structure)(rows), structure_named(structure)(rows)
    prepared.prepare(kind)
    for centre in (1.0, 1e-9, 1e-11):
        prior = make_prior(kind, case, centre=centre)
        assert prepared.log_det(prior).item() == pytest.approx(plain.log_det(prior).item(), abs=SPECTRUM_ERROR)
    undefined = PriorPrecision(torch.full_like(prior.values, torch.nan), kind)
    with pytest.raises(NotPositiveDefiniteError, match=structure):
        prepared.log_det(undefined)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_equal_precisions_are_a_scalar_one(structure, rows):
    built = structure_named(structure)(rows)
    expected = built.log_det(scalar(0.7))
    assert_same(built.log_det(PriorPrecision(torch.full((6,), 0.7, dtype=torch.float64), "layerwise")), expected)
    if structure != "kfac":
        assert_same(built.log_det(PriorPrecision(torch.full((86,), 0.7, dtype=torch.float64), "diagonal")), expected)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_log_determinant_is_positive_and_falls_with_the_precision(structure, rows):
    built = structure_named(structure)(rows)
    values = [built.log_det(scalar(10.0**exponent)) for exponent in range(4, -5, -1)]
    assert values[0] > 0
    assert_rising(*values)
    assert values[-1] > 2 * values[0]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_no_rows_of_weight_have_no_complexity(structure):
    case = make_case("mlp")
    captured = capture(case.model, case.x)
    rows = CapturedRows(captured, torch.zeros(7, 3, 2, dtype=torch.float64), case.shapes)
    assert structure_named(structure)(rows).log_det(scalar(1e-4)) == 0


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_order_of_the_inputs_does_not_matter(structure):
    case = make_case("convnet")
    captured = capture(case.model, case.x)
    factor = case.likelihood.factor(captured.outputs.detach(), "C", None)
    order = torch.randperm(7, generator=generator())
    shuffled = capture(case.model, case.x[order])
    prior = make_prior("layerwise", case)
    values = [
        structure_named(structure)(CapturedRows(batch, columns, case.shapes)).log_det(prior)
        for batch, columns in ((captured, factor), (shuffled, factor[order]))
    ]
    assert_same(values[0], values[1])


def test_the_kernel_takes_the_smaller_side_whichever_it_is():
    """Sylvester's identity: 60 rows over 43 parameters and 6 rows over 43 have the spectrum of the GGN, zeros apart."""
    for num_inputs in (30, 3):
        case = make_case("mlp", num_inputs=num_inputs)
        captured = capture(case.model, case.x)
        rows = CapturedRows(captured, case.likelihood.factor(captured.outputs.detach(), "C", None), case.shapes)
        eigenvalues = structure_named("ntk")(rows).spectrum()
        assert len(eigenvalues) == min(43, 2 * num_inputs)
        expected = torch.linalg.eigvalsh(case.ggn)[-len(eigenvalues) :].clamp_min(0)
        assert_same(eigenvalues, expected)


@pytest.fixture
def many_rows():
    """60 rows over 43 parameters."""
    case = make_case("mlp", num_inputs=30)
    captured = capture(case.model, case.x)
    factor = case.likelihood.factor(captured.outputs.detach(), "C", None)
    return case, CapturedRows(captured, factor, case.shapes, keep_graph=True)


@pytest.mark.parametrize("kind", PRIOR_KINDS)
def test_more_rows_than_parameters_never_make_a_kernel(kind, many_rows):
    case, rows = many_rows
    for prepared in (False, True):
        prior = make_prior(kind, case)
        prior.values.requires_grad_()
        with LargestTensor() as largest:
            built = structure_named("ntk")(rows)
            if prepared:
                built.prepare(kind)
            built.log_det(prior).backward()
            built.adjoint(prior)
        assert largest.numel == 60 * 43


@pytest.mark.parametrize("kind", PRIOR_KINDS)
def test_more_rows_than_parameters_have_the_kernels_value_and_gradients(kind, many_rows):
    case, rows = many_rows
    built, prior = structure_named("ntk")(rows), make_prior(kind, case)
    precisions = prior.values.requires_grad_()
    everything = torch.cat([rows.explicit(name) for name in rows.shapes], dim=1).requires_grad_()
    kernel = (everything / prior.diagonal(rows.shapes)) @ everything.T
    plain = torch.logdet(torch.eye(60, dtype=torch.float64) + kernel)
    in_prior, in_rows = torch.autograd.grad(plain, (precisions, everything))
    value = built.log_det(prior)
    assert_same(value, plain)
    assert_same(torch.autograd.grad(value, precisions)[0], in_prior)
    (pairing,) = built.adjoint(prior).pairings()
    assert_same(torch.cat([pairing.rows[name].flatten(0, 1) for name in rows.shapes], dim=1), in_rows)


@pytest.mark.parametrize("kind", ["layerwise", "diagonal"])
def test_prepared_for_more_rows_than_parameters_the_rows_are_let_go(kind, many_rows):
    case, rows = many_rows
    built = structure_named("ntk")(rows)
    built.prepare(kind)
    assert not rows._explicit
    rows._layers = None  # what rows are made from
    assert built.log_det(make_prior(kind, case)) > 0


def test_a_ggn_beyond_the_memory_budget_is_refused_with_the_way_out(monkeypatch, rows):
    monkeypatch.setattr(ggn, "MEMORY_BUDGET_BYTES", 8 * 86**2 - 1)
    with pytest.raises(
        ValueError, match=r"ggn would form a 86 x 86 matrix of .* GiB .*: write ntk, which gives the same"
    ):
        structure_named("ggn")(rows)
    monkeypatch.setattr(ggn, "MEMORY_BUDGET_BYTES", 8 * 86**2)
    structure_named("ggn")(rows)
