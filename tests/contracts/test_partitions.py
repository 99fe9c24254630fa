"""Every way of cutting index pairs covers all of them once, in blocks of the stated size."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ntkml import grouping as grouping_module
from ntkml import partitions as partitions_module
from ntkml.grouping import input_kernel, last_layer_features, partition_for, tree_for
from ntkml.partitions import (
    _assign_with_room,
    _nearest_in_turn,
    class_batches,
    greedy_batches,
    kmeans_batches,
    make_partition,
    random_batches,
)
from ntkml.specs import parse_estimator
from tests.factories import assert_same, few_examples, generator, make_case

BATCHINGS = {
    "random": lambda n, size, g: random_batches(n, size, g),
    "class": lambda n, size, g: class_batches(torch.randint(3, (n,), generator=g), size, g),
    "kmeans": lambda n, size, g: kmeans_batches(torch.randn(n, 3, generator=g), size, g),
    "greedy": lambda n, size, g: greedy_batches(kernel_of(torch.randn(n, 3, generator=g)), size, g),
    "kmeans of one point": lambda n, size, g: kmeans_batches(torch.zeros(n, 2), size, g),
    "greedy of one point": lambda n, size, g: greedy_batches(torch.ones(n, n), size, g),
}


def kernel_of(features):
    return features.double() @ features.double().T


def pairs_of(partition):
    """All (input, column) pairs of all blocks, one by one."""
    return [
        (int(n), int(column))
        for block in partition.blocks
        for n, columns in zip(block.inputs, block.columns.expand(len(block.inputs), -1), strict=True)
        for column in columns
    ]


@pytest.mark.parametrize("name", BATCHINGS)
@few_examples
@given(num_inputs=st.integers(1, 23), size=st.integers(1, 25), seed=st.integers(0, 99))
def test_batches_cover_every_input_once_in_equal_sizes(name, num_inputs, size, seed):
    batches = BATCHINGS[name](num_inputs, size, generator(seed))
    assert sorted(torch.cat(batches).tolist()) == list(range(num_inputs))
    lengths = sorted((len(batch) for batch in batches), reverse=True)
    last = num_inputs % size
    assert lengths == [size] * (num_inputs // size) + ([last] if last else [])


@pytest.mark.parametrize("name", ["random", "class", "kmeans", "greedy"])
def test_batches_depend_on_the_generator_alone(name):
    before = torch.random.get_rng_state()
    first, again, other = (BATCHINGS[name](20, 6, generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)


@few_examples
@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 6), st.booleans(), st.integers(0, 99))
def test_a_partition_covers_every_pair_once(num_inputs, size, num_columns, iid, seed):
    groups = [(column,) for column in range(num_columns)]
    partition = make_partition(random_batches(num_inputs, size, generator(seed)), groups, iid, generator(seed))
    assert sorted(pairs_of(partition)) == [(n, column) for n in range(num_inputs) for column in range(num_columns)]
    assert (partition.num_inputs, partition.num_columns) == (num_inputs, num_columns)
    assert len(partition) == -(-num_inputs // size) * num_columns
    assert sum(block.num_pairs for block in partition.blocks) == num_inputs * num_columns
    assert partition.uniform
    assert_same(partition.probabilities, torch.full((len(partition),), 1 / len(partition), dtype=torch.float64), 1e-15)


def test_unequal_groups_of_columns_cover_every_pair_once():
    partition = make_partition([torch.tensor([2, 0]), torch.tensor([1])], [(0, 1), (2,)], False, None)
    assert sorted(pairs_of(partition)) == [(n, column) for n in range(3) for column in range(3)]
    assert [block.num_pairs for block in partition.blocks] == [4, 2, 2, 1]


def test_the_blocks_of_all_batches_share_the_tensors_of_their_columns():
    blocks = make_partition([torch.tensor([2, 0]), torch.tensor([1])], [(0, 1), (2,)], False, None).blocks
    assert [block.columns.tolist() for block in blocks] == [[0, 1], [2], [0, 1], [2]]
    assert blocks[0].columns.data_ptr() == blocks[2].columns.data_ptr()
    assert blocks[1].columns.data_ptr() == blocks[3].columns.data_ptr()


def test_blocks_are_made_when_they_are_asked_for(monkeypatch):
    """A step draws one of the C blocks of its batch."""
    made, original = [], partitions_module.Block
    monkeypatch.setattr(partitions_module, "Block", lambda *given: made.append(given) or original(*given))
    partition = make_partition([torch.arange(3)] * 4, [(c,) for c in range(50)], False, None)
    assert len(partition) == 200
    assert partition.blocks[partition.draw(1, generator())[0]].num_pairs == 3
    assert len(made) == 1


@pytest.mark.parametrize("iid", [False, True])
def test_blocks_are_a_sequence(iid):
    blocks = make_partition([torch.arange(3), torch.arange(3, 5)], [(0,), (1,), (2,)], iid, generator()).blocks
    assert [block.num_pairs for block in blocks] == [3, 3, 3, 2, 2, 2]
    assert torch.equal(blocks[-2].columns, blocks[4].columns)
    assert [block.num_pairs for block in blocks[1:6:2]] == [3, 2, 2]
    with pytest.raises(IndexError):
        blocks[6]


def test_iid_blocks_give_every_input_its_own_order():
    """One column of every input in each block, and not the same for all."""
    partition = make_partition([torch.arange(40)], [(c,) for c in range(5)], True, generator())
    orders = torch.cat([block.columns for block in partition.blocks], dim=1)
    assert orders.shape == (40, 5)
    assert torch.equal(orders.sort(1).values, torch.arange(5).expand(40, -1))
    assert len(orders.unique(dim=0)) > 20


def test_a_block_selects_its_columns():
    factor = torch.arange(24.0).reshape(2, 3, 4)
    batch = torch.tensor([0, 1])
    plain = make_partition([batch], [(0, 2), (1, 3)], False, None).blocks[0]
    assert torch.equal(plain.select(factor), factor[:, :, [0, 2]])
    iid = make_partition([batch], [(c,) for c in range(4)], True, generator(3)).blocks[0]
    expected = torch.stack([factor[n, :, int(iid.columns[n])] for n in range(2)]).unsqueeze(-1)
    assert torch.equal(iid.select(factor), expected)


def test_blocks_of_one_batch_share_a_forward_pass():
    case = make_case("mlp")
    _, partition = case.partition("ntk-3-1")
    runs = list(partition.by_batch())
    assert [members for _, members in runs] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert all(torch.equal(inputs, partition.blocks[members[0]].inputs) for inputs, members in runs)
    drawn = [(len(inputs), members) for inputs, members in partition.by_batch([1, 2, 2, 7])]
    assert drawn == [(3, [1, 2, 2]), (1, [7])]


@pytest.fixture
def four_blocks():
    return make_partition([torch.arange(3), torch.arange(3, 5)], [(0,), (1,)], False, None)


def test_weights_become_probabilities_without_a_graph(four_blocks):
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    weighted = four_blocks.weighted(weights)
    assert_same(weighted.probabilities, torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64), 1e-15)
    assert not weighted.uniform
    assert not weighted.probabilities.requires_grad
    assert weighted.blocks == four_blocks.blocks
    assert four_blocks.uniform


@pytest.mark.parametrize(
    "weights",
    [
        [1.0, 2.0, 3.0],
        [1.0, 0.0, 1.0, 1.0],
        [1.0, -1.0, 1.0, 1.0],
        [1.0, torch.nan, 1.0, 1.0],
        [1.0, torch.inf, 1.0, 1.0],
        [1.0, 1e-320, 1e300, 1.0],  # its probability would be zero
        [1.0, 1e308, 1e308, 1e308],  # and all of these
        1.0,
    ],
)
def test_every_block_needs_a_positive_weight(four_blocks, weights):
    message = "block weights are 4 positive numbers, one per block, none lost beside their sum; got [1.0"
    with pytest.raises(ValueError, match=re.escape(message)):
        four_blocks.weighted(torch.tensor(weights, dtype=torch.float64))


@pytest.mark.parametrize("count", [0, -1, 5])
def test_uniform_draws_are_without_replacement(four_blocks, count):
    with pytest.raises(ValueError, match=f"blocks={count}: write a number from 1 to 4, or None for all 4 blocks"):
        four_blocks.draw(count, generator())
    assert sorted(four_blocks.draw(4, generator())) == [0, 1, 2, 3]
    assert four_blocks.draw(3, generator(4)) == four_blocks.draw(3, generator(4))


def test_weighted_draws_are_independent(four_blocks):
    weighted = four_blocks.weighted(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    drawn = torch.tensor(weighted.draw(4000, generator()))
    assert_same(drawn.bincount(minlength=4) / 4000, weighted.probabilities, 0.03)
    with pytest.raises(ValueError, match="blocks=0"):
        weighted.draw(0, generator())


def scatter_within(features, batches):
    """Sum of squared distances to the mean of one's own batch."""
    return sum(float(((features[batch] - features[batch].mean(0)) ** 2).sum()) for batch in batches)


