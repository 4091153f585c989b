"""Rings, spirals, moons and boards in the plane."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ebmjax.targets.mixtures import gaussian_mixture, on_circle
from ebmjax.targets.target import Target, check_positive, one_example, probabilities
from ebmjax.types import Array, Key

__all__ = ["checkerboard", "rings", "swiss_roll", "two_moons"]


def rings(
    *,
    radii: ArrayLike = (1.0, 2.0, 3.0, 4.0),
    std: float = 0.15,
    weights: ArrayLike | None = None,
) -> Target:
    """Returns circles around the origin, each convolved with a two-dimensional normal.

    A draw is uniform on the circle of one of the radii, plus `std` times a standard
    normal in the plane. At distance r from the origin the density is

        p(x) = sum_k weights[k] / (2 pi std^2)
               * exp(-(r - R_k)^2 / (2 std^2)) * i0e(r R_k / std^2)

    with `i0e(z) = exp(-z) I_0(z)`, the scaled Bessel function. On a thin ring far from
    the others the energy is `log(2 pi R) + log(2 pi std^2) / 2 - log weights[k]`,
    within `(std / R)^2 / 8`. That is the log of the ring's circumference times the
    width of a normal.

    It is not the density whose radius is normal around R: that one has the factor 1 / r
    and is infinite at the origin. On a ring the two differ by order `std / R`. Rings of
    equal weight are equally probable, so the outer ones have a smaller density.

    Args:
      radii: One number for each ring, none negative, in units of x; a ring of radius 0
        is a normal distribution. The defaults of `radii` and `std` are those of Nijkamp
        et al. (2020), https://arxiv.org/abs/1903.12370.
      std: Standard deviation of the normal in each of the two directions, in units of
        x.
      weights: One positive number for each ring; they are scaled to sum to one. Equal
        by default, whatever the radii.

    Returns:
      A `Target` on events of shape `(2,)`. The energy is smooth everywhere, with the
      right derivatives at the origin too. An example belongs to the ring whose radius
      is nearest to its distance from the origin.

    Raises:
      ValueError: If a radius is negative or not finite or there is none, if `std` or a
        weight is not positive and finite, or if there are not as many weights as radii.
    """
    radii = np.asarray(radii, np.float64)
    is_allowed = np.all((radii >= 0) & (radii < np.inf))
    if radii.ndim != 1 or radii.size == 0 or not is_allowed:
        raise ValueError(f"radii must be a list of non-negative numbers, got {radii}")
    check_positive("std", std)
    num_rings = radii.size
    weights = probabilities(weights, num_rings, "radii")
    log_weights = np.log(weights)

    def sample(key: Key, num: int) -> Array:
        ring_key, angle_key, noise_key = jax.random.split(key, 3)
        ring = jax.random.choice(ring_key, num_rings, (num,), p=jnp.asarray(weights))
        angle = jax.random.uniform(angle_key, (num,), maxval=2 * math.pi)
        noise = jax.random.normal(noise_key, (num, 2))
        point: Array = on_circle(angle)
        return jnp.asarray(radii)[ring][:, None] * point + std * noise

    def energy_fn(x: Array) -> Array:
        x = one_example(x, (2,)) / std
        squared = jnp.sum(x**2)

        def log_density(radius: Array, log_weight: Array) -> Array:
            z_squared = squared * radius**2
            is_near = z_squared < 4
            # The distance has no derivative at the origin, its square has: near it, and
            # only there, I_0 is the series in the square. Each branch is given a
            # harmless number where the other one is taken, which keeps gradients clean.
            near = jnp.where(is_near, z_squared, 0) / 4
            series = jnp.ones_like(near)
            for k in range(10, 0, -1):  # the first term left out is 1 / 11!^2
                series = 1 + series * near / k**2
            distance = jnp.sqrt(jnp.where(is_near, 1, squared))
            bessel = jnp.log(jax.scipy.special.i0e(distance * radius))
            return log_weight + jnp.where(
                is_near,
                jnp.log(series) - 0.5 * (squared + radius**2),
                bessel - 0.5 * (distance - radius) ** 2,
            )

        terms = jax.vmap(log_density)(
            jnp.asarray(radii / std, x.dtype), jnp.asarray(log_weights, x.dtype)
        )
        return math.log(2 * math.pi * std**2) - jax.nn.logsumexp(terms)

    def mode_of(x: Array) -> Array:
        x = one_example(x, (2,), "mode_of")
        distance = jnp.sqrt(jnp.sum(x**2))
        return jnp.argmin(jnp.abs(distance - jnp.asarray(radii, x.dtype)))

    return Target(sample, energy_fn, 0.0, mode_of=mode_of)


def quadrature(
    position: Callable[[np.ndarray, Any], np.ndarray],
    interval: tuple[float, float],
    curvature: float,
    std: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns points and weights of a mixture equal to a curve's convolution.

    The integral of `N(x; position(t), std^2)`, with t uniform in the interval, is
    replaced by Gauss-Legendre sums of 16 nodes in panels of equal length along the
    curve. Along the curve the integrand is a bump of standard deviation at least
    `std / sqrt(1 + d * curvature)`, where d is the distance of x. For a normal bump of
    standard deviation w and n nodes, the remainder of Gauss-Legendre over a panel of
    length L is at most

        (L / w)^(2n + 1) (n!)^3 / ((2n + 1) (2n)!^2 2^n sqrt(2 pi))

    times the integral, which is 2e-8 for n = 16 and L = 8 w. For d up to `16 * std`,
    where the energy is 128 nats above the ridge and a step of float32 is 1.5e-5, the
    sum is therefore exact to rounding. Farther out it is still a mixture of normals on
    the curve, and the energy is wrong by a small fraction of itself.

    Args:
      position: `position(t, xp) -> [..., 2]`, with `xp` numpy or jax.numpy.
      interval: The ends of t.
      curvature: The largest curvature, 1 / radius, on the curve.
      std: Standard deviation of the normal.
    """
    fine = np.linspace(*interval, 10_001)
    chords = np.linalg.norm(np.diff(position(fine, np), axis=0), axis=-1)
    length = np.concatenate([[0.0], np.cumsum(chords)])
    width = std / math.sqrt(1 + 16 * std * curvature)
    num_panels = math.ceil(length[-1] / (8 * width))
    edges = np.interp(np.linspace(0, length[-1], num_panels + 1), length, fine)
    nodes, weights = np.polynomial.legendre.leggauss(16)
    half = np.diff(edges)[:, None] / 2
    t = edges[:-1, None] + half * (nodes + 1)
    return position(t.ravel(), np), (half * weights).ravel()


