"""A fast counter-based generator of random numbers, reached through the key.

    key = jax.random.key(seed, impl=counter_prng.IMPL)

Everything in `jax.random`, and so every sampler, takes its numbers from the generator
that its key names; nothing else changes. Where an energy is cheap the numbers are most
of a move's time, and on a CPU the words cost about a sixth of threefry's; making them
normal costs the same for both, so that a move takes a little over half of the time.
All of it is 32-bit integer arithmetic on single elements, without loops or memory: it
fuses with what uses it and gives the same numbers on every device.

How it works. A key is 64 bits. `split`, `fold_in`, seeding and drawing each make a new
key of a key and a number of 32 bits, by four Feistel rounds whose function is a hash of
two multiplications. For one number they permute the keys, for one key different numbers
give different keys, and constants in every round keep the uses of a key apart. Word `i`
of a draw is a hash of `i` of three multiplications with a round key before each, and
the middle of the hash is joined to its end (xor), so that a word is not a permutation
of its counter: the words of one key repeat as often as they should.

What it is not, and where it ends:

- Not cryptographic. Nothing here withstands one who wants to tell it from chance.
- Newer and far less studied than threefry, and with few rounds to spare: of words with
  one round less, tests of seconds show the flaws. `results/prng.md` has all that it was
  tested to; threefry stays the default.
- A draw has 2^32 values, of 8, 16, 32 or 64 bits; a larger one raises. There is no
  other period, since every draw has a key of its own.
- Keys are of 64 bits, as threefry's. Of `n` derived keys, `n^2 / 2^65` pairs coincide
  by chance, however good the hash: about one pair in 2^32 keys.
- A value of 64 bits is two words, and costs two.
- JAX has no public way to give a generator a name: `jax.random.key_impl` of a key is
  `IMPL`, `impl="counter"` is not understood, and `jax.export` cannot serialise programs
  that take such keys. `key_data` and `wrap_key_data(..., impl=IMPL)` save and restore.

Source:
  The hashes are `lowbias32` and `triple32` of Wellons (2018), "Prospecting for hash
  functions", here with keys. Counters in place of a state: Salmon et al. (2011),
  "Parallel random numbers: as easy as 1, 2, 3". The uses' constants are the first of
  SHA-256.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl

from ebmjax.types import Array

__all__ = ["IMPL"]

_SEED, _SPLIT, _FOLD_IN, _BITS = np.uint32(
    [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A]
)
_KEY_ROUNDS = 4
_WEYL = np.uint32(0x9E3779B9)
_WORD_ROUNDS = ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB))
_MAX_VALUES = 2**32


def _xor_shift(x: Array, shift: int) -> Array:
    return x ^ (x >> np.uint32(shift))


def _mix(x: Array) -> Array:
    """A permutation of 32 bits in which every bit reaches every bit."""
    x = _xor_shift(x, 16) * np.uint32(0x7FEB352D)
    x = _xor_shift(x, 15) * np.uint32(0x846CA68B)
    return _xor_shift(x, 16)


@functools.partial(jax.jit, inline=True)
def _derive(use: Array, key: Array, number: Array) -> Array:
    """A key for one use of a key, `[*number.shape, 2]`.

    For one number a permutation of the keys; for one key, one-to-one in the number.
    """
    left, right = key[0], key[1]
    for _ in range(_KEY_ROUNDS):
        left, right = right ^ _mix(left + number + use), left
        number = np.uint32(0)  # it enters once, in the first round
        use = use + _WEYL  # the use in all: in one alone, two uses would meet
    return jnp.stack(jnp.broadcast_arrays(left, right), axis=-1)


@functools.partial(jax.jit, inline=True)
def _words(key: Array, lane: Array, counters: Array) -> Array:
    """The words of a key at the counters; a lane is one of its sequences of words."""
    first, second = _derive(_BITS, key, lane)
    round_keys = (first, second, first + second)
    x, keyed = counters, []
    for round_key, (shift, multiplier) in zip(round_keys, _WORD_ROUNDS):
        keyed.append(_xor_shift(x, shift) ^ round_key)
        x = keyed[-1] * np.uint32(multiplier)
    return _xor_shift(x, 14) ^ keyed[1]


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _counters(shape: tuple[int, ...]) -> Array:
    """0, 1, 2, ... in the shape; of iotas along axes, which partition and fuse."""
    if math.prod(shape) > _MAX_VALUES:
        raise ValueError(
            f"a key of counter_prng has 2**32 values, a shape of {shape} wants"
            f" {math.prod(shape)}: draw in parts, with a key each"
        )
    counters, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        counters, stride = counters + along * np.uint32(stride), stride * shape[axis]
    return counters


def _seed(seed: Array) -> Array:
    if not jnp.issubdtype(seed.dtype, jnp.integer):
        raise TypeError(f"seed must be an integer, got {seed.dtype}")
    low, high = seed.astype(jnp.uint32), jnp.zeros((), jnp.uint32)
    if seed.dtype.itemsize == 8:  # only under jax_enable_x64
        high = (seed >> np.array(32, seed.dtype)).astype(jnp.uint32)
    return _derive(_SEED, jnp.stack([high, low]), np.uint32(0))


def _split(key: Array, shape: tuple[int, ...]) -> Array:
    return _derive(_SPLIT, key, _counters(shape))


def _fold_in(key: Array, number: Array) -> Array:
    return _derive(_FOLD_IN, key, number.astype(jnp.uint32))


def _random_bits(key: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    counters = _counters(shape)
    words = _words(key, np.uint32(0), counters)
    if bit_width == 64:
        high = _words(key, np.uint32(1), counters).astype(jnp.uint64)
        return (high << np.uint64(32)) | words.astype(jnp.uint64)
    return (words >> np.uint32(32 - bit_width)).astype(f"uint{bit_width}")


IMPL = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="counter",
    tag="ctr",
)
"""The generator, for `jax.random.key(seed, impl=IMPL)` and `wrap_key_data`."""
