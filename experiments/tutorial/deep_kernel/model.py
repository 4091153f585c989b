"""The deep kernel exponential family: a mixture of kernels on learned features.

The log density is `sum_m alpha_m kernel(x, inducing_m) + log q0(x)` minus a constant,
where `q0 = N(0, 2^2 I)`. The kernel is a mixture of normal kernels, each on features of
its own.

Papers: Wenliang, Sutherland, Strathmann & Gretton (2019), "Learning deep kernels for
exponential family densities"; Song, Garg, Shi & Ermon (2019), "Sliced score matching".
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax.types import Array, EnergyFn, Key, Params

REFERENCE_SCALE = 2.0
"""Standard deviation of `q0` in every direction."""


def init_params(
    key: Key,
    inducing: np.ndarray | Array,
    *,
    width: int = 30,
    log_widths: tuple[float, ...] = (0.0, 0.5185, 1.0),
    log_ridge: float = -2.0,
) -> Params:
    """Returns everything that is trained; `energy` also needs the weights, `alpha`.

    Args:
      key: A typed key.
      inducing: `[inducing, d]`, the initial inducing points: training examples.
      width: Number of units of each of the three layers.
      log_widths: The logarithm to base 10 of the squared width of each kernel.
      log_ridge: The logarithm to base 10 of the ridge.
    """
    num, dim = len(log_widths), inducing.shape[1]

    def draw(key, *shape):
        # As published: scaled by the units of the layer itself, not of its input.
        return jax.random.normal(key, (num, *shape)) / math.sqrt(width)

    keys = iter(jax.random.split(key, 7))
    layers = [
        {"kernel": draw(next(keys), size, width), "bias": draw(next(keys), width)}
        for size in (dim, width, width)
    ]
    return {
        "layers": layers,
        "skip": draw(next(keys), dim, width),
        "inducing": jnp.asarray(inducing),
        "log_widths": jnp.asarray(log_widths),
        "mixture": jnp.zeros(num),
        "log_ridge": jnp.asarray(log_ridge),
    }


def _features(params: Params, x: Array) -> Array:
    """Returns `[kernels, rows, width]` of `x [rows, d]`: softplus layers and a skip."""

    def one_kernel(layers, skip):
        first, second, last = layers
        y = jax.nn.softplus(x @ first["kernel"] + first["bias"][None])
        y = jax.nn.softplus(y @ second["kernel"] + second["bias"][None])
        return y @ last["kernel"] + last["bias"][None] + x @ skip

    return jax.vmap(one_kernel)(params["layers"], params["skip"])


def kernels(params: Params, x: Array, centers: Array | None = None) -> Array:
    """Returns the kernel of an example `x [d]` with every inducing point, `[inducing]`.

    Args:
      params: Parameters from `init_params`.
      x: One example.
      centers: Features of the inducing points, if they have been computed already.
    """
    if centers is None:
        centers = _features(params, params["inducing"])
    here = _features(params, x[None])
    # The shift leaves distances as they are and makes the products' rounding smaller.
    middle = jax.lax.stop_gradient(jnp.mean(centers, axis=1, keepdims=True))
    here, centers = here - middle, centers - middle
    products = jnp.einsum("krw,kmw->km", here, centers)
    squares = jnp.sum(here**2, axis=2) + jnp.sum(centers**2, axis=2) - 2 * products
    scaled = squares / (2 * 10 ** params["log_widths"][:, None])
    weights = jax.nn.softmax(params["mixture"])
    return weights @ jnp.exp(-scaled)


def reference_energy(x: Array) -> Array:
    """Returns minus the log density of `q0`, which is normalised."""
    scale = REFERENCE_SCALE
    constant = 0.5 * math.log(2 * math.pi) + math.log(scale)
    return 0.5 * jnp.sum((x / scale) ** 2) + x.size * constant


def energy(params: Params, x: Array, centers: Array | None = None) -> Array:
    """Returns the energy of an example `[d]`, with `alpha` among the parameters."""
    return reference_energy(x) - kernels(params, x, centers) @ params["alpha"]


def score(params: Params, x: Array) -> Array:
    """Returns minus the gradient of `energy`.

    It is linear in the weights, which come last: a derivative in all of them costs
    hardly more than one.
    """
    slopes = jax.jacfwd(functools.partial(kernels, params))(x)
    return params["alpha"] @ slopes - x / REFERENCE_SCALE**2


def bind(params: Params) -> EnergyFn:
    """Returns the energy function, with the inducing points' features computed."""
    params = jax.tree.map(jnp.asarray, params)
    centers = _features(params, params["inducing"])
    return functools.partial(_bound_energy, params, centers)


def _bound_energy(params, centers, x):
    return energy(params, x, centers)