def swiss_roll(*, noise_scale: float = 0.25 / 7.5, scale: float = 1 / 7.5) -> Target:
    """Returns a spiral of one and a half turns, convolved with a normal.

    The spiral is `scale * t * (cos t, sin t)` with t uniform from 1.5 pi to 4.5 pi. The
    distance from the origin is uniform from `1.5 pi * scale` to `4.5 pi * scale` (0.63
    to 1.88 with the defaults), so the inner turns are denser than the outer ones. The
    energy is an integral along the spiral. It is computed by quadrature to the rounding
    of float32 within 16 noise scales of the spiral.

    The defaults are those of WGAN-GP (https://arxiv.org/abs/1704.00028): scikit-learn's
    `make_swiss_roll(noise=0.25)`, columns 0 and 2, divided by 7.5. FFJORD's
    (https://arxiv.org/abs/1810.01367) are `noise_scale=0.2, scale=0.2`.

    On the ridge the energy is about `log(3 pi v) + log(2 pi noise_scale^2) / 2`, where
    `v = scale * sqrt(1 + t^2)` is the speed: 0.00 at t = 3 pi with the defaults.

    Args:
      noise_scale: Standard deviation of the noise in each direction, in units of x. The
        noise is added after the scaling, unlike scikit-learn's.
      scale: Distance from the origin for each radian of t.

    Returns:
      A `Target` on events of shape `(2,)`. Its energy is a mixture of about a thousand
      normals with the defaults, and of proportionally more if the noise is smaller.

    Raises:
      ValueError: If `noise_scale` or `scale` is not positive and finite.
    """
    check_positive("noise_scale", noise_scale)
    check_positive("scale", scale)
    start, end = 1.5 * math.pi, 4.5 * math.pi

    def position(t: Any, xp: Any = jnp) -> Any:
        return scale * t[..., None] * on_circle(t, xp)

    # A spiral is most curved where it begins.
    curvature = (2 + start**2) / (1 + start**2) ** 1.5 / scale
    points, weights = quadrature(position, (start, end), curvature, noise_scale)
    mixture = gaussian_mixture(means=points, std=noise_scale, weights=weights)

    def sample(key: Key, num: int) -> Array:
        curve_key, noise_key = jax.random.split(key)
        t = jax.random.uniform(curve_key, (num,), minval=start, maxval=end)
        point: Array = position(t)
        return point + noise_scale * jax.random.normal(noise_key, (num, 2))

    return Target(sample, mixture.energy_fn, 0.0)


