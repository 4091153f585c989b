"""Arithmetic of a program, and what a chip could do at most.

The count is that of a jaxpr, in which a loop has its number of turns: XLA's own count
takes a loop for one turn.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import partial_eval

from ebmjax import training
from ebmjax.types import DEVICE


class Chip(NamedTuple):
    """A chip's limits, as its vendor states them.

    Attributes:
      peak: Floating-point operations per second of products of float32 arrays at JAX's
        default precision: one pass of bfloat16 on a TPU, TF32 on a GPU.
      peak_highest: The same at the precision "highest": six passes on a TPU, float32
        without tensor cores on a GPU.
      peak_half: The same of bfloat16 or float16 arrays.
      memory: Bytes of its memory.
      bandwidth: Bytes per second between the chip and its memory.
      source: Page of the vendor.
    """

    peak: float
    peak_highest: float
    peak_half: float
    memory: float
    bandwidth: float
    source: str


def _tpu(peak: float, memory: float, bandwidth: float, name: str) -> Chip:
    source = f"https://cloud.google.com/tpu/docs/{name}"
    return Chip(peak, peak / 6, peak, memory, bandwidth, source)


CHIPS = {
    "TPU v5 lite": _tpu(197e12, 16e9, 819e9, "v5e"),
    "TPU v6 lite": _tpu(918e12, 32e9, 1_640e9, "v6e"),
    "TPU v5": _tpu(459e12, 95e9, 2_765e9, "v5p"),
    # The vendor states twice as many on tensor cores, with structured sparsity.
    "NVIDIA H200": Chip(
        494.5e12,
        67e12,
        989e12,
        141e9,
        4_800e9,
        "https://www.nvidia.com/en-us/data-center/h200/",
    ),
}
"""Kind of device, as `jax.Device.device_kind` has it, and its chip."""

_CONVOLUTIONS = ("convolution", "convolution_images", "convolution_kernel")
"""Primitives of `ebmjax.networks.convolutions`."""


class Operations(NamedTuple):
    """Floating-point operations of products: a multiplication and an addition are two.

    Attributes:
      products: Operations of matrix products and convolutions.
      num_unknown_loops: Number of loops whose number of turns is not in the program,
        which are counted as one turn each; the count is then a lower bound.
      highest: Those of the products that ask for the precision "highest".
      half: Those of arrays of 16 bits.
    """

    products: float
    num_unknown_loops: int
    highest: float = 0.0
    half: float = 0.0

    def seconds(self, chip: Chip) -> float:
        """Returns the time of the products at a chip's peaks."""
        others = self.products - self.highest - self.half
        return (
            others / chip.peak
            + self.highest / chip.peak_highest
            + self.half / chip.peak_half
        )


def count_operations(jaxpr: Any) -> Operations:
    """Counts the products of a program, as `jax.make_jaxpr` returns it.

    What no result needs is not counted, since no compiler keeps it.
    """
    needed, _ = partial_eval.dce_jaxpr(
        jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars), instantiate=True
    )
    kinds = {"": 0.0, "highest": 0.0, "half": 0.0}
    num_loops = 0
    for turns, equation in _equations(needed, 1.0):
        kinds[_kind(equation)] += turns * _count(equation)
        num_loops += equation.primitive.name == "while"
    return Operations(sum(kinds.values()), num_loops, kinds["highest"], kinds["half"])


def _equations(jaxpr: Any, turns: float) -> Iterator[tuple[float, Any]]:
    """Yields every equation, and how often it is carried out."""
    for equation in jaxpr.eqns:
        yield turns, equation
        length = equation.params.get("length", 1) if _is_scan(equation) else 1
        inner = list(_inner(equation.params))
        if equation.primitive.name == "cond":  # the most expensive branch
            branches = [list(_equations(branch, turns)) for branch in inner]
            yield from max(
                branches, key=lambda branch: sum(t * _count(e) for t, e in branch)
            )
        else:
            for part in inner:
                yield from _equations(part, turns * length)


def _kind(equation: Any) -> str:
    """Returns what decides the speed of an equation's products."""
    kinds = [getattr(x.aval, "dtype", None) for x in equation.invars]
    if kinds and all(kind in (jnp.bfloat16, jnp.float16) for kind in kinds):
        return "half"
    options = equation.params.get("options")
    precision = equation.params.get("precision", getattr(options, "precision", None))
    pair = precision if isinstance(precision, tuple | list) else (precision,)
    highest = (jax.lax.Precision.HIGHEST, "highest")
    return "highest" if any(part in highest for part in pair) else ""


def _is_scan(equation: Any) -> bool:
    return equation.primitive.name == "scan"


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """Yields the jaxprs among an equation's parameters."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, core.Jaxpr):
                yield part


def _count(equation: Any) -> float:
    """Returns the operations of one equation, without those of the jaxprs in it."""
    name, params = equation.primitive.name, equation.params
    shapes = [getattr(x.aval, "shape", ()) for x in equation.invars]
    result = getattr(equation.outvars[0].aval, "shape", ()) if equation.outvars else ()
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * math.prod(result) * math.prod(shapes[0][i] for i in contracted)
    if name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        taps = math.prod(shapes[1][i] for i in numbers.rhs_spec[1:])
        # Of an image that is spread out by zeros, the zeros are not multiplied.
        return 2 * math.prod(result) * taps / math.prod(params["lhs_dilation"])
    if name in _CONVOLUTIONS:
        # Each of the three is the sum over examples, places of the maps and taps of the
        # kernel of one product: maps [n, h, w, out] and kernel [h, w, in, out].
        kernel, maps = {
            "convolution": (shapes[-1], result),
            "convolution_images": (shapes[-1], shapes[0]),
            "convolution_kernel": (result, shapes[-1]),
        }[name]
        return 2 * math.prod(maps) * math.prod(kernel[:-1])
    return 0.0


def count_update(players: Any, ema_decay: float | None, state: Any, batch: Any):
    """Counts one update of one device.

    Args:
      players: Players of the update.
      ema_decay: Decay of its average.
      state: State, or its shapes, with an axis of devices in `carry`.
      batch: Batch of one device `[microbatches, size, *event]`, or its shapes.
    """
    shapes = jax.eval_shape(lambda *given: given, state, batch)
    state, batch = shapes
    carry = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state.carry
    )
    update: Callable[..., Any] = training.make_update(players, ema_decay=ema_decay)
    traced = jax.make_jaxpr(update, axis_env=[(DEVICE, 1)])(
        state._replace(carry=carry), batch
    )
    return count_operations(traced)
