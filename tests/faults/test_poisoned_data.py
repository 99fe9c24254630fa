"""Data that no one should have: NaN, the same input many times, constant images, one class; and extreme precisions.

Either the numbers are right or an error says what is wrong.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ntkml.datasets import load_dataset, subset
from ntkml.learning.loop import learn
from ntkml.learning.state import new_learner
from ntkml.models import build_model
from ntkml.protocols.train import load_train
from ntkml.randomness import generator_for
from tests.factories import NETWORKS, assert_same, in_float32, make_case

PRECISIONS = (1e-8, 1.0, 1e8)


def duplicated(x, y):
    return x[:2].repeat(len(x) // 2 + 1, *[1] * (x.ndim - 1))[: len(x)], y[:2].repeat(len(y) // 2 + 1)[: len(y)]


def constant(x, y):
    return torch.full_like(x, 0.5), y


def black(x, y):
    return torch.zeros_like(x), y


def one_class(x, y):
    return x, torch.zeros_like(y)


POISONS = {function.__name__: function for function in (duplicated, constant, black, one_class)}


def poisoned_case(network, poison):
    case = make_case(network, num_inputs=8)
    x, y = POISONS[poison](case.x, case.y)
    return replace(case, x=x, y=y)


def dense_log_det(ggn, precision, sizes):
    """sum over groups of sum log(1 + lambda / precision), by eigenvalues: exact at both ends of the precisions."""
    blocks = [group[:, at : at + size] for group, at, size in zip(ggn.split(sizes), _starts(sizes), sizes, strict=True)]
    return sum(torch.log1p(torch.linalg.eigvalsh(block).clamp_min(0) / precision).sum() for block in blocks)


def _starts(sizes):
    return [sum(sizes[:index]) for index in range(len(sizes))]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_log_determinants_of_poisoned_data_are_right(network, poison, precision):
    case = poisoned_case(network, poison)
    groups = {
        "ntk": [case.num_params],
        "ggn": [case.num_params],
        "blockdiag": case.sizes,
        "diag": [1] * case.num_params,
    }
    for structure, sizes in groups.items():
        expected = dense_log_det(case.ggn, precision, sizes)
        estimate = case.estimate(f"{structure}-N-C", precision)
        # A factorisation of I + K at condition 1e10 keeps six digits.
        assert_same(estimate.log_det / expected, 1.0, 1e-5 if precision == 1e-8 else 1e-7)
        assert_same(estimate.log_likelihood, case.log_likelihood)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("poison", POISONS)
def test_rows_in_float32_change_little_of_it(poison, precision):
    case = poisoned_case("convnet", poison)
    narrow = in_float32(case)
    for name in ("ntk-N-C", "ntk-N-tree", "ntk-N-1", "blockdiag-N-C", "kfac-N-C", "diag-N-C"):
        wide_value, value = (one.estimate(name, precision).log_det for one in (case, narrow))
        assert math.isfinite(value)
        assert float(value) == pytest.approx(float(wide_value), rel=0.02), name


@pytest.mark.parametrize("part", ["train_inputs", "test_inputs"])
def test_nan_in_a_data_set_is_refused(part):
    data = load_dataset("digits")
    inputs = getattr(data, part).clone()
    inputs[3, 0, 2, 2] = math.nan
    with pytest.raises(ValueError, match=r"part of data set 'digits': the inputs hold NaN"):
        replace(data, **{part: inputs})


def trained(poison, precision, estimator):
    """Records of three epochs, with a hyperparameter update after the second and the third."""
    small = {"num_data": 40, "epochs": 3, "batch_size": 20, "burn_in": 2, "update_every": 1, "hyper_steps": 2}
    protocol = replace(
        load_train("train-digits", "prior"), model="mlp", estimator=estimator, prior_init=precision, **small
    )
    data = subset(load_dataset("digits"), 40, generator_for(0, "data"))
    inputs, targets = POISONS[poison](data.train_inputs, data.train_targets)
    data = replace(data, train_inputs=inputs, train_targets=targets)
    model = build_model("mlp", data.input_shape, data.num_classes, generator_for(0, "init"))
    learner = new_learner(protocol, model, torch.device("cpu"), None)
    return list(learn(learner, data)), learner


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("poison", ["duplicated", "constant", "one_class"])
def test_training_on_poisoned_data_gives_finite_numbers(poison, precision):
    for estimator in ("ntk-20-tree", "kfac-20-1", "diag-20-C"):
        records, learner = trained(poison, precision, estimator)
        assert len(records) == 3
        assert all(math.isfinite(record.train_loss) for record in records)
        assert all(math.isfinite(record.log_marginal_likelihood) for record in records[1:])
        values = torch.cat([value.detach().flatten() for value in learner.objective.parameters()])
        assert torch.isfinite(values).all()


@pytest.mark.usefixtures("one_thread")
def test_kmeans_and_greedy_cut_equal_inputs_into_blocks_too():
    for estimator in ("ntk-10-C+kmeans", "ntk-10-C+greedy", "ntk-10-C+class"):
        records, _ = trained("constant", 1.0, estimator)
        assert math.isfinite(records[-1].log_marginal_likelihood)
