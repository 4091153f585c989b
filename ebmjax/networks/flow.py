"""Normalising flows of vectors: maps of a known Jacobian, both ways."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ebmjax.networks.layer import dense
from ebmjax.types import Array, Key, Params

__all__ = ["Flow", "real_nvp"]


class Flow(NamedTuple):
    """An invertible map from a standard normal latent of the example's own shape.

    Objectives that ask for a flow take `(flow.sample, flow.log_prob)`.

    Attributes:
      init: `init(key) -> params`.
      forward: `forward(params, z) -> (x, log |det dx / dz|)`, of one latent.
      inverse: `inverse(params, x) -> (z, log |det dz / dx|)`, of one example.
      sample: `sample(params, key) -> x`.
      log_prob: `log_prob(params, x) -> []`, in nats, normalised.
    """

    init: Callable[[Key], Params]
    forward: Callable[[Params, Array], tuple[Array, Array]]
    inverse: Callable[[Params, Array], tuple[Array, Array]]
    sample: Callable[[Params, Key], Array]
    log_prob: Callable[[Params, Array], Array]


class Coupling(nn.Module):
    """Shift and log scale of one half of a vector, as functions of the other half."""

    widths: tuple[int, ...]
    num_moved: int
    scale_bound: float

    @nn.compact
    def __call__(self, h: Array) -> tuple[Array, Array]:
        for width in self.widths:
            h = nn.swish(dense(h, width))
        # Zero at first: the flow begins as the map that its affine layer is.
        zeros = nn.initializers.zeros_init()
        out = dense(h, 2 * self.num_moved, kernel_init=zeros, bias_init=zeros)
        shift, raw = jnp.split(out, 2)
        return shift, self.scale_bound * jnp.tanh(raw / self.scale_bound)


def real_nvp(
    event_shape: tuple[int, ...],
    *,
    num_layers: int,
    widths: Sequence[int],
    scale_bound: float = 2.0,
) -> Flow:
    """Real NVP: affine couplings of the elements of even and of odd index, in turn.

    The latent goes through the couplings and then through an affine map, `mean + lower
    z`, with `lower` triangular of positive diagonal. Parameters are `{"couplings":
    [...], "mean": [d], "lower": [d, d]}`, the logarithm of the diagonal on `lower`'s
    diagonal and 0 above; as initialised it is the identity. With `mean` and `lower`
    those of the data, the flow begins as the normal law of the data's moments.

    Args:
      event_shape: Of one example, `(d,)` with `d` at least 2.
      num_layers: Couplings; two and more move all elements.
      widths: Of the hidden layers of a coupling's network.
      scale_bound: Largest log scale of a coupling.

    Returns:
      A `Flow`.

    Raises:
      ValueError: For an event that is no vector of two elements, no layer, a width or
        bound that is not positive.

    Source:
      Dinh, Sohl-Dickstein & Bengio (2017), "Density estimation using Real NVP".
    """
    if len(event_shape) != 1 or event_shape[0] < 2:
        raise ValueError(f"event_shape must be (d,) with d >= 2, got {event_shape}")
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    if not all(width > 0 for width in widths):
        raise ValueError(f"widths must be positive, got {tuple(widths)}")
    if not scale_bound > 0:
        raise ValueError(f"scale_bound must be positive, got {scale_bound}")
    (dim,) = event_shape
    # Layer i moves the elements i, i + 2, ... (mod 2), as the others say.
    halves = [(slice(i % 2, None, 2), slice(1 - i % 2, None, 2)) for i in (0, 1)]
    sizes = [len(range(dim)[moved]) for moved, _ in halves]
    modules = [Coupling(tuple(widths), size, scale_bound) for size in sizes]

    def init(key):
        keys = jax.random.split(key, num_layers)
        return {
            "couplings": [
                modules[i % 2].init(keys[i], jnp.zeros(dim - sizes[i % 2]))["params"]
                for i in range(num_layers)
            ],
            "mean": jnp.zeros(dim),
            "lower": jnp.zeros((dim, dim)),
        }

    def check(x):
        if x.shape != event_shape:
            raise ValueError(
                f"real_nvp takes one example of shape {event_shape}, got {x.shape};"
                " for a batch of examples use jax.vmap"
            )

    def lower_of(params):
        raw = params["lower"]
        log_diagonal = jnp.diagonal(raw)
        return jnp.tril(raw, -1) + jnp.diag(jnp.exp(log_diagonal)), log_diagonal.sum()

    def forward(params, z):
        check(z)
        log_det = jnp.zeros((), z.dtype)
        for i, coupling in enumerate(params["couplings"]):
            moved, fixed = halves[i % 2]
            shift, log_scale = modules[i % 2].apply({"params": coupling}, z[fixed])
            z = z.at[moved].set(z[moved] * jnp.exp(log_scale) + shift)
            log_det += log_scale.sum()
        lower, log_diagonal = lower_of(params)
        return params["mean"] + lower @ z, log_det + log_diagonal

    def inverse(params, x):
        check(x)
        lower, log_diagonal = lower_of(params)
        z = jax.scipy.linalg.solve_triangular(lower, x - params["mean"], lower=True)
        log_det = -log_diagonal
        for i, coupling in reversed(list(enumerate(params["couplings"]))):
            moved, fixed = halves[i % 2]
            shift, log_scale = modules[i % 2].apply({"params": coupling}, z[fixed])
            z = z.at[moved].set((z[moved] - shift) * jnp.exp(-log_scale))
            log_det -= log_scale.sum()
        return z, log_det

    def sample(params, key):
        return forward(params, jax.random.normal(key, event_shape))[0]

    def log_prob(params, x):
        z, log_det = inverse(params, x)
        normal = -0.5 * jnp.sum(z**2) - 0.5 * dim * math.log(2 * math.pi)
        return normal + log_det

    return Flow(init, forward, inverse, sample, log_prob)
