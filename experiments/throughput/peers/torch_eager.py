"""Moves and updates written by hand in PyTorch, run eagerly."""

import functools

from experiments.throughput.torch_programs import TORCH_ENVIRONMENT, hand_written
from experiments.throughput.torch_updates import ALL_KINDS, hand_written_update

PACKAGE, ENVIRONMENT = "torch", TORCH_ENVIRONMENT
KINDS = ALL_KINDS
make = functools.partial(hand_written, is_compiled=False)
make_program = functools.partial(hand_written_update, layout="NCHW", is_compiled=False)
