"""Reports of a run of chains: a bar of its progress, and divergent moves."""

import contextlib
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax.checks import check_installed
from ebmjax.samplers.sampler import Sampler
from ebmjax.types import Array, Key

__all__: list[str] = []


def progress_bar(first: int, last: int, *, is_shown: bool) -> Any:
    """Returns a context with a bar, whose `update(count)` moves it by `count` moves.

    The bar is shown in a terminal or a notebook, and nowhere else.
    """
    if not is_shown:
        return contextlib.nullcontext(_Silent())
    tqdm = check_installed("progress=True", "tqdm", "tqdm.auto").tqdm
    # `disable=None` is tqdm's word for: unless the output is a terminal.
    return tqdm(initial=first, total=last, unit=" moves", disable=None)


class _Silent:
    """Bar that is not shown."""

    def update(self, count: int) -> None:
        del count


def reports_divergence(sampler: Sampler, x: Array) -> bool:
    """Returns whether the infos of a sampler have `is_divergent`, for a position `x`.

    It is traced with an energy of its own, because the user's may take long.
    """

    def info(key: Key, x: Array) -> Any:
        state = sampler.init(jnp.sum, x)
        return sampler.step(jnp.sum, key, state)[1]

    try:
        found = jax.eval_shape(info, jax.random.key(0), x)
    except Exception:  # A user's sampler may need an energy of its own kind.
        return False
    return hasattr(found, "is_divergent")


def warn_of_divergence(counts: Sequence[Array | None], num_moves: int) -> None:
    """Warns of divergent moves.

    Args:
      counts: Numbers of divergent moves in each part of a run, `[chains]`; None if the
        sampler reports none.
      num_moves: Number of moves, of each chain, in which they were counted.
    """
    known = [np.asarray(part) for part in counts if part is not None]
    total = np.sum(known, 0) if known else np.zeros(1, np.int32)
    if not total.any():
        return
    warnings.warn(
        f"{total.sum()} of {num_moves * len(total)} moves after the burn-in diverged,"
        f" in {np.count_nonzero(total)} of {len(total)} chains: the energy errs much"
        " along their trajectories, and the chains may avoid a region; use a smaller"
        " step_size or other units of x",
        UserWarning,
        stacklevel=3,
    )
