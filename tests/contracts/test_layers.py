"""What every layer must be: rows equal to jacrev's, and Grams and positions consistent with them."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ntkml import log_marginal_likelihood
from ntkml.layers import LAYER_TYPES, conv, kronecker, linear, patches, positions
from ntkml.layers import embedding as embedding_module
from ntkml.layers.embedding import EmbeddingRows
from ntkml.layers.fixup import Bias, Scale
from ntkml.layers.patches import Patches
from ntkml.layers.positions import Positions
from ntkml.rows.block import CapturedRows
from ntkml.rows.capture import capture
from ntkml.rows.model_contract import check_model
from ntkml.rows.pulled import rows_by_layer
from tests.dense import dense_jacobian
from tests.factories import (
    assert_same,
    generator,
    seeded,
)

#: (layer, shape of one of its inputs), with few and with many positions compared to the fan-in.
LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "linear without bias": (lambda: nn.Linear(4, 3, bias=False), (4,)),
    "linear over tokens": (lambda: nn.Linear(4, 3), (3, 4)),
    "linear over a grid, wider than deep": (lambda: nn.Linear(2, 3), (2, 3, 2)),
    "conv": (lambda: nn.Conv2d(2, 3, 3), (2, 5, 5)),
    "conv without bias": (lambda: nn.Conv2d(2, 3, 3, bias=False), (2, 5, 5)),
    "conv, more positions than fan-in": (lambda: nn.Conv2d(1, 2, 2, padding=1), (1, 5, 5)),
    "conv with stride and padding": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 5, 4)),
    "conv with dilation": (lambda: nn.Conv2d(2, 2, 2, dilation=(2, 1)), (2, 5, 4)),
    "conv in groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 3, 3)),
    "conv in groups, many positions": (lambda: nn.Conv2d(4, 6, 1, groups=2), (4, 4, 4)),
    "depthwise conv": (lambda: nn.Conv2d(3, 3, 2, groups=3, stride=2), (3, 4, 4)),
    "conv padded to the same size": (lambda: nn.Conv2d(1, 2, 3, padding="same", dilation=2), (1, 5, 5)),
    "conv with valid padding": (lambda: nn.Conv2d(1, 2, 3, padding="valid"), (1, 5, 5)),
    "circular conv without padding": (lambda: nn.Conv2d(1, 2, 3, padding_mode="circular"), (1, 4, 4)),
    "layer norm": (lambda: nn.LayerNorm(4, eps=0.5), (4,)),
    "layer norm over tokens": (lambda: nn.LayerNorm(4), (3, 4)),
    "layer norm over an image": (lambda: nn.LayerNorm((2, 3, 3)), (2, 3, 3)),
    "group norm": (lambda: nn.GroupNorm(2, 4, eps=0.5), (4, 3, 3)),
    "batch norm of vectors": (lambda: normalised(nn.BatchNorm1d(4)), (4,)),
    "batch norm of sequences": (lambda: normalised(nn.BatchNorm1d(4)), (4, 3)),
    "batch norm of images": (lambda: normalised(nn.BatchNorm2d(2, eps=0.5)), (2, 3, 3)),
    "batch norm of volumes": (lambda: normalised(nn.BatchNorm3d(2)), (2, 2, 2, 2)),
    "scalar bias": (lambda: Bias(), (2, 3, 3)),
    "scalar scale": (lambda: Scale(), (2, 3, 3)),
}


def normalised(layer):
    """Batch norm in evaluation, with statistics that are not those of a fresh one."""
    layer.running_mean.copy_(torch.linspace(-0.5, 0.5, len(layer.running_mean)))
    layer.running_var.copy_(torch.linspace(0.5, 2.0, len(layer.running_var)))
    return layer.eval()


def surrounded(layer, shape, num_outputs=3, trainable_head=True):
    """The layer behind a nonlinearity and in front of another one and a head."""
    width = layer(torch.zeros(1, *shape)).numel()
    head = nn.Linear(width, num_outputs).requires_grad_(trainable_head)
    return seeded(nn.Sequential(nn.Tanh(), layer, nn.Tanh(), nn.Flatten(), head), seed=2)


def example(name, num_views, num_inputs=4):
    """Network, inputs (n * S, ...) with the views adjacent, and two random cotangents per input."""
    make, shape = LAYERS[name]
    model = surrounded(make(), shape)
    x = torch.randn(num_inputs * num_views, *shape, generator=generator(3), dtype=torch.float64)
    return model, x, torch.randn(num_inputs, 3, 2, generator=generator(4), dtype=torch.float64)


def shapes_of(model):
    return {name: weight.shape for name, weight in model.named_parameters() if weight.requires_grad}


def dense_rows(model, x, factor, num_views):
    """L^T J by parameter, (n * k, size)."""
    jacobian = torch.einsum("ncp,nck->nkp", dense_jacobian(model, x, num_views), factor).flatten(0, 1)
    shapes = shapes_of(model)
    return dict(zip(shapes, jacobian.split([shape.numel() for shape in shapes.values()], dim=1), strict=True))


def test_every_supported_layer_type_is_covered_here():
    """Embeddings, whose inputs are indices, have tests of their own below."""
    assert {type(make()) for make, _ in LAYERS.values()} | {nn.Embedding} == set(LAYER_TYPES)


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
    wide = Positions(torch.ones(9, 1, 1, 200, 1), as_given, 200, torch.ones(9, 1, 1, 1, 200, 1), True, True)
    narrow = Positions(torch.ones(9, 1, 1, 2, 100), as_given, 2, torch.ones(9, 1, 1, 1, 2, 100), True, True)
    assert wide.direct_is_cheaper()
    assert not narrow.direct_is_cheaper()


CONVOLUTIONS = {
    name: (module, shape)
    for name, (make, shape) in LAYERS.items()
    if isinstance(module := seeded(make()), nn.Conv2d) and all(d == 1 for d in module.dilation)
}


@pytest.mark.parametrize("num_views", [1, 3])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_patches_of_windows_are_those_of_im2col(name, num_views, monkeypatch):
    """A GPU takes the one, a CPU the other."""
    module, shape = CONVOLUTIONS[name]
    x = torch.randn(2 * num_views, *shape, generator=generator())
    columns = conv.taken(module, num_views, x)
    monkeypatch.setattr(conv, "by_im2col", lambda module, inputs: False)
    assert torch.equal(conv.taken(module, num_views, x), columns)


@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith(("linear", "conv", "depthwise"))])
def test_adding_patches_up_is_the_transpose_of_taking_them(name):
    make, shape = LAYERS[name]
    module = seeded(make())
    code = conv if isinstance(module, nn.Conv2d) else linear
    x = torch.randn(6, *shape, generator=generator(), dtype=torch.float64)
    taken = code.taken(module, 3, x)
    given = torch.randn(taken.shape, generator=generator(), dtype=torch.float64)
    added = code.added(module, given, x.shape)
    assert added.shape == x.shape
    assert_same((taken * given).sum(), (x * added).sum())


@pytest.mark.parametrize("by_view", [True, False])
@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith(("linear", "conv", "depthwise"))])
def test_a_pairing_has_the_gradients_of_explicit_rows(name, by_view, monkeypatch):
    """In what the layer was given and in what was pulled back to it, with views as positions and without."""
    make, shape = LAYERS[name]
    module, num_views, k = seeded(make()).double(), 3, 2
    monkeypatch.setattr(patches, "by_view", lambda gradients: by_view)
    source = torch.randn(2 * num_views, *shape, generator=generator(), dtype=torch.float64, requires_grad=True)
    code, outputs = (conv if isinstance(module, nn.Conv2d) else linear), module(source.detach())
    pulled = torch.randn(len(source), k, *outputs.shape[1:], generator=generator(), dtype=torch.float64)
    gradients = code.gradients(module, pulled, num_views).requires_grad_()
    taking = Patches(lambda x: code.taken(module, num_views, x), lambda p, like: code.added(module, p, like))
    layer = Positions(source, taking, code.fan_in(module), gradients, True, False)
    given = torch.randn(layer.row("weight").shape, generator=generator(), dtype=torch.float64)
    paired, explicit = layer.pair({"weight": given}), (given * layer.row("weight")).sum()
    assert_same(paired, explicit)
    for own, plain in zip(
        torch.autograd.grad(paired, (source, gradients)),
        torch.autograd.grad(explicit, (source, gradients)),
        strict=True,
    ):
        assert_same(own, plain)


def test_a_pairing_refuses_a_second_derivative():
    """What it saves does not know where it comes from: a wrong number would follow."""
    source = torch.randn(2, 4, generator=generator(), requires_grad=True)
    taking = Patches(lambda x: linear.taken(None, 1, x), lambda p, like: linear.added(None, p, like))
    layer = Positions(source, taking, 4, torch.ones(2, 1, 1, 1, 3, 1), True, False)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(layer.pair({"weight": torch.ones(2, 1, 12)}), source, create_graph=True)


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_padding_that_im2col_does_not_know_takes_exact_rows(mode):
    model = surrounded(nn.Conv2d(1, 2, 3, padding=1, padding_mode=mode), (1, 4, 4))
    plan = check_model(model, torch.randn(2, 1, 4, 4, generator=generator(), dtype=torch.float64))
    assert plan.exact == dict.fromkeys(("1.weight", "1.bias"), f"it pads with {mode!r}")


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_uneven_padding_takes_exact_rows():
    model = surrounded(nn.Conv2d(1, 2, 2, padding="same"), (1, 4, 4))
    plan = check_model(model, torch.randn(2, 1, 4, 4, generator=generator(), dtype=torch.float64))
    assert plan.exact == dict.fromkeys(("1.weight", "1.bias"), "it has padding='same' with an even kernel")


def pairs_of_words(num_inputs, num_entries):
    return torch.randint(num_entries, (num_inputs, 2), generator=generator(7))


@pytest.mark.parametrize("num_views", [1, 3])
@pytest.mark.parametrize("num_entries", [3, 200])
@pytest.mark.parametrize("padding", [None, 1])
def test_embeddings_give_the_same_gram_by_both_routes(num_views, num_entries, padding):
    """A table of few vectors by its rows, one of many by the tokens that two inputs share."""
    layers = [nn.Embedding(num_entries, 4, padding_idx=padding), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)]
    model = seeded(nn.Sequential(*layers))
    x = pairs_of_words(4 * num_views, num_entries)
    factor = torch.randn(4, 3, 2, generator=generator(4), dtype=torch.float64)
    (embedding,) = (layer for layer in captured_rows(model, x, factor, num_views) if isinstance(layer, EmbeddingRows))
    expected = dense_rows(model, x, factor, num_views)["0.weight"]
    assert embedding.direct_is_cheaper() == (num_entries == 200)
    assert_same(embedding.rows()["weight"].flatten(0, 1), expected)
    assert_same(embedding.gram("weight"), expected @ expected.T)


def captured_rows(model, x, factor, num_views):
    return rows_by_layer(capture(model, x, num_views), factor, keep_graph=False).values()


def test_a_tile_of_an_embedding_is_one_of_several(monkeypatch):
    monkeypatch.setattr(embedding_module, "_TILE_ENTRIES", {"cpu": 20})
    test_embeddings_give_the_same_gram_by_both_routes(1, 200, None)


@pytest.mark.parametrize("vocabulary", [4, 40, 1000])
def test_the_kernel_of_an_embedding_holds_no_pairs_of_positions(vocabulary):
    """Texts that share few tokens, many or all of them, some several times."""
    n, k, t, d = 3, 2, 60, 5
    indices = torch.randint(vocabulary, (n, t), generator=generator(7))
    rows = EmbeddingRows("", indices, torch.randn(n, k, t, d, generator=generator(8), dtype=torch.float64), vocabulary)
    expected = rows.row("weight").flatten(0, 1)
    with largest() as sizes:
        found = rows.gram("weight")
    assert_same(found, expected @ expected.T, 1e-10)
    assert max(sizes) <= max(n * k * t * d, (n * k) ** 2 * t)


@contextmanager
def largest():
    """How many numbers the result of every operation holds."""

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            result = operation(*args, **(kwargs or {}))
            sizes.append(result.numel() if isinstance(result, torch.Tensor) else 0)
            return result

    sizes = []
    with Sizes():
        yield sizes


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


@pytest.mark.parametrize("setting", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_embeddings_whose_gradient_is_no_derivative_are_refused(setting):
    model = seeded(nn.Sequential(nn.Embedding(5, 4, **setting), nn.Flatten(), nn.Linear(8, 3)))
    with pytest.raises(ValueError, match=f"Embedding '0' has {next(iter(setting))}, under which .*leave it out"):
        check_model(model, pairs_of_words(3, 5))


def test_kfac_refuses_exact_blocks_that_are_too_large(monkeypatch):
    monkeypatch.setattr(kronecker, "MAX_EXACT_SIZE", 3)
    model = surrounded(nn.LayerNorm(4), (4,))
    x = torch.randn(3, 4, generator=generator(), dtype=torch.float64)
    message = r"up to 3 entries as exact blocks, but 1.weight has 4: use ntk, blockdiag or diag, or freeze it"
    with pytest.raises(ValueError, match=message):
        log_marginal_likelihood(model, x, torch.zeros(3, dtype=torch.long), "kfac-N-C")
