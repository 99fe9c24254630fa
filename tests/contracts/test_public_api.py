"""ntkml.log_marginal_likelihood: what it returns, what it accepts, and one clear line for what it does not."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

import ntkml
from ntkml import PriorPrecision, log_marginal_likelihood
from ntkml.likelihoods import LIKELIHOODS as REGISTERED
from ntkml.likelihoods import Categorical, Gaussian, as_likelihood
from ntkml.specs import parse_estimator
from tests.factories import LIKELIHOODS, assert_same, generator, make_case, mlp, seeded


@pytest.fixture
def case():
    return make_case("mlp")


def estimate(case, y=None, likelihood="categorical", name="ntk-N-C", **options):
    return log_marginal_likelihood(case.model, case.x, case.y if y is None else y, name, 1.0, likelihood, **options)


def test_the_package_says_what_it_offers():
    assert set(ntkml.__all__) <= set(dir(ntkml))
    assert all(getattr(ntkml, name) is not None for name in ntkml.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'logml'; it offers .*log_marginal_likelihood"):
        ntkml.logml  # noqa: B018


def test_a_result_is_made_of_scalars_in_nats_over_all_data(case):
    result = estimate(case, name="blockdiag-3-1")
    terms = (result.total, result.log_likelihood, result.log_prior, result.log_det)
    assert all(isinstance(term, Tensor) and term.shape == () and term.dtype == torch.float64 for term in terms)
    assert_same(result.total, result.log_likelihood + result.log_prior - 0.5 * result.log_det)
    assert (result.certified, result.num_blocks) == (False, 9)
    twice = log_marginal_likelihood(case.model, case.x.repeat(2, 1), case.y.repeat(2), "ntk-N-C")
    assert_same(twice.log_likelihood, 2 * result.log_likelihood)


def test_a_name_and_its_spec_and_a_likelihood_and_its_name_are_one(case):
    expected = estimate(case, name="ntk-3-tree", generator=generator())
    spec = parse_estimator("ntk-3-tree")
    assert estimate(case, name=spec, likelihood=Categorical(), generator=generator()) == expected
    default = log_marginal_likelihood(case.model, case.x, case.y, "ntk-3-tree", generator=generator())
    assert default == expected


def test_the_same_generator_gives_the_same_estimate_and_another_one_another(case):
    first, again, other = (estimate(case, name="ntk-2-1", blocks=2, generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(first.total, again.total)
    assert first.total != other.total


def test_blocks_of_all_inputs_are_spelled_either_way(case):
    assert_same(estimate(case, name="ntk-7-1").total, estimate(case, name="ntk-N-1").total)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_likelihoods_are_found_by_name(likelihood):
    assert set(LIKELIHOODS) == set(REGISTERED)
    assert type(as_likelihood(likelihood)) is type(LIKELIHOODS[likelihood])
    assert as_likelihood(LIKELIHOODS[likelihood]) is LIKELIHOODS[likelihood]


@pytest.mark.parametrize(
    "noise", [0.3, torch.tensor(0.3, dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)]
)
def test_observation_noise_may_be_a_number_or_a_tensor_and_keeps_its_digits(noise):
    case = make_case("mlp", "gaussian")
    result = estimate(case, likelihood=Gaussian(noise))
    expected = torch.linalg.slogdet(torch.eye(43) + case.ggn * 0.7**2 / 0.3**2).logabsdet
    assert_same(result.log_det, expected)


def test_one_output_may_have_flat_targets():
    x = make_case("mlp").x
    y = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    for likelihood in ("bernoulli", "gaussian"):
        flat, column = (
            log_marginal_likelihood(mlp(1), x, targets, "ntk-N-1", 1.0, likelihood).total
            for targets in (y, y.unsqueeze(1))
        )
        assert_same(column, flat)
    answers = log_marginal_likelihood(mlp(1), x, y.bool(), "ntk-N-1", 1.0, "bernoulli").total
    assert_same(answers, log_marginal_likelihood(mlp(1), x, y, "ntk-N-1", 1.0, "bernoulli").total)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_class_labels_may_be_any_integers(case, dtype):
    assert_same(estimate(case, case.y.to(dtype)).total, estimate(case).total)


class HeadFirst(nn.Module):
    """The head is registered before the body, so that the last linear layer by name is a hidden one."""

    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Linear(5, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


@pytest.mark.parametrize("name", ["ntk-N-C", "ntk-3-tree", "ntk-3-C+greedy"])
def test_a_head_registered_first_is_no_obstacle(case, name):
    model = seeded(HeadFirst())
    result = log_marginal_likelihood(model, case.x, case.y, name, generator=generator())
    exact = log_marginal_likelihood(model, case.x, case.y, "ggn-N-C")
    assert result.total <= exact.total + 1e-10
    if name == "ntk-N-C":
        assert_same(result.total, exact.total)


def test_a_convolution_may_be_the_head():
    """No linear layer to take a tree from: the classes split in sequence."""
    model = seeded(nn.Sequential(nn.Conv2d(1, 3, 5), nn.Flatten()))
    images = torch.randn(4, 1, 5, 5, generator=generator(), dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0])
    values = [log_marginal_likelihood(model, images, y, name).total for name in ("ntk-N-C", "ggn-N-C", "ntk-2-tree")]
    assert_same(values[0], values[1])
    assert values[2] < values[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "ntkk-N-C"}, "unknown structure 'ntkk'; did you mean 'ntk'?"),
        ({"name": "ntk-8-C"}, "ntk-8-C needs 8 inputs but there are 7: name an estimator with 7 or N"),
        ({"name": "ntk-N-3"}, "asks for 3 outputs of 3: write C for all outputs"),
        ({"likelihood": "poisson"}, "unknown likelihood 'poisson'; known: categorical, bernoulli, gaussian"),
        ({"likelihood": "gausian"}, "unknown likelihood 'gausian'; did you mean 'gaussian'?"),
        ({"likelihood": "gaussian", "name": "ntk-3-tree"}, "ntk-3-tree: tree rows mend the coupling of a softmax"),
        ({"likelihood": "bernoulli", "name": "ntk-3-C+class"}, "+class needs class labels"),
        ({"name": "ntk-3-1", "blocks": 0}, "blocks=0: write a number from 1 to 9, or None for all 9 blocks"),
        ({"name": "ntk-3-1", "blocks": 10}, "blocks=10: write a number from 1 to 9"),
    ],
)
def test_unknown_and_impossible_requests_are_refused(case, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        estimate(case, **options)


def test_data_that_are_no_tensors_are_refused(case):
    for x, y, word in (
        (case.x.tolist(), case.y, "x is a tensor"),
        (case.x, case.y.numpy(), "got ndarray: use torch.as_tensor"),
        (list(case.x), case.y, "got list: use torch.stack"),
        ({"tokens": case.x, "mask": case.x}, case.y, "got dict: put the parts of an input side by side in one"),
        ((case.x, case.x), case.y, "got tuple: put the parts of an input side by side in one, and let a module around"),
    ):
        with pytest.raises(ValueError, match=word):
            log_marginal_likelihood(case.model, x, y, "ntk-N-C")


ONES = torch.ones(7, 3, dtype=torch.float64)


@pytest.mark.parametrize("name", ["ntk-N-C", "ntk-3-1", "ntk-3-C+class"])
@pytest.mark.parametrize(
    ("likelihood", "y", "message"),
    [
        (
            "categorical",
            ONES.long(),
            "categorical targets are 7 integers, one class per input; got torch.int64 of shape (7, 3)",
        ),
        ("categorical", torch.zeros(7), "categorical targets are 7 integers, one class per input; got torch.float32"),
        ("categorical", torch.full((7,), 3), "must lie in 0...2 for a network of 3 outputs; got 3...3"),
        ("categorical", torch.arange(7) - 1, "must lie in 0...2 for a network of 3 outputs; got -1...5"),
        ("bernoulli", ONES / 2, "bernoulli targets must be 0 or 1"),
        ("bernoulli", torch.zeros(7), "bernoulli targets have the shape of the outputs (7, 3); got (7,)"),
        ("gaussian", ONES[:, :2], "gaussian targets have the shape of the outputs (7, 3); got (7, 2)"),
        ("gaussian", ONES * torch.nan, "gaussian targets hold NaN or infinite values"),
        ("gaussian", ONES * torch.inf, "gaussian targets hold NaN or infinite values"),
        ("gaussian", ONES > 0, "gaussian targets are real numbers; got torch.bool: use bernoulli, or convert them"),
    ],
)
def test_targets_of_another_kind_are_refused(case, likelihood, y, message, name):
    """Before anything is computed from them, a grouping by class included; the message counts all the data."""
    if likelihood != "categorical":
        name = name.removesuffix("+class")
    with pytest.raises(ValueError, match=re.escape(message)):
        estimate(case, y, likelihood, name)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_turned_targets_are_not_taken_for_those_of_other_data(likelihood):
    with pytest.raises(ValueError, match=re.escape("have the shape of the outputs (6, 2); got (2, 6)")):
        as_likelihood(likelihood).check_targets(torch.zeros(6, 2), torch.zeros(2, 6))


@pytest.mark.parametrize("noise", [0.0, -1.0, float("nan"), float("inf")])
def test_observation_noise_is_a_positive_number(noise):
    case = make_case("mlp", "gaussian")
    with pytest.raises(ValueError, match=rf"observation noise must be positive and finite; got {noise:g}"):
        estimate(case, likelihood=Gaussian(noise))


@pytest.mark.parametrize(("noise", "got"), [(torch.ones(3), "3"), ("a", "'a'"), (None, "None"), (1j, "1j")])
def test_observation_noise_is_one_number(noise, got):
    case, message = make_case("mlp", "gaussian"), f"^observation noise is one number for all outputs; got {got}$"
    with pytest.raises(ValueError, match=message):
        estimate(case, likelihood=Gaussian(noise))
    with pytest.raises(ValueError, match=message):
        ntkml.MarginalLikelihood(case.model, "ntk-N-C", Gaussian(noise))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.uint32, torch.uint64])
def test_labels_may_be_whole_numbers_of_every_kind(case, dtype):
    for name in ("ntk-3-tree+class", "ntk-N-1"):
        expected, found = (estimate(case, y, name=name, generator=generator()) for y in (case.y, case.y.to(dtype)))
        assert torch.equal(found.total, expected.total)
    objective = ntkml.MarginalLikelihood(case.model, "ntk-3-tree")
    expected, found = (objective.estimate(case.x, y, None, generator()).total for y in (case.y, case.y.to(dtype)))
    assert torch.equal(found, expected)


def test_inputs_that_are_no_numbers_are_counted(case):
    case.x[1, 2], case.x[4, 0], case.x[4, 1] = torch.nan, torch.inf, torch.nan
    with pytest.raises(ValueError, match="2 of 7 inputs hold NaN or infinite values: remove or repair them"):
        estimate(case)


@pytest.mark.parametrize("num_targets", [0, 6, 8])
def test_inputs_and_targets_come_in_pairs(case, num_targets):
    message = f"x and y hold the same number of data, at least one; got 7 inputs and {num_targets} targets"
    with pytest.raises(ValueError, match=message):
        estimate(case, torch.zeros(num_targets, dtype=torch.long))
    with pytest.raises(ValueError, match="at least one; got 0 inputs and 0 targets"):
        log_marginal_likelihood(case.model, case.x[:0], case.y[:0], "ntk-N-C")


@pytest.mark.parametrize("name", ["ntk-N-C", "ntk-N-1", "kfac-3-1", "ntk-N-tree"])
def test_one_class_is_no_classification(name):
    case = make_case("mlp", num_outputs=1)
    with pytest.raises(ValueError, match="the network has 1"):
        estimate(case, torch.zeros(7, dtype=torch.long), name=name)


def test_a_prior_of_the_wrong_size_is_refused(case):
    with pytest.raises(ValueError, match=re.escape("4 (layerwise: one per parameter tensor) or 43 (diagonal")):
        log_marginal_likelihood(case.model, case.x, case.y, "ntk-N-C", torch.ones(5))
    with pytest.raises(ValueError, match="must be positive and finite; got -1"):
        log_marginal_likelihood(case.model, case.x, case.y, "ntk-N-C", PriorPrecision(-torch.ones(1), "scalar"))


def test_one_datum_is_enough(case):
    for name in ("ntk-1-C", "ntk-N-1", "kfac-N-tree+iid"):
        result = log_marginal_likelihood(case.model, case.x[:1], case.y[:1], name)
        assert torch.isfinite(result.total)
