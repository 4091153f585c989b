"""Variational entropy-regularized adversarial training of an energy (VERA).

See https://arxiv.org/abs/2010.04230.

The bound is `log Z >= mean over the generator of -E, plus the generator's entropy`, as
with a flow in `variational`. A generator, here `x = generator(latent) + noise_scale n`
with standard normal latent and n, has no density in closed form. The gradient of its
entropy is minus the mean of its score times the derivative of its draws. The score is
the mean of `-(x - generator(latent)) / noise_scale^2` over the latents that could have
made x. It is estimated by importance sampling around the latent that made it.

There are three players. The generator raises the bound, the energy learns from data
against the generator's draws, and the width of the importance proposal is fitted.
Generators are `(params, latent) -> x` of one example, with `params["generator"]`.
`params["posterior"]` is the logarithm of the width, `[latent_dim]`; start it at log
0.1.

Source:
  Grathwohl, Kelly, Hashemi, Norouzi, Swersky & Duvenaud (2021), "No MCMC for me:
  amortized sampling for fast and stable training of energy-based models",
  https://arxiv.org/abs/2010.04230.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ebmjax.checks import check_count, check_number
from ebmjax.objectives.base import (
    Objective,
    as_function,
    averaged,
    dot,
    scalar_function,
)
from ebmjax.types import Array, Energy, Key, Metrics, Network, Params

__all__ = [
    "energy_objective",
    "generator_objective",
    "generator_score",
    "posterior_objective",
]

Generator = Callable[[Params, Array], Array] | Network


def generator_objective(
    energy: Energy | Network,
    generator: Generator,
    *,
    latent_dim: int,
    noise_scale: float,
    entropy_weight: float = 1.0,
    num_importance: int = 20,
    widening: float = 1.0,
) -> Objective:
    """Returns the generator's loss in VERA, which lowers its divergence from the model.

    See https://arxiv.org/abs/2010.04230.

    The loss is `mean of E(x) + entropy_weight score . x` over draws, with the energy
    and the score fixed. Its gradient is that of the mean energy minus the weighted
    entropy. The batch matters only by its size and type.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`, with the parameters
        `params["energy"]`; fixed.
      generator: `generator(params, latent) -> x`, with the parameters
        `params["generator"]`.
      latent_dim: Length of the latent.
      noise_scale: Standard deviation of the noise on the generator's output, in units
        of x. The paper learns it, between 0.01 and 0.3.
      entropy_weight: Weight of the entropy, not negative; 1 gives the divergence. The
        paper's classifiers use 1e-4.
      num_importance: Number of importance samples of the score, whose bias falls as the
        number grows.
      widening: Factor of the proposal's width. The paper uses 1. With the width of
        `posterior_objective` that is too narrow, because the proposal's centre, the
        latent that made the draw, is as far from the posterior's mean as the posterior
        is wide. For a linear generator of one latent, 20 samples then recover 0.78 of
        the entropy's gradient, and with a factor of 2 they recover all except 2 %.
        Above `1.5 ** 0.5` the bias falls as the inverse of the number of samples.

    Returns:
      A stateless `Objective` for a player that trains `("generator",)`. Its metrics are
      `energy_model`, and `effective_importance`, the number of importance samples
      divided by the ratio of the weights' mean square to their squared mean. Near 1,
      the score is that of a single sample.

    Raises:
      ValueError: If a count is below 1, a scale is not positive or the weight is
        negative; at trace, if a shape is not the example's or the latent's.

    Source:
      Grathwohl et al. (2021), "No MCMC for me", https://arxiv.org/abs/2010.04230.
    """
    entropy_weight = check_number("entropy_weight", entropy_weight, positive=False)
    energy = scalar_function("energy", energy)
    widening = check_number("widening", widening, positive=True)
    draw = _draw(generator, latent_dim, noise_scale)
    score = _score(generator, noise_scale, num_importance, widening)

    def example_loss(params: Params, key: Key, x: Array) -> tuple[Array, Metrics]:
        draw_key, score_key = jax.random.split(key)
        y, latent = draw(params["generator"], draw_key, x)
        frozen = jax.lax.stop_gradient(params)
        at_y, effective = score(frozen, score_key, jax.lax.stop_gradient(y), latent)
        energy_model = energy(frozen["energy"], y)
        value = energy_model + entropy_weight * dot(at_y, y)
        return value, {"energy_model": energy_model, "effective_importance": effective}

    return averaged(example_loss)


def energy_objective(
    energy: Energy | Network,
    generator: Generator,
    *,
    latent_dim: int,
    noise_scale: float,
    score_penalty: float = 0.0,
) -> Objective:
    """Returns the energy's loss in VERA, of data against the generator's fixed draws.

    See https://arxiv.org/abs/2010.04230.

    The loss is `mean E(data) - mean E(draws) + score_penalty mean |score(data)|^2 / 2`.
    Its value does not measure progress.

    Args:
      energy: Energy or `Network`, as in `generator_objective`.
      generator: Generator, as in `generator_objective`; fixed.
      latent_dim: Length of the latent.
      noise_scale: Standard deviation of the noise on the generator's output, in units
        of x.
      score_penalty: Weight of the penalty, not negative. It biases the model and
        stabilises the game; the paper uses 0.1 for images. (Maximum entropy generators
        have no factor of a half.)

    Returns:
      A stateless `Objective` for a player that trains `("energy",)`. Its metrics are
      `energy_data` and `energy_model`.

    Raises:
      ValueError: If `latent_dim` is below 1, the scale is not positive or the penalty
        is negative; at trace, if the generator's shape is not the example's.

    Source:
      Grathwohl et al. (2021), "No MCMC for me", https://arxiv.org/abs/2010.04230.
    """
    score_penalty = check_number("score_penalty", score_penalty, positive=False)
    energy = scalar_function("energy", energy)
    draw = _draw(generator, latent_dim, noise_scale)

    def example_loss(params: Params, key: Key, x: Array) -> tuple[Array, Metrics]:
        frozen = jax.lax.stop_gradient(params["generator"])
        y, _ = draw(frozen, key, x)
        at_x, at_y = energy(params["energy"], x), energy(params["energy"], y)
        value = at_x - at_y
        if score_penalty > 0:
            gradient = jax.grad(energy, argnums=1)(params["energy"], x)
            value += 0.5 * score_penalty * dot(gradient, gradient)
        return value, {"energy_data": at_x, "energy_model": at_y}

    return averaged(example_loss)


def posterior_objective(
    generator: Generator, *, latent_dim: int, noise_scale: float
) -> Objective:
    """Returns the importance proposal's loss in VERA, which bounds the entropy.

    See https://arxiv.org/abs/2010.04230.

    The loss is an upper bound of the generator's entropy, minus the evidence lower
    bound at the generator's own draws, which are fixed. The proposal is
    `N(latent, exp(2 posterior))` around the latent that made the draw. Its centre is
    not the posterior's mean, so the bound is never reached. For a linear generator the
    best width is `(1 + |column|^2 / noise_scale^2)^(-1/2)` for every latent, and the
    bound exceeds the entropy. The batch matters only by its size and type.

    Args:
      generator: Generator, as in `generator_objective`; fixed.
      latent_dim: Length of the latent.
      noise_scale: Standard deviation of the noise on the generator's output, in units
        of x.

    Returns:
      A stateless `Objective` for a player that trains `("posterior",)`. Its metrics are
      `entropy_bound`, the loss itself, and `posterior_scale`, the mean width.

    Raises:
      ValueError: If `latent_dim` is below 1 or the scale is not positive; at trace, if
        a shape is not the example's or the latent's.

    Source:
      Grathwohl et al. (2021), "No MCMC for me", https://arxiv.org/abs/2010.04230.
    """
    draw = _draw(generator, latent_dim, noise_scale)
    generator = as_function(generator)

    def example_loss(params: Params, key: Key, x: Array) -> tuple[Array, Metrics]:
        draw_key, proposal_key = jax.random.split(key)
        frozen = jax.lax.stop_gradient(params["generator"])
        y, latent = draw(frozen, draw_key, x)
        log_scale = _checked_posterior(params, latent)
        noise = jax.random.normal(proposal_key, latent.shape, latent.dtype)
        proposed = latent + jnp.exp(log_scale) * noise
        miss = (y - generator(frozen, proposed)) / noise_scale
        joint = 0.5 * (dot(miss, miss) + dot(proposed, proposed))
        # What is left of the densities' constants: log(2 pi) of the latents cancels.
        constant = y.size * math.log(noise_scale * math.sqrt(2 * math.pi))
        value = joint + constant - 0.5 * latent.size - jnp.sum(log_scale)
        return value, {
            "entropy_bound": value,
            "posterior_scale": jnp.mean(jnp.exp(log_scale)),
        }

    return averaged(example_loss)


def generator_score(
    generator: Generator, *, noise_scale: float, num_importance: int
) -> Callable[[Params, Key, Array, Array], Array]:
    """Returns VERA's estimator of the score of a generator's law at one of its draws.

    See https://arxiv.org/abs/2010.04230.

    The estimate is `-(x - generator(z)) / noise_scale^2`, averaged over z from
    `N(latent, exp(2 posterior))` with self-normalised weights of the true posterior
    against that proposal. It is consistent as the number of samples grows if the
    weights have a variance. For a linear generator, they do if the proposal's variance
    is more than half the posterior's.

    Args:
      generator: Generator, as in `generator_objective`.
      noise_scale: Standard deviation of the noise on the generator's output, in units
        of x.
      num_importance: Number of importance samples.

    Returns:
      `score(params, key, x, latent) -> [*event]`, a function of `params["generator"]`
      and `params["posterior"]`, of the draw, and of the latent that made it.

    Raises:
      ValueError: If the scale is not positive or the number is below 1; at trace, if
        the posterior's shape is not the latent's.

    Source:
      Grathwohl et al. (2021), "No MCMC for me", https://arxiv.org/abs/2010.04230.
    """
    score = _score(generator, noise_scale, num_importance, widening=1.0)
    return lambda params, key, x, latent: score(params, key, x, latent)[0]


def _score(
    generator: Generator, noise_scale: float, num_importance: int, widening: float
) -> Callable[[Params, Key, Array, Array], tuple[Array, Array]]:
    """Returns `(params, key, x, latent) -> (score, effective number of samples)`."""
    noise_scale = check_number("noise_scale", noise_scale, positive=True)
    check_count("num_importance", num_importance, 1)
    generator = as_function(generator)

    def score(params: Params, key: Key, x: Array, latent: Array) -> tuple[Array, Array]:
        scale = widening * jnp.exp(_checked_posterior(params, latent))
        shape = (num_importance, *latent.shape)

        def weigh(noise: Array) -> tuple[Array, Array]:
            """Returns the log weight up to a constant, and the sample's own score."""
            proposed = latent + scale * noise
            miss = (x - generator(params["generator"], proposed)) / noise_scale
            joint = dot(proposed, proposed) + dot(miss, miss)
            return 0.5 * (dot(noise, noise) - joint), -miss / noise_scale

        noise = jax.random.normal(key, shape, latent.dtype)
        log_weights, scores = jax.vmap(weigh)(noise)
        weights = jax.nn.softmax(log_weights)
        return jnp.tensordot(weights, scores, 1), 1 / jnp.sum(weights**2)

    return score


def _draw(
    generator: Generator, latent_dim: int, noise_scale: float
) -> Callable[[Params, Key, Array], tuple[Array, Array]]:
    """Returns `(params, key, x) -> (y, latent)`, a draw of `x`'s shape and type."""
    check_count("latent_dim", latent_dim, 1)
    noise_scale = check_number("noise_scale", noise_scale, positive=True)
    generator = as_function(generator)

    def draw(params: Params, key: Key, x: Array) -> tuple[Array, Array]:
        latent_key, noise_key = jax.random.split(key)
        latent = jax.random.normal(latent_key, (latent_dim,), x.dtype)
        y = generator(params, latent)
        if jnp.shape(y) != x.shape:
            raise ValueError(
                f"generator must return an array of the example's shape {x.shape},"
                f" got {jnp.shape(y)}"
            )
        return y + noise_scale * jax.random.normal(noise_key, x.shape, x.dtype), latent

    return draw


def _checked_posterior(params: Params, latent: Array) -> Array:
    log_scale: Array = params["posterior"]
    if jnp.shape(log_scale) != latent.shape:
        raise ValueError(
            f"posterior must be of the latent's shape {latent.shape},"
            f" got {jnp.shape(log_scale)}"
        )
    return log_scale
