"""Generalised energy-based models (GEBM): a base that draws, an energy that reweights.

See https://arxiv.org/abs/2003.05033.

The model is `exp(-E(x) - A)` times the base's law, with `A` the log partition function
under the base. The base determines the support, which may be thin, and the energy the
weights. The energy maximises the generalised likelihood `-mean E(data) - A`, whose
largest value is the divergence of the data from the base; the base then lowers it. The
model is sampled in the base's latents, by `energies.latent_energy`.

A base is `(params, latent) -> x` of one example, with `params["base"]`. A base with
batch statistics is a `Network` with `apply_stateful`, and has them in
`params["base_state"]`. It normalises by the batch in its own objective, and by its
running statistics in the energy's. An energy with power-iteration vectors has them in
`params["energy_state"]`, which only its own objective renews.

Source:
  Arbel, Zhou & Gretton (2021), "Generalized energy based models",
  https://arxiv.org/abs/2003.05033, and its released code.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ebmjax.checks import check_batch, check_count, check_number, scalar_valued
from ebmjax.objectives.base import (
    Aux,
    Generator,
    Objective,
    check_choice,
    check_draws,
    constant_of,
    dot,
    generate,
    interpolate,
    refreshed,
    scalars_of,
    single_generator,
)
from ebmjax.types import Array, Energy, EnergyFn, Key, Network, Params

__all__ = [
    "ESTIMATORS",
    "base_objective",
    "energy_objective",
    "floored",
    "likelihood",
    "redescending_gradients",
]

ESTIMATORS = ("kale", "donsker_varadhan")
"""Names of the bounds that `energy_objective` can use."""

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
    """Returns the energy's loss in a GEBM, which is minus KALE by default.

    See https://arxiv.org/abs/2003.05033.

    KALE is the KL approximate lower-bound estimate. The loss is minus a bound of the
    generalised likelihood:

    - "kale" gives `mean (E + c) over data + mean exp(-(E + c)) over the base - 1`. The
      constant `c = params["log_partition"]` is learned; at its best value it is the
      logarithm of the mean of `exp(-E)` under the base. The estimate is unbiased in
      batches, and `c` remembers earlier batches. The value is minus KALE.
    - "donsker_varadhan" gives `mean E over data + log mean exp(-E) over the base`, of
      the batch; it is biased in small batches. `log_partition` is not used.

    With `base_log_prob` the energy is `energy(params["energy"], x) +
    base_log_prob(params["base"], x)`. The model's density is then `exp(-energy)` up to
    a constant, whatever the base is, and the base is where draws are proposed. The base
    is fixed in both cases.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`, with the parameters
        `params["energy"]`.
      base: `base(params, latent) -> x`, or a `Network`; fixed. It receives fresh
        standard normal latents at every call.
      latent_dim: Length of the latent.
      estimator: "kale" or "donsker_varadhan", as described above.
      gradient_penalty: Weight of the mean of `|grad E|^2`, centred on 0, at random
        points between data and draws, one for each example. (WGAN-GP's is centred on
        1.)
      base_log_prob: `base_log_prob(params, x) -> []`, the base's log density in nats.
      num_draws: Number of draws from the base for each row of the batch.
      transforms_log_partition: Whether `c` has the gradient `exp(c - A) - 1`, with `A`
        the batch's log mean of `exp(-E)`. The loss's own gradient is `1 - exp(A - c)`,
        which explodes if `c` is far too small. In one batch the two have the same sign
        and the same zero, and the value is unchanged. Over batches, of each device its
        own, `c` ends at `-log mean exp(-A)`, which is below the truth by about the
        variance of a batch's `A`. The loss's own gradient has no such bias.
      energy_floor: Lower bound of the energy network's value, which has no gradient
        below it; None for no floor. Sampling needs the same floor.

    Returns:
      A stateless `Objective` for a player that trains `("energy", "log_partition")`, or
      `("energy",)` with "donsker_varadhan". Its metrics are `energy_data` and
      `energy_model`; `kale`, the bound, in nats; `log_partition`, of the batch; `mass`,
      the mean of `exp(-(E + c))` under the base, which is 1 at best; and, with a
      penalty, `gradient_square`. The objective renews `energy_state` if the energy has
      one. With several devices, the batch's log mean and everything computed from it
      use the rows of each device.

    Raises:
      ValueError: If the estimator is unknown, a weight is negative or a count is below
        1; at trace, if a state or `log_partition` is missing, draws do not have the
        shape of the data, or an energy is not a scalar.

    Source:
      Arbel, Zhou & Gretton (2021), "Generalized energy based models",
      https://arxiv.org/abs/2003.05033.
    """
    check_choice("estimator", estimator, ESTIMATORS)
    gradient_penalty = check_number(
        "gradient_penalty", gradient_penalty, positive=False
    )
    check_count("latent_dim", latent_dim, 1)
    check_count("num_draws", num_draws, 1)

    def loss(params: Params, key: Key, batch: Array, carry: Any) -> tuple[Array, Aux]:
        check_batch(batch)
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
            constant = constant_of(params)
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
                interpolate(point_key, batch, draws[: len(batch)])
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
    """Returns the base's loss in a GEBM, the generalised likelihood of a fixed energy.

    See https://arxiv.org/abs/2003.05033.

    The loss is `-(mean E over data + log mean exp(-E) over draws)`. Its gradient is
    that of the draws' energies, weighted by `softmax(-E)`; a GAN's generator weights
    them equally. The learned log partition function is not used.

    With `base_log_prob`, the parameters of that density are differentiated as well: at
    the data, which is the likelihood of the base, and at the draws, in addition to the
    draws themselves.

    Args:
      energy: Energy or `Network`, as in `energy_objective`; fixed.
      base: Base, as in `energy_objective`.
      latent_dim: Length of the latent.
      base_log_prob: The base's log density, as in `energy_objective`.
      num_draws: Number of draws from the base for each row of the batch.
      energy_floor: Lower bound of the energy network's value, as in `energy_objective`.

    Returns:
      A stateless `Objective` for a player that trains `("base",)`. Its metrics are
      `kale`, the generalised likelihood in nats; `energy_model`; and `effective_draws`,
      the effective share of the draws under their weights. The objective renews
      `base_state` if there is one. With several devices, weights are normalised over
      the rows of each device.

    Raises:
      ValueError: If a count is below 1; at trace, if a state is missing, draws do not
        have the shape of the data, or an energy is not a scalar.

    Source:
      Arbel, Zhou & Gretton (2021), "Generalized energy based models",
      https://arxiv.org/abs/2003.05033.
    """
    check_count("latent_dim", latent_dim, 1)
    check_count("num_draws", num_draws, 1)

    def loss(params: Params, key: Key, batch: Array, carry: Any) -> tuple[Array, Aux]:
        check_batch(batch)
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
    """Returns minus the mean log likelihood of a model with a known density.

    Args:
      log_prob: `log_prob(params, x) -> []`, in nats, normalised.
      name: Name of the parameters, which are `params[name]`.

    Returns:
      A stateless `Objective` for a player that trains `(name,)`. Its metric is
      `log_likelihood`.
    """
    checked = scalar_valued("log_prob", log_prob)

    def loss(params: Params, key: Key, batch: Array, carry: Any) -> tuple[Array, Aux]:
        del key
        check_batch(batch)
        value = jax.vmap(checked, (None, 0))(params[name], batch).mean()
        return -value, Aux(carry, {"log_likelihood": jax.lax.stop_gradient(value)})

    return Objective(init=lambda key: (), loss=loss)


def floored(energy_fn: EnergyFn, floor: float | None) -> EnergyFn:
    """Returns the energy kept above a floor, with no gradient below it.

    This is `energy_floor` of the objectives, for sampling from the models that they
    have trained. None leaves the energy unchanged.
    """
    if floor is None:
        return energy_fn
    return lambda x: jax.nn.relu(energy_fn(x) - floor) + floor


def redescending_gradients() -> optax.GradientTransformation:
    """Returns a transformation `g -> 2 g / (1 + g^2)` of every element of a gradient.

    Chain it before an optimizer. The result is at most 1, for `g = 1`, and decreases
    again for larger `g`. The released code applies it to the energy's weights, not to
    the log partition function; mask the latter.
    """

    def update(gradients: Any, params: Any = None) -> Any:
        del params
        return jax.tree.map(lambda g: 2 * g / (1 + g**2), gradients)

    return optax.stateless(update)


def _total(
    energy: Energy | Network,
    params: Params,
    base_log_prob: LogProb | None,
    floor: float | None,
) -> EnergyFn:
    """Returns the whole energy of an example, with the base's log density if given."""
    energy_fn = scalar_valued("energy", single_generator(energy, params, "energy"))
    energy_fn = floored(energy_fn, floor)
    if base_log_prob is not None:
        base_log_prob = scalar_valued("base_log_prob", base_log_prob)

    def total(x: Array) -> Array:
        value = energy_fn(x)
        if base_log_prob is not None:
            value = value + base_log_prob(params["base"], x)
        return value

    return total
