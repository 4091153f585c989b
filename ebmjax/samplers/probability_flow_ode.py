"""The deterministic flow that has a diffusion's marginals, and its change of volume."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ebmjax.checks import check_chains, check_count, check_number, shaped_score
from ebmjax.diffusions import Diffusion
from ebmjax.samplers.chains import as_pytree
from ebmjax.types import Array, Key

__all__ = ["Flowed", "probability_flow"]

TRACES = ("rademacher", "exact", None)


class Flowed(NamedTuple):
    """Where the flow takes examples.

    Attributes:
      x: `[n, *event]`, at the time of the end.
      log_det: `[n]`, of the Jacobian of the way there: `log p_start(x_start) =
        log p_end(x_end) + log_det`.
      num_evaluations: `[n]`, scores that each needed; all are computed as many times
        as the one that needs most.
    """

    x: Array
    log_det: Array
    num_evaluations: Array


def probability_flow(
    diffusion: Diffusion,
    score_fn: Callable[[Array, Array], Array],
    key: Key,
    x: Array,
    *,
    start: float,
    end: float,
    trace: str | None = "rademacher",
    tolerance: float = 1e-5,
    max_steps: int = 4096,
) -> Flowed:
    """Moves examples along the flow that has the diffusion's marginals.

    `dx / dt = drift_rate x - diffusion_scale^2 score / 2`, by Dormand and Prince's
    method of order 5 with steps of its own for every example. From time 0 to 1 it takes
    data to noise, and back.

    Args:
      diffusion: From `ebmjax.diffusions`.
      score_fn: `score_fn(x, time) -> [*event]` of one example.
      key: Of the probes, one for each example, the same at all its times: another at
        every time would be no differential equation.
      x: `[n, *event]`.
      start: Time at which they are there.
      end: Time to which they are taken, before or after it.
      trace: Of the velocity's Jacobian: "rademacher", an unbiased estimate by one
        vector of signs; "exact", for few dimensions, as it takes as many products as
        there are, all at once; None for no `log_det`, which is then 0.
      tolerance: Relative and absolute, of each step.
      max_steps: Most steps, accepted or not.

    Returns:
      A `Flowed`, in float32 at least. An example that needs more steps is NaN.

    Raises:
      ValueError: If the trace is none of these, a time is not within [0, 1], the two
        are equal, the tolerance or `max_steps` is not positive, or `x` or `key` are not
        as in `sample_chains`.

    Source:
      Song et al. (2021), "Score-based generative modeling through stochastic
      differential equations".
    """
    if trace not in TRACES:
        raise ValueError(f"trace must be one of {TRACES}, got {trace!r}")
    if not (0 <= start <= 1 and 0 <= end <= 1 and start != end):
        raise ValueError(
            f"start and end must be two times from 0 to 1, got {start} and {end}"
        )
    check_number("tolerance", tolerance, positive=True)
    check_count("max_steps", max_steps, 1)
    x = check_chains(key, x)
    return _flow(
        as_pytree(score_fn),
        key,
        x,
        diffusion=diffusion,
        times=(float(start), float(end)),
        trace=trace,
        tolerance=float(tolerance),
        max_steps=max_steps,
    )


@functools.partial(
    jax.jit, static_argnames=("diffusion", "times", "trace", "tolerance", "max_steps")
)
def _flow(score_fn, key, x, *, diffusion, times, trace, tolerance, max_steps):
    import diffrax  # takes as long to import as all else here

    # Never bfloat16, as of times; and times of the positions' type, as diffrax would
    # promote the positions to that of the times.
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    start, end = (jnp.asarray(time, x.dtype) for time in times)

    def velocity(time, x):
        scale = diffusion.diffusion_scale(time)
        score = shaped_score(score_fn)(x, time)
        return diffusion.drift_rate(time) * x - 0.5 * scale**2 * score

    def one_example(key, x):
        probe = jax.random.rademacher(key, x.shape, x.dtype)

        def field(time, state, _):
            time = jnp.asarray(time, x.dtype)
            position, _ = state
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
        # Six a step: the seventh is the next step's first. One to begin, one for the
        # first step's length.
        return last, change, 6 * solution.stats["num_steps"] + 2

    keys = jax.random.split(key, x.shape[0])
    return Flowed(*jax.vmap(one_example)(keys, x))
