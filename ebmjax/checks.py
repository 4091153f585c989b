"""Checks of arguments, whose errors name the argument, the rule and the value.

`at_precision` is here too, because every other module may import this one.
"""

import functools
import importlib
import math
import numbers
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import ArrayLike

from ebmjax.types import Array, EnergyFn, Key, TimedScoreFn

__all__ = [
    "at_precision",
    "check_array",
    "check_batch",
    "check_chain_axis",
    "check_chains",
    "check_count",
    "check_installed",
    "check_key",
    "check_number",
    "check_path",
    "check_positions",
    "check_tree",
    "check_values",
    "scalar_energy",
    "scalar_valued",
    "shaped_score",
    "warn_of_chain_axis",
]


Number = TypeVar("Number", bound=float | Array)
Function = TypeVar("Function", bound=Callable[..., Any])

PRECISIONS = ("default", "high", "highest", None)
"""Precisions of products, as `jax.default_matmul_precision` names them, and none."""


def check_number(name: str, value: Number, *, positive: bool) -> Number:
    """Raises unless `value` is finite and positive, or not negative.

    Traced values pass. The number is returned as a Python one, which does not change
    the type of an array that is multiplied by it; a numpy.float64 would.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    is_number = isinstance(value, numbers.Real | np.ndarray | np.generic | jax.Array)
    kinds = jnp.floating, jnp.integer, jnp.bool_
    if (
        not is_number
        or np.ndim(value)
        or not any(jnp.issubdtype(jnp.result_type(value), kind) for kind in kinds)
    ):
        raise ValueError(f"{name} must be one number, got {value!r}")
    if positive and not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    if not value >= 0:
        raise ValueError(f"{name} must not be negative, got {value}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    plain: Any = np.asarray(value).item()
    return cast(Number, plain)


def check_installed(caller: str, package: str, module: str | None = None) -> Any:
    """Returns a module of an optional package, or raises in one line if it is missing.

    Args:
      caller: Function that needs the package, for the message.
      package: Name under which pip knows the package.
      module: Name of the module; that of the package if None.
    """
    try:
        return importlib.import_module(module or package)
    except ModuleNotFoundError as error:
        message = f"{caller} needs {package}: pip install {package}"
        raise ModuleNotFoundError(message) from error


def check_path(name: str, values: ArrayLike) -> np.ndarray:
    """Returns `values` as `[n]`, or raises unless they increase from above 0 to 1."""
    found = np.asarray(values, float)
    is_increasing = found.ndim == 1 and found.size and (np.diff(found) > 0).all()
    if not is_increasing or not found[0] > 0 or found[-1] != 1:
        raise ValueError(
            f"{name} must increase from above 0 to 1, got {np.array2string(found)}"
        )
    return found


def check_count(name: str, value: object, least: int) -> None:
    """Raises unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int | np.integer) or value < least:
        raise ValueError(
            f"{name} must be a whole number of at least {least}, got {value!r}"
        )


def check_values(values: Sequence[float], dtype: DTypeLike) -> None:
    """Raises unless these are two different numbers that the dtype can represent."""
    found = tuple(values)
    if len(found) != 2 or found[0] == found[1]:
        raise ValueError(f"values must be two different numbers, got {found}")
    for number in found:
        if np.asarray(number).astype(dtype) != number:
            raise ValueError(f"values must be {np.dtype(dtype)} as x is, got {found}")


def check_array(name: str, x: Any, axes: str = "[*event]") -> Array:
    """Returns `x` as an array, or raises unless it is one, and floating-point.

    Args:
      name: Name of the argument, for the message.
      x: Array, or a list of numbers.
      axes: Shape that the message says `x` must have.
    """
    is_tree = not hasattr(x, "shape") and not isinstance(x, numbers.Number)
    if is_tree and (x is None or isinstance(x, str) or not _is_list_of_numbers(x)):
        found = ", ".join(f"[{','.join(map(str, s))}]" for s in _shapes(x))
        raise ValueError(
            f"{name} must be one floating-point array {axes}, got {type(x).__name__}"
            f"{f' of arrays {found}' if found else ''};"
            " jax.flatten_util.ravel_pytree makes one array of a tree"
        )
    array = jnp.asarray(x)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"{name} must be floating-point {axes}, got {array.dtype}{array.shape}"
        )
    return array