def test_class_batches_are_cut_from_classes_in_a_row():
    labels = torch.tensor([0] * 9 + [1] * 7 + [2] * 4)[torch.randperm(20, generator=generator())]
    batches = class_batches(labels, 5, generator())
    order = labels[torch.cat(batches)]
    assert len(order.unique_consecutive()) == 3
    assert sum(len(labels[batch].unique()) for batch in batches) <= 4 + 2  # two borders fall into batches


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_is_closer_than_random_on_clustered_directions(seed):
    """Balanced although the clusters are not, and blind to the length of a feature vector."""
    random = generator(seed)
    centres = torch.nn.functional.normalize(torch.randn(4, 6, generator=random), dim=1)
    labels = torch.tensor([0] * 10 + [1] * 14 + [2] * 8 + [3] * 8)
    unit = torch.nn.functional.normalize(centres[labels] + 0.1 * torch.randn(40, 6, generator=random), dim=1)
    features = unit * torch.rand(40, 1, generator=random).add(0.1)
    grouped = kmeans_batches(features, 10, generator(seed))
    assert [len(batch) for batch in grouped] == [10, 10, 10, 10]
    assert scatter_within(unit, grouped) < 0.6 * scatter_within(unit, random_batches(40, 10, generator(seed)))


def test_kmeans_recovers_clusters_of_its_size():
    labels = torch.arange(24) % 3
    features = torch.eye(3)[labels] + 0.01 * torch.randn(24, 3, generator=generator())
    found = [kmeans_batches(features, 8, generator(seed)) for seed in range(8)]
    perfect = [all(len(labels[batch].unique()) == 1 for batch in batches) for batches in found]
    assert sum(perfect) >= 2  # the others started from two centres in one cluster


