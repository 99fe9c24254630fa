"""What every layer must be: rows equal to jacrev's, and Grams and positions consistent with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ntkml import Categorical, log_marginal_likelihood
from ntkml.layers import LAYER_TYPES, factors, kronecker, positions
from ntkml.layers.fixup import Bias, Scale
from ntkml.layers.kronecker import ExactBlocks
from ntkml.layers.patches import Patches
from ntkml.layers.positions import Positions
from ntkml.rows.block import CapturedRows
from ntkml.rows.capture import capture
from ntkml.rows.model_contract import check_model
from tests.dense import dense_log_det
from tests.factories import assert_same, generator
from tests.largest_tensor import LargestTensor
from tests.layer_examples import LAYERS, dense_rows, example, shapes_of, surrounded


def test_every_supported_layer_type_is_covered_here():
    """Embeddings, whose inputs are indices, have tests of their own; attention is among the networks of tests/networks."""
    others = {nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention}
    assert {type(make()) for make, _ in LAYERS.values()} | others == set(LAYER_TYPES)


@pytest.mark.parametrize("num_views", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_rows_are_those_of_jacrev(name, num_views):
    model, x, factor = example(name, num_views)
    rows = CapturedRows(capture(model, x, num_views), factor, shapes_of(model))
    for key, expected in dense_rows(model, x, factor, num_views).items():
        assert_same(rows.explicit(key), expected)
    check_model(model, x)


@pytest.mark.parametrize("num_views", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_sums_of_squares_are_those_of_the_rows(name, num_views):
    model, x, factor = example(name, num_views)
    squares = CapturedRows(capture(model, x, num_views), factor, shapes_of(model)).column_squares()
    dense = dense_rows(model, x, factor, num_views)
    assert set(squares) == set(dense)
    for key, expected in dense.items():
        assert_same(squares[key], expected.square().sum(0))


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("num_views", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_both_routes_to_the_gram_matrix_are_one(name, num_views, direct, monkeypatch):
    """Positions against positions in tiles, or rows against rows: the cheaper is taken, the value is the same."""
    monkeypatch.setattr(Positions, "direct_is_cheaper", lambda self: direct)
    monkeypatch.setattr(positions, "_DIRECT_TILE_ENTRIES", 3000)
    model, x, factor = example(name, num_views)
    rows = CapturedRows(capture(model, x, num_views), factor, shapes_of(model))
    dense = dense_rows(model, x, factor, num_views)
    for key, expected in dense.items():
        assert_same(rows.gram(key), expected @ expected.T)
    assert_same(rows.total_gram(), sum(expected @ expected.T for expected in dense.values()))


@pytest.mark.parametrize("name", LAYERS)
def test_float32_positions_give_float64_grams(name, monkeypatch):
    model, x, factor = example(name, 2)
    single = capture(model.float(), x.float(), 2)
    for direct in (True, False):
        monkeypatch.setattr(Positions, "direct_is_cheaper", lambda self, direct=direct: direct)
        rows = CapturedRows(single, factor, shapes_of(model), keep_graph=True)
        assert rows.total_gram().dtype == torch.float64
        assert all(rows.explicit(key).dtype == torch.float32 for key in shapes_of(model))


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize("name", ["linear", "linear over tokens", "conv with stride and padding", "conv in groups"])
def test_a_frozen_parameter_stays_out(name, frozen):
    model, x, factor = example(name, 1)
    model[1].get_parameter(frozen).requires_grad_(False)
    shapes = shapes_of(model)
    assert f"1.{frozen}" not in shapes
    assert len(shapes) == 3
    check_model(model, x)
    rows = CapturedRows(capture(model, x), factor, shapes)
    dense = dense_rows(model, x, factor, 1)
    for key, expected in dense.items():
        assert_same(rows.explicit(key), expected)
    assert_same(rows.total_gram(), sum(expected @ expected.T for expected in dense.values()))
    assert set(rows.kronecker_factors()) == set(shapes)


def test_the_cheaper_route_is_chosen():
    """Many inputs of one position and a wide layer: kernels of a and g; many positions and few weights: rows."""
    as_given = Patches(lambda inputs: inputs, lambda positions, shape: positions)
    wide = Positions(torch.ones(9, 1, 1, 200, 1), as_given, 200, torch.ones(9, 1, 1, 1, 200, 1), "weight", "bias")
    narrow = Positions(torch.ones(9, 1, 1, 2, 100), as_given, 2, torch.ones(9, 1, 1, 1, 2, 100), "weight", "bias")
    assert wide.direct_is_cheaper()
    assert not narrow.direct_is_cheaper()


def test_a_depthwise_convolution_takes_rows():
    """A kernel for every channel took twenty times as long, and patches were made anew for each of them."""
    taken = []

    def take(inputs):
        taken.append(inputs)
        return inputs

    channels, cotangents = 32, 5
    gradients = torch.ones(9, 1, cotangents, channels, 1, 1)
    depthwise = Positions(
        torch.ones(9, 1, channels, 9, 1), Patches(take, lambda positions, shape: positions), 9, gradients, "weight", ""
    )
    assert not depthwise.direct_is_cheaper()
    assert_same(depthwise.gram("weight"), torch.full((45, 45), channels * 9.0))
    assert len(taken) == 1


@pytest.mark.parametrize("shape", [(), (1,), (2, 1, 1), (1, 2, 1, 1), (5,)])
@pytest.mark.parametrize("kind", [Bias, Scale])
def test_a_bias_or_scale_takes_every_shape_that_broadcasts(kind, shape):
    model = surrounded(kind(shape), (2, 5, 5))
    x = torch.randn(8, 2, 5, 5, generator=generator(), dtype=torch.float64)
    factor = torch.randn(4, 3, 2, generator=generator(4), dtype=torch.float64)
    rows = CapturedRows(capture(model, x, num_views=2), factor, shapes_of(model))
    for key, expected in dense_rows(model, x, factor, 2).items():
        assert_same(rows.explicit(key), expected)


def test_fixup_layers_start_as_the_identity():
    x = torch.randn(3, 2)
    assert torch.equal(Bias()(x), x)
    assert torch.equal(Scale()(x), x)


def test_a_bias_of_its_own_for_every_input_is_refused():
    model = surrounded(Bias((4, 2)), (2,))
    message = r"a bias or scale of shape \(4, 2\) does not broadcast against one input of shape \(2,\): leave out"
    with pytest.raises(ValueError, match=message):
        capture(model, torch.zeros(4, 2, dtype=torch.float64))


def test_what_is_kept_of_a_scale_does_not_grow_with_its_input():
    """One number per input and view, however large the image."""
    model = surrounded(Scale(), (2, 16, 16))
    captured = capture(model, torch.randn(6, 2, 16, 16, dtype=torch.float64))
    pulled = captured.pull_back(torch.ones(6, 3, dtype=torch.float64))
    assert pulled[0][0].shape == (6, 1)


WORK, ENTRIES = "MAX_BLOCK_WORK", "MAX_BLOCK_ENTRIES"


@pytest.mark.parametrize(
    ("limit", "most", "size"),
    [
        *((WORK, most, size) for most, size in ((24**3, 24), (24**3 - 1, 12), (2 * 12**3 - 1, 4), (6 * 4**3 - 1, 1))),
        *(
            (ENTRIES, most, size)
            for most, size in ((24**2, 24), (24**2 - 1, 12), (2 * 12**2 - 1, 4), (6 * 4**2 - 1, 1))
        ),
        (WORK, 0, 1),
        (ENTRIES, 0, 1),
    ],
)
def test_kfac_divides_what_is_too_large_for_one_block_by_leading_indices(limit, most, size, monkeypatch):
    """Exact blocks of a LayerNorm over (2, 3, 4): all entries, 2 x 12, 6 x 4, or the diagonal."""
    monkeypatch.setattr(kronecker, limit, most)
    model = surrounded(nn.LayerNorm((2, 3, 4), bias=False), (2, 3, 4), trainable_head=False)
    x = torch.randn(3, 2, 3, 4, generator=generator(), dtype=torch.float64)
    y = torch.zeros(3, dtype=torch.long)
    factor = Categorical().factor(model(x).detach(), "C", None)
    rows = dense_rows(model, x, factor, 1)["1.weight"]
    expected = dense_log_det(rows.T @ rows, torch.full((24,), 0.3, dtype=torch.float64), [size] * (24 // size))
    assert_same(log_marginal_likelihood(model, x, y, "kfac-N-C", prior=0.3).log_det, expected)


def test_many_blocks_are_made_some_at_a_time(monkeypatch):
    rows = torch.randn(5, 1, 7, 2, generator=generator())
    expected = torch.einsum("bkqm,bkqn->qmn", rows.double(), rows.double())
    monkeypatch.setattr(kronecker, "MAX_BLOCK_WORK", 7 * 2**3)
    monkeypatch.setattr(factors, "_TILE_ENTRIES", 25)
    assert_same(ExactBlocks({"weight": rows}).factors(True, True)["weight"][0], expected)


@pytest.mark.parametrize("shape", [(7,), (3, 7)])
def test_blocks_of_more_entries_than_rows_are_known_by_their_rows(shape, monkeypatch):
    """In two parts, as from two chunks: eigenvalues, and gradients of the log-determinant, (delta I + R^T R)^-1 without another factor."""
    monkeypatch.setattr(kronecker, "MAX_BLOCK_WORK", 3 * 7**3)  # one block, or one for each of three leading indices
    parts = [torch.randn(n, 2, *shape, generator=generator(n), dtype=torch.float64) for n in (1, 2)]

    def summed(num_rows):
        first, second = (ExactBlocks({"w": rows}).factors(True, True, num_rows)["w"][0] for rows in parts)
        return factors.added(first, second)

    by_rows, by_entries = summed(6), summed(7)
    assert isinstance(by_rows, factors.RowFactor)
    assert by_entries.shape[1:] == (7, 7)
    spectra = [factors.factor_spectrum(factor, "w") for factor in (by_rows, by_entries)]
    assert_same(spectra[0], spectra[1][:, 1:])
    assert_same(spectra[1][:, 0], torch.zeros(len(by_entries)))
    precision = torch.tensor(0.3, dtype=torch.float64)
    systems = [factors.factor_eigensystem(factor, "w") for factor in (by_rows, by_entries)]
    alone = torch.ones(len(by_entries), 1, dtype=torch.float64)
    inverse = torch.linalg.inv(by_entries + precision * torch.eye(7, dtype=torch.float64))
    others = torch.rand(len(by_entries), 4, generator=generator(), dtype=torch.float64)
    for system in systems:
        assert_same(system.gradient(alone, precision), inverse)
        assert_same(system.gradient(others, precision), systems[1].gradient(others, precision))


def test_exact_blocks_are_paired_without_a_copy_of_them_for_every_row():
    rows = torch.randn(20, 2, 6, 5, generator=generator(), dtype=torch.float64)
    gradient = torch.randn(6, 5, 5, generator=generator(1), dtype=torch.float64)
    with (
        pytest.MonkeyPatch.context() as patched,
        LargestTensor() as largest,
    ):
        patched.setattr(kronecker, "MAX_BLOCK_WORK", 6 * 5**3)
        paired = ExactBlocks({"weight": rows}).pair({"weight": (gradient,)}, 20)
    assert_same(paired, torch.einsum("nkqi,qij,nkqj->", rows, gradient, rows))
    assert largest.numel == rows.numel()
