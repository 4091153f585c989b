"""Moves written by hand in PyTorch, run eagerly."""

import functools

from experiments.throughput.torch_programs import TORCH_ENVIRONMENT, hand_written

PACKAGE, ENVIRONMENT = "torch", TORCH_ENVIRONMENT
make = functools.partial(hand_written, is_compiled=False)