def test_a_contested_place_in_a_cluster_goes_to_the_nearest_point():
    distances = torch.tensor([[2.0, 9.0], [1.0, 3.0], [4.0, 5.0]])
    assert _assign_with_room(distances, torch.tensor([1, 2])).tolist() == [1, 0, 1]


def test_points_at_the_same_distance_of_several_clusters_take_turns():
    distances = torch.tensor([[1.0, 1.0, 2.0], [3.0, 0.0, 2.0], [1.0, 1.0, 1.0], [5.0, 4.0, 4.0]])
    nearest, wanted = _nearest_in_turn(distances)
    assert nearest.tolist() == [1.0, 0.0, 1.0, 4.0]
    assert wanted.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_features_do_not_fill_the_clusters_one_by_one(value, monkeypatch):
    rounds = []
    original = partitions_module._nearest_in_turn
    monkeypatch.setattr(
        partitions_module, "_nearest_in_turn", lambda distances: rounds.append(len(distances)) or original(distances)
    )
    batches = kmeans_batches(torch.full((200, 4), value), 5, generator())
    assert sorted(torch.cat(batches).tolist()) == list(range(200))
    assert len(rounds) < 40  # clusters: one round each, and several iterations


def test_greedy_batches_put_duplicates_together():
    features = torch.randn(6, 5, generator=generator()).repeat(2, 1)
    for batch in greedy_batches(kernel_of(features), 2, generator(1)):
        assert batch[0] % 6 == batch[1] % 6


def conditional_variance(kernel, target, given):
    total = torch.eye(len(kernel), dtype=torch.float64) + kernel
    solved = torch.linalg.solve(total[given][:, given], total[given, target])
    return total[target, target] - total[target, given] @ solved


