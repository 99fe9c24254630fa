"""How many inputs are captured at a time, and what happens where memory runs out."""

from __future__ import annotations

import logging
import weakref

import pytest
import torch
from torch import nn

from ntkml import two_pass
from ntkml.rows import chunking
from ntkml.rows.chunked import ChunkedRows
from ntkml.rows.chunking import BlockMemoryError, automatic_chunk
from ntkml.rows.exact import RowPlan
from ntkml.rows.pulled import rows_by_columns
from ntkml.specs import PRIOR_KINDS
from ntkml.structures import ntk
from ntkml.structures.adjoints import RowAdjoint
from tests.factories import assert_same, generator, seeded
from tests.objectives import COUNT, Brightness, assert_equal, everything, parts_of, problem

OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    MemoryError(),
)

pytestmark = pytest.mark.usefixtures("one_thread")


def small_machine(monkeypatch, error, largest, when=lambda differentiable: True):
    """Captures of more than ``largest`` network inputs find no memory."""
    capture = two_pass.capture

    def limited(model, inputs, num_views=1, differentiable=False, plan=None):
        if len(inputs) > largest * num_views and when(differentiable):
            raise error
        return capture(model, inputs, num_views, differentiable, plan)

    monkeypatch.setattr(two_pass, "capture", limited)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "cpu", "python"])
@pytest.mark.parametrize("name", ["ntk-9-1", "blockdiag-8-C", "kfac-8-C"])
def test_without_memory_the_chunk_is_halved_and_the_gradient_stays(name, error, monkeypatch, caplog):
    expected = everything(*problem(Brightness(), name, chunk=2))
    small_machine(monkeypatch, error, largest=3)
    objective, x, y = problem(Brightness(), name, chunk=4)
    assert_equal(everything(objective, x, y), expected)
    assert objective.chunk == 2
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "out of memory with chunks of 4 inputs: continuing with 2"
    ]
    assert {record.name for record in caplog.records} == {"ntkml"}


@pytest.mark.parametrize("name", ["ntk-8-C", "kfac-8-1"])
def test_the_second_pass_may_find_no_memory_and_no_gradient_counts_twice(name, monkeypatch, caplog):
    """In its last chunk, after the gradients of the others were there."""
    expected = everything(*problem(Brightness(), name, chunk=1))
    seen = []
    small_machine(
        monkeypatch, OUT_OF_MEMORY[1], 1, when=lambda second: second and seen.append(1) is None and len(seen) > 3
    )
    objective, x, y = problem(Brightness(), name, chunk=2)
    assert_equal(everything(objective, x, y), expected)
    assert len(caplog.records) == 1
    assert objective.chunk == 1


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("name", ["diag-N-C", "diag-4-C", "diag-3-2"])
def test_columns_that_are_squared_in_turn_are_squared_once(name, together, monkeypatch):
    """Three columns of every input, or two: with a remainder and without."""
    drawn = []

    def counted(*arguments):
        for layers in rows_by_columns(*arguments):
            drawn.append(next(iter(layers.values())).counts[1])
            yield layers

    monkeypatch.setattr(two_pass, "rows_by_columns", counted)
    objective, x, y = problem(Brightness(), name, chunk=2)
    expected = everything(objective, x, y)
    columns = max(drawn)
    assert columns > 1
    drawn.clear()
    monkeypatch.setattr(two_pass, "columns_squared", lambda *_: together)
    assert_equal(everything(objective, x, y), expected)
    assert max(drawn) == together
    assert sum(drawn) % columns == 0


def test_fewer_columns_are_squared_together_where_they_are_larger(monkeypatch):
    monkeypatch.setitem(chunking.SQUARED_BYTES, "cpu", 8 * 60)
    shapes = {"weight": torch.Size((2, 5)), "bias": torch.Size((2,))}
    found = [chunking.columns_squared(shapes, n, torch.zeros(1, dtype=torch.float64)) for n in (1, 2, 3, 6, 100)]
    assert found == [6, 3, 2, 1, 1]


def test_the_first_halving_starts_from_what_the_block_holds(monkeypatch, caplog):
    """An automatic chunk is often much larger than a block."""
    small_machine(monkeypatch, MemoryError(), largest=2)
    objective, x, y = problem(None, "ntk-4-C", chunk=512)
    objective.backward(x, y, None)
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with chunks of 4 inputs: continuing with 2"
    ]


