"""Rows cut from a table of all Jacobians are the rows of a capture, whatever is cut and however the table is kept."""

from __future__ import annotations

import pytest
import torch

from ntkml.grouping import tree_for
from ntkml.hyperparameters.affine import affine_views, draw_noise
from ntkml.linalg import NotPositiveDefiniteError
from ntkml.partitions import Block
from ntkml.rows import tabulated
from ntkml.rows.block import CapturedRows
from ntkml.rows.capture import capture
from ntkml.rows.tabulated import JacobianTable, TabulatedRows, tabulate
from ntkml.structures import structure_named
from tests.dense import dense_jacobian
from tests.factories import (
    STRUCTURES,
    assert_same,
    generator,
    make_case,
    make_prior,
)

NAMES = ["N-C", "3-C", "3-1", "N-1", "3-2", "3-tree", "3-1+iid", "N-tree+iid", "3-C+kmeans"]

#: (inputs, network): more parameters than index pairs, so that Grams are kept whole and cut, and fewer.
TABLES = {"wide": (7, "convnet"), "narrow": (35, "mlp"), "mixed": (10, "mlp")}


def views_of(case, num_views):
    """(start, stop) -> views of the inputs, as a run makes them; images by affine views, vectors by noise."""
    n = len(case.x)
    if num_views == 1:
        return lambda start, stop: case.x[start:stop]
    if case.x.ndim == 2:
        shift = 0.3 * torch.randn(n, num_views, 4, generator=generator(6), dtype=torch.float64)
        every = (case.x.unsqueeze(1) + shift).flatten(0, 1)
    else:
        noise = draw_noise(n, num_views, generator(6), torch.float64)
        every = affine_views(case.x, torch.full((6,), 0.4, dtype=torch.float64), noise)
    return lambda start, stop: every[start * num_views : stop * num_views]


def both(case, num_views, chunk=3):
    """The table, and a function that captures a batch of inputs afresh."""
    views = views_of(case, num_views)
    table = tabulate(case.model, views, len(case.x), case.plan, num_views, chunk)
    every = views(0, len(case.x)).unflatten(0, (-1, num_views))
    return table, lambda inputs: capture(case.model, every[inputs].flatten(0, 1), num_views)


@pytest.mark.parametrize("num_views", [1, 3])
@pytest.mark.parametrize("kind", TABLES)
def test_the_table_holds_the_outputs_and_jacobian_of_the_averaged_network(kind, num_views):
    num_inputs, network = TABLES[kind]
    case = make_case(network, num_inputs=num_inputs)
    table, _ = both(case, num_views)
    x = views_of(case, num_views)(0, num_inputs)
    assert_same(table.outputs, case.model(x).unflatten(0, (-1, num_views)).mean(1))
    jacobian = torch.cat([table.rows[name] for name in case.shapes], dim=-1)
    assert_same(jacobian, dense_jacobian(case.model, x, num_views))
    assert not table.outputs.requires_grad
    full = jacobian.flatten(0, 1)
    for precisions in (
        None,
        make_prior("layerwise", case).of(case.shapes),
        None,
    ):  # the kept one is that of the last prior
        values = {name: 1.0 if precisions is None else precisions[name] for name in case.shapes}
        scaled = torch.cat([table.rows[name] / values[name] for name in case.shapes], dim=-1).flatten(0, 1)
        assert_same(table.total_gram(precisions), scaled @ full.T)
    for name in case.shapes:
        rows = table.rows[name].flatten(0, 1)
        assert_same(table.gram(name), rows @ rows.T)


def test_the_tables_of_these_tests_take_every_path():
    wide = {kind: tabulated_widths(*TABLES[kind]) for kind in TABLES}
    assert not any(wide["narrow"])
    assert any(wide["wide"])
    assert not all(wide["wide"])
    num_inputs, network = TABLES["mixed"]
    assert make_case(network).num_params > 3 * num_inputs
    assert not any(wide["mixed"])


def tabulated_widths(num_inputs, network):
    case = make_case(network, num_inputs=num_inputs)
    table = tabulate(case.model, lambda start, stop: case.x[start:stop], num_inputs, case.plan)
    return [table.wide(name) for name in case.shapes]


