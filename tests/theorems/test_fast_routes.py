"""Every shorter route gives the number of the plain one: float64, 1e-10."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ntkml import MarginalLikelihood, linalg
from ntkml.layers.factors import RowFactor, factor_spectrum
from ntkml.layers.kronecker import ExactBlocks
from ntkml.layers.positions import Positions
from ntkml.linalg import scatter, scatters
from ntkml.rows.capture import capture
from ntkml.rows.chunked import ChunkedRows
from ntkml.rows.pulled import rows_by_layer
from ntkml.structures import kfac
from ntkml.structures.kfac import KFAC
from tests.factories import assert_same, generator, seeded
from tests.objectives import Brightness, everything, problem

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = 1e-10


@pytest.mark.parametrize("shape", [(5, 3, 7), (5, 7, 3), (4, 6, 1), (3, 2, 2)])
def test_scatter_is_the_gram_of_all_vectors_side_by_side(shape, monkeypatch):
    """Input by input in tiles that leave a rest, or all at once."""
    monkeypatch.setattr(linalg, "_MOMENT_ENTRIES", 2 * shape[1] * shape[2])
    vectors = torch.randn(*shape, generator=generator(), dtype=torch.float64)
    side_by_side = vectors.transpose(0, 1).flatten(1)
    assert_same(scatter(vectors), side_by_side @ side_by_side.T, TOLERANCE)
    assert torch.equal(scatter(vectors), scatter(vectors).T)


@pytest.mark.parametrize("entries", [1, 4 * 84, 5 * 84, 2**18])
def test_scatters_of_groups_are_those_of_each(entries, monkeypatch):
    """One by one, some at a time with a rest, or all together."""
    monkeypatch.setitem(linalg._TILE_ENTRIES, "cpu", entries)
    vectors = torch.randn(4, 9, 3, 7, generator=generator(), dtype=torch.float64)
    expected = torch.einsum("nqmt,nqlt->qml", vectors, vectors)
    assert_same(scatters(vectors), expected, TOLERANCE)
    assert torch.equal(scatters(vectors), scatters(vectors).mT)


@pytest.mark.parametrize("augmentation", [None, Brightness()])
@pytest.mark.parametrize("name", ["ntk-N-1", "ntk-N-C", "blockdiag-N-C", "ntk-4-tree"])
def test_layers_that_keep_inputs_and_gradients_equal_those_that_keep_rows(name, augmentation, monkeypatch):
    """Value and every gradient, in chunks that leave a rest; the route is forced for all captured layers."""
    found = []
    for direct in (True, False):
        monkeypatch.setattr(Positions, "direct_is_cheaper", lambda self, direct=direct: direct)
        found.append(everything(*problem(augmentation, name, chunk=2)))
    for key, expected in found[1].items():
        assert_same(found[0][key], expected, TOLERANCE)


def test_the_first_chunk_decides_the_route_of_a_layer(monkeypatch):
    """A last chunk that is smaller may count otherwise, but rows and positions of one layer cannot be joined."""
    expected = everything(*problem(None, "ntk-N-C", chunk=4))
    monkeypatch.setattr(Positions, "direct_is_cheaper", lambda self: self.counts[0] == 4)
    for key, value in everything(*problem(None, "ntk-N-C", chunk=4)).items():
        assert_same(value, expected[key], TOLERANCE)


def test_spectra_from_the_smaller_side_lack_only_zeros():
    """The wide last layer has fewer inputs (3) than entries (16): its factor is known by 3 eigenvalues then, in one chunk or of few rows."""
    objective, x, _ = problem(None, "kfac-N-C")
    captured = capture(objective.model, x[:3])
    factor = objective.likelihood.factor(captured.outputs.detach(), "C", objective.tree)
    layers = rows_by_layer(captured, factor, keep_graph=True, over_views=True)
    shapes = {name: weight.shape for name, weight in objective.model.named_parameters() if "slope" not in name}
    values = []
    for values_only, num_rows, size in ((True, 16, 3), (False, 15, 3), (False, 16, 16)):
        rows = ChunkedRows(lambda: [[layers]], shapes, "factors", [tuple(shapes)], num_rows, values_only)
        values.append(KFAC(rows).log_det(objective.prior))
        assert factor_spectrum(rows.kronecker_factors()["6.weight"][1], "6.weight").shape[-1] == size
    for value in values[1:]:
        assert_same(values[0], value, TOLERANCE)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["kfac-N-1", "kfac-N-C", "kfac-3-C"])
def test_exact_blocks_of_more_entries_than_rows_take_the_rows(name, chunk, monkeypatch):
    """A scale of 40 channels and 5 inputs: eigenvalues of a matrix of 5, 10, or 6 or 4 rows, whatever the chunks and columns."""
    x = torch.randn(5, 4, generator=generator(2), dtype=torch.float64)
    y = torch.arange(5) % 3

    def gradients():
        model = seeded(nn.Sequential(nn.Linear(4, 40), nn.LayerNorm(40), nn.Tanh(), nn.Linear(40, 3)))
        objective = MarginalLikelihood(model, name, chunk=chunk)
        total = objective.backward(x, y, generator=generator(3)).total
        return [total, objective.log_prior_precision.grad]

    sizes, found = {}, kfac.factor_spectrum
    monkeypatch.setattr(kfac, "factor_spectrum", lambda factor, of: found(sizes.setdefault(of, factor), of))
    narrow = gradients()
    rows = {"kfac-N-1": (5,), "kfac-N-C": (10,), "kfac-3-C": (6, 4)}[name]
    for key in ("1.weight", "1.bias"):
        assert isinstance(sizes[key], RowFactor)
        assert len(torch.cat(sizes[key].parts)) in rows
    by_their_size = ExactBlocks.factors
    monkeypatch.setattr(ExactBlocks, "factors", lambda self, spectra_only, moments, _: by_their_size(self, True, True))
    for value, expected in zip(narrow, gradients(), strict=True):
        assert_same(value, expected, TOLERANCE)


@pytest.mark.parametrize("larger", [True, False])
@pytest.mark.parametrize("num_chunks", [1, 3])
@pytest.mark.parametrize("grouped", [True, False])
def test_rows_made_for_one_gram_are_the_rows_that_were_kept(larger, num_chunks, grouped, monkeypatch):
    """For values alone: Grams and rows of every tensor, all at once or in groups of one tensor."""
    monkeypatch.setattr(Positions, "direct_is_cheaper", lambda self: False)
    monkeypatch.setattr(Positions, "rows_are_larger", lambda self: larger)
    objective, x, _ = problem(None, "ntk-N-C")
    shapes = {name: weight.shape for name, weight in objective.model.named_parameters() if "slope" not in name}
    groups = [(name,) for name in shapes] if grouped else [tuple(shapes)]

    def layers_of(part):
        captured = capture(objective.model, part)
        factor = objective.likelihood.factor(captured.outputs.detach(), "C", objective.tree)
        return rows_by_layer(captured, factor, keep_graph=True)

    num_rows = len(x) * layers_of(x)["6"].counts[1]
    chunks = [[layers_of(part)] for part in x.chunk(num_chunks)]
    rows = ChunkedRows(lambda: chunks, shapes, "rows", groups, num_rows, True)
    plain = ChunkedRows(lambda: [[layers_of(x)]], shapes, "rows", [tuple(shapes)], num_rows)
    for name in shapes:
        assert_same(rows.gram(name), plain.gram(name), TOLERANCE)
    if not grouped:
        assert ("6.weight" in rows._rows) == (not larger)
    for name in shapes:
        assert_same(rows.explicit(name), plain.explicit(name), TOLERANCE)
    assert rows.num_rows == plain.num_rows
    if grouped and larger:
        assert not {"6.weight", "6.bias"} & set(rows._rows)
