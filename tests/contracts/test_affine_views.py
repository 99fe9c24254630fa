"""Affine views: what each half-width does to an image, on which side, and that noise comes from its generator alone."""

from __future__ import annotations

import math

import pytest
import torch

from ntkml.hyperparameters.affine import (
    GENERATOR_NAMES,
    ROTATION,
    affine_views,
    draw_noise,
    rotation_eta,
    squared_exponentials,
)
from ntkml.randomness import generator_for
from tests.factories import assert_same, generator

SIZE = 7


def images(num_images=2, channels=3, height=SIZE, width=SIZE):
    return torch.rand(num_images, channels, height, width, generator=generator(), dtype=torch.float64)


def eta_of(name, value):
    eta = torch.zeros(6, dtype=torch.float64)
    eta[GENERATOR_NAMES.index(name)] = value
    return eta


def noise_of(value, num_images=2, num_views=1):
    return torch.full((num_images, num_views, 6), value, dtype=torch.float64)


def coordinates():
    """x to the right and y downwards, both from -1 to 1 over the centres of the outer pixels. (H, W) each."""
    axis = torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def bump(x, y):
    """Smooth, without symmetry, and nothing at the border."""
    return torch.exp(-6 * ((x - 0.2) ** 2 + (y + 0.1) ** 2)) * (1 - x**2) ** 2 * (1 - y**2) ** 2


def test_without_half_widths_a_view_is_the_image():
    noise = draw_noise(2, 4, generator(), torch.float64)
    views = affine_views(images(), torch.zeros(6, dtype=torch.float64), noise)
    assert views.shape == (8, 3, SIZE, SIZE)
    assert_same(views, images().repeat_interleave(4, 0), 1e-12)


def test_views_are_in_full_precision_whatever_the_caller_computes_in():
    """The exponential of a matrix in bfloat16 left black images."""
    eta, noise = torch.full((6,), 0.3), draw_noise(4, 3, generator())
    x = torch.rand(4, 1, 8, 8, generator=generator())
    expected = affine_views(x, eta, noise)
    with torch.autocast("cpu", torch.bfloat16):
        found = affine_views(x, eta, noise)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("u", "quarter_turns"), [(1.0, 1), (-1.0, -1)])
def test_a_rotation_by_a_quarter_is_exact(u, quarter_turns):
    """Positive noise turns the picture as torch.rot90 does: counter-clockwise on the screen, where y points down."""
    views = affine_views(images(), rotation_eta(math.pi / 2, torch.float64), noise_of(u))
    assert_same(views, torch.rot90(images(), quarter_turns, dims=(2, 3)), 1e-12)


def test_a_rotation_by_pi_turns_both_axes_and_is_the_largest():
    turned = torch.rot90(images(), 2, dims=(2, 3))
    assert_same(affine_views(images(), rotation_eta(math.pi, torch.float64), noise_of(1.0)), turned, 1e-12)
    for beyond in (4.0, 50.0, -9.0):
        assert_same(affine_views(images(), eta_of("rotation", beyond), noise_of(1.0)), turned, 1e-12)
    assert rotation_eta(0.3).tolist() == pytest.approx([0, 0, 0.3, 0, 0, 0])
    assert GENERATOR_NAMES[ROTATION] == "rotation"


@pytest.mark.parametrize(("name", "dim"), [("x-translation", 3), ("y-translation", 2)])
def test_a_translation_by_whole_pixels_is_exact(name, dim):
    """Half an image is 1: two of six pixel widths are 2/3. Positive noise moves the picture to the left, or up."""
    views = affine_views(images(), eta_of(name, 2 / 3), noise_of(1.0))
    expected = torch.roll(images(), -2, dims=dim)
    expected.index_fill_(dim, torch.tensor([SIZE - 2, SIZE - 1]), 0.0)
    assert_same(views, expected, 1e-12)


CLOSED_FORMS = {
    "x-translation": lambda t, x, y: (x + t, y),
    "y-translation": lambda t, x, y: (x, y + t),
    "rotation": lambda t, x, y: (math.cos(t) * x - math.sin(t) * y, math.sin(t) * x + math.cos(t) * y),
    "x-scale": lambda t, x, y: (math.exp(t) * x, y),
    "y-scale": lambda t, x, y: (x, math.exp(t) * y),
    "shear": lambda t, x, y: (math.cosh(t) * x + math.sinh(t) * y, math.sinh(t) * x + math.cosh(t) * y),
}


@pytest.mark.parametrize("t", [0.3, -0.2])
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_a_view_looks_up_the_transformed_point(name, t):
    """On an image that is linear in x and y bilinear interpolation is exact: inside, the view is f at expm(t G) (x, y)."""
    x, y = coordinates()
    plane = 0.7 + 0.5 * x - 0.3 * y
    views = affine_views(plane.expand(1, 1, -1, -1), eta_of(name, 2 * t), noise_of(0.5, num_images=1))
    source_x, source_y = CLOSED_FORMS[name](t, x, y)
    inside = (source_x.abs() <= 1) & (source_y.abs() <= 1)
    outside = (source_x.abs() > 1 + 2 / (SIZE - 1)) | (source_y.abs() > 1 + 2 / (SIZE - 1))
    assert inside.sum() > SIZE**2 / 3
    assert_same(views[0, 0][inside], (0.7 + 0.5 * source_x - 0.3 * source_y)[inside], 1e-12)
    assert (views[0, 0][outside] == 0).all()
    assert set(CLOSED_FORMS) == set(GENERATOR_NAMES)


