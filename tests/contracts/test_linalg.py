"""Grams, log-determinants and spectra: float64 whatever the rows are, and an error where there is no value."""

from __future__ import annotations

import math

import pytest
import torch

from ntkml import linalg
from ntkml.linalg import NotPositiveDefiniteError, channel_gram
from ntkml.rows.tabulated import tabulate
from tests.factories import assert_same, generator, make_case


@pytest.mark.parametrize(("tile_entries", "tile_rows"), [(64, 4), (64, 3), (10**6, 9), (1, 1000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grams_are_accumulated_in_float64_whatever_the_tiles(dtype, tile_entries, tile_rows, monkeypatch):
    """Sums in float32 would lose the small part, which decides at small prior precisions."""
    monkeypatch.setattr(linalg, "_TILE_ENTRIES", {"cpu": tile_entries})
    monkeypatch.setattr(linalg, "_TILE_ROWS", {"cpu": tile_rows})
    rows = (torch.randn(9, 300, generator=generator()) * torch.logspace(4, -4, 300)).to(dtype)
    exact = rows.double() @ rows.double().T
    total = linalg.gram(rows)
    assert total.dtype == torch.float64
    assert_same(total, exact, 1e-13)
    assert torch.equal(total, total.T)
    single = rows.float() @ rows.float().T
    assert (single - exact).abs().max() / exact.abs().max() > 1e-9


def test_the_log_determinant_is_that_of_slogdet_and_differentiable():
    rows = torch.randn(5, 3, generator=generator(), dtype=torch.float64)
    kernel = rows @ rows.T
    before = kernel.clone()
    expected = torch.linalg.slogdet(torch.eye(5, dtype=torch.float64) + kernel).logabsdet
    assert_same(linalg.log_det_identity_plus(kernel, "a test"), expected, 1e-13)
    assert torch.equal(kernel, before)
    rows.requires_grad_()
    for overwrite in (False, True):
        log_det = lambda rows, own=overwrite: linalg.log_det_identity_plus(rows @ rows.T, "a test", overwrite=own)  # noqa: E731
        assert_same(log_det(rows), expected, 1e-13)
        assert torch.autograd.gradcheck(log_det, rows)
        assert torch.autograd.gradgradcheck(log_det, rows)


@pytest.mark.parametrize(("num_rows", "num_columns"), [(5, 3), (3, 5), (1, 1)])
def test_the_log_determinant_has_a_first_and_a_second_derivative(num_rows, num_columns):
    """In the rows and in the precision, alone and together."""
    rows = torch.randn(num_rows, num_columns, generator=generator(), dtype=torch.float64, requires_grad=True)
    precision = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def log_det(rows, precision):
        return linalg.log_det_identity_plus(rows @ rows.T, "a test", precision)

    assert torch.autograd.gradcheck(log_det, (rows, precision))
    assert torch.autograd.gradgradcheck(log_det, (rows, precision))


def test_both_routes_of_the_gradient_are_the_inverse():
    """From the factor that is there already, and, where a second derivative is asked for, from the matrix."""
    rows = torch.randn(6, 4, generator=generator(), dtype=torch.float64)
    kernel = (rows @ rows.T).requires_grad_()
    expected = torch.linalg.inv(torch.eye(6, dtype=torch.float64) + kernel.detach() / 0.3) / 0.3
    for create_graph in (False, True):
        (gradient,) = torch.autograd.grad(
            linalg.log_det_identity_plus(kernel, "a test", 0.3), kernel, create_graph=create_graph
        )
        assert_same(gradient, expected, 1e-12)
        assert gradient.requires_grad == create_graph


def test_grams_of_more_rows_than_a_tile_are_symmetric_to_the_last_bit():
    rows = torch.randn(linalg._TILE_ROWS["cpu"] + 37, 11, generator=generator())
    total = linalg.gram(rows)
    assert torch.equal(total, total.T)
    assert_same(total, rows.double() @ rows.double().T, 1e-13)


def test_a_matrix_that_is_not_positive_definite_is_refused():
    with pytest.raises(NotPositiveDefiniteError, match=r"I \+ K of a test is not positive definite in torch.float64"):
        linalg.log_det_identity_plus(-2.0 * torch.eye(2, dtype=torch.float64), "a test")
    assert isinstance(NotPositiveDefiniteError(), ValueError)


@pytest.mark.parametrize(("num_rows", "rank"), [(10, 9), (30, 20)])
def test_a_log_determinant_is_right_or_refused_where_a_row_adds_nothing_new(num_rows, rank):
    """Of a pivot that should be 1 rounding may leave any positive number: it passed for up to 25 nats in every second kernel."""
    random = generator()
    values = []
    for precision in [10.0**exponent for exponent in range(-24, 1)]:
        left = torch.randn(num_rows, rank, generator=random, dtype=torch.float64)
        rows = left @ torch.randn(rank, 50, generator=random, dtype=torch.float64)
        exact = (torch.linalg.svdvals(rows)[:rank].square() / precision).log1p().sum()
        try:
            value = linalg.log_det_identity_plus(linalg.gram(rows), "a test", precision)
        except NotPositiveDefiniteError:
            assert precision < 1e-9
            continue
        assert abs(value - exact) < 3 * linalg.CHOLESKY_ERROR
        values.append(value)
    assert len(values) >= 10


def test_a_huge_kernel_of_rows_that_differ_has_its_log_determinant():
    """What counts is how much of a row is new, not how large it is."""
    rows = torch.randn(10, 50, generator=generator(), dtype=torch.float64)
    value = linalg.log_det_identity_plus(linalg.gram(rows), "a test", 1e-30)
    assert_same(value, torch.linalg.svdvals(rows).square().log().sum() + 300 * math.log(10), 1e-12)


def test_spectra_hold_no_rounding_below_zero():
    rows = torch.randn(8, 3, generator=generator(), dtype=torch.float64)
    eigenvalues = linalg.spectrum(rows @ rows.T, "a test")
    assert eigenvalues.min() >= 0
    assert_same(eigenvalues[-3:], torch.linalg.svdvals(rows).flip(0) ** 2)


def test_a_spectrum_of_more_rows_resolves_larger_precisions_alone():
    """Its largest eigenvalue is 1, and every one of b rows may be wrong by eps."""
    eps = torch.finfo(torch.float64).eps
    for num_rows in (1, 100):
        least = torch.tensor(num_rows * eps / linalg.SPECTRUM_ERROR, dtype=torch.float64)
        eigenvalues = torch.ones(num_rows, dtype=torch.float64)
        assert linalg.resolves(eigenvalues, 2 * least)
        assert not linalg.resolves(eigenvalues, least / 2)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_no_numbers_have_no_spectrum_and_no_log_determinant(value):
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[1, 1] = value
    for function in (linalg.spectrum, linalg.log_det_identity_plus):
        with pytest.raises(
            NotPositiveDefiniteError, match="a test.* hold NaN or infinite values.*check the data and weights"
        ):
            function(matrix, "a test")


def test_channels_of_rank_one_have_the_gram_of_their_factors():
    """Behind the last hidden layer: J[n, c, o] = W[c, o] B[n, o]."""
    output_weights = torch.randn(3, 4, generator=generator(), dtype=torch.float64)
    base = torch.randn(5, 4, 6, generator=generator(1), dtype=torch.float64)
    base[:, 2] = 0.0  # a dead unit
    rows = torch.einsum("co,nod->ncod", output_weights, base)
    flat = rows.flatten(2).flatten(0, 1)
    assert_same(channel_gram(rows), flat @ flat.T, 1e-12)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 1.0), (torch.float64, 1e-12), (torch.float32, 1e-3)])
