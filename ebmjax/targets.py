"""Toy densities with exact draws and the exact energy.

The draws and the energy of a `Target` belong to the same law. Energies are minus log
densities, in nats, with log partition function 0. The exceptions are the models
`gaussian_bernoulli_rbm` and `ica`, which have log partition functions of their own. All
targets are two-dimensional except these two and `gaussian_mixture`, which takes any
event.

The defaults are the usual ones, in the units of the papers that introduced them. The
targets have different widths, so state the numbers when you compare methods on several
of them.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ebmjax import energies
from ebmjax.types import Array, EnergyFn, Key

__all__ = [
    "Target",
    "checkerboard",
    "eight_gaussians",
    "gaussian_bernoulli_rbm",
    "gaussian_mixture",
    "ica",
    "rings",
    "swiss_roll",
    "twenty_five_gaussians",
    "two_moons",
]


class Target(NamedTuple):
    """Distribution to learn or to sample.

    Attributes:
      sample: `sample(key, num) -> [num, *event]`, independent exact draws in units of
        x. `num` is a Python integer: under `jit` it is a static argument.
      energy_fn: `energy_fn(x) -> []` for one example `[*event]`, in nats; None if it is
        not known. It is computed in float32, or in float64 for an `x` of that type.
      log_partition: Log of the integral of `exp(-energy_fn)`, a number in nats; None if
        it is not known, and 0.0 for a normalised energy.
      modes: Centres of the parts, `[m, *event]` in float64 and in units of x, if the
        parts are around points; otherwise None.
      mode_of: `mode_of(x) -> []`, the index of the part to which one example `[*event]`
        belongs; None if the distribution has no parts. The index is an integer from 0
        to the number of parts minus 1. If there are modes, it is the index of a row of
        `modes`.
    """

    sample: Callable[[Key, int], Array]
    energy_fn: EnergyFn | None
    log_partition: float | None
    modes: np.ndarray | None = None
    mode_of: Callable[[Array], Array] | None = None


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


def _probabilities(weights: ArrayLike | None, num: int, noun: str) -> np.ndarray:
    """Returns weights that sum to one, equal if None."""
    weights = np.ones(num) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (num,):
        raise ValueError(
            f"weights must be one number for each of the {num} {noun},"
            f" got shape {weights.shape}"
        )
    if not np.all((weights > 0) & (weights < np.inf)):
        raise ValueError(f"weights must be positive and finite, got {weights}")
    shares: np.ndarray = weights / weights.sum()
    return shares


def _example(
    x: Array, event_shape: tuple[int, ...], function: str = "energy_fn"
) -> Array:
    """Returns one example, in float32 at least, because integers would be rounded."""
    x = jnp.asarray(x)
    if x.shape != event_shape:
        raise ValueError(
            f"{function} takes one example of shape {event_shape}, got {x.shape};"
            " use jax.vmap for a batch"
        )
    return x.astype(jnp.result_type(x, jnp.float32))


def gaussian_mixture(
    *, means: ArrayLike, std: float, weights: ArrayLike | None = None
) -> Target:
    """Returns a mixture of normal distributions of one width, equal in all directions.

    The density is `p(x) = sum_k weights[k] N(x; means[k], std^2)`. The energy is that
    of `energies.gaussian_mixture`, which takes any precisions and trainable parameters
    but has no sampler. At a mean far from the others the energy is `-log weights[k]`
    plus, for each dimension, `log(2 pi std^2) / 2`.

    Args:
      means: Means of the components, `[K, *event]`.
      std: Standard deviation in each direction, in units of x. It is not a precision.
      weights: K positive numbers, which are scaled to sum to one; equal by default.

    Returns:
      A `Target` on events of the means' shape. Its modes are the means, and an example
      belongs to the mean that is nearest, whatever the weights.

    Raises:
      ValueError: If `std` or a weight is not positive and finite, if there are not as
        many weights as means, or if there is no mean or one is not finite.
    """
    means = np.asarray(means, np.float64)
    if means.ndim == 0 or means.size == 0 or not np.all(np.isfinite(means)):
        raise ValueError(
            f"means must be [modes, *event] finite numbers, got {means}"
            f" of shape {means.shape}"
        )
    _check_positive("std", std)
    num_modes, event_shape = means.shape[0], means.shape[1:]
    weights = _probabilities(weights, num_modes, "means")
    params = {
        "means": means,
        "precisions": np.asarray(std**-2.0),
        "log_weights": np.log(weights),
    }

    def sample(key: Key, num: int) -> Array:
        mode_key, noise_key = jax.random.split(key)
        modes = jax.random.choice(mode_key, num_modes, (num,), p=jnp.asarray(weights))
        noise = jax.random.normal(noise_key, (num, *event_shape))
        return jnp.asarray(means)[modes] + std * noise

    def energy_fn(x: Array) -> Array:
        x = _example(x, event_shape)
        cast = {name: jnp.asarray(value, x.dtype) for name, value in params.items()}
        return energies.gaussian_mixture(cast, x)

    def mode_of(x: Array) -> Array:
        x = _example(x, event_shape, "mode_of")
        differences = (x[None] - jnp.asarray(means, x.dtype)).reshape(num_modes, -1)
        return jnp.argmin(jnp.sum(differences**2, axis=1))

    return Target(sample, energy_fn, 0.0, means, mode_of)


def eight_gaussians(
    *, radius: float = math.sqrt(2.0), std: float = 0.02 / math.sqrt(2.0)
) -> Target:
    """Returns eight equal normal distributions around a circle.

    The centres are at `radius * (cos, sin)` of the multiples of 45 degrees, the first
    on the x-axis. At a centre the energy is `log 8 + log(2 pi std^2)` if the others are
    far: -4.60 with the defaults, whose centres are 76 standard deviations apart.

    The name has three meanings in the literature. The defaults are the set of WGAN-GP
    (https://arxiv.org/abs/1704.00028), a radius of 2 and a standard deviation of 0.02
    divided by 1.414. FFJORD (https://arxiv.org/abs/1810.01367) has
    `radius=2.83, std=0.354`. Nijkamp et al. (2020, https://arxiv.org/abs/1903.12370)
    use `radius=1, std=0.15`, in which neighbours are five standard deviations apart, so
    that a chain can cross.

    Args:
      radius: Distance of the centres from the origin, in units of x.
      std: Standard deviation in each direction, in units of x.

    Returns:
      A `Target` on events of shape `(2,)`.

    Raises:
      ValueError: If `radius` or `std` is not positive and finite.
    """
    _check_positive("radius", radius)
    angles = np.arange(8) * (math.pi / 4)
    return gaussian_mixture(means=radius * _circle(angles, np), std=std)


def twenty_five_gaussians(
    *, spacing: float = 1 / math.sqrt(2.0), std: float = 0.05 / math.sqrt(8.0)
) -> Target:
    """Returns a five by five grid of equal normal distributions around the origin.

    At a centre the energy is `log 25 + log(2 pi std^2)` if the others are far: -3.01
    with the defaults, whose neighbours are 40 standard deviations apart. The variance
    of a draw is `2 * spacing^2 + std^2` in each coordinate, which is about 1.

    The defaults are the set of WGAN-GP (https://arxiv.org/abs/1704.00028), a spacing of
    2 and a standard deviation of 0.05 divided by 2.828.

    Args:
      spacing: Distance between neighbouring centres, in units of x.
      std: Standard deviation in each direction, in units of x.

    Returns:
      A `Target` on events of shape `(2,)`.

    Raises:
      ValueError: If `spacing` or `std` is not positive and finite.
    """
    _check_positive("spacing", spacing)
    line = spacing * np.arange(-2.0, 3.0)
    means = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1)
    return gaussian_mixture(means=means.reshape(25, 2), std=std)


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
    _check_positive("std", std)
    num_rings = radii.size
    weights = _probabilities(weights, num_rings, "radii")
    log_weights = np.log(weights)

    def sample(key: Key, num: int) -> Array:
        ring_key, angle_key, noise_key = jax.random.split(key, 3)
        ring = jax.random.choice(ring_key, num_rings, (num,), p=jnp.asarray(weights))
        angle = jax.random.uniform(angle_key, (num,), maxval=2 * math.pi)
        noise = jax.random.normal(noise_key, (num, 2))
        point: Array = _circle(angle)
        return jnp.asarray(radii)[ring][:, None] * point + std * noise

    def energy_fn(x: Array) -> Array:
        x = _example(x, (2,)) / std
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
        x = _example(x, (2,), "mode_of")
        distance = jnp.sqrt(jnp.sum(x**2))
        return jnp.argmin(jnp.abs(distance - jnp.asarray(radii, x.dtype)))

    return Target(sample, energy_fn, 0.0, mode_of=mode_of)


def _circle(angle: Any, xp: Any = jnp) -> Any:
    """Returns the point of the unit circle at an angle, `[...] -> [..., 2]`."""
    return xp.stack([xp.cos(angle), xp.sin(angle)], axis=-1)


def _quadrature(
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
    _check_positive("noise_scale", noise_scale)
    _check_positive("scale", scale)
    start, end = 1.5 * math.pi, 4.5 * math.pi

    def position(t: Any, xp: Any = jnp) -> Any:
        return scale * t[..., None] * _circle(t, xp)

    # A spiral is most curved where it begins.
    curvature = (2 + start**2) / (1 + start**2) ** 1.5 / scale
    points, weights = _quadrature(position, (start, end), curvature, noise_scale)
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
    _check_positive("noise_scale", noise_scale)
    centre = np.array([0.5, 0.25])
    upper, weights = _quadrature(_circle, (0.0, math.pi), 1.0, noise_scale)
    mixture = gaussian_mixture(
        means=np.concatenate([upper, 2 * centre - upper]),
        std=noise_scale,
        weights=np.concatenate([weights, weights]),
    )

    def sample(key: Key, num: int) -> Array:
        arc_key, curve_key, noise_key = jax.random.split(key, 3)
        sign = jax.random.rademacher(arc_key, (num, 1), dtype=float)
        t = jax.random.uniform(curve_key, (num,), maxval=math.pi)
        point: Array = centre[None] + sign * (_circle(t) - centre[None])
        return point + noise_scale * jax.random.normal(noise_key, (num, 2))

    def distance(x: Array) -> Array:
        """Returns the distance of a point from the upper arc."""
        from_end = jnp.hypot(jnp.abs(x[0]) - 1, x[1])
        from_circle = jnp.abs(jnp.hypot(x[0], x[1]) - 1)
        return jnp.where(x[1] > 0, from_circle, from_end)

    def mode_of(x: Array) -> Array:
        x = _example(x, (2,), "mode_of")
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
    _check_positive("side", side)
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
        index, is_dark = find_square(_example(x, (2,)))
        return jnp.where(is_dark, log_area, jnp.inf).astype(index.dtype)

    def mode_of(x: Array) -> Array:
        index, is_dark = find_square(_example(x, (2,), "mode_of"))
        # Every second square is dark, so half of those before this one, rounded down.
        place = jnp.floor((index[0] * num_squares + index[1]) / 2)
        return jnp.where(is_dark, place, len(dark)).astype(int)

    return Target(sample, energy_fn, 0.0, mode_of=mode_of)


MOST_HIDDEN = 20
"""Largest number of binary units whose 2^n states are counted."""


def gaussian_bernoulli_rbm(
    weights: ArrayLike, visible_bias: ArrayLike, hidden_bias: ArrayLike
) -> Target:
    """Returns the law of a Gaussian-Bernoulli restricted Boltzmann machine (RBM).

    It is exact, as a mixture of normals, with the energy
    `energies.gaussian_bernoulli_rbm`. Every state `h` of the binary units is a normal
    of variance 1 around `visible_bias + weights h / 2`, with the log weight
    `hidden_bias . h + |mean|^2 / 2`.

    Args:
      weights: Weights, `[d, hidden]`, with at most 20 hidden units.
      visible_bias: Bias of the visible units, `[d]`.
      hidden_bias: Bias of the hidden units, `[hidden]`.

    Returns:
      A `Target` on events of shape `(d,)`.

    Raises:
      ValueError: If the shapes do not match or there are too many hidden units.
    """
    arrays = [np.asarray(a, np.float64) for a in (weights, visible_bias, hidden_bias)]
    weights, visible_bias, hidden_bias = arrays
    if weights.ndim != 2 or (visible_bias.shape, hidden_bias.shape) != (
        weights.shape[:1],
        weights.shape[1:],
    ):
        raise ValueError(
            "weights, visible_bias and hidden_bias must be [d, hidden], [d] and"
            f" [hidden], got {', '.join(str(a.shape) for a in arrays)}"
        )
    num_hidden = len(hidden_bias)
    if num_hidden > MOST_HIDDEN:
        raise ValueError(
            f"hidden units must be at most {MOST_HIDDEN}, for their states are counted,"
            f" got {num_hidden}"
        )
    bits = np.arange(2**num_hidden)[:, None] >> np.arange(num_hidden)[None]
    states = 2.0 * (bits & 1) - 1.0
    means = visible_bias + 0.5 * states @ weights.T
    logits = states @ hidden_bias + 0.5 * (means**2).sum(1)
    largest = np.max(logits)
    log_sum = largest + math.log(np.exp(logits - largest).sum())
    params = {
        "weights": weights,
        "visible_bias": visible_bias,
        "hidden_bias": hidden_bias,
    }
    # Counted in float64; draws need no more than float32.
    log_probs = (logits - log_sum).astype(np.float32)
    centres = means.astype(np.float32)

    def sample(key: Key, num: int) -> Array:
        state_key, noise_key = jax.random.split(key)
        state = jax.random.categorical(state_key, jnp.asarray(log_probs), shape=(num,))
        noise = jax.random.normal(noise_key, (num, len(visible_bias)))
        return jnp.asarray(centres)[state] + noise

    def energy_fn(x: Array) -> Array:
        x = _example(x, visible_bias.shape)
        as_x = {name: jnp.asarray(array, x.dtype) for name, array in params.items()}
        return energies.gaussian_bernoulli_rbm(as_x, x)

    log_partition = log_sum + 0.5 * len(visible_bias) * math.log(2 * math.pi)
    return Target(sample, energy_fn, log_partition)


def ica(mixing: ArrayLike) -> Target:
    """Returns the law of mixed independent logistic sources (ICA).

    The law is that of `x = s mixing` with standard logistic `s`. The energy is
    `energies.ica` with the inverse of the mixing. Its log partition function is
    `log |det mixing|`, and its entropy is `2 d + log |det mixing|`.

    Args:
      mixing: Mixing matrix, `[d, d]`, invertible.

    Returns:
      A `Target` on events of shape `(d,)`.

    Raises:
      ValueError: If the mixing is not square or not invertible.
    """
    mixing = np.asarray(mixing, np.float64)
    if mixing.ndim != 2 or mixing.shape[0] != mixing.shape[1]:
        raise ValueError(f"mixing must be [d, d], got {mixing.shape}")
    sign, log_det = np.linalg.slogdet(mixing)
    if sign == 0:
        raise ValueError(f"mixing must be invertible, got {mixing.tolist()}")
    unmixing = np.linalg.inv(mixing)
    matrix = mixing.astype(np.float32)

    def sample(key: Key, num: int) -> Array:
        return jax.random.logistic(key, (num, len(matrix))) @ jnp.asarray(matrix)

    def energy_fn(x: Array) -> Array:
        x = _example(x, (len(matrix),))
        return energies.ica({"unmixing": jnp.asarray(unmixing, x.dtype)}, x)

    return Target(sample, energy_fn, float(log_det))
