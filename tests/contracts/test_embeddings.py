"""Embeddings: rows and kernels by both routes, and what is refused."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ntkml.layers import embedding as embedding_module
from ntkml.layers.embedding import EmbeddingRows
from ntkml.objective import MarginalLikelihood
from ntkml.rows.capture import capture
from ntkml.rows.model_contract import check_model
from ntkml.rows.pulled import rows_by_layer
from tests.factories import assert_same, generator, seeded
from tests.layer_examples import dense_rows
from tests.network_modules import CLASSES
from tests.objectives import Slope, everything
from tests.sequence_modules import Bags


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
    rows = EmbeddingRows(indices, torch.randn(n, k, t, d, generator=generator(8), dtype=torch.float64), vocabulary)
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


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"mode": "max"}, "it takes the largest entries of its vectors"),
        ({"mode": "sum", "weighted": True}, "it is called with offsets or weights of its inputs"),
        ({"mode": "mean", "offsets": True}, "it is called with offsets or weights of its inputs"),
    ],
)
def test_bags_that_are_no_sums_or_means_of_what_they_are_given_take_exact_rows(settings, why):
    model, x = seeded(Bags(**settings)).eval(), torch.randint(6, (4, 5), generator=generator(7))
    plan = check_model(model, x)
    assert plan.exact == {"bags.weight": why}
    factor = torch.randn(4, CLASSES, 2, generator=generator(4), dtype=torch.float64)
    rows = rows_by_layer(capture(model, x, plan=plan), factor, keep_graph=False)["bags"]
    assert_same(rows.rows()["weight"].flatten(0, 1), dense_rows(model, x, factor, 1)["bags.weight"])


def test_the_bag_of_an_input_that_is_padding_alone_is_zero():
    """As torch has it: the mean of no vectors is no NaN."""
    model, x = seeded(Bags(mode="mean", padding_idx=1)).eval(), torch.tensor([[1, 1], [1, 2], [2, 3]])
    assert check_model(model, x).exact == {}
    assert_same(capture(model, x).outputs, model(x))


class Repeated(nn.Module):
    """Views of an input that are all the same."""

    def __init__(self, num_views):
        super().__init__()
        self.num_views = num_views

    def draw(self, num_inputs, generator=None):
        return torch.zeros(num_inputs, self.num_views)

    def forward(self, x, noise):
        return x.repeat_interleave(self.num_views, 0)


def one_hot(indices, num_entries, padding):
    vectors = nn.functional.one_hot(indices, num_entries).double()
    if padding is not None:
        vectors[..., padding] = 0.0
    return vectors


@pytest.mark.parametrize("padding", [None, 1])
@pytest.mark.parametrize("num_views", [1, 3])
@pytest.mark.parametrize("estimator", ["kfac-N-C", "kfac-3-1", "kfac-4-tree"])
def test_kfac_takes_an_embedding_as_a_linear_layer_of_one_hot_vectors(estimator, num_views, padding):
    rest = [Slope(), nn.Flatten(), nn.Linear(8, 3)]
    words = seeded(nn.Sequential(nn.Embedding(6, 4, padding_idx=padding), *rest))
    linear = nn.Linear(6, 4, bias=False).double()
    with torch.no_grad():
        if padding is not None:
            words[0].weight[padding] = 0.0
        linear.weight.copy_(words[0].weight.T)
    x, y = pairs_of_words(7, 6), torch.arange(7) % 3
    found = []
    for model, inputs in ((words, x), (nn.Sequential(linear, *rest), one_hot(x, 6, padding))):
        for chunk in (None, 2):
            views = Repeated(num_views)
            objective = MarginalLikelihood(model, estimator, prior="layerwise", augmentation=views, chunk=chunk)
            objective.resample(inputs, y, generator(2))
            found.append({**everything(objective, inputs, y), "estimate": objective.estimate(inputs, y).total})
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for key, value in other.items():
            assert_same(value, found[0][key])


def test_kfac_refuses_views_with_other_indices():
    class Shifted(Repeated):
        def forward(self, x, noise):
            return (x.unsqueeze(1) + torch.arange(self.num_views).unsqueeze(1)).flatten(0, 1)

    model = seeded(nn.Sequential(nn.Embedding(8, 4), nn.Flatten(), nn.Linear(8, 3)))
    x, y = pairs_of_words(7, 6), torch.arange(7) % 3
    MarginalLikelihood(model, "ntk-4-1", augmentation=Shifted(2)).backward(x, y)
    objective = MarginalLikelihood(model, "kfac-4-1", augmentation=Shifted(2))
    with pytest.raises(ValueError, match="an embedding only if all views of an input have the same indices: use ntk"):
        objective.backward(x, y)
