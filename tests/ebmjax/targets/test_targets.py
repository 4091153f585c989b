"""Toy densities: the draws and the energy are of one law, and it is the stated one."""

import functools
import math
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from sklearn import datasets

from ebmjax import energies, targets

EPS = 2.0**-23  # of float32


class Case(NamedTuple):
    target: targets.Target
    std: float  # of the normal that smooths it; any length for the checkerboards
    low: tuple[float, float]  # corners of the support, before the normal is added
    high: tuple[float, float]


MEANS = np.array([[0.0, 0.0], [1.2, -0.5], [-1.0, 1.0]])

SMOOTH = {
    "gaussian_mixture": Case(
        targets.gaussian_mixture(means=MEANS, std=0.3, weights=(1, 2, 5)),
        0.3,
        (-1, -0.5),
        (1.2, 1),
    ),
    "eight_gaussians": Case(
        targets.eight_gaussians(radius=1.0, std=0.15), 0.15, (-1, -1), (1, 1)
    ),
    "twenty_five_gaussians": Case(
        targets.twenty_five_gaussians(), 0.05 / 8**0.5, (-1.415,) * 2, (1.415,) * 2
    ),
    "rings": Case(targets.rings(), 0.15, (-4, -4), (4, 4)),
    "weighted_rings": Case(
        targets.rings(radii=(0.0, 0.4, 1.5), std=0.2, weights=(1, 2, 6)),
        0.2,
        (-1.5, -1.5),
        (1.5, 1.5),
    ),
    "swiss_roll": Case(targets.swiss_roll(), 1 / 30, (-1.5, -1.7), (1.9, 1.9)),
    "two_moons": Case(targets.two_moons(), 0.1, (-1, -0.5), (2, 1)),
}
BOARDS = {
    "checkerboard": Case(targets.checkerboard(), 1.0, (-4, -4), (4, 4)),
    "small_checkerboard": Case(
        targets.checkerboard(num_squares=3, side=0.7), 0.35, (-1.05,) * 2, (1.05,) * 2
    ),
}
CASES = SMOOTH | BOARDS

# Bound of Gauss-Legendre's remainder, 8 nodes on 4 standard deviations of a normal
# bump, relative to the bump: (L/w)^17 (8!)^3 / (17 (16!)^2 2^8 sqrt(2 pi)) = 2.3e-7;
# once for each dimension.
NODES, WEIGHTS = (a / 2 for a in np.polynomial.legendre.leggauss(8))


def bin_side(case: Case) -> float:
    return case.std if case in BOARDS.values() else 4 * case.std


class Bins(NamedTuple):
    origin: np.ndarray  # [2]
    shape: tuple[int, int]
    energies: np.ndarray  # [bins, nodes]
    areas: np.ndarray  # [nodes]

    def masses(self) -> np.ndarray:
        return np.exp(-self.energies) @ self.areas


@functools.cache
def compiled(name: str):
    return jax.jit(jax.vmap(CASES[name].target.energy_fn))


