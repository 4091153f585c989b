"""Moves written by hand in PyTorch, compiled by `torch.compile`."""

import functools

from experiments.throughput.torch_programs import TORCH_ENVIRONMENT, hand_written

PACKAGE, ENVIRONMENT = "torch", TORCH_ENVIRONMENT
make = functools.partial(hand_written, is_compiled=True)
