"""Maximum entropy generators (MEG): an energy, and a generator that is kept diverse.

See https://arxiv.org/abs/1901.08508.

The energy learns from data against the generator's draws. The generator lowers their
energy and raises an estimate of their entropy. Without noise on the generator's output,
the entropy is, up to a constant, the mutual information of draw and latent. A third
network, the statistics network, gives a bound of it (MINE,
https://arxiv.org/abs/1801.04062), which the generator raises as well. Generator and
statistics network are thus one player and do not oppose each other.

Generators are `(params, latent) -> x` of one example, with `params["generator"]`.
Statistics networks are `(params, x, latent) -> []`, with `params["statistics"]`. A
generator with batch statistics is a `Network` with `apply_stateful`, and has them in
`params["generator_state"]`. It normalises by the batch in training, in the objectives
of both players, and by its running statistics wherever a single latent is used.

Source:
  Kumar, Ozair, Goyal, Courville & Bengio (2019), "Maximum entropy generators for
  energy-based models", https://arxiv.org/abs/1901.08508, and the released code. The
  code uses the information with weight `1 / 2`, and for images the penalty's
  `reduction="channel_mean"`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ebmjax import energies
from ebmjax.checks import check_batch, check_count, check_number
from ebmjax.objectives.base import (
    Aux,
    Generator,
    Objective,
    check_choice,
    check_draws,
    generate,
    scalar_function,
    scalars_of,
    single_generator,
)
from ebmjax.samplers.chains import sample_chains
from ebmjax.samplers.sampler import Sampler
from ebmjax.types import Array, Energy, Key, Metrics, Network, Params

__all__ = ["energy_objective", "generator_objective"]

Statistics = Callable[[Params, Array, Array], Array] | Network

PENALTIES = ("data", "data_and_model")
REDUCTIONS = ("sum", "channel_mean")
ESTIMATORS = ("jsd", "nce", "donsker_varadhan")
MARGINALS = ("permutation", "shuffle_dimensions", "fresh")


def energy_objective(
    energy: Energy | Network,
    generator: Generator,
    *,
    latent_dim: int,
    score_penalty: float,
    penalty_on: str = "data",
    reduction: str = "sum",
    sampler: Sampler | None = None,
    num_steps: int = 0,
    temperature: float = 1.0,
    prior: bool = True,
) -> Objective:
    """Returns the energy's loss in MEG, of data against the generator's draws.

    See https://arxiv.org/abs/1901.08508.

    The loss is `mean E(data) - mean E(draws) + score_penalty * mean |score|^2`. The
    penalty is centred on zero and has no factor of a half: data should lie where the
    energy is stationary, and without the penalty the energy's scale grows without
    bound. It is not the `gradient_penalty` of WGAN-GP, which pulls norms between data
    and draws to 1.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`, with the parameters
        `params["energy"]`.
      generator: `generator(params, latent) -> x`, or a `Network`; fixed. It receives
        fresh standard normal latents at every call.
      latent_dim: Length of the latent.
      score_penalty: Weight of the penalty, not negative. Published values are 0.1 in
        the plane, and with "channel_mean" 10 (100 for anomaly detection) on images.
      penalty_on: "data", or "data_and_model" for a penalty on draws as well.
      reduction: "sum" takes `|score|^2` over all elements of an example. "channel_mean"
        sums over the last axis and takes the mean over all others, as the released code
        does. For `[height, width, channels]` that is the sum divided by
        `height * width`; for `[d]` it is the sum.
      sampler: Sampler that moves the latents towards low energy before the generator
        maps them, as the paper allows and its code does not do. None does not move
        them.
      num_steps: Number of the sampler's moves, at least 1 with a sampler.
      temperature: Temperature that divides the energy in `energies.latent_energy`,
        which the sampler uses.
      prior: Whether the latent energy includes the latent's standard normal law.

    Returns:
      A stateless `Objective` for a player that trains `("energy",)`. Its metrics are
      `energy_data` and `energy_model`; with a penalty `score_square_data` (and
      `score_square_model` with "data_and_model"), after the reduction; with a sampler,
      its infos as means over moves and chains. The objective renews `generator_state`,
      unless there is a sampler.

    Raises:
      ValueError: If a choice is not one of those named, a weight is negative, or only
        one of `sampler` and `num_steps` is given; at trace, if the generator's state is
        missing, its draws do not have the shape of the data, or an energy is not a
        scalar.

    Source:
      Kumar et al. (2019), "Maximum entropy generators for energy-based models",
      https://arxiv.org/abs/1901.08508.
    """
    energy = scalar_function("energy", energy)
    score_penalty = check_number("score_penalty", score_penalty, positive=False)
    temperature = check_number("temperature", temperature, positive=True)
    check_count("latent_dim", latent_dim, 1)
    check_choice("penalty_on", penalty_on, PENALTIES)
    check_choice("reduction", reduction, REDUCTIONS)
    if (sampler is None) != (num_steps == 0):
        raise ValueError(
            "sampler and num_steps belong together, got"
            f" {'no sampler' if sampler is None else 'a sampler'} and"
            f" num_steps={num_steps}"
        )

    def with_score_square(params: Params, x: Array) -> tuple[Array, Array]:
        """Returns `E(x)` and `|score|^2`, of one evaluation that is differentiated."""
        value, score = jax.value_and_grad(energy, argnums=1)(params, x)
        return value, _reduced(score**2, reduction)

    def draws(
        params: Params, key: Key, batch: Array
    ) -> tuple[Array, dict[str, Any], Metrics]:
        """Returns `(x, renewed state, metrics)`, all of them fixed."""
        latent_key, chain_key = jax.random.split(key)
        latents = _latents(latent_key, batch, latent_dim)
        if sampler is None:
            x, renewed = generate(generator, params, latents)
            return x, renewed, {}
        single = single_generator(generator, params)
        energy_fn = functools.partial(energy, params["energy"])
        state, infos = sample_chains(
            sampler,
            energies.latent_energy(energy_fn, single, temperature, prior),
            chain_key,
            latents,
            num_steps,
            collect=None,
        )
        metrics = {f"chain_{k}": jnp.mean(v) for k, v in infos._asdict().items()}
        return jax.vmap(single)(state.position), {}, metrics

    def loss(params: Params, key: Key, batch: Array, carry: Any) -> tuple[Array, Aux]:
        check_batch(batch)
        frozen = jax.lax.stop_gradient(params)
        negatives, renewed, metrics = jax.lax.stop_gradient(draws(frozen, key, batch))
        check_draws("generator", negatives, batch)
        for name, x in (("data", batch), ("model", negatives)):
            is_penalised = name == "data" or penalty_on == "data_and_model"
            if score_penalty > 0 and is_penalised:
                values, squares = jax.vmap(with_score_square, (None, 0))(
                    params["energy"], x
                )
                metrics[f"score_square_{name}"] = squares.mean()
            else:
                values = scalars_of(
                    "energy", jax.vmap(energy, (None, 0))(params["energy"], x)
                )
            metrics[f"energy_{name}"] = values.mean()
        value = metrics["energy_data"] - metrics["energy_model"]
        for name in ("data", "model"):
            value += score_penalty * metrics.get(f"score_square_{name}", 0.0)
        return value, Aux(carry, jax.lax.stop_gradient(metrics), renewed)

    return Objective(init=lambda key: (), loss=loss)


def generator_objective(
    energy: Energy | Network,
    generator: Generator,
    statistics: Statistics | None,
    *,
    latent_dim: int,
    information_weight: float,
    estimator: str = "jsd",
    marginal: str = "permutation",
) -> Objective:
    """Returns the loss in MEG of the generator and its statistics network.

    See https://arxiv.org/abs/1901.08508.

    The loss is the energy minus the information,
    `mean E(draws) - information_weight * information`, with the information of draws
    and the latents that made them. Both networks raise the information. The batch
    matters only by its size and type.

    Let `T` be the statistics network's value. "Joint" means draws with their own
    latents, and "marginal" draws with other latents:

    - "jsd" is `-mean softplus(-T) over joint - mean softplus(T) over marginal`, between
      `-2 log 2` at independence and 0. Half of its negative is the binary cross-entropy
      of distinguishing joint from marginal, which the released code adds with weight 1;
      use `information_weight=0.5` for that. It is bounded and keeps draws apart, but it
      is not an entropy in nats. It is the estimator of Deep InfoMax,
      https://arxiv.org/abs/1808.06670.
    - "nce" is the mean of `T` of the own latent minus the logarithm of the mean of
      `exp T` over the own and the batch's other latents. It is at most the logarithm of
      the batch's size. It needs `n^2` values of the statistics network; the part that
      depends on the draw alone is computed once. It is InfoNCE,
      https://arxiv.org/abs/1807.03748.
    - "donsker_varadhan" is `mean T over joint - log mean exp T over marginal`, a bound
      of the information in nats, without limit, whose gradient is biased in small
      batches. The paper's authors found it unstable. It is the estimator of MINE,
      https://arxiv.org/abs/1801.04062.

    With several devices, the last two use the rows of one device each.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`; fixed.
      generator: `generator(params, latent) -> x`, or a `Network`.
      statistics: `statistics(params, x, latent) -> []`, or a `Network`. Use None, with
        `information_weight=0`, for a generator that follows the energy alone, of a
        player that trains `("generator",)`.
      latent_dim: Length of the latent, which is standard normal.
      information_weight: Weight of the information, not negative.
      estimator: "jsd", "nce" or "donsker_varadhan", as described above.
      marginal: Origin of the other latents. "permutation" permutes the batch's latents,
        which leaves one of them in its place on average; "shuffle_dimensions" permutes
        every coordinate separately; "fresh" draws new ones.

    Returns:
      A stateless `Objective` for a player that trains `("generator", "statistics")`.
      Its metrics are `energy_model`, and with a statistics network `information`. The
      objective renews `generator_state`.

    Raises:
      ValueError: If a choice is not one of those named, or the weight is negative, or
        it is not 0 without a statistics network. At trace: for a batch of one, in which
        there are no other latents, or if the generator's state is missing, its draws do
        not have the shape of the data, or a network that judges them does not return a
        scalar.

    Source:
      Kumar et al. (2019), "Maximum entropy generators for energy-based models",
      https://arxiv.org/abs/1901.08508.
    """
    energy = scalar_function("energy", energy)
    if statistics is None and information_weight != 0:
        raise ValueError(
            "without a statistics network information_weight must be 0, got"
            f" {information_weight}"
        )
    information_weight = check_number(
        "information_weight", information_weight, positive=False
    )
    check_count("latent_dim", latent_dim, 1)
    check_choice("estimator", estimator, ESTIMATORS)
    check_choice("marginal", marginal, MARGINALS)

    def loss(params: Params, key: Key, batch: Array, carry: Any) -> tuple[Array, Aux]:
        if len(batch) < 2:
            raise ValueError("max_entropy needs a batch of at least 2 examples, got 1")
        check_batch(batch)
        latent_key, marginal_key = jax.random.split(key)
        latents = _latents(latent_key, batch, latent_dim)
        x, renewed = generate(generator, params, latents)
        check_draws("generator", x, batch)
        frozen = jax.lax.stop_gradient(params["energy"])
        values = jax.vmap(energy, (None, 0))(frozen, x)
        energy_model = scalars_of("energy", values).mean()
        value, metrics = energy_model, {"energy_model": energy_model}
        if statistics is not None:
            information = _information(
                functools.partial(
                    scalar_function("statistics", statistics), params["statistics"]
                ),
                x,
                latents,
                _others(marginal_key, latents, marginal, estimator),
                estimator,
            )
            value = energy_model - information_weight * information
            metrics["information"] = information
        return value, Aux(carry, *jax.lax.stop_gradient((metrics, renewed)))

    return Objective(init=lambda key: (), loss=loss)


def _latents(key: Key, batch: Array, latent_dim: int) -> Array:
    dtype = jnp.promote_types(batch.dtype, jnp.float32)
    return jax.random.normal(key, (len(batch), latent_dim), dtype)


def _others(key: Key, latents: Array, marginal: str, estimator: str) -> Array:
    """Returns latents that are independent of the draw of their row."""
    if marginal == "fresh":
        return jax.random.normal(key, latents.shape, latents.dtype)
    if marginal == "shuffle_dimensions":
        return jax.random.permutation(key, latents, axis=0, independent=True)
    if estimator == "nce":
        return latents  # every row meets all of them, in whatever order
    return jax.random.permutation(key, latents)


def _information(
    statistic: Callable[[Array, Array], Array],
    x: Array,
    latents: Array,
    others: Array,
    estimator: str,
) -> Array:
    num = len(latents)
    if estimator == "nce":
        joint = scalars_of("statistics", jax.vmap(statistic)(x, latents))
        over_latents = jax.vmap(statistic, (None, 0))
        pairs = jax.vmap(over_latents, (0, None))(x, others)
        pairs = jnp.where(jnp.eye(num, dtype=bool), joint[:, None], pairs)
        return jnp.mean(joint - jax.nn.logsumexp(pairs, axis=1)) + math.log(num)
    # What depends on the draw alone is computed once for both latents.
    both = jax.vmap(jax.vmap(statistic, (None, 0)))(x, jnp.stack([latents, others], 1))
    joint, marginal = (scalars_of("statistics", both[:, place]) for place in (0, 1))
    if estimator == "jsd":
        return -jnp.mean(jax.nn.softplus(-joint)) - jnp.mean(jax.nn.softplus(marginal))
    return joint.mean() - jax.nn.logsumexp(marginal) + math.log(num)


def _reduced(squares: Array, reduction: str) -> Array:
    if reduction == "sum" or squares.ndim == 0:
        return jnp.sum(squares)
    return jnp.mean(jnp.sum(squares, axis=-1))
