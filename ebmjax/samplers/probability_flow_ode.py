"""The deterministic flow that has a diffusion's marginals, and its change of volume."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ebmjax.checks import check_chains, check_count, check_number, shaped_score
from ebmjax.diffusions import Diffusion
from ebmjax.samplers.closures import as_pytree
from ebmjax.types import Array, Key, TimedScoreFn

__all__ = ["Flowed", "probability_flow"]

TRACES = ("rademacher", "exact", None)


class Flowed(NamedTuple):
    """Examples that a probability flow has moved.

    Attributes:
      x: Examples at the end time, `[n, *event]`, in units of x.
      log_det: Log-determinant of the Jacobian of the map to the end, `[n]`, in nats. It
        satisfies `log p_start(x_start) = log p_end(x_end) + log_det`.
      num_evaluations: Number of scores that each example needed, `[n]`. All examples
        are computed as many times as the one that needs most.
    """

    x: Array
    log_det: Array
    num_evaluations: Array


def probability_flow(
    diffusion: Diffusion,
    score_fn: TimedScoreFn,
    key: Key,
    x: Array,
    *,
    start: float,
    end: float,
    trace: str | None = "rademacher",
    tolerance: float = 1e-5,
    max_steps: int = 4096,
) -> Flowed:
    """Moves examples along the probability flow ODE of a diffusion.

    See https://arxiv.org/abs/2011.13456.

    The flow has the diffusion's marginals. The equation is
    `dx / dt = drift_rate x - diffusion_scale^2 score / 2`. It is solved by the
    Dormand-Prince method of order 5, with step sizes of its own for every example. From
    time 0 to 1 it takes data to noise, and from time 1 to 0 noise to data.

    Args:
      diffusion: Diffusion from `ebmjax.diffusions`.
      score_fn: `score_fn(x, time) -> [*event]` of one example.
      key: Typed key of the probes. Each example has one probe, which is the same at all
        times: if it varied with time, the system would not be a differential equation.
      x: Examples at time `start`, `[n, *event]`.
      start: Time of the given examples.
      end: Time to which they are taken, before or after `start`.
      trace: Estimator of the trace of the velocity's Jacobian. "rademacher" is an
        unbiased estimate by one vector of signs. "exact" is for few dimensions, because
        it takes as many products as there are dimensions, all at once. None computes no
        `log_det`, which is then 0.
      tolerance: Relative and absolute tolerance of each step.
      max_steps: Largest number of steps, accepted or not.

    Returns:
      A `Flowed`, in float32 at least. An example that needs more steps is NaN.

    Raises:
      ValueError: If the trace is none of these, a time is not within [0, 1], the two
        times are equal, the tolerance or `max_steps` is not positive, or `x` or `key`
        do not satisfy the requirements of `sample_chains`.

    Source:
      Song et al. (2021), "Score-based generative modeling through stochastic
      differential equations", https://arxiv.org/abs/2011.13456. The "rademacher" trace
      is the one of FFJORD, Grathwohl et al. (2019), https://arxiv.org/abs/1810.01367.
    """
    if trace not in TRACES:
        raise ValueError(f"trace must be one of {TRACES}, got {trace!r}")
    if not (0 <= start <= 1 and 0 <= end <= 1 and start != end):
        raise ValueError(
            f"start and end must be two times from 0 to 1, got {start} and {end}"
        )
    tolerance = check_number("tolerance", tolerance, positive=True)
    check_count("max_steps", max_steps, 1)
    x = check_chains(key, x)
    flowed: Flowed = _flow(
        as_pytree(score_fn),
        key,
        x,
        diffusion=diffusion,
        times=(float(start), float(end)),
        trace=trace,
        tolerance=float(tolerance),
        max_steps=max_steps,
    )
    return flowed


@functools.partial(
    jax.jit, static_argnames=("diffusion", "times", "trace", "tolerance", "max_steps")
)
def _flow(
    score_fn: TimedScoreFn,
    key: Key,
    x: Array,
    *,
    diffusion: Diffusion,
    times: tuple[float, float],
    trace: str | None,
    tolerance: float,
    max_steps: int,
) -> Flowed:
    try:
        import diffrax  # imported here because it takes long
    except ModuleNotFoundError as error:
        message = 'probability_flow needs diffrax: pip install "ebmjax[full]"'
        raise ModuleNotFoundError(message) from error

    # Neither positions nor times are bfloat16. Times have the positions' type, because
    # diffrax would promote the positions to the type of the times.
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    start, end = (jnp.asarray(time, x.dtype) for time in times)

    def velocity(time: Array, x: Array) -> Array:
        scale = diffusion.diffusion_scale(time)
        score = shaped_score(score_fn)(x, time)
        return diffusion.drift_rate(time) * x - 0.5 * scale**2 * score

    def one_example(key: Key, x: Array) -> tuple[Array, Array, Array]:
        probe = jax.random.rademacher(key, x.shape, x.dtype)

        def field(
            time: Any, state: tuple[Array, Array], _: None
        ) -> tuple[Array, Array]:
            time = jnp.asarray(time, x.dtype)
            position = state[0]
            of_time = functools.partial(velocity, time)
            if trace is None:
                return of_time(position), jnp.zeros((), x.dtype)
            move, along = jax.linearize(of_time, position)
            if trace == "rademacher":
                return move, jnp.sum(probe * along(probe))
            identity = jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
            return move, jnp.sum(identity * jax.vmap(along)(identity))

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Dopri5(),
            t0=start,
            t1=end,
            dt0=None,
            y0=(x, jnp.zeros((), x.dtype)),
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
            max_steps=max_steps,
            throw=False,
        )
        is_solved = solution.result == diffrax.RESULTS.successful
        last, change = jax.tree.map(
            lambda leaf: jnp.where(is_solved, leaf[-1], jnp.nan), solution.ys
        )
        # A step takes six evaluations: the seventh is the next step's first. The start
        # takes one more, and so does the length of the first step.
        return last, change, 6 * solution.stats["num_steps"] + 2

    keys = jax.random.split(key, x.shape[0])
    return Flowed(*jax.vmap(one_example)(keys, x))
