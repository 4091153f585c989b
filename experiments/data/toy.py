"""Two-dimensional targets: fresh, exact draws at every step."""

from collections.abc import Callable

import jax

from ebmjax import targets
from ebmjax.types import Array, Key
from experiments.data.arrays import process_rows

__all__ = ["target_batches"]


def target_batches(
    key: Key, target: targets.Target, size: int
) -> Callable[[int], Array]:
    """Batches of fresh draws from a target, as a function of the step.

    No draw is ever seen twice. Every process draws the global batch of
    `fold_in(key, step)` and takes its own rows, so that the numbers do not depend on
    the number of processes.

    Args:
      key: The stream of data; the same for all processes.
      target: What `ebmjax.targets` makes: `target.sample(key, num) -> [num, *event]`.
      size: Global batch size.

    Returns:
      `batch(step) -> [size / processes, *event]`: this process's rows.
    """
    local = process_rows(size)

    @jax.jit
    def draw(step_key):
        return target.sample(step_key, size)

    # The slice stays outside: inside jit it could change the last bits.
    return lambda step: draw(jax.random.fold_in(key, step))[local]