def _is_list_of_numbers(x: Any) -> bool:
    """Returns whether `x` is a number, or nested lists or tuples of numbers alone."""
    if type(x) in (list, tuple):
        return all(map(_is_list_of_numbers, x))
    return isinstance(x, numbers.Number)


def _shapes(x: Any) -> list[tuple[int, ...]]:
    """Returns the shapes of the arrays of a tree."""
    return [leaf.shape for leaf in jax.tree.leaves(x) if hasattr(leaf, "shape")]


def check_batch(batch: Any) -> None:
    """Raises unless `batch` is one floating-point array `[n, *event]`."""
    # The example of a vmap is an array without that axis, which has passed before.
    if not hasattr(batch, "shape") or batch.ndim == 0:
        check_array("batch", batch, "[n, *event]")
        raise ValueError("batch must have the shape [n, *event], got a scalar")
    if not jnp.issubdtype(batch.dtype, jnp.floating):
        raise ValueError(
            f"batch must be floating-point [n, *event], got {batch.dtype}{batch.shape}"
        )


def check_chains(key: Key, x: Any, name: str = "x") -> Array:
    """Returns `x` as an array, or raises unless it and `key` are as in `sample_chains`.

    `x` must be floating-point `[chains, *event]` with at least one chain, and `key` a
    typed key. Messages call it `name`.
    """
    array = check_array(name, x, "[chains, *event]")
    if array.ndim == 0:
        raise ValueError(
            f"{name} must be floating-point [chains, *event], got {array.dtype}()"
        )
    if array.shape[0] == 0:
        raise ValueError(
            f"{name} must have at least one chain, got shape {array.shape}"
        )
    check_key(key)
    return array


def check_tree(name: str, x: Any, axes: str = "[*event]") -> Any:
    """Returns `x` as an array or a tree of arrays, or raises unless it is one.

    The arrays of a tree must be floating-point and of one type. Messages call the tree
    `name`, and say that each array must be `axes`.
    """
    if hasattr(x, "shape") or not _shapes(x):
        return check_array(name, x, axes)
    leaves, structure = jax.tree_util.tree_flatten_with_path(x)
    names = [f"{name}{jax.tree_util.keystr(path)}" for path, _ in leaves]
    arrays = [check_array(name, leaf, axes) for name, (_, leaf) in zip(names, leaves)]
    for other, array in zip(names, arrays):
        if array.dtype != arrays[0].dtype:
            raise ValueError(
                f"{other} must be {arrays[0].dtype} as {names[0]} is, got {array.dtype}"
            )
    return jax.tree.unflatten(structure, arrays)


def check_positions(key: Key, x: Any, name: str = "x") -> Any:
    """Returns `x` as an array or a tree of arrays, or raises unless it can be sampled.

    Every array must be floating-point `[chains, ...]` with at least one chain, as many
    as the others, and `key` must be a typed key. Messages call the tree `name`.
    """
    if hasattr(x, "shape"):
        return check_chains(key, x, name)
    tree = check_tree(name, x, "[chains, *event]")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for path, leaf in leaves:
        check_chains(key, leaf, f"{name}{jax.tree_util.keystr(path)}")
    return check_chain_axis(name, tree, leaves[0][1].shape[0])


