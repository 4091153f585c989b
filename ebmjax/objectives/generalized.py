"""Generalised energy-based models: a base that draws, and an energy that reweighs it.

The model is `exp(-E(x) - A)` times the base's law, with `A` the log partition function
under the base: the base has the support, which may be thin, and the energy the weights.
The energy maximises the generalised likelihood `-mean E(data) - A`, whose largest value
is the divergence of the data from the base; the base then lowers it. It is sampled in
the base's latents, `energies.latent_energy`.

A base is `(params, latent) -> x` of one example, with `params["base"]`. One with batch
statistics, a `Network` with `apply_stateful`, has them in `params["base_state"]`: it
normalises by the batch in its own objective, by its running statistics in the energy's.
An energy with power-iteration vectors has them in `params["energy_state"]`, which its
own objective renews and no other.

Source:
  Arbel, Zhou & Gretton (2021), "Generalized energy based models", and its released
  code.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from ebmjax.checks import check_count, check_number
from ebmjax.objectives.base import (
    Aux,
    Generator,
    Objective,
    between,
    check_choice,
    check_draws,
    dot,
    generate,
    refreshed,
    scalars_of,
    single_generator,
)
from ebmjax.types import Array, Energy, EnergyFn, Network, Params

__all__ = [
    "base_objective",
    "energy_objective",
    "floored",
    "likelihood",
    "redescending_gradients",
]

ESTIMATORS = ("kale", "donsker_varadhan")

LogProb = Callable[[Params, Array], Array]


def energy_objective(
    energy: Energy | Network,
    base: Generator,
    *,
    latent_dim: int,
    estimator: str = "kale",
    gradient_penalty: float = 0.0,
    base_log_prob: LogProb | None = None,
    num_draws: int = 1,
    transforms_log_partition: bool = True,
    energy_floor: float | None = None,
) -> Objective:
    """The energy's loss: minus a bound of the generalised likelihood.

    - "kale": `mean (E + c) over data + mean exp(-(E + c)) over the base - 1`, with `c =
      params["log_partition"]`, learned, the logarithm of the mean of `exp(-E)` under
      the base where it is at its best. Unbiased in batches, and `c` remembers those
      before. The value is minus KALE, the KL approximate lower-bound estimate.
    - "donsker_varadhan": `mean E over data + log mean exp(-E) over the base`, of the
      batch; biased in small ones. `log_partition` is not looked at.

    With `base_log_prob` the energy is `energy(params["energy"], x) +
    base_log_prob(params["base"], x)`: then the model's density is `exp(-energy)` up to
    a constant, whatever the base, which is where draws are proposed. The base is held
    fixed either way.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`, with the parameters
        `params["energy"]`.
      base: `base(params, latent) -> x`, or a `Network`; held fixed. Fresh standard
        normal latents at every call.
      latent_dim: Length of the latent.
      estimator: See above.
      gradient_penalty: Weight of the mean of `|grad E|^2`, centred on 0, at random
        points between data and draws, one an example. (WGAN-GP's is centred on 1.)
      base_log_prob: `base_log_prob(params, x) -> []`, the base's density in nats.
      num_draws: From the base for each row of the batch.
      transforms_log_partition: Whether `c` has the gradient `exp(c - A) - 1`, with `A`
        the batch's log mean of `exp(-E)`, in place of the loss's own, `1 - exp(A -
        c)`, which explodes where `c` is far below. In a batch it has the same sign and
        zero; the value is untouched. Over batches, of each device its own, `c` ends at
        `-log mean exp(-A)`, below the truth by about the variance of a batch's `A`; the
        loss's own gradient has no such bias.
      energy_floor: The energy network's value is kept above it, and has no gradient
        below; None for no floor. Sampling wants the same one.

    Returns:
      A stateless `Objective` for a player that trains `("energy", "log_partition")`, or
      `("energy",)` with "donsker_varadhan". Metrics: `energy_data`, `energy_model`;
      `kale`, the bound, in nats; `log_partition`, of the batch; `mass`, the mean of
      `exp(-(E + c))` under the base, 1 at best; with a penalty `gradient_square`. It
      renews `energy_state` where the energy has one. With several devices the batch's
      log mean, and what is made of it, is that of the rows of each.

    Raises:
      ValueError: If the estimator is unknown, a weight negative or a count below 1; at
        trace, if a state or `log_partition` is missing, draws have not the shape of the
        data, or an energy is no scalar.
    """
    check_choice("estimator", estimator, ESTIMATORS)
    check_number("gradient_penalty", gradient_penalty, positive=False)
    check_count("latent_dim", latent_dim, 1)
    check_count("num_draws", num_draws, 1)

    def loss(params, key, batch, carry):
        latent_key, point_key = jax.random.split(key)
        renewed = refreshed(energy, params, batch[0], "energy")
        params = params | renewed
        params |= jax.lax.stop_gradient({"base": params["base"]})
        draws = jax.vmap(single_generator(base, params, "base"))(
            jax.random.normal(latent_key, (num_draws * len(batch), latent_dim))
        )
        draws = jax.lax.stop_gradient(draws)
        check_draws("base", draws, batch)
        total = _total(energy, params, base_log_prob, energy_floor)
        energy_data, energy_model = (
            scalars_of("energy", jax.vmap(total)(x)) for x in (batch, draws)
        )
        log_mean = jax.nn.logsumexp(-energy_model) - jnp.log(len(draws))
        if estimator == "kale":
            if "log_partition" not in params:
                raise ValueError(
                    "estimator 'kale' learns params['log_partition'], got"
                    f" {sorted(params)}"
                )
            constant = params["log_partition"]
            held = jax.lax.stop_gradient(constant)
            held_mean = jax.lax.stop_gradient(log_mean)
            mass = jnp.exp(-(energy_model + held)).mean()
            kale = -(energy_data.mean() + held) - mass + 1
            own = 1 - jnp.exp(held_mean - held)
            transformed = jnp.expm1(held - held_mean)
            slope = transformed if transforms_log_partition else own
            value = -kale + (constant - held) * slope
        else:
            kale = -energy_data.mean() - log_mean
            value, mass = -kale, jnp.ones(())
        metrics = {
            "energy_data": energy_data.mean(),
            "energy_model": energy_model.mean(),
            "kale": kale,
            "log_partition": log_mean,
            "mass": mass,
        }
        if gradient_penalty > 0:
            slopes = jax.vmap(jax.grad(total))(
                between(point_key, batch, draws[: len(batch)])
            )
            square = jax.vmap(dot)(slopes, slopes).mean()
            metrics["gradient_square"] = square
            value = value + gradient_penalty * square
        return value, Aux(carry, jax.lax.stop_gradient(metrics), renewed)

    return Objective(init=lambda key: (), loss=loss)


def base_objective(
    energy: Energy | Network,
    base: Generator,
    *,
    latent_dim: int,
    base_log_prob: LogProb | None = None,
    num_draws: int = 1,
    energy_floor: float | None = None,
) -> Objective:
    """The base's loss: the generalised likelihood of the energy, held fixed.

    `-(mean E over data + log mean exp(-E) over draws)`: the gradient is that of the
    draws' energies, weighed by `softmax(-E)`, and not evenly as a GAN's generator
    weighs them. The learned log partition function is not looked at.

    With `base_log_prob` its parameters are differentiated in it as well, at the data,
    which is the likelihood of the base, and at the draws, beside the draws themselves.

    Args:
      energy: As in `energy_objective`; held fixed.
      base: As in `energy_objective`.
      latent_dim: Length of the latent.
      base_log_prob: As in `energy_objective`.
      num_draws: As in `energy_objective`.
      energy_floor: As in `energy_objective`.

    Returns:
      A stateless `Objective` for a player that trains `("base",)`. Metrics: `kale`, the
      generalised likelihood in nats; `energy_model`; `effective_draws`, the share of
      the draws that their weights amount to. It renews `base_state` where there is one.
      With several devices weights are normalised over the rows of each.

    Raises:
      ValueError: If a count is below 1; at trace, if a state is missing, draws have
        not the shape of the data, or an energy is no scalar.
    """
    check_count("latent_dim", latent_dim, 1)
    check_count("num_draws", num_draws, 1)

    def loss(params, key, batch, carry):
        latents = jax.random.normal(key, (num_draws * len(batch), latent_dim))
        draws, renewed = generate(base, params, latents, "base")
        check_draws("base", draws, batch)
        params = params | jax.lax.stop_gradient({"energy": params["energy"]})
        total = _total(energy, params, base_log_prob, energy_floor)
        energy_model = scalars_of("energy", jax.vmap(total)(draws))
        log_mean = jax.nn.logsumexp(-energy_model) - jnp.log(len(draws))
        kale = -jax.vmap(total)(batch).mean() - log_mean
        weights = jax.nn.softmax(-energy_model)
        metrics = {
            "kale": kale,
            "energy_model": energy_model.mean(),
            "effective_draws": 1 / jnp.sum(weights**2) / len(draws),
        }
        return kale, Aux(carry, *jax.lax.stop_gradient((metrics, renewed)))

    return Objective(init=lambda key: (), loss=loss)


def likelihood(log_prob: LogProb, *, name: str = "energy") -> Objective:
    """Minus the mean log likelihood of a model whose density is known: a baseline.

    Args:
      log_prob: `log_prob(params, x) -> []`, in nats, normalised.
      name: Of its parameters: `params[name]`.

    Returns:
      A stateless `Objective` for a player that trains `(name,)`. Metrics:
      `log_likelihood`.
    """

    def loss(params, key, batch, carry):
        del key
        value = jax.vmap(log_prob, (None, 0))(params[name], batch).mean()
        return -value, Aux(carry, {"log_likelihood": jax.lax.stop_gradient(value)})

    return Objective(init=lambda key: (), loss=loss)


def floored(energy_fn: EnergyFn, floor: float | None) -> EnergyFn:
    """The energy kept above a floor, with no gradient below: `energy_floor` of the
    objectives, for the sampling of what they have trained. None leaves it."""
    if floor is None:
        return energy_fn
    return lambda x: jax.nn.relu(energy_fn(x) - floor) + floor


def redescending_gradients() -> optax.GradientTransformation:
    """`g -> 2 g / (1 + g^2)` of every element of a gradient, for before an optimizer.

    At most 1, where `g` is 1, and smaller again for larger ones: the released code has
    it on the energy's weights (not on the log partition function, so mask that).
    """

    def update(gradients, params=None):
        del params
        return jax.tree.map(lambda g: 2 * g / (1 + g**2), gradients)

    return optax.stateless(update)


def _total(energy, params, base_log_prob, floor) -> Callable[[Array], Array]:
    """The whole energy of an example, of all its parameters."""
    energy_fn = floored(single_generator(energy, params, "energy"), floor)

    def total(x):
        value = energy_fn(x)
        if base_log_prob is not None:
            value = value + base_log_prob(params["base"], x)
        return value

    return total
