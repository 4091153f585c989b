"""A fast counter-based random number generator, selected through the key.

    key = jax.random.key(seed, impl=counter_prng.IMPL)

Everything in `jax.random`, and so every sampler, takes its numbers from the generator
that its key names; nothing else changes. If an energy is cheap, random numbers take
most of a move's time. On a CPU the words of this generator cost about a sixth of
threefry's. Converting them to normal numbers costs the same for both, so a move takes a
little over half of the time. All of it is 32-bit integer arithmetic on single elements,
without loops or memory: it fuses with the code that uses it and gives the same numbers
on every device.

How it works. A key is 64 bits. `split`, `fold_in`, seeding and drawing each make a new
key from a key and a number of 32 bits, by four Feistel rounds whose function is a hash
of two multiplications. For one number they permute the keys, and for one key different
numbers give different keys. Constants in every round separate the uses of a key. Word
`i` of a draw is a hash of `i` with three multiplications and a round key before each.
The middle of the hash is combined with its end (xor), so a word is not a permutation of
its counter: the words of one key repeat as often as they should.

Limitations:

- It is not cryptographic. It does not withstand an attempt to distinguish it from
  chance.
- It is newer and far less studied than threefry, and has few rounds to spare: tests of
  seconds show the flaws of words with one round less. `results/prng.md` lists all tests
  that it was put to; threefry remains the default.
- A draw has 2^32 values, of 8, 16, 32 or 64 bits; a larger one raises. There is no
  other period, because every draw has a key of its own.
- Keys have 64 bits, like threefry's. Among `n` derived keys, `n^2 / 2^65` pairs
  coincide by chance, however good the hash is: about one pair among 2^32 keys.
- A value of 64 bits is two words, and costs two.
- JAX has no public way to give a generator a name: `jax.random.key_impl` of a key is
  `IMPL`, `impl="counter"` is not understood, and `jax.export` cannot serialise programs
  that take such keys. `key_data` and `wrap_key_data(..., impl=IMPL)` save and restore
  keys.

Source:
  The hashes are `lowbias32` and `triple32` of Wellons (2018), "Prospecting for hash
  functions", with keys added. Counters instead of a state: Salmon et al. (2011),
  "Parallel random numbers: as easy as 1, 2, 3", SC11. The constants of the uses are the
  first of SHA-256.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl

from ebmjax.types import Array

__all__ = ["IMPL"]

_SEED, _SPLIT, _FOLD_IN, _BITS = np.array(
    [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A], np.uint32
)
_KEY_ROUNDS = 4
_WEYL = np.uint32(0x9E3779B9)
_WORD_ROUNDS = ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB))
_MAX_VALUES = 2**32


def _xor_shift(x: Array, shift: int) -> Array:
    return x ^ (x >> np.uint32(shift))


def _mix(x: Array) -> Array:
    """Permutes 32 bits so that every bit affects every bit."""
    x = _xor_shift(x, 16) * np.uint32(0x7FEB352D)
    x = _xor_shift(x, 15) * np.uint32(0x846CA68B)
    return _xor_shift(x, 16)


@functools.partial(jax.jit, inline=True)
def _derive(use: Array | np.uint32, key: Array, number: Array | np.uint32) -> Array:
    """Returns a key for one use of a key, `[*number.shape, 2]`.

    For one number it is a permutation of the keys; for one key it is one-to-one in the
    number.
    """
    left, right = key[0], key[1]
    for _ in range(_KEY_ROUNDS):
        left, right = right ^ _mix(left + number + use), left
        number = np.uint32(0)  # it enters once, in the first round
        use = use + _WEYL  # the use in all: in one alone, two uses would meet
    return jnp.stack(jnp.broadcast_arrays(left, right), axis=-1)


@functools.partial(jax.jit, inline=True)
def _words(key: Array, lane: Array | np.uint32, counters: Array) -> Array:
    """Returns the words of a key at the counters; a lane is a sequence of words."""
    first, second = _derive(_BITS, key, lane)
    round_keys = (first, second, first + second)
    x = counters
    keyed: list[Array] = []
    for round_key, (shift, multiplier) in zip(round_keys, _WORD_ROUNDS):
        keyed.append(_xor_shift(x, shift) ^ round_key)
        x = keyed[-1] * np.uint32(multiplier)
    return _xor_shift(x, 14) ^ keyed[1]


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _counters(shape: tuple[int, ...]) -> Array:
    """Returns 0, 1, 2, ... in the shape, from iotas, which partition and fuse."""
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
    derived: Array = _derive(_SEED, jnp.stack([high, low]), np.uint32(0))
    return derived


def _split(key: Array, shape: tuple[int, ...]) -> Array:
    derived: Array = _derive(_SPLIT, key, _counters(shape))
    return derived


def _fold_in(key: Array, number: Array) -> Array:
    derived: Array = _derive(_FOLD_IN, key, number.astype(jnp.uint32))
    return derived


def _random_bits(key: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    counters: Array = _counters(shape)
    words: Array = _words(key, np.uint32(0), counters)
    if bit_width == 64:
        high: Array = _words(key, np.uint32(1), counters).astype(jnp.uint64)
        return (high << np.uint64(32)) | words.astype(jnp.uint64)
    return (words >> np.uint32(32 - bit_width)).astype(f"uint{bit_width}")


IMPL = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,  # type: ignore[arg-type]  # it is given an array, not an int
    name="counter",
    tag="ctr",
)
"""The generator, for `jax.random.key(seed, impl=IMPL)` and `wrap_key_data`."""
