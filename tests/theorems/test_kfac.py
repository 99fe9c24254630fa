"""KFAC: equal to the exact blocks where theory says so, else the formula of the authors' code, and never called a bound."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ntkml import log_marginal_likelihood
from ntkml.evidence import evaluate_partition
from ntkml.rows.block import CapturedRows
from ntkml.rows.capture import capture
from ntkml.structures import structure_named
from tests.factories import assert_same, generator, make_case, make_prior, seeded


def kfac_log_det(model, x, factor, prior, num_views=1):
    shapes = {name: weight.shape for name, weight in model.named_parameters() if weight.requires_grad}
    rows = CapturedRows(capture(model, x, num_views), factor, shapes, keep_graph=True)
    return structure_named("kfac")(rows).log_det(prior)


@pytest.mark.parametrize("outputs", ["C", "1", "2", "tree"])
@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
def test_one_datum_of_linear_layers_is_exact(likelihood, outputs):
    """A single outer product a a^T factors out of the sum over rows."""
    if outputs == "tree" and likelihood != "categorical":
        outputs = "C"
    case = make_case("mlp", likelihood)
    prior = make_prior("layerwise", case)
    spec, partition = case.partition(f"kfac-1-{outputs}")
    blockdiag, _ = case.partition(f"blockdiag-1-{outputs}")
    assert all(block.inputs.numel() == 1 for block in partition.blocks)
    values = [
        evaluate_partition(case.model, case.x, case.y, name, partition, prior, case.likelihood, case.plan).log_det
        for name in (spec, blockdiag)
    ]
    assert_same(values[0], values[1])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["N-C", "3-C", "3-1", "2-2"])
def test_deep_linear_networks_under_squared_loss_are_exact(bias, name):
    """The gradients g do not depend on the datum, so that sum (g g^T) (x) (a a^T) is a Kronecker product."""
    case = make_case("mlp", "gaussian")
    layers = [nn.Linear(4, 5, bias=bias), nn.Linear(5, 4, bias=bias), nn.Linear(4, 3, bias=bias)]
    model = seeded(nn.Sequential(*layers))
    prior = torch.linspace(0.3, 2.0, 3 + 3 * bias, dtype=torch.float64)
    kfac, blockdiag = (
        log_marginal_likelihood(model, case.x, case.y, f"{s}-{name}", prior, case.likelihood, generator=generator())
        for s in ("kfac", "blockdiag")
    )
    assert_same(kfac.log_det, blockdiag.log_det)


def test_elsewhere_it_is_an_approximation():
    """The tests above are not held by kfac being blockdiag."""
    case = make_case("mlp")
    kfac, blockdiag = (case.estimate(f"{structure}-N-C").log_det for structure in ("kfac", "blockdiag"))
    assert abs(kfac - blockdiag) > 1e-3


def looped_log_det(case, factor, precision, num_views=1):
    """As in the authors' code, one term at a time: (1/T) sum g g^T (x) (1/n) sum a a^T, a and g averaged over views first.

    For convolutions of stride 2 and padding 1 with 3 x 3 kernels (layer 0) and of 2 x 2 kernels (layer 2), and the linear
    layer behind them.
    """
    model, total = case.model, 0.0
    hidden, x = {}, case.x
    for index, module in enumerate(model):
        before = x
        x = module(x)
        if hasattr(module, "weight"):
            hidden[index] = (before.detach(), x)
    outputs = x.unflatten(0, (-1, num_views)).mean(1)
    names = dict(model.named_parameters())
    for index, (before, after) in hidden.items():
        module = model[index]
        scatter, moment = 0.0, 0.0
        patches, num_positions = patches_of(module, before)  # per input: list over positions of (d,)
        for n in range(len(outputs)):
            views = range(n * num_views, (n + 1) * num_views)
            for t in range(num_positions):
                a = sum(patches[v][t] for v in views) / num_views
                moment = moment + torch.outer(a, a) / len(outputs)
            for k in range(factor.shape[2]):
                (gradient,) = torch.autograd.grad(
                    (outputs[n] * factor[n, :, k]).sum() * num_views, after, retain_graph=True
                )
                # times num_views: the gradient that a view's own outputs would have, before it is averaged over views
                gradient = gradient.reshape(len(gradient), gradient.shape[1], -1)
                for t in range(num_positions):
                    g = sum(gradient[v, :, t] for v in views) / num_views
                    scatter = scatter + torch.outer(g, g)
        weight, bias = torch.kron(scatter / num_positions, moment), scatter
        for block, key in ((weight, "weight"), (bias, "bias")):
            delta = precision[list(names).index(f"{index}.{key}")]
            total += torch.linalg.slogdet(torch.eye(len(block), dtype=torch.float64) + block / delta).logabsdet
    return total


def patches_of(module, inputs):
    if isinstance(module, nn.Linear):
        return [[row] for row in inputs], 1
    size, stride, padding = module.kernel_size[0], module.stride[0], module.padding[0]
    padded = nn.functional.pad(inputs, (padding,) * 4)
    corners = range(0, padded.shape[-1] - size + 1, stride)
    return [
        [image[:, i : i + size, j : j + size].flatten() for i in corners for j in corners] for image in padded
    ], len(corners) ** 2


@pytest.mark.parametrize("num_views", [1, 3])
def test_convolutions_follow_the_papers_code(num_views):
    """Expand over positions, reduce over views; the bias is its own block sum g g^T."""
    case = make_case("convnet", num_inputs=4 * num_views)
    factor = torch.randn(4, 3, 2, generator=generator(), dtype=torch.float64)
    prior = make_prior("layerwise", case)
    expected = looped_log_det(case, factor, prior.values, num_views)
    assert_same(kfac_log_det(case.model, case.x, factor, prior, num_views), expected)


def test_groups_of_channels_are_blocks_of_their_own():
    """A grouped convolution is two convolutions side by side, and so is its Kronecker approximation."""
    x = torch.randn(3, 4, 4, 4, generator=generator(), dtype=torch.float64)
    grouped = seeded(
        nn.Sequential(nn.Conv2d(4, 2, 2, groups=2, bias=False), nn.Flatten(), nn.Linear(18, 2, bias=False))
    )
    grouped[2].requires_grad_(False)
    factor = torch.randn(3, 2, 2, generator=generator(1), dtype=torch.float64)
    prior = make_prior("scalar", make_case("mlp"))
    halves = 0.0
    for half in range(2):
        one = seeded(nn.Sequential(nn.Conv2d(2, 1, 2, bias=False), nn.Flatten(), nn.Linear(9, 2, bias=False)))
        with torch.no_grad():
            one[0].weight.copy_(grouped[0].weight[half : half + 1])
            one[2].weight.copy_(grouped[2].weight[:, 9 * half : 9 * half + 9])
        one[2].requires_grad_(False)
        halves += kfac_log_det(one, x[:, 2 * half : 2 * half + 2], factor, prior)
    assert_same(kfac_log_det(grouped, x, factor, prior), halves)


def test_views_are_averaged_before_the_outer_products():
    """Two views that cancel each other leave no second moment; averaging the products instead would."""
    model = seeded(nn.Linear(4, 3))
    image = torch.randn(1, 4, generator=generator(), dtype=torch.float64)
    factor = torch.randn(1, 3, 2, generator=generator(1), dtype=torch.float64)
    prior = make_prior("layerwise", make_case("mlp"))
    prior = type(prior)(prior.values[:2], "layerwise")
    g = factor[0]  # the gradients of a linear layer are the cotangents themselves
    bias = torch.linalg.slogdet(torch.eye(3, dtype=torch.float64) + g @ g.T / prior.values[1]).logabsdet
    assert_same(kfac_log_det(model, torch.cat([image, -image]), factor, prior, num_views=2), bias)


def test_the_choice_of_the_factor_does_not_matter_for_all_outputs():
    """Only L L^T enters: a tree and the square root diag(sqrt p) - p sqrt(p)^T give one number."""
    case = make_case("convnet")
    p = case.outputs.softmax(-1)
    root = torch.diag_embed(p.sqrt()) - p.unsqueeze(-1) * p.sqrt().unsqueeze(-2)
    prior = make_prior("layerwise", case)
    assert_same(root @ root.transpose(1, 2), case.hessians)
    assert_same(kfac_log_det(case.model, case.x, root, prior), case.estimate("kfac-N-C", prior).log_det)


def test_a_diagonal_prior_is_refused_by_name():
    case = make_case("mlp")
    message = "kfac takes a scalar or layerwise prior precision, not a diagonal one: use blockdiag, diag or ntk"
    with pytest.raises(ValueError, match=message):
        case.estimate("kfac-N-C", make_prior("diagonal", case))


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
@pytest.mark.parametrize("outputs", ["C", "1", "2"])
def test_it_is_never_certified(likelihood, outputs):
    assert not make_case("mlp", likelihood).estimate(f"kfac-N-{outputs}").certified
