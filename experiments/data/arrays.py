"""Images held as one array, and batches of them as a function of the step.

Nothing here has an iterator: `batch(step)` is the same rows whenever and wherever it is
called, so that a run resumes from the step alone. With several processes each gets its
own rows of the same global batch.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ebmjax.types import DEVICE, Array, Key

__all__ = [
    "Batches",
    "Images",
    "add_noise",
    "dequantize",
    "digest",
    "epoch_rows",
    "image_batches",
    "in_chunks",
    "middles",
    "mirror",
    "over_accelerators",
    "process_rows",
    "quantize",
    "row_batches",
]

DIGEST_BYTES = 2**24
"""Number of bytes of an array that `digest` takes at once."""


class Images(NamedTuple):
    """A data set of images, in memory or mapped into it.

    Attributes:
      train: `[n, height, width, channels]`, uint8, values below `num_levels`.
      held_out: The same, for evaluation only.
      labels_train: `[n]`, int32, or None where there are none.
      labels_held_out: The same. Energies are never trained with labels.
      num_levels: Number of values that a pixel can take, 256 for bytes.
    """

    train: np.ndarray
    held_out: np.ndarray
    labels_train: np.ndarray | None
    labels_held_out: np.ndarray | None
    num_levels: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return self.train.shape[1:]

    @property
    def num_classes(self) -> int:
        """Number of classes among the training labels."""
        if self.labels_train is None:
            raise ValueError("these images have no labels")
        return int(self.labels_train.max()) + 1


def digest(*parts: np.ndarray | str | os.PathLike) -> str:
    """Returns the SHA-256 of data, by which a run notices that they have changed.

    Args:
      *parts: Arrays, of which type and shape count too, and paths of files.
    """
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f"{part.dtype.str}{part.shape}".encode())
            rows = np.atleast_1d(part)
            size = max(1, DIGEST_BYTES * len(rows) // max(rows.nbytes, 1))
            for first in range(0, len(rows), size):
                found.update(np.ascontiguousarray(rows[first : first + size]).data)
        else:
            with open(part, "rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def process_rows(size: int) -> slice:
    """Returns this process's rows of a global batch of `size` rows.

    Raises:
      ValueError: If the processes cannot share the batch equally.
    """
    num_processes = jax.process_count()
    if size < 1 or size % num_processes:
        raise ValueError(
            f"batch size must be a positive multiple of the {num_processes} processes,"
            f" got {size}"
        )
    num_local = size // num_processes
    first = num_local * jax.process_index()
    return slice(first, first + num_local)


def epoch_rows(key: Key, num_examples: int, size: int) -> Callable[[int], np.ndarray]:
    """Returns which examples are in the batch of a step, every one once an epoch.

    The stream of examples is one permutation after the other, epoch `e` in the order of
    `fold_in(key, e)`, and the batch of step `s` is its places `s * size` to
    `(s + 1) * size`. Nothing is dropped: where `size` does not divide `num_examples`
    batches straddle epochs, and only such a batch can hold an example twice.

    Args:
      key: The order is a function of this key.
      num_examples: Size of the data set.
      size: Global batch size.

    Returns:
      `rows(step) -> [size]`, int64, the rows of the whole global batch in the data
      set. It takes `process_rows(size)` to have those of one process.

    Raises:
      ValueError: If there are no examples, a batch is empty, or a step is negative.
    """
    for name, number in (("num_examples", num_examples), ("size", size)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")

    @functools.lru_cache(maxsize=2)  # a batch seldom needs more than two epochs
    def permutation(epoch: int) -> np.ndarray:
        epoch_key = jax.random.fold_in(key, epoch)
        return np.asarray(jax.random.permutation(epoch_key, num_examples))

    def rows(step: int) -> np.ndarray:
        step = int(step)
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        epochs, offsets = np.divmod(step * size + np.arange(size), num_examples)
        chosen = np.empty_like(offsets)
        for epoch in range(epochs[0], epochs[-1] + 1):
            is_here = epochs == epoch
            chosen[is_here] = permutation(epoch)[offsets[is_here]]
        return chosen

    return rows


class Batches:
    """Batches as a function of the step, `batch(step) -> [rows, *event]`.

    Args:
      pick: `pick(step) -> arrays`, what the host reads of a step's examples.
      make: `make(step, arrays) -> batch`, which JAX can trace.
      local: Rows of the batch that are this process's.
    """

    def __init__(
        self,
        pick: Callable[[int], Any],
        make: Callable[[Array, Any], Array],
        local: slice = slice(None),
    ):
        self._pick, self._local = pick, local

        @jax.jit
        def make_all(steps, picked, num):
            def make_one(place):
                rows = jax.tree.map(lambda x: x[place], (steps, picked))
                return make(*rows)

            one = jax.eval_shape(make_one, 0)
            empty = jnp.empty((len(steps), *one.shape), one.dtype)
            # XLA may not know their number, which could change a step's last bits.
            return jax.lax.fori_loop(
                0, num, lambda i, made: made.at[i].set(make_one(i)), empty
            )

        self._make_all = make_all

    def __call__(self, step: int) -> Array:
        return self.stack([step])[0]

    def stack(self, steps: Sequence[int]) -> Array:
        """Returns the batches of steps, `[steps, rows, *event]`.

        They are made one after the other by one program: a step's numbers do not depend
        on the other steps.
        """
        num = len(steps)
        steps = np.asarray(steps if num > 1 else [*steps, *steps], np.uint32)
        picked = jax.tree.map(lambda *rows: np.stack(rows), *map(self._pick, steps))
        batches = self._make_all(steps, picked, num)[:num]
        # The slice stays outside: inside jit it could change the last bits.
        return batches if self._local == slice(None) else batches[:, self._local]


def row_batches(key: Key, rows: np.ndarray, size: int) -> Callable[[int], np.ndarray]:
    """Returns batches of the rows of a table, in the order of `epoch_rows`.

    Args:
      key: The order is a function of this key.
      rows: The table, `[num_examples, *event]`, held by reference.
      size: Global batch size.

    Returns:
      `batch(step) -> [size / processes, *event]`, this process's rows.
    """
    order, local = epoch_rows(key, len(rows), size), process_rows(size)
    return lambda step: rows[order(step)[local]]


def _row_keys(key: Key, num_rows: int, first_row: int) -> Key:
    """Returns one key for each row of the global batch, whichever process holds it."""
    rows = first_row + jnp.arange(num_rows, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


@functools.partial(jax.jit, static_argnames="num_levels")
def _dequantize(key, images, num_levels, first_row):
    def one_image(key, image):
        # 14 random bits, at the middle of their cells. A level, these and the rounding
        # of the scaling fit in the 24 bits of a float32; with the usual 23 random bits
        # the sum now and then rounds up to the next level, and white to exactly 1.
        bits = jax.random.bits(key, image.shape) >> 18
        uniform = (bits.astype(jnp.float32) + 0.5) * 2.0**-14
        centred = image.astype(jnp.float32) - 0.5 * num_levels
        return (centred + uniform) * (2.0 / num_levels)

    keys = _row_keys(key, images.shape[0], first_row)
    return jax.vmap(one_image)(keys, images)


def dequantize(
    key: Key, images: np.ndarray | Array, num_levels: int, first_row: int = 0
) -> Array:
    """Returns uniform dequantisation, scaled to [-1, 1]: `2 (x + u) / num_levels - 1`.

    `u` is uniform on (0, 1), fresh for every pixel. Level `k` fills the open cell from
    `2 k / num_levels - 1` to `2 (k + 1) / num_levels - 1`; float32 rounding never
    carries a value to an edge, so `quantize` gives back the very integers. A density of
    the result in nats bounds that of the integers: add `log(2 / num_levels)` a pixel.

    Args:
      key: Key of one step, for instance `fold_in(key, step)`.
      images: `[n, ...]`, integers from 0 to `num_levels - 1`.
      num_levels: At most 256.
      first_row: Place of the first image in the global batch. The noise of an image
        depends on the key and its place there, not on which process holds it.

    Returns:
      `[n, ...]`, float32, in (-1, 1).

    Raises:
      ValueError: If `num_levels` is not from 1 to 256.
      TypeError: If the images are not integers.
    """
    if not 1 <= num_levels <= 256:
        raise ValueError(f"num_levels must be from 1 to 256, got {num_levels}")
    if not jnp.issubdtype(images.dtype, jnp.integer):
        raise TypeError(f"images must be integers, got {images.dtype}")
    return _dequantize(key, images, num_levels, first_row)


def quantize(x: np.ndarray | Array, num_levels: int) -> np.ndarray:
    """Returns the level in whose cell each value lies: the inverse of `dequantize`.

    Values outside the range, as samples may have, go to the nearest level.

    Returns:
      The same shape, uint8, from 0 to `num_levels - 1`.
    """
    if not 1 <= num_levels <= 256:
        raise ValueError(f"num_levels must be from 1 to 256, got {num_levels}")
    # In float64, where adding 1 does not round.
    levels = np.floor((np.asarray(x, np.float64) + 1) * (num_levels / 2))
    return np.clip(levels, 0, num_levels - 1).astype(np.uint8)


def middles(images: np.ndarray, num_levels: int) -> np.ndarray:
    """Returns the middle of each pixel's level, in [-1, 1] and float32.

    Scores of it are functions of the image alone, unlike those of dequantised images.

    Args:
      images: Whole numbers below `num_levels`.
      num_levels: Number of values that a pixel can take.
    """
    return (images.astype(np.float32) + 0.5) * (2 / num_levels) - 1


@jax.jit
def add_noise(key: Key, x: Array, noise_scale: float, first_row: int = 0) -> Array:
    """Returns `x + noise_scale * n` with standard normal `n`, keyed by row."""
    keys = _row_keys(key, x.shape[0], first_row)
    noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
    return x + noise_scale * noise


@jax.jit
def mirror(key: Key, x: Array, first_row: int = 0) -> Array:
    """Returns each image, or with probability 1/2 its mirror image, left to right."""
    keys = _row_keys(key, x.shape[0], first_row)
    is_turned = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(is_turned[:, None, None, None], x[:, :, ::-1], x)


def image_batches(
    key: Key,
    images: np.ndarray,
    size: int,
    *,
    num_levels: int,
    noise_scale: float = 0.0,
    is_mirrored: bool = False,
) -> Batches:
    """Returns batches of dequantised images, as a function of the step.

    The order is `epoch_rows`; the dequantisation is drawn anew at every step. Neither
    depends on the number of processes.

    Args:
      key: The stream of data; the same for all processes.
      images: `[n, height, width, channels]`, uint8, held by reference.
      size: Global batch size.
      num_levels: See `dequantize`.
      noise_scale: Standard deviation of normal noise added on top, in units of the
        scaled data. Values may then leave [-1, 1]; nothing is clipped.
      is_mirrored: Whether each image is turned left to right half of the times.

    Returns:
      `batch(step) -> [size / processes, height, width, channels]`, float32, this
      process's rows of the global batch.
    """
    if noise_scale < 0:
        raise ValueError(f"noise_scale must not be negative, got {noise_scale}")
    order_key, dequantize_key, noise_key, mirror_key = jax.random.split(key, 4)
    rows = epoch_rows(order_key, len(images), size)
    local = process_rows(size)

    def make(step, x):
        step_key = jax.random.fold_in(dequantize_key, step)
        x = dequantize(step_key, x, num_levels, local.start)
        if is_mirrored:
            x = mirror(jax.random.fold_in(mirror_key, step), x, local.start)
        if noise_scale:
            step_key = jax.random.fold_in(noise_key, step)
            x = add_noise(step_key, x, noise_scale, local.start)
        return x

    return Batches(lambda step: images[rows(step)[local]], make)


def over_accelerators(
    x: np.ndarray | Array, devices: Sequence[Any] | None = None
) -> np.ndarray | Array:
    """Returns rows that lie on all of this process's GPUs or TPUs.

    A jitted function of them then computes on all devices. The rows are returned as
    they are where the devices are CPUs, which share their cores, or the number of rows
    is no multiple of theirs.

    Args:
      x: `[n, ...]`.
      devices: Devices; None for those of this process, if they are no CPUs.
    """
    if devices is None:
        devices = [d for d in jax.local_devices() if d.platform != "cpu"]
    if not devices or len(x) % len(devices):
        return x
    mesh = Mesh(np.array(devices), (DEVICE,))
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(DEVICE)))


def in_chunks(function: Callable, x: np.ndarray | Array, size: int):
    """Returns `function` of the rows of `x`, so many at a time, as numpy arrays.

    Every chunk has one shape, the last filled up with zeros, so that a jitted function
    is compiled once.
    """
    parts = []
    for first in range(0, len(x), size):
        chunk = np.asarray(x[first : first + size])
        num = len(chunk)
        padding = [(0, size - num), *[(0, 0)] * (chunk.ndim - 1)]
        outputs = function(over_accelerators(np.pad(chunk, padding)))
        parts.append(jax.tree.map(lambda y, num=num: np.asarray(y)[:num], outputs))
    return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
