"""The equations of sampled linearised Laplace that no run evaluates: what its samples and updates are held against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ntkml.systems.sampled_laplace import LinearModel, Noise


def noise_precision(model: LinearModel) -> Tensor:
    """B = L L^T, (N, C, C)."""
    return model.factor @ model.factor.mT


def noisy_targets_objective(model: LinearModel, noise: Noise, z: Tensor) -> Tensor:
    """The first form, for invertible B. Scalar."""
    eps = torch.linalg.solve(noise_precision(model), noise.weighted)
    residual = eps - model.features(z)
    fit = torch.einsum("nc,ncd,nd->", residual, noise_precision(model), residual)
    return 0.5 * fit + 0.5 * (model.precision * (z - noise.theta).square()).sum()


def quiet_objective(model: LinearModel, noise: Noise, z: Tensor) -> Tensor:
    """The second form, whose gradients vary less over batches. Scalar."""
    pushed = model.features(z)
    fit = torch.einsum("nc,ncd,nd->", pushed, noise_precision(model), pushed)
    centre = noise.theta + model.transposed(noise.weighted) / model.precision
    return 0.5 * fit + 0.5 * (model.precision * (z - centre).square()).sum()


def mackay_update(effective: Tensor, mean: Tensor) -> Tensor:
    """alpha = gamma / ||theta||^2 for gamma effective dimensions, a scalar, and the posterior mean theta."""
    return effective / mean.square().sum()


def g_prior_scale(model: LinearModel, num_params: int, basis: Callable[[int], Tensor]) -> tuple[Tensor, int]:
    """diag(Phi^T B Phi)^(-1/2), and how many zeros of the diagonal kept the scale 1.

    With features Phi diag(scale) the result does not depend on how columns were scaled. ``basis``: index -> unit vector.
    """
    columns = (model.features(basis(index)) for index in range(num_params))
    diagonal = torch.stack([torch.einsum("nc,ncd,nd->", c, noise_precision(model), c) for c in columns])
    empty = diagonal <= 0
    return torch.where(
        empty, torch.ones_like(diagonal), diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny).rsqrt()
    ), int(empty.sum())


def rescaled(model: LinearModel, scale: Tensor) -> LinearModel:
    """The model in theta / scale: features Phi diag(scale), and the same A for the new parameters."""
    return LinearModel(
        features=lambda vector: model.features(scale * vector),
        transposed=lambda vector: scale * model.transposed(vector),
        factor=model.factor,
        precision=model.precision,
    )
