"""Several processes of a run: what they agree on, and how they end where one fails."""

import contextlib
import os
import pathlib
import re
import sys
import time
import traceback
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.run.errors import reason_of

GRACE = 3.0
"""Seconds in which all processes say why they end, if all of them fail."""

LOST = re.compile(r"\b[A-Z_]{5,}: .*(?i:gloo|nccl|coordination|barrier|heartbeat)")
"""A status of JAX, of the kind that another process of the run causes by its end."""


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Ends a process that fails at once, if it is one of several.

    Its usual end waits for the others, and they wait for it, for minutes. A process
    whose partner has ended says so in one sentence.
    """
    try:
        yield
    except BaseException as error:
        has_ended_well = isinstance(error, SystemExit) and not error.code
        if has_ended_well or not jax.distributed.is_initialized():
            raise
        is_lost = LOST.search(str(error)) is not None
        if is_lost and "--traceback" not in sys.argv:
            reason = reason_of(error).removeprefix("error: ")
            print(
                "error: another process of the run has ended, and its own output says"
                f" why: {reason}",
                file=sys.stderr,
            )
        elif isinstance(error, SystemExit):
            print(error.code, file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(0 if is_lost else GRACE)
        os._exit(1)


def check_shared(folder: pathlib.Path, steps: list[int]) -> None:
    """Raises a ValueError if another process of the run sees another newest step."""
    if jax.process_count() == 1:
        return
    newest = np.int32(max(steps, default=-1))
    names = [
        "no checkpoint" if step < 0 else f"step {step}"
        for step in multihost_utils.process_allgather(newest)
    ]
    for index, name in enumerate(names):
        if name != names[0]:
            raise ValueError(
                f"{folder} must be shared by all processes, but process {index} found"
                f" {name} and the first one {names[0]}"
            )


def first_process(steps: list[int]) -> list[int]:
    """Returns the steps that the first process sees, to all processes."""
    if jax.process_count() == 1:
        return steps
    num = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
    mine = np.resize(np.array([*steps, 0], np.int32), num)
    return [int(step) for step in multihost_utils.broadcast_one_to_all(mine)]


def by_all(is_sound: bool) -> bool:
    """Returns whether a checkpoint is sound to every process of the run."""
    if jax.process_count() == 1:
        return is_sound
    return bool(np.all(multihost_utils.process_allgather(np.array(is_sound))))
