"""Sampled linearised Laplace against dense algebra: samples, MacKay's fixed point, and what must not change it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ntkml import log_marginal_likelihood
from ntkml.datasets import load_dataset, subset
from ntkml.models import build_model
from ntkml.parameters import parameter_shapes, trainable_parameters
from ntkml.protocols.train import load_train
from ntkml.randomness import generator_for
from ntkml.systems import make_system
from ntkml.systems.sampled_laplace import LinearModel, Noise, draw_noise, effective_dimensions, sample
from tests.factories import generator
from tests.systems.sampled_reference import (
    g_prior_scale,
    mackay_update,
    noise_precision,
    noisy_targets_objective,
    quiet_objective,
    rescaled,
)

pytestmark = pytest.mark.usefixtures("one_thread")
N, C, P = 12, 2, 5


def dense(seed=0, alpha=0.8, columns=None):
    """A model with full noise precisions, and its design matrix Phi (N, C, P)."""
    stream = generator(seed)
    phi = torch.randn(N, C, P, generator=stream, dtype=torch.float64)
    phi = phi if columns is None else phi * columns
    factor = torch.randn(N, C, C, generator=stream, dtype=torch.float64) + 2 * torch.eye(C, dtype=torch.float64)
    return of_design(phi, factor, alpha), phi


def of_design(phi, factor, alpha):
    precision = torch.full((phi.shape[-1],), alpha, dtype=torch.float64)
    return LinearModel(
        lambda v: torch.einsum("ncp,p->nc", phi, v), lambda u: torch.einsum("ncp,nc->p", phi, u), factor, precision
    )


def hessian_of(model, phi):
    curvature = torch.einsum("ncp,ncd,ndq->pq", phi, noise_precision(model), phi)
    return curvature, curvature + torch.diag(model.precision)


def test_both_objectives_have_the_sample_as_their_minimiser():
    model, _ = dense()
    noise = draw_noise(model, generator(1))
    z = sample(model, noise, 1e-14)
    for objective in (noisy_targets_objective, quiet_objective):
        slope = torch.func.grad(lambda point, objective=objective: objective(model, noise, point))(z)
        assert slope.abs().max() < 1e-10
        curvature = torch.func.hessian(lambda point, objective=objective: objective(model, noise, point))(z)
        torch.testing.assert_close(torch.linalg.solve(curvature, slope), torch.zeros_like(z), atol=1e-10, rtol=0)


def test_samples_have_the_posterior_covariance_and_the_literal_poster_has_not():
    model, phi = dense()
    curvature, hessian = hessian_of(model, phi)
    noises = [draw_noise(model, stream) for stream in [generator(2)] for _ in range(4000)]
    right = torch.stack([model.precision * noise.theta + model.transposed(noise.weighted) for noise in noises])
    z = torch.linalg.solve(hessian, right.T).T
    torch.testing.assert_close(z[0], sample(model, noises[0], 1e-14), atol=1e-10, rtol=1e-10)
    covariance, expected = z.T @ z / len(z), torch.linalg.inv(hessian)
    assert (covariance - expected).norm() / expected.norm() < 0.06
    # Without the halves of the data term its gradient counts twice.
    centre = torch.stack([noise.theta + model.transposed(noise.weighted) / model.precision for noise in noises])
    poster = torch.linalg.solve(2 * curvature + torch.diag(model.precision), (model.precision * centre).T).T
    wrong = poster.T @ poster / len(poster)
    assert (wrong - expected).norm() / expected.norm() > 0.3


def test_the_second_objective_has_the_quieter_gradients():
    model, phi = dense()
    noise = draw_noise(model, generator(3))
    z = sample(model, noise, 1e-14)
    eps = torch.linalg.solve(noise_precision(model), noise.weighted)
    pushed = torch.einsum("ncp,p->nc", phi, z)
    first = N * torch.einsum("ncp,ncd,nd->np", phi, noise_precision(model), pushed - eps)  # one datum at a time
    second = N * torch.einsum("ncp,ncd,nd->np", phi, noise_precision(model), pushed)
    assert second.var(0).sum() < first.var(0).sum() / 1.5


def gaussian_problem():
    """One output, noise precision 4, targets from a linear model."""
    stream = generator(4)
    phi = torch.randn(40, 1, P, generator=stream, dtype=torch.float64)
    targets = torch.einsum("ncp,p->nc", phi, torch.linspace(-1, 1, P, dtype=torch.float64))
    targets = targets + 0.5 * torch.randn(40, 1, generator=stream, dtype=torch.float64)
    return phi, targets, torch.full((40, 1, 1), 2.0, dtype=torch.float64)


def log_evidence(phi, targets, log_alpha):
    design, covariance = phi[:, 0], torch.eye(40, dtype=torch.float64) / 4
    marginal = torch.distributions.MultivariateNormal(
        torch.zeros(40, dtype=torch.float64), covariance + design @ design.T / log_alpha.exp()
    )
    return marginal.log_prob(targets[:, 0])


def fixed_point(trace):
    phi, targets, factor = gaussian_problem()
    alpha = 1.0
    for _ in range(20):
        model = of_design(phi, factor, alpha)
        _, hessian = hessian_of(model, phi)
        mean = torch.linalg.solve(hessian, model.transposed(4 * targets))
        alpha = float(mackay_update(trace(model, phi), mean))
    return alpha


def exact_trace(model, phi):
    curvature, hessian = hessian_of(model, phi)
    return torch.linalg.solve(hessian, curvature).trace()


def test_the_fixed_point_is_the_argmax_of_the_exact_evidence():
    phi, targets, _ = gaussian_problem()
    alpha = fixed_point(exact_trace)
    log_alpha = torch.tensor(alpha, dtype=torch.float64).log().requires_grad_()
    for _ in range(20):  # Newton on the evidence, from the fixed point
        slope = torch.func.grad(lambda value: log_evidence(phi, targets, value))(log_alpha.detach())
        bend = torch.func.hessian(lambda value: log_evidence(phi, targets, value))(log_alpha.detach())
        log_alpha = log_alpha.detach() - slope / bend
    assert bend < 0
    assert alpha == pytest.approx(float(log_alpha.exp()), rel=1e-6)


def test_with_samples_the_fixed_point_is_near():
    exact = fixed_point(exact_trace)

    def sampled(model, phi):
        stream = generator(5)
        return effective_dimensions(model, [sample(model, draw_noise(model, stream)) for _ in range(32)]).sum()

    assert fixed_point(sampled) == pytest.approx(exact, rel=0.25)


def test_rescaling_columns_changes_nothing_under_the_g_prior():
    columns = torch.tensor([1.0, 10.0, 0.1, 3.0, 0.5], dtype=torch.float64)
    results = []
    for scaling in (None, columns):
        model, phi = dense(columns=scaling)
        scale, empty = g_prior_scale(model, P, lambda index: torch.eye(P, dtype=torch.float64)[index])
        assert empty == 0
        scaled = rescaled(model, scale)
        z = sample(scaled, draw_noise(scaled, generator(6)), 1e-14)
        results.append(scaled.features(z))
    torch.testing.assert_close(results[0], results[1], atol=1e-10, rtol=1e-10)


def test_empty_columns_keep_their_scale_and_are_counted():
    model, _ = dense(columns=torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float64))
    scale, empty = g_prior_scale(model, P, lambda index: torch.eye(P, dtype=torch.float64)[index])
    assert empty == 2
    assert scale[1] == scale[3] == 1


def learner_system(name="sampled-200", prior_kind="layerwise"):
    protocol = replace(load_train("train-digits", "prior"), estimator=name, num_data=20, prior_kind=prior_kind)
    data = subset(load_dataset("digits"), 20, generator_for(0, "data"))
    model = build_model("mlp", (1, 8, 8), 10, generator_for(0, "init")).double()
    return make_system(protocol, model), data.train_inputs.double(), data.train_targets


def test_tensors_of_one_shape_get_different_draws():
    system, x, _ = learner_system()
    noise: Noise = draw_noise(system.linearised(x), generator(7))
    parts = noise.theta.split([w.numel() for w in system.objective.model.parameters()])
    assert len(parts[1]) == len(parts[3]) == 100  # the biases of the two hidden layers
    assert not torch.allclose(parts[1], parts[3])
    assert abs(float(torch.corrcoef(torch.stack([parts[1], parts[3]]))[0, 1])) < 0.4


def test_softmax_noise_is_drawn_through_the_factor():
    system, x, _ = learner_system()
    model = system.linearised(x[:1])
    draws = torch.stack([draw_noise(model, stream).weighted[0] for stream in [generator(8)] for _ in range(2000)])
    lam = system.objective.likelihood.hessian(system.objective.model(x[:1]))[0].detach()
    torch.testing.assert_close(draws.sum(1), torch.zeros(2000, dtype=torch.float64), atol=1e-12, rtol=0)  # singular
    assert (draws.T @ draws / 2000 - lam).norm() / lam.norm() < 0.1


def rows_of(system, x):
    """R = L^T J of the network on ``x``, (N * columns, P), from the Jacobian of all outputs."""
    network = system.objective.model
    names, weights = zip(*network.named_parameters(), strict=True)

    def outputs(vector):
        parts = vector.split([w.numel() for w in weights])
        values = {name: part.view_as(w) for name, w, part in zip(names, weights, parts, strict=True)}
        return torch.func.functional_call(network, values, (x,))

    jacobian = torch.func.jacrev(outputs)(torch.cat([w.detach().reshape(-1) for w in weights]))
    return torch.einsum("ncp,ncr->nrp", jacobian, system.linearised(x).factor).flatten(0, 1)


def exact_update(system, rows):
    """MacKay's precisions gamma_l / ||w_l||^2 from exact traces gamma_l of H^-1 R^T R at the system's own precisions."""
    weights = list(system.objective.model.parameters())
    sizes = [w.numel() for w in weights]
    scaled = rows / system.objective.prior.diagonal(parameter_shapes(system.objective.model)).detach()
    hat = torch.linalg.solve(torch.eye(len(rows), dtype=torch.float64) + scaled @ rows.T, scaled)
    gamma = torch.stack([part.sum() for part in (rows * hat).sum(0).split(sizes)])
    squares = torch.stack([w.detach().square().sum() for w in weights])
    return gamma / squares if system.objective.prior_kind == "layerwise" else gamma.sum() / squares.sum()


def test_a_step_of_the_network_is_mackays_update_with_the_exact_traces_but_for_sampling():
    system, x, y = learner_system("sampled-24")
    expected = exact_update(system, rows_of(system, x))
    system.fixed_point_step(x, y, generator(9))
    torch.testing.assert_close(system.objective.prior.values.detach(), expected, rtol=0.35, atol=0)


def test_a_step_leaves_the_precisions_of_zero_weights_alone_and_returns_the_mean_log_joint():
    system, x, y = learner_system("sampled-2")
    network = system.objective.model
    zero = torch.tensor([name.endswith("bias") for name, _ in network.named_parameters()])
    with torch.no_grad():
        for weight in list(network.parameters())[1::2]:
            weight.zero_()
    before = system.objective.prior.values.detach()
    value = system.fixed_point_step(x, y, generator(9))
    prior = system.objective.prior
    assert torch.equal(torch.isclose(prior.values, before), zero)
    log_p = -torch.nn.functional.cross_entropy(network(x), y, reduction="sum")
    assert value == pytest.approx(float((log_p - prior.energy(trainable_parameters(network))).detach()) / 20)


@pytest.mark.parametrize("prior_kind", ["scalar", "layerwise"])
def test_the_fixed_point_is_where_the_evidence_has_no_slope_in_the_precisions(prior_kind):
    """Under a softmax, at fixed weights: d log q / d log alpha = 1/2 ||w||^2 (update of alpha - alpha), wherever alpha is."""
    system, x, y = learner_system(prior_kind=prior_kind)
    network, alpha = system.objective.model, system.objective.log_prior_precision
    rows, squares = rows_of(system, x), system.objective.prior.squares(trainable_parameters(network))
    for start in (0.1, 1.0, 30.0):
        with torch.no_grad():
            alpha.copy_((start * torch.linspace(0.5, 2.0, len(alpha), dtype=torch.float64)).log())
        evidence = log_marginal_likelihood(network, x, y, "ntk-N-C", alpha.exp()).total
        (slope,) = torch.autograd.grad(evidence, alpha)
        expected = 0.5 * squares * (exact_update(system, rows) - alpha.detach().exp())
        torch.testing.assert_close(slope, expected, rtol=1e-9, atol=1e-9)