def check_chain_axis(name: str, tree: Any, num_chains: int) -> Any:
    """Returns a tree of arrays, or raises unless every one is `[num_chains, ...]`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if np.shape(leaf)[:1] != (num_chains,):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must be [chains, ...] for"
                f" {num_chains} chains, got shape {np.shape(leaf)}"
            )
    return jax.tree.map(jnp.asarray, tree)


def warn_of_chain_axis(energy_fn: EnergyFn, x: Array) -> None:
    """Warns if `x [n]` may be one position of n elements and not n of one number.

    It may be if the energy takes `x` as one example. Call it where a program is traced,
    so that a compiled program pays nothing.
    """
    if x.ndim != 1:
        return
    try:
        takes_all = jax.eval_shape(energy_fn, x).shape == ()
    except Exception:  # The user's function may take single numbers alone.
        return
    if takes_all:
        warnings.warn(
            f"x must be [chains, *event], got shape {x.shape}, which is"
            f" {x.shape[0]} chains of one number; the energy also takes it as one"
            " example: give x[None] for one chain, or x[:, None] if numbers are meant",
            UserWarning,
            stacklevel=2,
        )


def check_key(key: Key) -> None:
    """Raises unless `key` is a typed key whose draws do not depend on `jax.vmap`."""
    key_type = getattr(key, "dtype", type(key))
    if not jnp.issubdtype(key_type, jax.dtypes.prng_key):
        raise ValueError(
            f"key must be a typed key, as jax.random.key makes, got {key_type}"
        )
    # Under vmap these draw all numbers from the first of the keys.
    if (name := str(jax.random.key_impl(key))) in ("rbg", "unsafe_rbg"):
        raise ValueError(
            "key must draw the same numbers in and out of jax.vmap, as threefry2x32"
            f" and counter_prng do, got {name}"
        )


def scalar_valued(name: str, function: Function) -> Function:
    """Returns the same function, which raises if its value is not a scalar.

    The check happens when the function is traced, and costs nothing in a compiled
    program. Without it, a value of shape `[1]` or `[*event]` broadcasts silently.

    Args:
      name: Name of the function, for the message.
      function: Function of one example, which may have arguments before and after it.
    """

    @functools.wraps(function, updated=())
    def checked(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        shape = getattr(result, "shape", None)
        if shape != () and not isinstance(result, numbers.Number):
            # The example comes after the parameters, if there are any.
            example = arguments[min(1, len(arguments) - 1)]
            of_shape = f" of shape {example.shape}" if hasattr(example, "shape") else ""
            got = type(result).__name__ if shape is None else f"shape {shape}"
            raise ValueError(
                f"{name} must return a scalar for one example{of_shape}, got {got}"
            )
        return result

    return cast(Function, checked)


def at_precision(precision: str | None) -> Callable[[Function], Function]:
    """Returns a decorator of functions that compute products at a precision.

    The products are the matrix products and convolutions of the function and of its
    derivatives that have no precision of their own. By default a TPU rounds their
    factors to bfloat16 and a recent GPU to TF32, which have 8 and 11 significant bits,
    where float32 has 24. "highest" keeps all bits. A CPU always does, and computes the
    same with every precision.

    Args:
      precision: "highest", "high" or "default", as in `jax.default_matmul_precision`.
        None leaves the precision to the caller, and at last to the platform.

    Raises:
      ValueError: If the precision is none of these.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")

    def decorate(function: Function) -> Function:
        if precision is None:
            return function

        @functools.wraps(function)
        def precise(*arguments: Any, **options: Any) -> Any:
            # A context acts on what is traced in it: on all of the function, whatever
            # later transforms or compiles it.
            with jax.default_matmul_precision(precision):
                return function(*arguments, **options)

        return cast(Function, precise)

    return decorate


def scalar_energy(energy_fn: EnergyFn) -> EnergyFn:
    """Returns the same energy, which raises if its value is not a scalar."""
    return scalar_valued("energy_fn", energy_fn)


def shaped_score(score_fn: TimedScoreFn) -> TimedScoreFn:
    """Returns the same score, which raises if its value has another shape than `x`."""

    def checked(x: Array, time: Array) -> Array:
        score = score_fn(x, time)
        if jnp.shape(score) != x.shape:
            raise ValueError(
                "score_fn must return an array of the example's shape"
                f" {x.shape}, got {jnp.shape(score)}"
            )
        return score

    return checked
