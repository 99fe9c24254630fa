"""Products of a network's generalised Gauss-Newton matrix with vectors, without forming either Jacobian or matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import jvp, vjp

from ntkml.layers.uses import average_views
from ntkml.likelihoods import Likelihood
from ntkml.parameters import called_with, trainable_parameters

Outputs = Callable[[Tensor], Tensor]


def flattened(model: nn.Module) -> Tensor:
    """The weights as one vector (P,), detached, in the network's order."""
    return torch.cat([weight.detach().reshape(-1) for weight in trainable_parameters(model).values()])


def outputs_of(model: nn.Module, x: Tensor, num_views: int = 1) -> Outputs:
    """w (P,) -> f(x; w), averaged over views, (n, C). x: (n * S, ...)."""
    weights = trainable_parameters(model)
    sizes = [weight.numel() for weight in weights.values()]

    def outputs(vector: Tensor) -> Tensor:
        parts = zip(weights.items(), vector.split(sizes), strict=True)
        values = {name: part.view_as(weight) for (name, weight), part in parts}
        return average_views(called_with(model, values, x), num_views)

    return outputs


def gauss_newton_product(outputs: Outputs, weights: Tensor, likelihood: Likelihood) -> Callable[[Tensor], Tensor]:
    """v -> J^T Lambda J v at ``weights`` (P,), summed over the data. (P,) -> (P,)."""
    f, pull_back = vjp(outputs, weights)[:2]
    hessian = likelihood.hessian(f.detach())  # (n, C, C)

    def product(vector: Tensor) -> Tensor:
        pushed = jvp(outputs, (weights,), (vector,))[1]
        return pull_back(torch.einsum("ncd,nd->nc", hessian, pushed))[0].detach()

    return product