def two_moons(*, noise_scale: float = 0.1) -> Target:
    """Returns two interleaved half circles, convolved with a two-dimensional normal.

    The upper arc is `(cos t, sin t)` and the lower one `(1 - cos t, 0.5 - sin t)`, with
    t uniform from 0 to pi. Both arcs are equally probable. Each is the other's half
    turn about (0.5, 0.25), which is the mean. The energy is an integral along the arcs.
    It is computed by quadrature to the rounding of float32 within 16 noise scales of
    them.

    The target is scikit-learn's `make_moons(noise=noise_scale)`, with independent draws
    instead of its even grid on the arcs. FFJORD's (https://arxiv.org/abs/1810.01367) is
    twice that, moved by (-1, -0.2). Both are other densities than the "two moons" of
    the papers on normalising flows, which is an energy written down without arcs.

    On an arc's ridge, away from its ends and from the other arc, the energy is about
    `log(2 pi) + log(2 pi noise_scale^2) / 2`: 0.45 with the default.

    Args:
      noise_scale: Standard deviation of the noise in each direction, in units of x. The
        arcs have radius 1.

    Returns:
      A `Target` on events of shape `(2,)`. An example belongs to the nearest arc, 0 for
      the upper one and 1 for the lower one.

    Raises:
      ValueError: If `noise_scale` is not positive and finite.
    """
    check_positive("noise_scale", noise_scale)
    centre = np.array([0.5, 0.25])
    upper, weights = quadrature(on_circle, (0.0, math.pi), 1.0, noise_scale)
    mixture = gaussian_mixture(
        means=np.concatenate([upper, 2 * centre - upper]),
        std=noise_scale,
        weights=np.concatenate([weights, weights]),
    )

    def sample(key: Key, num: int) -> Array:
        arc_key, curve_key, noise_key = jax.random.split(key, 3)
        sign = jax.random.rademacher(arc_key, (num, 1), dtype=float)
        t = jax.random.uniform(curve_key, (num,), maxval=math.pi)
        point: Array = centre[None] + sign * (on_circle(t) - centre[None])
        return point + noise_scale * jax.random.normal(noise_key, (num, 2))

    def distance(x: Array) -> Array:
        """Returns the distance of a point from the upper arc."""
        from_end = jnp.hypot(jnp.abs(x[0]) - 1, x[1])
        from_circle = jnp.abs(jnp.hypot(x[0], x[1]) - 1)
        return jnp.where(x[1] > 0, from_circle, from_end)

    def mode_of(x: Array) -> Array:
        x = one_example(x, (2,), "mode_of")
        turned = 2 * jnp.asarray(centre, x.dtype) - x
        return jnp.where(distance(x) <= distance(turned), 0, 1)

    return Target(sample, mixture.energy_fn, 0.0, mode_of=mode_of)


def checkerboard(*, num_squares: int = 4, side: float = 2.0) -> Target:
    """Returns the uniform law on the dark squares of a board around the origin.

    The square of the lower left corner is dark, and so is every second one. The energy
    is the log of the dark area on dark squares, log 32 = 3.466 with the defaults, and
    infinite elsewhere. The score is zero on dark and light squares alike: a gradient
    sampler learns nothing from it, and leaves the board. A Metropolis test refuses
    every move that leaves the dark squares.

    The defaults are those of the papers on normalising flows: sixteen squares of side
    2, from -4 to 4.

    Args:
      num_squares: Number of squares along one edge of the board, at least 1.
      side: Side of one square, in units of x.

    Returns:
      A `Target` on events of shape `(2,)`. Its parts are the dark squares, which are
      counted along the second coordinate first. The index of an example that is in none
      of them is the number of dark squares.

    Raises:
      ValueError: If `num_squares` is not a positive integer or `side` is not positive
        and finite.
    """
    if not isinstance(num_squares, int) or num_squares < 1:
        raise ValueError(f"num_squares must be a positive integer, got {num_squares}")
    check_positive("side", side)
    dark = np.argwhere(np.indices((num_squares, num_squares)).sum(axis=0) % 2 == 0)
    log_area = math.log(len(dark) * side**2)
    # Rounding must not carry a draw over an edge, to where the density is zero.
    margin = num_squares * 2.0**-22

    def sample(key: Key, num: int) -> Array:
        square_key, place_key = jax.random.split(key)
        square = jax.random.randint(square_key, (num,), 0, len(dark))
        place = jax.random.uniform(
            place_key, (num, 2), minval=margin, maxval=1 - margin
        )
        return side * (jnp.asarray(dark)[square] - num_squares / 2 + place)

    def find_square(x: Array) -> tuple[Array, Array]:
        """Returns row and column of the square at a point, and whether it is dark."""
        index = jnp.floor(x / side + num_squares / 2)
        is_on_board = jnp.all((index >= 0) & (index < num_squares))
        return index, is_on_board & (jnp.sum(index) % 2 == 0)

    def energy_fn(x: Array) -> Array:
        index, is_dark = find_square(one_example(x, (2,)))
        return jnp.where(is_dark, log_area, jnp.inf).astype(index.dtype)

    def mode_of(x: Array) -> Array:
        index, is_dark = find_square(one_example(x, (2,), "mode_of"))
        # Every second square is dark, so half of those before this one, rounded down.
        place = jnp.floor((index[0] * num_squares + index[1]) / 2)
        return jnp.where(is_dark, place, len(dark)).astype(int)

    return Target(sample, energy_fn, 0.0, mode_of=mode_of)