def mapped(name: str):
    """Energies `[m, n]` of points `[m, n, 2]`, in blocks of one size."""

    def energies_of(x):
        flat = np.asarray(x).reshape(-1, 2)
        size = 4096
        padded = np.resize(flat, (-(-len(flat) // size), size, 2))
        energy = np.concatenate([compiled(name)(block) for block in padded])
        return energy[: len(flat)].reshape(x.shape[:-1])

    return energies_of


@functools.cache
def bins(name: str) -> Bins:
    """Squares over the support and six standard deviations around it."""
    case = CASES[name]
    side = bin_side(case)
    margin = 2 * side if name in BOARDS else 6 * case.std
    origin = np.array(case.low) - margin
    shape = tuple(
        math.ceil((high + margin - low) / side - 1e-9)
        for high, low in zip(case.high, origin)
    )
    centres = origin + side * (np.indices(shape).reshape(2, -1).T + 0.5)
    offsets = side * np.stack(np.meshgrid(NODES, NODES), axis=-1).reshape(1, -1, 2)
    points = (centres[:, None] + offsets).astype(np.float32)
    energy = mapped(name)(points).astype(np.float64)
    return Bins(origin, shape, energy, side**2 * np.outer(WEIGHTS, WEIGHTS).ravel())


@functools.cache
def sampler(name: str):
    sample = jax.jit(CASES[name].target.sample, static_argnums=1)
    return lambda key: sample(key, 200_000)


@functools.cache
def draws(name: str) -> jax.Array:
    return sampler(name)(jax.random.key(0))


def entropy(name: str) -> float:
    # entr(p) = -p log p = p * energy, and 0 where the energy is infinite.
    grid = bins(name)
    return np.sum(scipy.special.entr(np.exp(-grid.energies)) @ grid.areas)


@pytest.mark.parametrize("name", CASES)
def test_the_density_integrates_to_its_partition_function(name):
    # Two dimensions of Gauss-Legendre, 5e-7; what is beyond six standard deviations,
    # 1e-8; and rounding: that of x, 3 EPS at most, moves the energy by that times the
    # gradient, 3 / std where there is mass: 9 EPS / std, the same sign over no more
    # than a fraction of the plane.
    case = CASES[name]
    total = bins(name).masses().sum()
    tolerance = 1e-6 + 9 * EPS / case.std
    np.testing.assert_allclose(total, np.exp(case.target.log_partition), rtol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_draws_fill_the_plane_as_the_energy_says(name):
    """Pearson's test of the counts in squares against the density integrated there."""
    case, grid, x = CASES[name], bins(name), draws(name)
    index = np.floor((np.asarray(x, np.float64) - grid.origin) / bin_side(case))
    is_inside = np.all((index >= 0) & (index < grid.shape), axis=1)
    flat = np.ravel_multi_index(index[is_inside].astype(int).T, grid.shape)
    counts = np.bincount(flat, minlength=math.prod(grid.shape))
    expected = len(x) * grid.masses()

    is_kept = expected >= 10  # where chi-squared holds for the statistic
    counts = np.append(counts[is_kept], len(x) - counts[is_kept].sum())
    expected = np.append(expected[is_kept], len(x) - expected[is_kept].sum())
    if expected[-1] < 10:  # the rest joins the last square
        counts = np.append(counts[:-2], counts[-2:].sum())
        expected = np.append(expected[:-2], expected[-2:].sum())
    statistic = np.sum((counts - expected) ** 2 / expected)
    # One key in five thousand would fail; too good a fit is no independent draw either.
    probability = scipy.stats.chi2.sf(statistic, len(counts) - 1)
    assert 1e-4 < probability < 1 - 1e-4


@pytest.mark.parametrize("name", CASES)
def test_the_mean_energy_of_draws_is_the_entropy(name):
    x = draws(name)[:50_000]
    energy = mapped(name)(x.reshape(50, 1000, 2)).astype(np.float64)
    # Five standard errors; and rounding, for the checkerboards, where those are zero.
    tolerance = 5 * energy.std() / energy.size**0.5 + 1e-5
    np.testing.assert_allclose(energy.mean(), entropy(name), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["swiss_roll", "two_moons"])
def test_data_of_scikit_learn_have_the_entropy_as_mean_energy(name):
    """Curves, scales and noise are those of the library that made them usual."""
    size = 20_000
    if name == "swiss_roll":
        x = datasets.make_swiss_roll(size, noise=0.25, random_state=0)[0]
        x = x[:, [0, 2]] / 7.5
    else:
        x = datasets.make_moons(size, noise=0.1, random_state=0)[0]
    energy = mapped(name)(x.reshape(-1, 1000, 2).astype(np.float32))
    # Five standard errors: fewer are needed on make_moons's even grid.
    tolerance = 5 * energy.std() / size**0.5
    np.testing.assert_allclose(energy.mean(), entropy(name), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_draws_are_a_function_of_the_key_alone(name):
    x = draws(name)
    np.testing.assert_array_equal(x, sampler(name)(jax.random.key(0)))
    other = sampler(name)(jax.random.key(1))
    assert not np.any(np.all(x == other, axis=1))
    # The draws of a density are all different, in the first thousand for sure.
    assert len(np.unique(x[:1000], axis=0)) == 1000


def probes(name: str) -> np.ndarray:
    """The origin, six draws, and places 10 to 10^8 away, exact in float32."""
    near = np.asarray(draws(name)[:6])
    far = [[7.0, -7.0], [0.0, -1e3], [-3e5, 4e5], [1e8, 0.0]]
    return np.concatenate([np.zeros((1, 2)), near, far]).astype(np.float32)


@pytest.mark.parametrize("name", SMOOTH)
def test_the_gradient_is_that_of_central_differences(name):
    case = SMOOTH[name]
    energy_fn, std = case.target.energy_fn, case.std
    points = probes(name)

    @jax.jit
    def both(x):
        # Steps are a fraction of the smoothing, or of the distance where that is more.
        size = 1e-4 * std + 1e-6 * jnp.linalg.norm(x)
        step = size * jnp.eye(2)
        batch_fn = jax.vmap(energy_fn)
        numeric = (batch_fn(x[None] + step) - batch_fn(x[None] - step)) / (2 * size)
        return jax.grad(energy_fn)(x), numeric

    with jax.enable_x64(True):
        pairs = [both(x) for x in jnp.asarray(points, jnp.float64)]
        gradient, numeric = np.asarray(pairs).swapaxes(0, 1)
    # Every gradient is (x - c) / std^2 for a mean c of centres within 6 of the origin:
    # (|x| + 6) / std^2 bounds it. Rounding of the energy, 2e-16 * (|x| + 6)^2 /
    # (2 std^2), over the step is below 1e-9 of the bound; truncation, step^2 / 6 times
    # a third derivative of order 1 / std^3, is less.
    bound = (np.linalg.norm(points, axis=1, keepdims=True) + 6) / std**2
    np.testing.assert_array_less(np.abs(numeric - gradient), 1e-8 * bound + 0 * points)

    # In float32 the weights of the centres are off by the rounding of their energies,
    # a few EPS * |x - c|^2 / (2 std^2), below 2e-5 on draws and at the origin; and far
    # away, where that is more, the centres no longer matter.
    single = jax.jit(jax.vmap(jax.grad(energy_fn)))(jnp.asarray(points))
    assert single.dtype == jnp.float32
    difference = np.abs(np.asarray(single, np.float64) - gradient)
    np.testing.assert_array_less(difference, 2e-5 * bound + 0 * points)


@pytest.mark.parametrize("name", SMOOTH)
def test_far_away_the_energy_is_the_squared_distance(name):
    # E = |x|^2 / (2 std^2) up to |x| |c| / std^2, of which |c| <= 6: relative 12 / |x|.
    case = SMOOTH[name]
    value_and_grad = jax.jit(jax.value_and_grad(case.target.energy_fn))
    for x in ([0.0, 1e6], [-6e11, 8e11]):
        norm = math.hypot(*x)
        energy, gradient = value_and_grad(jnp.array(x))
        tolerance = 12 / norm + 1e-5
        np.testing.assert_allclose(energy, norm**2 / (2 * case.std**2), rtol=tolerance)
        np.testing.assert_allclose(
            gradient,
            np.array(x) / case.std**2,
            rtol=tolerance,
            atol=tolerance * norm / case.std**2,
        )


def log_volume(std: float) -> float:
    """Energy of a normal in the plane at its mean."""
    return math.log(2 * math.pi * std**2)


@pytest.mark.quick
def test_the_energy_at_a_lonely_mode_is_this_number():
    # The others are 40 standard deviations away or more: e^-800 is 0. Rounding of the
    # centre is 1e-7, or 1e-5 standard deviations; of a sum below 10, 1e-6.
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=3e-6)
    eight = jax.jit(targets.eight_gaussians().energy_fn)
    for k in range(8):
        angle = k * math.pi / 4
        mode = 2**0.5 * jnp.array([math.cos(angle), math.sin(angle)])
        close(eight(mode), math.log(8) + log_volume(0.02 / 2**0.5))
    grid = jax.jit(targets.twenty_five_gaussians().energy_fn)
    for i in range(-2, 3):
        for j in range(-2, 3):
            mode = jnp.array([i, j]) / 2**0.5
            close(grid(mode), math.log(25) + log_volume(0.05 / 8**0.5))


def test_a_mixture_has_its_weights_and_any_event_shape():
    means = np.stack([np.full((2, 3), -50.0), np.full((2, 3), 50.0)])
    target = targets.gaussian_mixture(means=means, std=2.0, weights=(3, 1))
    expected = -np.log([0.75, 0.25]) + 3 * log_volume(2.0)  # six dimensions
    energy = jax.jit(jax.vmap(target.energy_fn))(jnp.asarray(means))
    np.testing.assert_allclose(energy, expected, rtol=1e-6)

    size = 20_000
    x = jax.jit(target.sample, static_argnums=1)(jax.random.key(0), size)
    is_second = x[:, 0, 0] > 0  # the sign is wrong at 25 standard deviations
    five_errors = 5 * (0.75 * 0.25 / size) ** 0.5
    np.testing.assert_allclose(is_second.mean(), 0.25, rtol=0, atol=five_errors)
    residual = x - jnp.where(is_second[:, None, None], 50.0, -50.0)
    # A variance of n normals has relative standard error sqrt(2 / n), n = 6 size.
    five_errors = 5 * (2 / (6 * size)) ** 0.5
    np.testing.assert_allclose(jnp.mean(residual**2), 4.0, rtol=five_errors)


def test_the_energy_on_a_thin_ring_is_its_circumference_times_a_width():
    # log i0e(z) = -log(2 pi z) / 2 + 1 / (8 z) + 1 / (16 z^2) + ..., z = (R / std)^2;
    # the next ring is 6 standard deviations away at least, and rounding is 1e-6.
    def check(target, radii, std, weights):
        energy_fn = jax.jit(target.energy_fn)
        for radius, weight in zip(radii, weights):
            expected = math.log(2 * math.pi * radius) + log_volume(std) / 2
            expected -= math.log(weight) + (std / radius) ** 2 / 8
            tolerance = 0.07 * (std / radius) ** 4 + 5e-6
            for angle in (0.0, 1.0, 4.0):
                x = radius * jnp.array([math.cos(angle), math.sin(angle)])
                np.testing.assert_allclose(energy_fn(x), expected, 0, tolerance)

    check(targets.rings(), (1, 2, 3, 4), 0.15, (0.25, 0.25, 0.25, 0.25))
    uneven = targets.rings(radii=(2.0, 8.0), std=0.1, weights=(1, 3))
    check(uneven, (2.0, 8.0), 0.1, (0.25, 0.75))


def test_a_ring_of_radius_zero_is_a_normal():
    target = targets.rings(radii=(0.0,), std=0.5)
    x = jnp.array([[0.0, 0.0], [0.3, -0.4], [1e3, 0.0]])
    expected = log_volume(0.5) + np.array([0.0, 0.5, 2e6])
    energy = jax.jit(jax.vmap(target.energy_fn))(x)
    np.testing.assert_allclose(energy, expected, rtol=1e-6)


def test_a_ring_is_smooth_at_the_origin_and_where_its_branches_meet():
    """At the origin `E = R^2 / (2 s^2) + log(2 pi s^2)`, a maximum for R > sqrt(2) s.

    I_0(z) = 1 + z^2 / 4, so that the Laplacian there is 2 / s^2 - R^2 / s^4.
    """
    radius, std = 1.0, 0.5
    energy_fn = targets.rings(radii=(radius,), std=std).energy_fn
    laplacian = energies.laplacian(lambda params, x: energy_fn(x))

    @jax.jit
    def derivatives(x):
        return *jax.value_and_grad(energy_fn)(x), laplacian(None, x)

    energy, gradient, curvature = derivatives(jnp.zeros(2))
    np.testing.assert_allclose(energy, 2 + log_volume(std), rtol=1e-6)
    np.testing.assert_array_equal(gradient, [0.0, 0.0])
    np.testing.assert_allclose(curvature, 8.0 - 16.0, rtol=1e-6)

    # The series gives way to the Bessel function at r R = 2 s^2: r = 0.5.
    with jax.enable_x64(True):
        for r in (1e-9, 0.1, 0.499999, 0.500001, 0.9):
            x = r * jnp.array([0.6, -0.8])
            numeric = 0.0
            for step in 1e-7 * np.eye(2):  # truncation 1e-14, rounding 1e-16 / 1e-7
                rise = derivatives(x + step)[1] - derivatives(x - step)[1]
                numeric += rise @ step / (2 * step @ step)
            np.testing.assert_allclose(derivatives(x)[2], numeric, rtol=1e-6)


def spiral(t):
    return t * np.array([np.cos(t), np.sin(t)]) / 7.5


def arc(t):
    return np.array([np.cos(t), np.sin(t)])


def lower_arc(t):
    return np.array([1 - np.cos(t), 0.5 - np.sin(t)])


def circle(t):
    return 1.5 * arc(t)


CURVES = {
    "swiss_roll": (targets.swiss_roll, [spiral], (1.5 * math.pi, 4.5 * math.pi)),
    "two_moons": (targets.two_moons, [arc, lower_arc], (0.0, math.pi)),
    "rings": (
        lambda *, noise_scale: targets.rings(radii=(1.5,), std=noise_scale),
        [circle],
        (0.0, 2 * math.pi),
    ),
}


@pytest.mark.parametrize("name", ["swiss_roll", "two_moons"])
def test_the_curvature_of_a_curve_is_the_largest_on_it(name, monkeypatch):
    """|x' y'' - y' x''| / (x'^2 + y'^2)^1.5, by central differences."""
    plane, seen = sys.modules["ebmjax.targets.plane"], []
    quadrature = plane.quadrature

    def spy(position, interval, curvature, std):
        seen.append((interval, curvature))
        return quadrature(position, interval, curvature, std)

    monkeypatch.setattr(plane, "quadrature", spy)
    factory, (curve, *_), interval = CURVES[name]
    factory(noise_scale=0.1)
    t, step = np.linspace(*interval, 1001), 1e-4
    before, here, after = curve(t - step), curve(t), curve(t + step)
    first, second = (after - before) / (2 * step), (after - 2 * here + before) / step**2
    cross = np.abs(first[0] * second[1] - first[1] * second[0])
    largest = np.max(cross / np.sum(first**2, axis=0) ** 1.5)
    assert seen == [(interval, pytest.approx(largest, rel=1e-5))]


def energy_by_adaptive_quadrature(curves, interval, std, x):
    """Minus the log of the mean over t and curves of N(x; curve(t), std^2)."""
    fine = np.linspace(*interval, 2001)
    squares = [np.sum((x[:, None] - curve(fine)) ** 2, axis=0) for curve in curves]
    nearest = min(np.min(square) for square in squares)
    total = 0.0
    for curve, square in zip(curves, squares):

        def integrand(t, curve=curve):
            return np.exp((nearest - np.sum((x - curve(t)) ** 2)) / (2 * std**2))

        # The hint is where the peaks are: this curve's closest approaches.
        is_valley = (square[1:-1] < square[:-2]) & (square[1:-1] < square[2:])
        hints = fine[1:-1][is_valley]
        total += scipy.integrate.quad(
            integrand, *interval, points=hints, limit=500, epsabs=1e-12, epsrel=1e-10
        )[0]
    mean = total / (len(curves) * (interval[1] - interval[0]))
    return log_volume(std) + nearest / (2 * std**2) - math.log(mean)


@pytest.mark.parametrize("noise_scale", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("name", CURVES)
def test_the_energy_of_a_curve_is_its_integral(name, noise_scale):
    """Up to sixteen noise scales off the curve, on both sides and past its ends."""
    factory, curves, interval = CURVES[name]
    energy_fn = factory(noise_scale=noise_scale).energy_fn
    generator = np.random.default_rng(0)
    t = np.append(np.asarray(interval), generator.uniform(*interval, 6))
    distance = noise_scale * np.array([8.0, 16.0, 0.0, 1.0, 4.0, 8.0, 12.0, 16.0])
    angle = generator.uniform(0, 2 * math.pi, len(t))
    curve = generator.integers(len(curves), size=len(t))
    x = (
        np.stack([curves[k](s) for k, s in zip(curve, t)])
        + distance[:, None] * arc(angle).T
    )
    x = x.astype(np.float32).astype(np.float64)
    by_scipy = functools.partial(
        energy_by_adaptive_quadrature, curves, interval, noise_scale
    )
    expected = [by_scipy(point) for point in x]
    with jax.enable_x64(True):
        double = jax.jit(jax.vmap(energy_fn))(jnp.asarray(x))
    # 2e-8 for each panel that matters, of which there are a few; rounding for the ring.
    np.testing.assert_allclose(double, expected, rtol=0, atol=2e-7)
    # In float32 a few roundings: of x - c, EPS, against a gradient of up to 16 / std;
    # and of the energy, up to 128 nats.
    single = jax.jit(jax.vmap(energy_fn))(jnp.asarray(x, jnp.float32))
    tolerance = 3 * EPS * (16 / noise_scale + 128)
    np.testing.assert_allclose(single, expected, rtol=0, atol=tolerance)


def test_far_from_a_curve_the_energy_is_off_by_a_small_fraction():
    """Beyond sixteen noise scales the nodes are too few for the integral's digits."""
    factory, curves, interval = CURVES["two_moons"]
    energy_fn = jax.jit(factory(noise_scale=0.1).energy_fn)
    for distance in (3.0, 10.0, 30.0):
        for angle in (0.5, 2.0, 5.0):
            x = distance * arc(angle)
            expected = energy_by_adaptive_quadrature(curves, interval, 0.1, x)
            energy = energy_fn(jnp.asarray(x, jnp.float32))
            np.testing.assert_allclose(energy, expected, rtol=1e-4)


def test_two_moons_are_half_circles_and_each_others_half_turn():
    energy_fn = jax.jit(jax.vmap(targets.two_moons(noise_scale=0.05).energy_fn))
    ring_fn = jax.jit(jax.vmap(targets.rings(radii=(1.0,), std=0.05).energy_fn))
    # At the top of the upper arc its ends are 28 noise scales away and the other arc
    # ten, of which e^-50 remains; two halves of a circle are as dense as one circle.
    top = jnp.array([[0.0, 1.0]])
    np.testing.assert_allclose(energy_fn(top), ring_fn(top), rtol=0, atol=5e-6)

    x = draws("two_moons")[:100]
    turned = jnp.array([[1.0, 0.5]]) - x
    # Rounding of x, 2 EPS, times a gradient of up to 4 * 2 / std.
    tolerance = 2 * EPS * 8 / 0.05 + 1e-5
    turned, straight = energy_fn(turned), energy_fn(x)
    np.testing.assert_allclose(turned, straight, rtol=1e-5, atol=tolerance)


def test_a_checkerboard_is_flat_on_its_dark_squares_and_infinite_elsewhere():
    energy_fn = targets.checkerboard().energy_fn
    dark = jnp.array([[-3.9, -3.9], [1.0, 1.0], [-1.0, 3.0], [3.9, 3.9], [3.0, -1.0]])
    light = jnp.array([[-3.9, -1.9], [1.0, -1.0], [3.0, 1.0], [-3.9, 3.9]])
    outside = jnp.array([[5.0, 5.0], [-5.0, -5.0], [1.0, 5.0], [-1e30, 1e30]])
    for x, expected in ((dark, math.log(32)), (light, np.inf), (outside, np.inf)):
        energy, gradient = jax.jit(jax.vmap(jax.value_and_grad(energy_fn)))(x)
        np.testing.assert_allclose(energy, np.full(len(x), expected), rtol=1e-6)
        np.testing.assert_array_equal(gradient, np.zeros((len(x), 2)))


def test_draws_of_a_checkerboard_are_uniform_within_their_squares():
    # The margin that keeps them off the edges is a millionth. One key in ten thousand
    # would fail.
    place = np.asarray(draws("checkerboard"), np.float64) / 2 % 1
    for coordinate in place.T:
        assert scipy.stats.kstest(coordinate, "uniform").pvalue > 1e-4


def test_no_draw_of_a_fine_checkerboard_is_rounded_to_a_light_square():
    # Without a margin a draw crosses an edge about once in 2^19: four times here.
    target = targets.checkerboard(num_squares=64, side=0.3)
    x = jax.jit(target.sample, static_argnums=1)(jax.random.key(0), 2**21)
    energy = jax.jit(jax.vmap(target.energy_fn))(x)
    assert np.count_nonzero(np.isinf(energy)) == 0


def parts(target, points) -> list[int]:
    return jax.vmap(target.mode_of)(jnp.asarray(points, jnp.float32)).tolist()


def test_the_modes_of_mixtures_are_their_means_and_the_nearest_one_owns_a_point():
    mixture = targets.gaussian_mixture(means=MEANS, std=0.3, weights=(1, 2, 5))
    np.testing.assert_array_equal(mixture.modes, MEANS)
    # The middle of the first two means is (0.6, -0.25); weights move no boundary.
    assert parts(mixture, [[0.59, -0.25], [0.61, -0.25], [-3, 3]]) == [0, 1, 2]
    pair = targets.gaussian_mixture(means=np.eye(2)[:, :, None] * 4, std=1.0)
    assert parts(pair, [[[3.0], [1.0]], [[1.0], [3.0]]]) == [0, 1]

    eight = targets.eight_gaussians(radius=2.0, std=0.3)
    np.testing.assert_allclose(
        eight.modes[[0, 2, 5]], [[2, 0], [0, 2], [-(2**0.5)] * 2], atol=1e-12
    )
    assert parts(eight, [[2.0, 0.1], [0.1, 2], [-1.4, -1.4], [0.9, 0.4]]) == [
        0,
        2,
        5,
        1,
    ]
    grid = targets.twenty_five_gaussians(spacing=1.0)
    assert grid.modes.shape == (25, 2)
    np.testing.assert_allclose(grid.modes[[0, 7, 24]], [[-2, -2], [-1, 0], [2, 2]])
    assert parts(grid, grid.modes + 0.4) == list(range(25))


def test_a_ring_owns_what_is_nearest_to_its_radius():
    target = targets.rings(radii=(1.0, 2.0, 3.0, 4.0))
    points = [[0.0, 1.2], [-2.6, 0], [9, 9], [0, 0], [0, 1.49], [0, -1.51]]
    assert parts(target, points) == [0, 2, 3, 0, 0, 1]
    assert target.modes is None


def test_a_point_belongs_to_the_nearer_moon():
    target = targets.two_moons()
    angles = np.linspace(0, math.pi, 10_001)
    arcs = np.stack([arc(angles).T, lower_arc(angles).T])
    assert set(parts(target, arcs[0])) == {0} and set(parts(target, arcs[1])) == {1}
    # Both arcs are as far from (0.5, 0.25), their centre; they end at y = 0 and 0.5.
    points = [[0.5, 0.26], [0.5, 0.24], [-1.5, -2], [2.5, 2], [0, 0.1], [0.0, -0.3]]
    distances = np.linalg.norm(arcs[None] - np.array(points)[:, None, None], axis=-1)
    nearest = distances.min(axis=2).argmin(axis=1).tolist()
    assert parts(target, points) == nearest and set(nearest) == {0, 1}
    assert target.modes is None


@pytest.mark.parametrize("num_squares", [3, 4])
def test_dark_squares_are_counted_and_nothing_else_is_a_part(num_squares):
    target = targets.checkerboard(num_squares=num_squares, side=2.0)
    corner = -float(num_squares)
    index = np.indices((num_squares, num_squares)).reshape(2, -1).T
    found = np.array(parts(target, corner + 2 * (index + [[0.3, 0.8]])))
    is_dark = index.sum(1) % 2 == 0
    assert found[is_dark].tolist() == list(range(is_dark.sum()))
    assert set(found[~is_dark]) == {is_dark.sum()}
    outside = [[corner - 0.5, corner - 0.5], [corner, -corner + 1]]
    assert parts(target, outside) == [is_dark.sum()] * 2
    assert target.modes is None


def test_a_spiral_and_models_have_no_parts():
    for target in (targets.swiss_roll(), RBM, targets.ica(np.eye(2))):
        assert target.modes is None and target.mode_of is None


@pytest.mark.parametrize("name", ["gaussian_mixture", "rings", "checkerboard"])
def test_whole_numbers_are_not_an_excuse_to_round(name):
    energy = compiled(name)(jnp.array([[1, -2]]))
    assert energy.dtype == jnp.float32
    np.testing.assert_array_equal(energy, compiled(name)(jnp.array([[1.0, -2.0]])))


@pytest.mark.parametrize("name", CASES)
def test_a_batch_is_refused_with_the_way_out(name):
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(5, 2\); use jax.vmap"):
        CASES[name].target.energy_fn(jnp.zeros((5, 2)))


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        ("gaussian_mixture", {"means": MEANS, "std": 0}, "std must be .* got 0"),
        (
            "gaussian_mixture",
            {"means": MEANS, "std": 1, "weights": (1, 2)},
            r"weights must be one number for each of the 3 means, got shape \(2,\)",
        ),
        (
            "gaussian_mixture",
            {"means": MEANS, "std": 1, "weights": (1, 2, 0)},
            r"weights must be positive and finite, got \[1. 2. 0.\]",
        ),
        ("gaussian_mixture", {"means": 1.0, "std": 1}, "means must be .* got 1.0"),
        ("gaussian_mixture", {"means": [], "std": 1}, r"means must be .* shape \(0,\)"),
        (
            "gaussian_mixture",
            {"means": [np.nan], "std": 1},
            "means must be .* got .nan",
        ),
        ("eight_gaussians", {"radius": -1}, "radius must be positive .* got -1"),
        (
            "eight_gaussians",
            {"std": np.inf},
            "std must be positive and finite, got inf",
        ),
        ("twenty_five_gaussians", {"spacing": 0.0}, "spacing must be .* got 0.0"),
        ("twenty_five_gaussians", {"std": np.nan}, "std must be .* got nan"),
        ("rings", {"radii": ()}, r"radii must be .* got \[\]"),
        ("rings", {"radii": (1, -2)}, r"radii must be .* got \[ 1. -2.\]"),
        ("rings", {"radii": 3.0}, "radii must be .* got 3.0"),
        ("rings", {"radii": (1, np.inf)}, "radii must be .* inf"),
        ("rings", {"std": -0.1}, "std must be positive .* got -0.1"),
        ("rings", {"weights": (1, 2)}, "weights .* each of the 4 radii"),
        ("swiss_roll", {"noise_scale": 0}, "noise_scale must be positive .* got 0"),
        ("swiss_roll", {"scale": -1}, "^scale must be positive .* got -1"),
        ("two_moons", {"noise_scale": -0.1}, "noise_scale must be .* got -0.1"),
        ("checkerboard", {"num_squares": 0}, "num_squares must be a positive .* got 0"),
        ("checkerboard", {"num_squares": 2.0}, "num_squares must be .* got 2.0"),
        ("checkerboard", {"side": 0}, "side must be positive .* got 0"),
    ],
)
def test_a_bad_argument_is_named_with_its_value(factory, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(targets, factory)(**arguments)


# --- models with exact answers


RBM = targets.gaussian_bernoulli_rbm(
    np.array([[1.5, -1.0, 0.5], [0.5, 2.0, -1.5]]),
    np.array([0.3, -0.2]),
    np.array([0.4, -0.1, 0.2]),
)


def test_a_machine_of_two_kinds_has_the_mass_and_the_score_that_it_says():
    """By quadrature on the plane; the score is b - x + B tanh(B^T x / 2 + c) / 2."""
    axis = np.linspace(-9, 9, 301)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    with jax.enable_x64(True):
        values = jax.vmap(RBM.energy_fn)(jnp.asarray(grid))
    mass = np.exp(-np.asarray(values)).sum() * (axis[1] - axis[0]) ** 2
    np.testing.assert_allclose(np.log(mass), RBM.log_partition, rtol=1e-6)
    x = np.array([0.7, -1.1])
    weights = np.array([[1.5, -1.0, 0.5], [0.5, 2.0, -1.5]])
    fields = np.tanh(0.5 * x @ weights + np.array([0.4, -0.1, 0.2]))
    score = np.array([0.3, -0.2]) - x + 0.5 * weights @ fields
    np.testing.assert_allclose(
        -jax.grad(RBM.energy_fn)(jnp.asarray(x)), score, rtol=1e-5
    )


@pytest.mark.parametrize("name", ["rbm", "ica"])
def test_draws_of_a_model_have_its_law(name):
    """Means of x, of x x^T and of the energy against quadrature, to five errors."""
    target = RBM if name == "rbm" else targets.ica([[1.0, 0.5], [-0.3, 0.8]])
    reach = 9 if name == "rbm" else 45
    axis = np.linspace(-reach, reach, 601)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    with jax.enable_x64(True):
        values = np.asarray(jax.vmap(target.energy_fn)(jnp.asarray(grid)))
    area = (axis[1] - axis[0]) ** 2
    weights = np.exp(-values - target.log_partition) * area
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-5)
    draws = np.asarray(target.sample(jax.random.key(0), 40_000), float)
    energies_of_draws = np.asarray(jax.vmap(target.energy_fn)(jnp.asarray(draws)))

    def features(x, energy):
        return np.column_stack([x, x[:, :1] * x, x[:, 1] ** 2, energy])

    exact = weights @ features(grid, values)
    found = features(draws, energies_of_draws)
    error = 5 * found.std(0) / len(found) ** 0.5
    np.testing.assert_array_less(np.abs(found.mean(0) - exact), error)


def test_as_many_hidden_units_as_are_allowed_are_counted(monkeypatch):
    """Without weights, 2^3 states of a standard normal each."""
    monkeypatch.setattr(sys.modules["ebmjax.targets.models"], "MOST_HIDDEN", 3)
    target = targets.gaussian_bernoulli_rbm(np.zeros((1, 3)), np.zeros(1), np.zeros(3))
    exact = 0.5 * math.log(2 * math.pi) + 3 * math.log(2)
    np.testing.assert_allclose(target.log_partition, exact, rtol=1e-12)


def test_mixed_sources_have_this_entropy():
    """2 d + log |det A|, and the log partition function log |det A|."""
    mixing = np.array([[2.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.4, 0.0, 1.5]])
    target = targets.ica(mixing)
    log_det = np.log(abs(np.linalg.det(mixing)))
    np.testing.assert_allclose(target.log_partition, log_det, rtol=1e-12)
    x = target.sample(jax.random.key(0), 40_000)
    nats = jax.vmap(target.energy_fn)(x) + target.log_partition
    # -log density of a logistic variable has the variance pi^2 / 3 - 4 + ... < 1.
    np.testing.assert_allclose(nats.mean(), 6 + log_det, atol=5 * (3 / 40_000) ** 0.5)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: targets.ica(np.ones((2, 3))),
            r"mixing must be \[d, d\], got \(2, 3\)",
        ),
        (lambda: targets.ica(np.ones((2, 2))), "mixing must be invertible"),
        (
            lambda: targets.gaussian_bernoulli_rbm(
                np.ones((2, 3)), np.ones(3), np.ones(2)
            ),
            r"must be .*got \(2, 3\), \(3,\), \(2,\)",
        ),
        (
            lambda: targets.gaussian_bernoulli_rbm(
                np.ones((2, 30)), np.ones(2), np.ones(30)
            ),
            "at most 20.*got 30",
        ),
    ],
)
def test_bad_models_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
