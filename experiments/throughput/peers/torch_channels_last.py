"""Updates of images written by hand in PyTorch, run eagerly, in `channels_last`.

Of samplers, `torch eager` tries this layout itself.
"""

import functools

from experiments.throughput.torch_programs import TORCH_ENVIRONMENT
from experiments.throughput.torch_updates import IMAGE_KINDS, hand_written_update

PACKAGE, ENVIRONMENT = "torch", TORCH_ENVIRONMENT
KINDS = IMAGE_KINDS
make_program = functools.partial(hand_written_update, layout="NHWC", is_compiled=False)