def test_views_combine_in_one_exponential_and_are_adjacent():
    """expm of the sum of generators, not a product of one transform after another; view s of image n at n S + s."""
    x, y = coordinates()
    planes = torch.stack([x, y]).unsqueeze(1)
    eta = torch.tensor([0.1, -0.05, 0.3, 0.1, -0.2, 0.15], dtype=torch.float64)
    noise = draw_noise(2, 3, generator(), torch.float64)
    views = affine_views(planes, eta, noise)
    for n in range(2):
        for s in range(3):
            tx, ty, r, sx, sy, sh = (eta * noise[n, s]).tolist()
            matrix = torch.tensor([[sx, sh - r, tx], [r + sh, sy, ty], [0, 0, 0]], dtype=torch.float64)
            power, term = torch.eye(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
            for k in range(1, 20):
                term = term @ matrix / k
                power = power + term
            source = torch.einsum("ab,bij->aij", power, torch.stack([x, y, torch.ones_like(x)]))
            inside = (source[0].abs() <= 1) & (source[1].abs() <= 1)
            assert_same(views[3 * n + s, 0][inside], source[n][inside], 1e-12)


@pytest.mark.parametrize("scale", [0.0, 0.3, 3.0, 30.0])
def test_exponentials_by_squaring_are_those_of_torch(scale):
    """A GPU takes them so; in float64 to what squaring costs, in float32 to rounding."""
    exponents = scale * (2.0 * torch.rand(20, 3, 3, generator=generator(), dtype=torch.float64) - 1.0)
    exact = torch.matrix_exp(exponents)
    assert_same(squared_exponentials(exponents) / exact.norm(), exact / exact.norm(), 1e-11)
    assert_same(squared_exponentials(exponents.float()) / exact.norm(), exact.float() / exact.norm(), 1e-5)


def test_the_gradient_in_eta_is_that_of_finite_differences():
    """On a smooth picture, at steps that cross no pixel border."""
    x, y = coordinates()
    pictures = torch.stack([bump(x, y), bump(-y, x)]).unsqueeze(1)
    noise = draw_noise(2, 3, generator(), torch.float64)
    weights = torch.randn(6, 1, SIZE, SIZE, generator=generator(1), dtype=torch.float64)
    eta = torch.tensor([0.2, -0.1, 0.7, 0.1, 0.2, -0.3], dtype=torch.float64, requires_grad=True)

    def score(eta):
        return (weights * affine_views(pictures, eta, noise)).sum()

    (gradient,) = torch.autograd.grad(score(eta), eta)
    assert (gradient.abs() > 1e-3).all()
    for direction in torch.eye(6, dtype=torch.float64):
        step = 1e-7 * direction
        assert_same(gradient @ direction, (score(eta + step) - score(eta - step)) / 2e-7, 1e-6)


def test_a_rotation_beyond_pi_has_no_gradient():
    eta = eta_of("rotation", 3.5).requires_grad_()
    (gradient,) = torch.autograd.grad(affine_views(images(), eta, noise_of(0.4)).square().sum(), eta)
    assert gradient[ROTATION] == 0
    assert gradient[0] != 0


def test_noise_is_uniform_and_comes_from_its_generator_alone():
    before = torch.random.get_rng_state()
    noise = draw_noise(300, 5, generator(1))
    assert noise.shape == (300, 5, 6)
    assert noise.min() >= -1
    assert noise.max() <= 1
    assert_same(noise.mean((0, 1)), torch.zeros(6), 0.05)
    assert_same(noise.var((0, 1)), torch.full((6,), 1 / 3), 0.05)
    assert torch.equal(noise, draw_noise(300, 5, generator(1)))
    assert not torch.equal(noise, draw_noise(300, 5, generator(2)))
    affine_views(images(), rotation_eta(1.0, torch.float64), draw_noise(2, 3, generator(), torch.float64))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_view_depends_on_its_own_noise_and_nothing_else():
    eta = rotation_eta(1.0, torch.float64)
    noise = draw_noise(2, 3, generator(), torch.float64)
    views = affine_views(images(), eta, noise)
    assert torch.equal(affine_views(images(), eta, noise), views)
    noise[1, 2] = 0.9
    changed = (affine_views(images(), eta, noise) != views).flatten(1).any(1)
    assert changed.tolist() == [False] * 5 + [True]
    assert_same(affine_views(images()[1:], eta, noise[1:, :1]), views[3:4], 1e-14)


def test_float32_images_stay_float32():
    views = affine_views(images().float(), rotation_eta(0.5), draw_noise(2, 2, generator()))
    assert views.dtype == torch.float32


@pytest.mark.parametrize("inputs", [torch.rand(2, 4), torch.rand(2, 5, 5), torch.zeros(2, 1, 5, 5, dtype=torch.uint8)])
def test_what_is_no_image_is_refused_in_words(inputs):
    with pytest.raises(
        ValueError, match=r"images \(n, channels, height, width\) of floating-point .*; got inputs of shape"
    ):
        affine_views(inputs, rotation_eta(0.5), draw_noise(2, 2, generator()))


def test_every_purpose_has_its_own_stream():
    """Another consumer of randomness never changes this one; seeds and purposes do not collide."""
    draws = {
        (seed, purpose): tuple(torch.rand(3, generator=generator_for(seed, purpose)).tolist())
        for seed in range(12)
        for purpose in ("data", "init", "partition", "augmentation", "training", "1/data")
    }
    assert len(set(draws.values())) == len(draws)
    assert tuple(torch.rand(3, generator=generator_for(3, "init")).tolist()) == draws[3, "init"]
