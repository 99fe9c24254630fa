"""Embeddings: rows and kernels by both routes, and what is refused."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ntkml.layers import embedding as embedding_module
from ntkml.layers.embedding import EmbeddingRows
from ntkml.rows.capture import capture
from ntkml.rows.model_contract import check_model
from ntkml.rows.pulled import rows_by_layer
from tests.factories import (
    assert_same,
    generator,
    seeded,
)
from tests.layer_examples import dense_rows


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


@pytest.mark.parametrize("setting", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_embeddings_whose_gradient_is_no_derivative_are_refused(setting):
    model = seeded(nn.Sequential(nn.Embedding(5, 4, **setting), nn.Flatten(), nn.Linear(8, 3)))
    with pytest.raises(ValueError, match=f"Embedding '0' has {next(iter(setting))}, under which .*leave it out"):
        check_model(model, pairs_of_words(3, 5))
