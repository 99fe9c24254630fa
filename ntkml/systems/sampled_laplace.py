"""Sampled linearised Laplace (Antoran et al., ICLR 2023): posterior samples by optimisation, for MacKay's update.

The linear model y_i = Phi_i theta + noise with theta ~ N(0, A^-1) and noise N(0, B_i^-1) has the posterior covariance
H^-1, H = Phi^T B Phi + A. A sample of N(0, H^-1) is the minimiser of either of

    1/2 sum_i ||eps_i - Phi_i z||^2_B + 1/2 ||z - theta_0||^2_A                  theta_0 ~ N(0, A^-1), eps_i ~ N(0, B_i^-1)
    1/2 sum_i ||Phi_i z||^2_B         + 1/2 ||z - theta_n||^2_A                  theta_n = theta_0 + A^-1 Phi^T B eps

whose gradients have the same mean over random batches; the second has the smaller variance. (Without the halves of the
data terms, as a poster of the paper has them, the covariance is another one.) A softmax has singular B_i, for which
N(0, B_i^-1) does not exist: only B eps enters the second form, and it is drawn as L xi with L L^T = B, xi standard normal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ntkml.systems.hoag import conjugate_gradients

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LinearModel:
    """Phi by its products. ``features`` v -> Phi v, (P,) -> (N, C); ``transposed`` u -> Phi^T u; ``factor`` L, (N, C, num_columns).

    B_i = L_i L_i^T is the noise precision; ``precision`` (P,) the diagonal of A.
    """

    features: Product
    transposed: Product
    factor: Tensor
    precision: Tensor

    def curvature(self, vector: Tensor) -> Tensor:
        """Phi^T L (L^T Phi v), (P,)."""
        columns = self.factor.mT @ self.features(vector).unsqueeze(2)
        return self.transposed((self.factor @ columns).squeeze(2))


@dataclass(frozen=True)
class Noise:
    """What one sample is made from: theta_0 (P,) and B eps = L xi, (N, C)."""

    theta: Tensor
    weighted: Tensor


def draw_noise(model: LinearModel, generator: torch.Generator | None) -> Noise:
    """theta_0 ~ N(0, A^-1) over the whole parameter vector at once, and L xi: no two tensors share draws."""
    factor = model.factor
    shape = (*factor.shape[:1], factor.shape[2])
    theta = torch.randn(model.precision.shape, generator=generator, dtype=model.precision.dtype)
    xi = torch.randn(shape, generator=generator, dtype=factor.dtype)
    return Noise(theta.to(factor.device) / model.precision.sqrt(), torch.einsum("ncr,nr->nc", factor, xi.to(factor)))


def sample(model: LinearModel, noise: Noise, tolerance: float = 1e-10, most: int | None = None) -> Tensor:
    """The minimiser of both forms, H z = A theta_0 + Phi^T B eps, by conjugate gradients. (P,)."""

    def hessian(vector: Tensor) -> Tensor:
        return model.curvature(vector) + model.precision * vector

    right_side = model.precision * noise.theta + model.transposed(noise.weighted)
    return conjugate_gradients(hessian, right_side, tolerance, most=most)


def effective_dimensions(model: LinearModel, samples: list[Tensor]) -> Tensor:
    """The mean over samples of z (Phi^T B Phi z), entry by entry: sums are traces of blocks of H^-1 Phi^T B Phi. (P,)."""
    return torch.stack([z * model.curvature(z) for z in samples]).mean(0)