def test_a_second_direction_in_a_channel_is_noticed(dtype, size):
    """Whatever stands above the rounding of the rows."""
    rows = torch.ones(5, 3, 4, 6, dtype=dtype)
    rows[1, 2, 3, 4] += size
    assert channel_gram(rows) is None


def test_rounding_to_float32_is_not_taken_for_a_second_direction():
    output_weights = torch.randn(10, 4, generator=generator())
    base = torch.randn(50, 4, 6, generator=generator(1))
    rows = output_weights[None, :, :, None] * base[:, None]
    flat = rows.double().flatten(2).flatten(0, 1)
    assert_same(channel_gram(rows), flat @ flat.T, 1e-5)


def test_networks_have_rank_one_behind_their_last_hidden_layer_and_more_before():
    case, deep = make_case("mlp"), make_case("convnet")
    table = tabulate(case.model, lambda start, stop: case.x[start:stop], 7, case.plan)
    assert channel_gram(table.rows["0.weight"].unflatten(2, (5, -1))) is not None
    rows = tabulate(deep.model, lambda start, stop: deep.x[start:stop], 7, deep.plan).rows["0.weight"]
    assert channel_gram(rows.unflatten(2, (2, -1))) is None


def test_a_gram_of_rows_in_parts_is_that_of_all_rows(monkeypatch):
    """In tiles of columns that leave a rest, and with a graph."""
    monkeypatch.setattr(linalg, "_TILE_ENTRIES", {"cpu": 1})
    monkeypatch.setattr(linalg, "_TILE_COLUMNS", 4)
    rows = torch.randn(7, 10, generator=generator(), dtype=torch.float64)
    for leaf in (rows, rows.clone().requires_grad_()):
        assert_same(linalg.gram(leaf[:2], leaf[2:3], leaf[3:]), rows @ rows.T, 1e-13)
    assert torch.autograd.gradcheck(linalg.gram, rows.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("divisor", [torch.tensor(3.0).double(), torch.arange(1.0, 11.0).double()])
def test_a_left_product_is_taken_by_tiles_in_float64(dtype, divisor, monkeypatch):
    monkeypatch.setattr(linalg, "_TILE_ENTRIES", {"cpu": 1})
    monkeypatch.setattr(linalg, "_TILE_COLUMNS", 4)
    matrix = torch.randn(7, 7, generator=generator(), dtype=torch.float64)
    rows = torch.randn(7, 10, generator=generator(), dtype=dtype)
    found = linalg.left_product(matrix, rows, divisor)
    assert found.dtype == dtype
    assert_same(found, matrix @ rows.double() / divisor, 1e-6 if dtype == torch.float32 else 1e-13)


def test_an_eigensystem_is_found_where_divide_and_conquer_gives_up(monkeypatch):
    """As LAPACK does on some matrices whose rows are mostly zero."""
    rows = torch.randn(2, 7, 4, generator=generator(), dtype=torch.float64)
    rows[:, 3:6] = 0.0
    matrices = rows @ rows.mT
    expected = linalg.eigensystem(matrices, "a test")[0]

    def gives_up(matrix):
        raise torch.linalg.LinAlgError("The algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", gives_up)
    monkeypatch.setattr(torch.linalg, "eigvalsh", gives_up)
    assert_same(linalg.spectrum(matrices, "a test"), expected, 1e-13)
    eigenvalues, eigenvectors = linalg.eigensystem(matrices, "a test")
    assert_same(eigenvalues, expected, 1e-13)
    assert_same((eigenvectors * eigenvalues.unsqueeze(1)) @ eigenvectors.mT, matrices, 1e-13)
    assert_same(eigenvectors.mT @ eigenvectors, torch.eye(7, dtype=torch.float64).expand(2, 7, 7), 1e-13)
    for name in ("svd", "svdvals"):
        monkeypatch.setattr(torch.linalg, name, gives_up)
    for decompose in (linalg.spectrum, linalg.eigensystem):
        with pytest.raises(NotPositiveDefiniteError, match="no eigenvalues of a test were found: The algorithm failed"):
            decompose(matrices, "a test")
