"""Two-dimensional targets: fresh, exact draws at every step."""

import jax

from ebmjax import targets
from ebmjax.types import Key
from experiments.data.arrays import Batches, process_rows

__all__ = ["target_batches"]


def target_batches(key: Key, target: targets.Target, size: int) -> Batches:
    """Returns batches of fresh draws from a target, as a function of the step.

    No draw is ever seen twice. Every process draws the global batch of
    `fold_in(key, step)` and takes its own rows, so that the numbers do not depend on
    the number of processes.

    Args:
      key: The stream of data; the same for all processes.
      target: Target, such as `ebmjax.targets` makes.
      size: Global batch size.

    Returns:
      `batch(step) -> [size / processes, *event]`, this process's rows.
    """
    return Batches(
        lambda step: (),
        lambda step, _: target.sample(jax.random.fold_in(key, step), size),
        process_rows(size),
    )
