"""Normalising flows of vectors (Real NVP, MAF), maps with a known Jacobian."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ebmjax.networks.layer import dense, initializers
from ebmjax.types import Array, Key, Params

__all__ = ["Flow", "masked_autoregressive", "real_nvp"]


class Flow(NamedTuple):
    """Invertible map from a standard normal latent of the example's own shape.

    Objectives that need a flow take `(flow.sample, flow.log_prob)`.

    Attributes:
      init: `init(key) -> params`.
      forward: `forward(params, z) -> (x, log |det dx / dz|)` of one latent `z`,
        `[*event]`.
      inverse: `inverse(params, x) -> (z, log |det dz / dx|)` of one example `x`,
        `[*event]`.
      sample: `sample(params, key) -> x`, one example `[*event]`, in units of x.
      log_prob: `log_prob(params, x) -> []`, in nats, normalised.
    """

    init: Callable[[Key], Params]
    forward: Callable[[Params, Array], tuple[Array, Array]]
    inverse: Callable[[Params, Array], tuple[Array, Array]]
    sample: Callable[[Params, Key], Array]
    log_prob: Callable[[Params, Array], Array]


class Coupling(nn.Module):
    """Shift and log scale of one half of a vector, as functions of the other half.

    Attributes:
      widths: Widths of the hidden layers.
      num_moved: Number of elements in the half that is moved.
      scale_bound: Largest log scale.
    """

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
    """Returns a Real NVP flow, with affine couplings of elements of even and odd index.

    See https://arxiv.org/abs/1605.08803.

    The couplings alternate between the two halves. The latent passes through the
    couplings and then through an affine map `mean + lower z`, with `lower` triangular
    and of positive diagonal. Parameters are
    `{"couplings": [...], "mean": [d], "lower": [d, d]}`, where the diagonal of
    `"lower"` is the logarithm of the matrix's diagonal and its upper part is 0. As
    initialised, the flow is the identity. With `mean` and `lower` set to those of the
    data, it begins as the normal law with the data's moments.

    Args:
      event_shape: Shape of one example, `(d,)` with `d` at least 2.
      num_layers: Number of couplings; two or more move all elements.
      widths: Widths of the hidden layers of a coupling's network.
      scale_bound: Largest log scale of a coupling.

    Returns:
      A `Flow`.

    Raises:
      ValueError: If the event is not a vector of at least two elements, there is no
        layer, or a width or the bound is not positive.

    Source:
      Dinh, Sohl-Dickstein & Bengio (2017), "Density estimation using Real NVP",
      https://arxiv.org/abs/1605.08803.
    """
    _check(event_shape, num_layers, widths, scale_bound)
    (dim,) = event_shape
    # Layer i moves the elements i, i + 2, ... (mod 2), as the others say.
    halves = [(slice(i % 2, None, 2), slice(1 - i % 2, None, 2)) for i in (0, 1)]
    sizes = [len(range(dim)[moved]) for moved, _ in halves]
    modules = [Coupling(tuple(widths), size, scale_bound) for size in sizes]
    # A module returns another pair only where a collection is mutable.
    couplings: list[Callable[..., Any]] = [module.apply for module in modules]

    def init(key: Key) -> Params:
        keys = jax.random.split(key, num_layers)
        return {
            "couplings": [
                modules[i % 2].init(keys[i], jnp.zeros(dim - sizes[i % 2]))["params"]
                for i in range(num_layers)
            ],
            "mean": jnp.zeros(dim),
            "lower": jnp.zeros((dim, dim)),
        }

    def forward(params: Params, z: Array) -> tuple[Array, Array]:
        _check_example("real_nvp", event_shape, z)
        log_det = jnp.zeros((), z.dtype)
        for i, coupling in enumerate(params["couplings"]):
            moved, fixed = halves[i % 2]
            shift, log_scale = couplings[i % 2]({"params": coupling}, z[fixed])
            z = z.at[moved].set(z[moved] * jnp.exp(log_scale) + shift)
            log_det += log_scale.sum()
        x, log_diagonal = _affine(params, z)
        return x, log_det + log_diagonal

    def inverse(params: Params, x: Array) -> tuple[Array, Array]:
        _check_example("real_nvp", event_shape, x)
        z, log_det = _affine_inverse(params, x)
        for i, coupling in reversed(list(enumerate(params["couplings"]))):
            moved, fixed = halves[i % 2]
            shift, log_scale = couplings[i % 2]({"params": coupling}, z[fixed])
            z = z.at[moved].set((z[moved] - shift) * jnp.exp(-log_scale))
            log_det -= log_scale.sum()
        return z, log_det

    return _flow(event_shape, init, forward, inverse)


def masked_autoregressive(
    event_shape: tuple[int, ...],
    *,
    num_layers: int,
    widths: Sequence[int],
    scale_bound: float = 2.0,
) -> Flow:
    """Returns a masked autoregressive flow (MAF) with networks masked as in MADE.

    See https://arxiv.org/abs/1705.07057 (MAF) and https://arxiv.org/abs/1502.03509
    (MADE).

    Each layer is an affine map of every element, whose shift and scale are functions of
    the elements before it, computed by one masked network. Between two layers the order
    is reversed. A density takes one pass, and a draw as many as there are elements, the
    opposite of an inverse autoregressive flow. The affine map at the end, its
    parameters `"mean"` and `"lower"`, and the initial flow are those of `real_nvp`; the
    layers are `"layers"`.

    Args:
      event_shape: Shape of one example, as in `real_nvp`.
      num_layers: Number of autoregressive layers.
      widths: Widths of the hidden layers of a layer's network.
      scale_bound: Largest log scale of a layer.

    Returns:
      A `Flow`.

    Raises:
      ValueError: As in `real_nvp`.

    Source:
      Papamakarios, Pavlakou & Murray (2017), "Masked autoregressive flow for density
      estimation", https://arxiv.org/abs/1705.07057; Germain, Gregor, Murray &
      Larochelle (2015), "MADE: masked autoencoder for distribution estimation",
      https://arxiv.org/abs/1502.03509.
    """
    _check(event_shape, num_layers, widths, scale_bound)
    (dim,) = event_shape
    # A unit of degree k sees elements of degree k and below; the output of degree k
    # only units below it.
    degrees = [np.arange(dim)]
    degrees += [np.arange(width) % (dim - 1) for width in widths]
    masks = [
        (before[:, None] <= after[None]).astype(np.float32)
        for before, after in zip(degrees, degrees[1:])
    ]
    last = (degrees[-1][:, None] < np.arange(dim)[None]).astype(np.float32)

    def init(key: Key) -> Params:
        def layer(key: Key) -> list[dict[str, Array]]:
            params = []
            for mask in masks:
                key, kernel_key, bias_key = jax.random.split(key, 3)
                make = initializers(len(mask))
                params.append(
                    {
                        "kernel": make["kernel_init"](kernel_key, mask.shape),
                        "bias": make["bias_init"](bias_key, mask.shape[1:]),
                    }
                )
            # Zero at first: the flow begins as the map that its affine layer is.
            shape = (len(last), 2, dim)
            return [*params, {"kernel": jnp.zeros(shape), "bias": jnp.zeros((2, dim))}]

        return {
            "layers": [layer(key) for key in jax.random.split(key, num_layers)],
            "mean": jnp.zeros(dim),
            "lower": jnp.zeros((dim, dim)),
        }

    def conditioner(params: Params, x: Array) -> tuple[Array, Array]:
        """Returns `(shift [d], log scale [d])`, each a function of earlier elements."""
        h = x
        for mask, layer in zip(masks, params):
            h = nn.swish(h @ (layer["kernel"] * mask) + layer["bias"])
        out = jnp.einsum("h,hkd->kd", h, params[-1]["kernel"] * last[:, None])
        shift, raw = out + params[-1]["bias"]
        return shift, scale_bound * jnp.tanh(raw / scale_bound)

    def forward_layer(params: Params, z: Array) -> tuple[Array, Array]:
        def fill(x: Array, index: Array) -> tuple[Array, Array]:
            shift, log_scale = conditioner(params, x)
            value = z[index] * jnp.exp(log_scale[index]) + shift[index]
            return x.at[index].set(value), log_scale[index]

        x, log_scales = jax.lax.scan(fill, jnp.zeros_like(z), jnp.arange(dim))
        return x, log_scales.sum()

    def forward(params: Params, z: Array) -> tuple[Array, Array]:
        _check_example("masked_autoregressive", event_shape, z)
        log_det = jnp.zeros((), z.dtype)
        for layer in params["layers"]:
            z, log_scale = forward_layer(layer, z[::-1])
            log_det += log_scale
        x, log_diagonal = _affine(params, z)
        return x, log_det + log_diagonal

    def inverse(params: Params, x: Array) -> tuple[Array, Array]:
        _check_example("masked_autoregressive", event_shape, x)
        z, log_det = _affine_inverse(params, x)
        for layer in reversed(params["layers"]):
            shift, log_scale = conditioner(layer, z)
            z = ((z - shift) * jnp.exp(-log_scale))[::-1]
            log_det -= log_scale.sum()
        return z, log_det

    return _flow(event_shape, init, forward, inverse)


def _check(
    event_shape: tuple[int, ...],
    num_layers: int,
    widths: Sequence[int],
    scale_bound: float,
) -> None:
    if len(event_shape) != 1 or event_shape[0] < 2:
        raise ValueError(f"event_shape must be (d,) with d >= 2, got {event_shape}")
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    if not all(width > 0 for width in widths):
        raise ValueError(f"widths must be positive, got {tuple(widths)}")
    if not scale_bound > 0:
        raise ValueError(f"scale_bound must be positive, got {scale_bound}")


def _check_example(name: str, event_shape: tuple[int, ...], x: Array) -> None:
    if x.shape != event_shape:
        raise ValueError(
            f"{name} takes one example of shape {event_shape}, got {x.shape};"
            " for a batch of examples use jax.vmap"
        )


def _lower(params: Params) -> tuple[Array, Array]:
    """Returns the triangular matrix, and the logarithm of its determinant."""
    raw = params["lower"]
    log_diagonal = jnp.diagonal(raw)
    return jnp.tril(raw, -1) + jnp.diag(jnp.exp(log_diagonal)), log_diagonal.sum()


def _affine(params: Params, z: Array) -> tuple[Array, Array]:
    lower, log_det = _lower(params)
    return params["mean"] + lower @ z, log_det


def _affine_inverse(params: Params, x: Array) -> tuple[Array, Array]:
    lower, log_det = _lower(params)
    z = jax.scipy.linalg.solve_triangular(lower, x - params["mean"], lower=True)
    return z, -log_det


def _flow(
    event_shape: tuple[int, ...],
    init: Callable[[Key], Params],
    forward: Callable[[Params, Array], tuple[Array, Array]],
    inverse: Callable[[Params, Array], tuple[Array, Array]],
) -> Flow:
    """Returns the flow of these maps from a standard normal latent."""
    (dim,) = event_shape

    def sample(params: Params, key: Key) -> Array:
        return forward(params, jax.random.normal(key, event_shape))[0]

    def log_prob(params: Params, x: Array) -> Array:
        z, log_det = inverse(params, x)
        normal = -0.5 * jnp.sum(z**2) - 0.5 * dim * math.log(2 * math.pi)
        return normal + log_det

    return Flow(init, forward, inverse, sample, log_prob)
