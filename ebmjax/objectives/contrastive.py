"""Maximum likelihood by sampling: short-run learning, CD-k and persistent CD in one."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ebmjax.checks import check_batch, check_count, check_number
from ebmjax.objectives.base import Aux, Objective, scalar_function
from ebmjax.samplers import Sampler, sample_chains
from ebmjax.samplers.chains import sample_ends
from ebmjax.samplers.sampler import running_mean
from ebmjax.starts import Start
from ebmjax.types import Array, Energy, Key, Network, Params

__all__ = ["ContrastiveCarry", "contrastive_divergence"]


class ContrastiveCarry(NamedTuple):
    """Memory of `contrastive_divergence`.

    Attributes:
      memory: Memory of the start: a replay buffer `[capacity, *event]`, in units of x,
        or `()`.
      count: Number of updates of this objective so far, `[]`, int32.
    """

    memory: Any
    count: Array  # type: ignore[assignment]  # it hides `tuple.count`, unused here


def _nearest_distance(x: Array) -> Array:
    """Returns the distance of each row `[n, *event]` to its nearest other row, `[n]`.

    The other rows are fixed: the gradient moves a sample, not its neighbours.
    """
    rows = x.reshape(x.shape[0], -1)
    # In units of the largest element, so that no square overflows or vanishes.
    unit = jax.lax.stop_gradient(jnp.abs(rows).max())
    unit = jnp.where(unit > 0, unit, 1.0)
    rows = rows / unit
    others = jax.lax.stop_gradient(rows)
    # Samples that coincide are this far apart: log and its gradient stay finite.
    tiny = jnp.finfo(rows.dtype).tiny
    least = jnp.maximum((tiny**0.5 / unit) ** 2, tiny)

    def one(row: Array, index: Array) -> Array:
        squares = jnp.sum((row[None] - others) ** 2, axis=1)
        nearest = jnp.min(jnp.where(jnp.arange(len(others)) == index, jnp.inf, squares))
        return unit * jnp.sqrt(jnp.maximum(nearest, least))

    return jax.vmap(one)(rows, jnp.arange(len(rows)))


def contrastive_divergence(
    energy: Energy | Network,
    *,
    sampler: Sampler,
    num_steps: int,
    start: Start,
    data_noise_scale: float | Callable[[Array], Array] = 0.0,
    energy_penalty: float = 0.0,
    last_step_gradient: bool = False,
    entropy_weight: float = 0.0,
) -> Objective:
    """Returns contrastive divergence: CD-k, persistent CD (PCD) or short-run learning.

    See https://doi.org/10.1162/089976602760128018 (CD-k),
    https://doi.org/10.1145/1390156.1390290 (PCD) and https://arxiv.org/abs/1904.09770
    (short-run learning).

    If the negatives are draws of the model, its gradient is that of the negative log
    likelihood. The loss is `mean E(batch + data_noise) - mean E(negatives)`. Negatives
    are the ends of chains of `num_steps` moves and are fixed: no gradient flows through
    the chain.

    The start of the chains makes the method:

    - `starts.noise` gives short-run learning (https://arxiv.org/abs/1904.09770), whose
      model is the law of the chain's end, not `exp(-E)`;
    - `starts.data` gives CD-k (Hinton 2002);
    - `starts.replay` gives persistent contrastive divergence (Tieleman 2008; with a
      replay buffer Du & Mordatch 2019, https://arxiv.org/abs/1903.08689).

    The value of the loss does not measure progress: it stays near 0 while training goes
    well.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`; its parameters are
        `params["energy"]`.
      sampler: Sampler that moves the chains.
      num_steps: Number of moves of a chain, at least 1; the short-run paper's K.
      start: Start of the chains.
      data_noise_scale: Standard deviation of normal noise that is added to every batch,
        in units of x. It is a number, or a schedule `count -> number` of this
        objective's own updates. Data starts receive the noisy batch. The model then
        learns the data convolved with that noise.
      energy_penalty: Weight of `mean E(data)^2 + mean E(negatives)^2`, which pins the
        level of the energy. It biases the model.
      last_step_gradient: Whether to add the term of improved contrastive divergence
        (https://arxiv.org/abs/2012.01316). This is the mean energy, with its parameters
        fixed, of the negatives as functions of the parameters through the last move
        alone.
      entropy_weight: Weight of the entropy term of improved contrastive divergence. The
        term is the mean log distance of a sample, a function of the parameters through
        the last move, to its nearest neighbour among the other samples of the batch,
        and it is subtracted. It pushes samples apart. (Du et al. measure the distance
        to 100 samples of the buffer.)

    Returns:
      An `Objective` with a `ContrastiveCarry`. Its metrics are `energy_data`,
      `energy_model`, `energy_difference` (the first minus the second), `chain_<field>`
      for the sampler's info averaged over chains and over moves, of which the last is
      left out where there are several and no gradient flows through it, and
      `negatives_abs_max` (a mean over devices of each device's largest element). In
      short-run learning, `chain_gradient_norm` times `num_steps` settles near the
      distance from start to data.

    Raises:
      ValueError: If `num_steps` is below 1 or a weight is negative; at trace, if
        `entropy_weight` is used with a batch of one.

    Source:
      CD-k: Hinton (2002), "Training products of experts by minimizing contrastive
      divergence", Neural Computation 14, https://doi.org/10.1162/089976602760128018.
      PCD: Tieleman (2008), "Training restricted Boltzmann machines using approximations
      to the likelihood gradient", ICML, https://doi.org/10.1145/1390156.1390290.
      Short-run learning: Nijkamp, Hill, Zhu & Wu (2019), "Learning non-convergent
      non-persistent short-run MCMC toward energy-based model", algorithm 1,
      https://arxiv.org/abs/1904.09770. The last two options: Du, Li, Tenenbaum &
      Mordatch (2021), "Improved contrastive divergence training of energy-based
      models", https://arxiv.org/abs/2012.01316.
    """
    check_count("num_steps", num_steps, 1)
    energy_penalty = check_number("energy_penalty", energy_penalty, positive=False)
    entropy_weight = check_number("entropy_weight", entropy_weight, positive=False)
    if not callable(data_noise_scale):
        data_noise_scale = check_number(
            "data_noise_scale", data_noise_scale, positive=False
        )
    energy = scalar_function("energy", energy)
    is_last_attached = bool(last_step_gradient) or entropy_weight > 0

    def init(key: Key) -> ContrastiveCarry:
        return ContrastiveCarry(start.init(key), jnp.zeros((), jnp.int32))

    def add_noise(key: Key, batch: Array, count: Array) -> Array:
        scale: float | Array
        if callable(data_noise_scale):
            scale = data_noise_scale(count)
            if jnp.shape(scale) != ():
                raise ValueError(
                    "data_noise_scale must return one number, got shape"
                    f" {jnp.shape(scale)}"
                )
        elif data_noise_scale == 0:
            return batch
        else:
            scale = data_noise_scale
        noise = jax.random.normal(key, batch.shape, batch.dtype)
        return batch + jnp.asarray(scale, batch.dtype) * noise

    def last_move(params: Params, key: Key, x: Array) -> tuple[Array, Any]:
        """Makes one move from fixed positions, differentiable in the parameters."""
        energy_fn = partial(energy, params)

        def move(key: Key, x: Array) -> tuple[Any, Any]:
            return sampler.step(energy_fn, key, sampler.init(energy_fn, x))

        state, info = jax.vmap(move)(jax.random.split(key, x.shape[0]), x)
        return state.position, info

    def loss(params: Params, key: Key, batch: Array, carry: Any) -> tuple[Array, Aux]:
        check_batch(batch)
        noise_key, start_key, sample_key, last_key = jax.random.split(key, 4)
        memory, count = carry
        batch = add_noise(noise_key, batch, count)
        x, slots = start.draw(start_key, memory, batch)
        chex.assert_equal_shape([x, batch])  # a start's noise may be of another shape
        if entropy_weight > 0 and x.shape[0] < 2:
            raise ValueError(
                "entropy_weight needs a batch of at least 2 examples, got 1"
            )

        trained = params["energy"]
        frozen = partial(energy, jax.lax.stop_gradient(trained))
        if is_last_attached:
            state, info = sample_chains(
                sampler, frozen, sample_key, x, num_steps - 1, collect=None
            )
            ends = jax.lax.stop_gradient(state.position)
            ends, last = last_move(trained, last_key, ends)
            update = partial(running_mean, count=num_steps)
            info = jax.tree.map(update, info, last)
        else:
            ends, info = sample_ends(sampler, frozen, sample_key, x, num_steps)
        negatives = jax.lax.stop_gradient(ends)

        energies = jax.vmap(partial(energy, trained))
        energy_data, energy_model = energies(batch), energies(negatives)
        value = energy_data.mean() - energy_model.mean()
        if energy_penalty > 0:
            squares = (energy_data**2).mean() + (energy_model**2).mean()
            value += energy_penalty * squares
        if last_step_gradient:
            value += jax.vmap(frozen)(ends).mean()
        if entropy_weight > 0:
            value -= entropy_weight * jnp.log(_nearest_distance(ends)).mean()

        metrics = {
            "energy_data": energy_data.mean(),
            "energy_model": energy_model.mean(),
            "energy_difference": energy_data.mean() - energy_model.mean(),
            "negatives_abs_max": jnp.abs(negatives).max(),
        } | {f"chain_{name}": mean.mean() for name, mean in info._asdict().items()}
        metrics = jax.lax.stop_gradient(metrics)
        memory = start.write(memory, slots, negatives)
        carry = ContrastiveCarry(memory, count + 1)
        return value, Aux(carry, metrics)

    return Objective(init, loss)