@pytest.mark.parametrize("num_views", [1, 3])
@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("name", NAMES)
def test_every_block_of_every_estimator_is_that_of_a_capture(name, kind, num_views):
    num_inputs, network = TABLES[kind]
    case = make_case(network, num_inputs=num_inputs)
    spec, partition = case.partition(f"ntk-{name}")
    table, captured_batch = both(case, num_views)
    factor = case.likelihood.factor(table.outputs, spec.outputs, tree_for(case.model, case.num_outputs))
    scaled = make_prior("layerwise", case).of(case.shapes)
    for block in partition.blocks[:: max(1, len(partition) // 4)]:  # the first, the last and some between
        captured = captured_batch(block.inputs)
        own = block.select(
            case.likelihood.factor(captured.outputs.detach(), spec.outputs, tree_for(case.model, case.num_outputs))
        )
        cut = TabulatedRows(table, block.inputs, block.select(factor[block.inputs]))
        fresh = CapturedRows(captured, own, case.shapes)
        assert cut.num_rows == fresh.num_rows == block.num_pairs
        assert_same(cut.total_gram(), fresh.total_gram())
        assert_same(cut.total_gram(scaled), fresh.total_gram(scaled))
        for parameter in case.shapes:
            assert_same(cut.explicit(parameter), fresh.explicit(parameter))
            assert_same(cut.gram(parameter), fresh.gram(parameter))
        for structure in STRUCTURES:
            prior = make_prior("layerwise" if structure == "kfac" else "diagonal", case)
            kept, made = (structure_named(structure)(rows) for rows in (cut, fresh))
            assert_same(kept.log_det(prior), made.log_det(prior))
            assert_same(kept.spectrum().sort().values, made.spectrum().sort().values, 1e-9)


def test_a_gram_is_cut_in_strips_of_a_few_inputs(monkeypatch):
    """Strips that leave a rest, one input at a time, and all at once."""
    case = make_case("convnet")
    table = tabulate(case.model, lambda start, stop: case.x[start:stop], 7, case.plan)
    factor = case.likelihood.factor(table.outputs, "C", tree_for(case.model, case.num_outputs))
    cut = []
    for entries in (1, 3 * factor.numel() * factor.shape[2], 2**20):  # one, three and seven inputs
        monkeypatch.setattr(tabulated, "_CUT_ENTRIES", entries)
        cut.append(TabulatedRows(table, torch.arange(7), factor)._cut(table.total_gram()))
    jacobian = torch.cat([table.rows[name] for name in case.shapes], dim=2)
    rows = torch.einsum("ncp,nck->nkp", jacobian, factor).flatten(0, 1)
    for gram in cut:
        assert_same(gram, rows @ rows.T)


def test_chunks_do_not_show():
    case = make_case("convnet")
    tables = [
        tabulate(case.model, lambda start, stop: case.x[start:stop], 7, case.plan, chunk=chunk)
        for chunk in (1, 4, 7, 50)
    ]
    for table in tables[1:]:
        assert_same(table.outputs, tables[0].outputs, 1e-13)
        for name in case.shapes:
            assert_same(table.rows[name], tables[0].rows[name], 1e-13)
        for layer, kept in table.kept.items():
            assert_same(kept.inputs, tables[0].kept[layer].inputs, 1e-13)
            assert_same(kept.gradients, tables[0].kept[layer].gradients, 1e-13)


def test_kronecker_inputs_are_kept_only_where_they_are_asked_for():
    case = make_case("mlp")
    assert tabulate(case.model, lambda start, stop: case.x[start:stop], 7, case.plan, kronecker=False).kept == {}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kind", TABLES)
def test_columns_that_vanish_altogether_leave_no_complexity(kind, structure):
    """A saturated network has blocks whose factor underflows to zero: no output supports them."""
    num_inputs, network = TABLES[kind]
    case = make_case(network, num_inputs=num_inputs)
    table, _ = both(case, 1)
    for columns in (1, 2):
        rows = TabulatedRows(table, torch.arange(3), torch.zeros(3, 3, columns, dtype=torch.float64))
        assert structure_named(structure)(rows).log_det(make_prior("layerwise", case)) == 0
        assert rows.total_gram().shape == (3 * columns, 3 * columns)


@pytest.mark.parametrize("columns", [[[1], [0], [0], [1]], [1, 0], [1]])
def test_a_block_may_hold_any_pairs_in_any_order(columns):
    """Repeated inputs, a column each or a deeper split before the root: partitions that no name describes."""
    case = make_case("convnet")
    table, _ = both(case, 1)
    block = Block(torch.tensor([5, 0, 5, 3]), torch.tensor(columns))
    factor = block.select(
        case.likelihood.factor(table.outputs, "tree", tree_for(case.model, case.num_outputs))[block.inputs]
    )
    rows = torch.einsum("ncp,nck->nkp", case.jacobian[block.inputs], factor).flatten(0, 1)
    assert_same(TabulatedRows(table, block.inputs, factor).total_gram(), rows @ rows.T)


def test_nan_in_a_table_is_named():
    """Overflow in a forward pass gives NaN rows; the structure says so, not a routine of the linear algebra."""
    case = make_case("convnet")
    table, _ = both(case, 1)
    rows = {name: values.clone() for name, values in table.rows.items()}
    for values in rows.values():
        values[2, 1] = torch.nan
    broken = JacobianTable(table.outputs, rows, table.kept, table.shapes)
    factor = case.likelihood.factor(table.outputs, "C", None)
    for structure in ("ntk", "ggn", "blockdiag", "diag"):
        cut = TabulatedRows(broken, torch.arange(7), factor)
        with pytest.raises(NotPositiveDefiniteError, match="check the data and weights"):
            structure_named(structure)(cut).log_det(make_prior("layerwise", case))
