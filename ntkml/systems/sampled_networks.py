"""``sampled-K``: MacKay's update of the prior precisions of a network from K posterior samples of its linearisation.

An update draws K samples at the present weights and sets alpha = gamma / ||w||^2, for a layerwise prior tensor by tensor:
a fixed-point step, not a gradient. Its fixed point is where d log q / d log alpha vanishes at these weights. A tensor
whose weights are zero, or whose estimate of gamma is not positive, keeps its precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.func import jvp, vjp

from ntkml.parameters import parameter_shapes, trainable_parameters
from ntkml.systems.contract import System
from ntkml.systems.products import flattened, outputs_of
from ntkml.systems.sampled_laplace import LinearModel, draw_noise, effective_dimensions, sample

#: Relative residual of the samples: their Monte-Carlo error is far larger.
TOLERANCE = 1e-2

#: Conjugate gradients stop here at the latest.
MOST_PRODUCTS = 100


class SampledLaplace(System):
    """Posterior samples by conjugate gradients on products with the training data's Jacobian."""

    def update(self, x: Tensor, y: Tensor, streams: Mapping[str, torch.Generator]) -> Callable[[], float]:
        return lambda: self.fixed_point_step(x, y, streams["blocks"])

    def linearised(self, x: Tensor) -> LinearModel:
        """The network's linearisation at its weights, on all inputs."""
        model, likelihood = self.objective.model, self.objective.likelihood
        outputs, weights = outputs_of(model, x), flattened(model)
        f, pull_back = vjp(outputs, weights)[:2]

        def features(vector: Tensor) -> Tensor:
            self.spend(len(x))
            return jvp(outputs, (weights,), (vector,))[1]

        def transposed(cotangents: Tensor) -> Tensor:
            self.spend(len(x))
            return pull_back(cotangents)[0].detach()

        factor = likelihood.factor(f.detach(), "C", None)
        precision = self.objective.prior.diagonal(parameter_shapes(model)).detach()
        return LinearModel(features, transposed, factor, precision.to(weights))

    @torch.no_grad()
    def fixed_point_step(self, x: Tensor, y: Tensor, generator: torch.Generator | None) -> float:
        """One update of the precisions; returns the mean log joint, in nats per datum."""
        model, objective = self.linearised(x), self.objective
        noises = [draw_noise(model, generator) for _ in range(self.number)]
        effective = effective_dimensions(model, [sample(model, noise, TOLERANCE, MOST_PRODUCTS) for noise in noises])
        weights = trainable_parameters(objective.model)
        gamma = torch.stack([part.sum() for part in effective.split([w.numel() for w in weights.values()])]).double()
        gamma = gamma.sum(0, keepdim=True) if objective.prior_kind == "scalar" else gamma
        square = objective.prior.squares(weights)
        usable = (gamma > 0) & (square > 0)
        updated = torch.where(usable, gamma / square, objective.prior.values)
        objective.log_prior_precision.copy_(updated.log())
        log_p = objective.likelihood.log_prob(objective.outputs(x), y).double().sum()
        return float(log_p - 0.5 * objective.prior.quadratic_form(weights)) / len(x)