@pytest.mark.parametrize("prior", PRIOR_KINDS)
def test_values_of_several_groups_are_computed_in_smaller_chunks_too(prior, monkeypatch):
    """Without a gradient: the captures of the later groups come while the log-determinant is computed."""
    monkeypatch.setattr(chunking, "ROWS_BYTES", 1)
    objective, x, y = problem(Brightness(), "ntk-N-1", prior, chunk=9)
    expected = parts_of(objective.estimate(x, y, None, generator(1)))
    seen = []
    small_machine(monkeypatch, MemoryError(), 4, when=lambda _: seen.append(1) is None and len(seen) > 1)
    assert_same(parts_of(objective.estimate(x, y, None, generator(1))), expected, 1e-12)
    assert objective.chunk == 4


@pytest.mark.parametrize("call", ["backward", "estimate"])
@pytest.mark.parametrize(("name", "chunk"), [("ntk-4-1", None), ("kfac-N-C", 3), ("diag-1-C", 5)])
def test_a_block_that_does_not_fit_one_input_at_a_time_is_refused_by_name(call, name, chunk, monkeypatch):
    small_machine(monkeypatch, OUT_OF_MEMORY[0], largest=0)
    objective, x, y = problem(None, name, chunk=chunk)
    words = (
        rf"out of memory: a block of \d+ rows \({name}\) does not fit, one input at a time: choose an estimator with"
    )
    with pytest.raises(BlockMemoryError, match=words) as refusal:
        getattr(objective, call)(x, y)
    assert isinstance(refusal.value, ValueError)
    assert all(parameter.grad is None for parameter in objective.in_network)


def test_other_errors_pass_and_change_no_chunk(monkeypatch, caplog):
    small_machine(monkeypatch, RuntimeError("a mistake of ours"), largest=0)
    objective, x, y = problem(Brightness(), "ntk-4-1", chunk=4)
    with pytest.raises(RuntimeError, match=r"^a mistake of ours$"):
        objective.backward(x, y)
    assert objective.chunk == 4
    assert not caplog.records


def test_a_kernel_that_does_not_fit_is_no_matter_of_chunks(monkeypatch):
    """Halving ends: it is never tried for ever."""

    def failing(*_, **__):
        raise MemoryError

    monkeypatch.setattr(ntk, "log_det_identity_plus", failing)
    with pytest.raises(BlockMemoryError, match=r"ntk-8-C"):
        problem(None, "ntk-8-C")[0].backward(*problem(None, "ntk-8-C")[1:])


def wide(width):
    return seeded(nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3)))


def chunk_of(model, num_views=1, num_columns=1, budget=2**20):
    example = torch.zeros(num_views, 4, dtype=torch.float64)
    before = chunking.CHUNK_BYTES["cpu"]
    chunking.CHUNK_BYTES["cpu"] = budget
    try:
        return automatic_chunk(model, RowPlan(), example, num_columns)
    finally:
        chunking.CHUNK_BYTES["cpu"] = before


def test_the_automatic_chunk_shrinks_with_views_columns_and_width_and_is_always_the_same():
    chunks = [chunk_of(wide(400), num_columns=k) for k in (1, 2, 5, 10)]
    assert chunks == sorted(set(chunks), reverse=True)
    chunks = [chunk_of(wide(400), num_views=s) for s in (1, 2, 5, 10)]
    assert chunks == sorted(set(chunks), reverse=True)
    chunks = [chunk_of(wide(width)) for width in (100, 400, 1600)]
    assert chunks == sorted(set(chunks), reverse=True)
    assert len({chunk_of(wide(400)) for _ in range(3)}) == 1


