"""Convolutions as operations of JAX, with a form for a CPU and one for all else.

The convolution and its two transposes are the derivatives of one another. As three
primitives they stay so in derivatives of every order, and each is lowered to the form
that suits the platform for which the program is compiled, whatever the platform of the
process that compiles it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ebmjax.networks.convolution_forms import (
    Options,
    Sizes,
    canonical,
    fast_images,
    fast_kernel,
    fast_maps,
    transpose,
)
from ebmjax.types import Array

__all__: list[str] = []

Form = Callable[..., Array]


def plain_images(
    y: Array, kernel: Array, options: Options, image_size: tuple[int, ...]
) -> Array:
    """Returns the transpose in the images as JAX writes it."""
    shape = (y.shape[0], *image_size, kernel.shape[2])
    return transpose(lambda x: canonical(x, kernel, options), shape, y)


def plain_kernel(
    x: Array, y: Array, options: Options, window: tuple[int, ...]
) -> Array:
    """Returns the transpose in the kernel as JAX writes it."""
    shape = (*window, x.shape[3], y.shape[3])
    return transpose(lambda kernel: canonical(x, kernel, options), shape, y)


def bilinear(
    name: str, on_cpu: Form, elsewhere: Form, merged: Sizes, split: Sizes
) -> Any:
    """Returns a primitive of two arrays without its transposes.

    Args:
      name: Name in a jaxpr.
      on_cpu: Function `(left, right, **params) -> result` for programs on a CPU.
      elsewhere: The same for programs on other platforms.
      merged: For each operand, the axis into which an axis of `jax.vmap` is merged if
        it is the only operand that has one.
      split: For each operand, the axis of the result from which it is split.
    """
    primitive = Primitive(name)

    @functools.cache
    def compiled(**params: Any) -> Any:
        return jax.jit(functools.partial(primitive.bind, **params))

    def evaluate(*operands: Array, **params: Any) -> Any:
        return compiled(**params)(*operands)

    def result_type(*operands: Any, **params: Any) -> Any:
        plain = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands]
        result = jax.eval_shape(functools.partial(elsewhere, **params), *plain)
        # Under `jax.shard_map` it varies over the axes over which the operands do.
        return operands[0].update(
            shape=result.shape, dtype=result.dtype, weak_type=False
        )

    def batch(operands: Any, axes: Any, **params: Any) -> tuple[Array, int]:
        if None not in axes:
            mapped = jax.vmap(functools.partial(elsewhere, **params), tuple(axes))
            return mapped(*operands), 0
        index = 1 if axes[0] is None else 0
        axis = merged[index]
        x = jnp.moveaxis(operands[index], axes[index], axis)
        num, size = x.shape[axis : axis + 2]
        x = x.reshape(*x.shape[:axis], num * size, *x.shape[axis + 2 :])
        pair = (operands[0], x) if index else (x, operands[1])
        y = primitive.bind(*pair, **params)
        # The axis has the same meaning in the result: examples, channels or features.
        axis = split[index]
        return y.reshape(*y.shape[:axis], num, size, *y.shape[axis + 1 :]), axis

    primitive.def_impl(evaluate)
    primitive.def_abstract_eval(result_type)
    batching.primitive_batchers[primitive] = batch
    for form, platform in ((elsewhere, None), (on_cpu, "cpu")):
        lowering = mlir.lower_fun(form, multiple_results=False)
        mlir.register_lowering(primitive, lowering, platform=platform)
    return primitive


maps_p = bilinear("convolution", fast_maps, canonical, (0, 3), (0, 3))
images_p = bilinear("convolution_images", fast_images, plain_images, (0, 2), (0, 3))
kernel_p = bilinear("convolution_kernel", fast_kernel, plain_kernel, (3, 3), (2, 3))


def alike(*operands: Array) -> list[Array]:
    """Returns the arrays, varying over the same axes of `jax.shard_map`.

    This is what `lax` does to its operands. Where a kernel is the same on all devices
    and its images are not, its gradient is a sum over devices.
    """
    axes = [
        getattr(getattr(jax.typeof(x), "manual_axis_type", None), "varying", ())
        for x in operands
    ]
    every = set().union(*axes)
    return [
        jax.lax.pcast(x, tuple(every - set(own)), to="varying")
        for x, own in zip(operands, axes)
    ]


def maps(x: Array, kernel: Array, options: Options) -> Array:
    """Returns the convolution of images `x`."""
    y: Array = maps_p.bind(*alike(x, kernel), options=options)
    return y


def images(y: Array, kernel: Array, options: Options, size: Sizes) -> Array:
    """Returns the transpose of `maps` in its images, of a height and width."""
    x: Array = images_p.bind(*alike(y, kernel), options=options, image_size=tuple(size))
    return x


def kernel(x: Array, y: Array, options: Options, window: Sizes) -> Array:
    """Returns the transpose of `maps` in its kernel, of a height and width."""
    k: Array = kernel_p.bind(*alike(x, y), options=options, window=tuple(window))
    return k


# Rules take the cotangent and both operands, of which the one that is asked for is
# known by its shape alone.
ad.defbilinear(
    maps_p,
    lambda ct, x, k, options: images(ct, k, options, x.aval.shape[1:3]),
    lambda ct, x, k, options: kernel(x, ct, options, k.aval.shape[:2]),
)
ad.defbilinear(
    images_p,
    lambda ct, y, k, options, **_: maps(ct, k, options),
    lambda ct, y, k, options, **_: kernel(ct, y, options, k.aval.shape[:2]),
)
ad.defbilinear(
    kernel_p,
    lambda ct, x, y, options, **_: images(y, ct, options, x.aval.shape[1:3]),
    lambda ct, x, y, options, **_: maps(x, ct, options),
)
