"""Affine invariances: a network averaged over random affine views of its input (LILA: Immer et al., NeurIPS 2022, Appendix B).

The view of an image x under noise u in [-1, 1]^6 is x sampled on the grid transformed by expm(sum_i eta_i u_i G_i), with
the six generators G_i of :data:`GENERATORS`; eta holds the half-width of each uniform distribution (radians for the
rotation, fractions of half the image for translations, log-factors for scales). Noise is always an argument: two
estimators, or two values of eta, are compared on the same draws.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ntkml.machine.full_precision import full_precision

#: Order of the entries of eta; the order of the paper's code.
GENERATOR_NAMES = ("x-translation", "y-translation", "rotation", "x-scale", "y-scale", "shear")
ROTATION = GENERATOR_NAMES.index("rotation")

#: G_i in homogeneous coordinates (x, y, 1). Shape (6, 3, 3).
GENERATORS = torch.tensor(
    [
        [[0, 0, 1], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 1], [0, 0, 0]],
        [[0, -1, 0], [1, 0, 0], [0, 0, 0]],
        [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
        [[0, 1, 0], [1, 0, 0], [0, 0, 0]],
    ],
    dtype=torch.float64,
)

_SQUARINGS, _ORDER = 8, 10


def rotation_eta(radians: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """eta of pure rotations by U[-radians, radians]. Shape (6,)."""
    eta = torch.zeros(len(GENERATOR_NAMES), dtype=dtype)
    eta[ROTATION] = radians
    return eta


def draw_noise(
    num_inputs: int, num_views: int, generator: torch.Generator | None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """u ~ U[-1, 1] for every input, view and generator. Shape (num_inputs, num_views, 6)."""
    shape = (num_inputs, num_views, len(GENERATOR_NAMES))
    return 2.0 * torch.rand(shape, generator=generator, dtype=dtype, device="cpu") - 1.0


@full_precision()
def affine_views(images: Tensor, eta: Tensor, noise: Tensor) -> Tensor:
    """Views of every image under eta, differentiable in eta. Under a caller's autocast too they are made in their own precision.

    Args:
        images: (n, channels, height, width).
        eta: (6,), half-widths in the order of :data:`GENERATOR_NAMES`; the rotation is clamped to [-pi, pi].
        noise: (n, S, 6) in [-1, 1].

    Returns:
        (n * S, channels, height, width); the S views of one image are adjacent. Bilinear, zero outside the image.

    Raises:
        ValueError: ``images`` are of another shape or no floating-point numbers.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            "affine views are made of images (n, channels, height, width) of floating-point numbers; got inputs of shape "
            f"{tuple(images.shape)} and type {images.dtype}"
        )
    n, num_views, _ = noise.shape
    clamped = torch.cat([eta[:ROTATION], eta[ROTATION : ROTATION + 1].clamp(-torch.pi, torch.pi), eta[ROTATION + 1 :]])
    generators = _generators(images.device, images.dtype)
    exponents = torch.einsum("nsi,iab->nsab", noise.to(images) * clamped.to(images), generators)
    transforms = torch.matrix_exp(exponents) if images.device.type == "cpu" else squared_exponentials(exponents)
    size = [n * num_views, *images.shape[1:]]
    grid = F.affine_grid(transforms[..., :2, :].reshape(-1, 2, 3), size, align_corners=True)
    repeated = images.repeat_interleave(num_views, dim=0)
    return F.grid_sample(repeated, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


@lru_cache
def _generators(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Copied to a GPU once: every copy makes the host wait. Also for those who come out of inference mode later."""
    with torch.inference_mode(False):
        return GENERATORS.to(device=device, dtype=dtype)


def squared_exponentials(exponents: Tensor) -> Tensor:
    """expm of small matrices (..., m, m), of any norm up to 100, without a look at their norms.

    torch.matrix_exp chooses its order by them, for which the host waits until a GPU has come there. Taylor's series of
    exp(A / 2^8) to the tenth order, squared eight times in float64, leaves an error below the rounding of float32.
    """
    scaled = exponents.double() / 2**_SQUARINGS
    identity = torch.eye(exponents.shape[-1], dtype=torch.float64, device=exponents.device)
    total = identity + scaled / _ORDER
    for order in range(_ORDER - 1, 0, -1):
        total = identity + scaled @ total / order
    for _ in range(_SQUARINGS):
        total = total @ total
    return total.to(exponents.dtype)


class AffineInvariance(nn.Module):
    """The six affine half-widths eta as a learnable augmentation, averaged over ``num_views`` draws per input.

    Raises:
        ValueError: no positive number of views, or ``eta`` (initially zero) of another shape than (6,).
    """

    def __init__(self, num_views: int, eta: Tensor | None = None):
        super().__init__()
        if not isinstance(num_views, int) or num_views < 1:
            raise ValueError(f"num_views must be a positive integer, got {num_views}")
        if eta is not None and (eta.shape != (len(GENERATOR_NAMES),) or not eta.is_floating_point()):
            raise ValueError(
                f"eta holds {len(GENERATOR_NAMES)} floating-point half-widths ({', '.join(GENERATOR_NAMES)}); got shape "
                f"{tuple(eta.shape)} and type {eta.dtype}"
            )
        self.num_views = num_views
        self.eta = nn.Parameter(torch.zeros(len(GENERATOR_NAMES)) if eta is None else eta.detach().clone())

    @property
    def half_widths(self) -> Tensor:
        """eta (6,), whatever parameter it is made from."""
        return self.eta

    def draw(self, num_inputs: int, generator: torch.Generator | None = None) -> Tensor:
        """Noise for :meth:`forward`. Shape (num_inputs, num_views, 6)."""
        noise = draw_noise(num_inputs, self.num_views, generator, self.eta.dtype)
        # From pinned memory a GPU takes it while the host goes on.
        return noise.pin_memory().to(self.eta.device, non_blocking=True) if self.eta.is_cuda else noise

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Views (n * S, ...) of images (n, ...); see :func:`affine_views`."""
        return affine_views(images, self.half_widths, noise)