def test_greedy_batches_take_the_largest_mutual_information_next():
    """1/2 log (1 + k_xx) / (1 + k_xx|B), every step recomputed from scratch by dense solves."""
    features = torch.randn(14, 4, generator=generator(), dtype=torch.float64)
    kernel = 3 * features @ features.T
    free = set(range(14))
    for batch in greedy_batches(kernel, 5, generator(2)):
        members = batch.tolist()
        for step in range(1, len(members)):
            given = members[:step]
            shared = {n: float((1 + kernel[n, n]) / conditional_variance(kernel, n, given)) for n in free - set(given)}
            assert shared[members[step]] == pytest.approx(max(shared.values()), rel=1e-9)
        free -= set(members)
    assert not free


def test_greedy_batches_lose_less_than_random_ones():
    features = torch.randn(30, 3, generator=generator(), dtype=torch.float64)
    kernel = 10 * kernel_of(features)

    def loss(batches):
        return sum(float(torch.logdet(torch.eye(len(b), dtype=torch.float64) + kernel[b][:, b])) for b in batches)

    random = [loss(random_batches(30, 5, generator(seed))) for seed in range(5)]
    assert all(loss(greedy_batches(kernel, 5, generator(seed))) < min(random) for seed in range(3))


@pytest.mark.parametrize("chunk", [7, 3, 1])
def test_the_kernel_for_greedy_holds_correlations_of_the_rows(chunk, monkeypatch):
    """Inputs that are equal correlate fully; the diagonal is the mean of the kernel's own."""
    case = make_case("convnet")
    case.x[4] = case.x[1]
    monkeypatch.setattr(grouping_module, "automatic_chunk", lambda *_: chunk)
    kernel = input_kernel(case.model, case.x, case.likelihood, case.plan)
    rows = torch.einsum("ncp,ncd,ndp->n", case.jacobian, case.hessians, case.jacobian)
    assert_same(kernel.diagonal(), rows.mean().expand(7))
    assert_same(kernel, kernel.T)
    assert_same(kernel[1, 4], kernel[1, 1])
    assert (kernel.abs() <= kernel.diagonal().max() + 1e-9).all()


@pytest.mark.parametrize("chunk", [7, 3, 1])
def test_features_are_what_enters_the_last_layer(chunk, monkeypatch):
    case = make_case("convnet")
    monkeypatch.setattr(grouping_module, "automatic_chunk", lambda *_: chunk)
    assert_same(last_layer_features(case.model, case.x, case.plan), case.model[:-1](case.x))


def test_the_kernel_is_the_same_in_chunks(monkeypatch):
    case = make_case("convnet")
    whole = input_kernel(case.model, case.x, case.likelihood, case.plan)
    roots = case.likelihood.factor(case.model(case.x).detach(), "C", tree_for(case.model, case.num_outputs))
    rows = torch.einsum("ncr,ncp->nrp", roots, case.jacobian)
    expected = torch.einsum("nrp,mrp->nm", rows, rows)
    root = expected.diagonal().sqrt()
    assert_same(whole, expected.diagonal().mean() * expected / torch.outer(root, root))
    for chunk in (1, 2, 5):
        monkeypatch.setattr(grouping_module, "automatic_chunk", lambda *_, chunk=chunk: chunk)
        assert_same(input_kernel(case.model, case.x, case.likelihood, case.plan), whole)


@pytest.mark.parametrize("grouping", ["kmeans", "greedy"])
def test_no_more_inputs_are_captured_at_a_time_than_the_automatic_chunk(grouping, monkeypatch):
    case, seen = make_case("convnet"), []
    monkeypatch.setattr(grouping_module, "automatic_chunk", lambda *_: 3)
    original = grouping_module.capture
    monkeypatch.setattr(
        grouping_module, "capture", lambda model, x, **named: seen.append(len(x)) or original(model, x, **named)
    )
    spec = parse_estimator(f"ntk-2-1+{grouping}")
    partition_for(spec, case.model, case.x, case.y, case.likelihood, generator(), case.plan)
    assert set(seen) == {3, 1}
