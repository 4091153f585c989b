"""inverse"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np


class InverseProblem(NamedTuple):
    """Known part of an image, and functions to show and to judge the unknown part.

    Attributes:
      observe: `observe(x)`, what is seen of one image.
      show: `show(x)`, the same as an image, in which NaN stands for what is not seen.
      is_judged: Pixels whose error counts.
      scale: Scale of the descent's step; 1 where a pixel is seen as it is.
    """

    observe: Callable[[jax.Array], jax.Array]
    show: Callable[[np.ndarray], np.ndarray]
    is_judged: np.ndarray
    scale: float = 1.0


def upper_half(shape: tuple[int, int, int]) -> np.ndarray:
    """Returns the pixels that inpainting is given, `[*shape]`: the upper half."""
    is_known = np.zeros(shape, bool)
    is_known[: shape[0] // 2] = True
    return is_known