class Raw(nn.Module):
    """A weight of its own, which takes exact rows: far more numbers than what its layer is given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2000, 4, dtype=torch.float64))

    def forward(self, x):
        return (x @ self.weight.T).sum(1, keepdim=True)


def test_exact_rows_of_an_input_are_counted_once_for_all_its_views():
    plan, sizes = RowPlan({"weight": "raw"}), []
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(chunking.CHUNK_BYTES, "cpu", 2**22)
        for views in (1, 4):
            sizes.append(automatic_chunk(Raw(), plan, torch.zeros(views, 4, dtype=torch.float64), 1))
    assert sizes == [2**22 // (8 * 8 * 8000 + 8)] * 2


def test_the_automatic_chunk_is_one_at_least_and_keeps_to_the_caches_of_a_cpu():
    assert chunk_of(wide(400), num_views=3, num_columns=10, budget=1) == 1
    assert chunk_of(wide(4), budget=2**40) == chunking.MAX_CPU_INPUTS
    assert chunk_of(wide(4), num_views=10, budget=2**40) == chunking.MAX_CPU_INPUTS // 10


def test_the_automatic_chunk_is_found_by_the_first_estimate_and_kept():
    objective, x, y = problem(Brightness(), "ntk-4-1")
    assert objective.chunk is None
    objective.estimate(x, y)
    assert objective.chunk == chunking.MAX_CPU_INPUTS // Brightness.num_views
    assert objective.chunk > COUNT
    state = objective.chunk
    objective.backward(x, y, None)
    assert objective.chunk == state


def test_patches_count_only_where_they_are_made():
    """A float32 convolution on a CPU makes them for KFAC alone, of the mean over the views."""
    model = seeded(nn.Sequential(nn.Conv2d(2, 2, 5, padding=2), nn.Flatten(), nn.Linear(2 * 64, 3))).float()
    sizes = [automatic_chunk(model, RowPlan(), torch.zeros(2, 2, 8, 8), 1, factors) for factors in (False, True)]
    assert sizes == [chunking.MAX_CPU_INPUTS // 2] * 2
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(chunking.CHUNK_BYTES, "cpu", 2**20)
        sizes = [automatic_chunk(model, RowPlan(), torch.zeros(2, 2, 8, 8), 1, factors) for factors in (False, True)]
        in_float64 = automatic_chunk(model.double(), RowPlan(), torch.zeros(2, 2, 8, 8, dtype=torch.float64), 1)
    assert sizes[0] > sizes[1] > in_float64


@pytest.mark.parametrize("name", ["ntk-4-1", "blockdiag-4-C"])
def test_rows_are_let_go_of_for_their_gradient_and_not_captured_again(name, monkeypatch):
    """Rows and their gradient side by side would be twice the memory of a block."""
    held = []
    of = RowAdjoint.of

    def watched(adjoint, names):
        pairing = of(adjoint, names)
        held.append(set(adjoint._rows._rows))
        return pairing

    monkeypatch.setattr(RowAdjoint, "of", watched)
    captured: list[bool] = []
    small_machine(monkeypatch, MemoryError(), 0, when=captured.append)
    objective, x, y = problem(Brightness(), name, chunk=2)
    objective.backward(x, y, 1, generator(1))
    assert held == [set()]
    assert captured == [False, False, True, True]  # two chunks in two passes


@pytest.mark.parametrize(
    ("name", "loaded"), [("ntk-4-1", 3 + 2 + 3), ("blockdiag-4-C", 3 + 2 + 3), ("ggn-4-C", 3 + 3 + 1)]
)
def test_one_group_at_a_time_has_rows_or_their_gradient(name, loaded, monkeypatch):
    """Three groups: for the log-determinant, for the gradient (but one that is there) and in the second pass."""
    monkeypatch.setattr(chunking, "ROWS_BYTES", 1)
    known = [weakref.ref(torch.zeros(()))]
    of, load = RowAdjoint.of, ChunkedRows._load_group

    def watched(adjoint, names):
        pairing = of(adjoint, names)
        known[:] = [weakref.ref(gradient) for gradient in pairing.rows.values()]
        return pairing

    def checked(rows, names):
        assert all(gradient() is None for gradient in known)
        load(rows, names)

    monkeypatch.setattr(RowAdjoint, "of", watched)
    monkeypatch.setattr(ChunkedRows, "_load_group", checked)
    captured: list[bool] = []
    small_machine(monkeypatch, MemoryError(), 0, when=captured.append)
    objective, x, y = problem(Brightness(), name, chunk=2)
    objective.backward(x, y, 1, generator(1))
    assert len(captured) == 2 * loaded  # chunks


def test_as_many_rows_are_held_as_the_documents_say():
    assert chunking.ROWS_BYTES == chunking.CHUNK_BYTES["cuda"] == 8 * 2**30
