"""Adversarial training with a generator whose entropy's gradient is estimated.

`log Z >= mean over the generator of -E, plus the generator's entropy`, as with a flow
in `variational`; but a generator, here `x = generator(latent) + noise_scale n` with
standard normal latent and n, has no density to write down. The gradient of its entropy
is minus the mean of its score times the derivative of its draws, and the score is the
mean of `-(x - generator(latent)) / noise_scale^2` over the latents that could have made
x: importance sampling about the one that did.

Three players: the generator climbs the bound, the energy learns from data against its
draws, and the importance proposal's width learns to fit. Generators are `(params,
latent) -> x` of one example, with `params["generator"]`; `params["posterior"]` is the
logarithm of the width, `[latent_dim]`, log 0.1 to begin with.

Source:
  Grathwohl, Kelly, Hashemi, Norouzi, Swersky & Duvenaud (2021), "No MCMC for me:
  amortized sampling for fast and stable training of energy-based models".
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ebmjax.checks import check_count, check_number
from ebmjax.objectives.base import Objective, as_function, averaged, dot
from ebmjax.types import Array, Energy, Network, Params

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
    """The generator's loss, whose gradient is that of its divergence from the model.

    `mean of E(x) + entropy_weight score . x` over draws, with the energy and the score
    held fixed: in gradient, mean energy less the weighted entropy. The batch is not
    looked at, but for its size and type.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`, with the parameters
        `params["energy"]`; held fixed.
      generator: `generator(params, latent) -> x`, with the parameters
        `params["generator"]`.
      latent_dim: Length of the latent.
      noise_scale: Standard deviation of the noise on the generator's output, in units
        of x. The paper learns it, between .01 and .3.
      entropy_weight: 1 for the divergence; not negative. The paper's classifiers have
        1e-4.
      num_importance: Importance samples of the score, whose bias falls with their
        number.
      widening: Multiplies the proposal's width. The paper has 1, and with the width of
        `posterior_objective` that is too narrow: its centre, the latent that made the
        draw, is as far off as the posterior is wide. Of any linear generator of one
        latent, 20 samples then find 0.78 of the entropy's gradient, and with 2 all but
        2 %; above `1.5 ** 0.5` the bias falls as the inverse of their number.

    Returns:
      A stateless `Objective` for a player that trains `("generator",)`. Metrics:
      `energy_model`; `effective_importance`, the importance samples' number divided by
      their weights' mean square over squared mean: near 1 the score is one draw's.

    Raises:
      ValueError: If a count is below 1, a scale not positive or the weight negative; at
        trace, if a shape is not the example's or the latent's.
    """
    check_number("entropy_weight", entropy_weight, positive=False)
    energy = as_function(energy)
    check_number("widening", widening, positive=True)
    draw = _draw(generator, latent_dim, noise_scale)
    score = _score(generator, noise_scale, num_importance, widening)

    def example_loss(params, key, x):
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
    """The energy's loss: data against the generator's draws, held fixed.

    `mean E(data) - mean E(draws) + score_penalty mean |score(data)|^2 / 2`. The value
    alone says nothing about progress.

    Args:
      energy: As in `generator_objective`.
      generator: As in `generator_objective`; held fixed.
      latent_dim: As in `generator_objective`.
      noise_scale: As in `generator_objective`.
      score_penalty: Not negative. It biases the model, and steadies the game; the paper
        has 0.1 for images. (Maximum entropy generators have no half.)

    Returns:
      A stateless `Objective` for a player that trains `("energy",)`. Metrics:
      `energy_data`, `energy_model`.

    Raises:
      ValueError: If `latent_dim` is below 1, the scale not positive or the penalty
        negative; at trace, if the generator's shape is not the example's.
    """
    check_number("score_penalty", score_penalty, positive=False)
    energy = as_function(energy)
    draw = _draw(generator, latent_dim, noise_scale)

    def example_loss(params, key, x):
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
    """The importance proposal's loss: an upper bound of the generator's entropy.

    Minus the evidence lower bound at the generator's own draws, held fixed, with the
    proposal `N(latent, exp(2 posterior))` about the latent that made them. Its centre
    is not the posterior's mean, so that the bound is never reached: of a linear
    generator the best width is `(1 + |column|^2 / noise_scale^2)^(-1/2)` for every
    latent, and the bound is above the entropy. The batch is not looked at, but for its
    size and type.

    Args:
      generator: As in `generator_objective`; held fixed.
      latent_dim: As in `generator_objective`.
      noise_scale: As in `generator_objective`.

    Returns:
      A stateless `Objective` for a player that trains `("posterior",)`. Metrics:
      `entropy_bound`, the loss itself; `posterior_scale`, the widths' mean.

    Raises:
      ValueError: If `latent_dim` is below 1 or the scale not positive; at trace, if a
        shape is not the example's or the latent's.
    """
    draw = _draw(generator, latent_dim, noise_scale)
    generator = as_function(generator)

    def example_loss(params, key, x):
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
) -> Callable[..., Array]:
    """The score of a generator's law at one of its own draws, estimated.

    `-(x - generator(z)) / noise_scale^2`, averaged over z from `N(latent, exp(2
    posterior))` with self-normalised weights of the true posterior against it.
    Consistent in the number, wherever the weights have a variance: for a linear
    generator, if the proposal's variance is more than half the posterior's.

    Args:
      generator: As in `generator_objective`.
      noise_scale: As in `generator_objective`.
      num_importance: As in `generator_objective`.

    Returns:
      `score(params, key, x, latent) -> [*event]` of `params["generator"]` and
      `params["posterior"]`, the draw and the latent that made it.

    Raises:
      ValueError: If the scale is not positive or the number below 1; at trace, if the
        posterior's shape is not the latent's.
    """
    score = _score(generator, noise_scale, num_importance, widening=1.0)
    return lambda params, key, x, latent: score(params, key, x, latent)[0]


def _score(generator, noise_scale, num_importance, widening):
    """`(params, key, x, latent) -> (score, effective number of samples)`."""
    check_number("noise_scale", noise_scale, positive=True)
    check_count("num_importance", num_importance, 1)
    generator = as_function(generator)

    def score(params, key, x, latent):
        scale = widening * jnp.exp(_checked_posterior(params, latent))
        shape = (num_importance, *latent.shape)

        def weigh(noise):
            """Log weight but for what all have, and the sample's own score."""
            proposed = latent + scale * noise
            miss = (x - generator(params["generator"], proposed)) / noise_scale
            joint = dot(proposed, proposed) + dot(miss, miss)
            return 0.5 * (dot(noise, noise) - joint), -miss / noise_scale

        noise = jax.random.normal(key, shape, latent.dtype)
        log_weights, scores = jax.vmap(weigh)(noise)
        weights = jax.nn.softmax(log_weights)
        return jnp.tensordot(weights, scores, 1), 1 / jnp.sum(weights**2)

    return score


def _draw(generator, latent_dim, noise_scale):
    """`(params, key, x) -> (y, latent)`: one draw, of the shape and type of `x`."""
    check_count("latent_dim", latent_dim, 1)
    check_number("noise_scale", noise_scale, positive=True)
    generator = as_function(generator)

    def draw(params, key, x):
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


def _checked_posterior(params, latent):
    log_scale = params["posterior"]
    if jnp.shape(log_scale) != latent.shape:
        raise ValueError(
            f"posterior must be of the latent's shape {latent.shape},"
            f" got {jnp.shape(log_scale)}"
        )
    return log_scale
