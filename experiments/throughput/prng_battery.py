r"""Raw words of a generator on standard output, for a battery of statistical tests.

    python -m experiments.throughput.prng_battery --stream=chains \
        --num_bytes=1073741824 >words.raw

Batteries read 32-bit words from a pipe. dieharder and TestU01 come with Debian
(TestU01 from its non-free section); PractRand does not, and would read the same pipe.

    apt-get install dieharder libtestu01-0-dev
    gcc -O2 -o testu01 experiments/throughput/prng_battery.c \
        -ltestu01 -ltestu01probdist -ltestu01mylib -lm

    python -m experiments.throughput.prng_battery --stream=chains | ./testu01 crush
    python -m experiments.throughput.prng_battery --stream=chains | ./testu01 rabbit 33
    python -m experiments.throughput.prng_battery --stream=chains | dieharder -g 200 -a
    python -m experiments.throughput.prng_battery --stream=chains | RNG_test stdin32

`rabbit 33` reads 2^33 bits, which is 2^30 bytes. What a good generator must survive is
the layout of the words:

- `counter`: the words of one key in order, 2^26 of each; then the next key.
- `fold_in`: the first word of `fold_in(key, 0)`, `fold_in(key, 1)`, and so on.
- `split`: the first word of both children of all children of one split.
- `nested`: the first words of `fold_in(fold_in(key, a), b)` and of the same with a and
  b swapped, for all small a and b.
- `chains`: what `sample_chains` draws: for every move, for every chain, three words of
  one child of the chain's key and one of the other.
- `seeds`: the first two words of `key(seed)`, `key(seed + 1)`, and so on.

`--rounds=2` and `--key_rounds=1` take rounds away from the counter generator: controls,
which must fail. Results are in `results/prng.md`.
"""

import argparse
import functools
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax import counter_prng

first_word = functools.partial(jax.random.bits, shape=())
fold_in_each = jax.vmap(jax.random.fold_in, (None, 0))


def counter(key, part):
    return jax.random.bits(jax.random.fold_in(key, part), (2**26,))


def fold_in(key, part):
    numbers = part * 2**22 + jnp.arange(2**22, dtype=jnp.uint32)
    return jax.vmap(first_word)(fold_in_each(key, numbers))


def split(key, part):
    children = jax.random.split(jax.random.fold_in(key, part), 2**21)
    return jax.vmap(jax.vmap(first_word))(jax.vmap(jax.random.split)(children))


def nested(key, part):
    a = part * 2**10 + jnp.arange(2**10, dtype=jnp.uint32)
    b = jnp.arange(2**11, dtype=jnp.uint32)

    @jax.vmap
    def words(a):
        one = fold_in_each(jax.random.fold_in(key, a), b)
        other = jax.vmap(jax.random.fold_in, (0, None))(fold_in_each(key, b), a)
        return jax.vmap(first_word)(jnp.stack([one, other], 1).reshape(-1))

    return words(a)


def chains(key, part):
    """Returns the keys of `samplers.sample_chains` and `samplers.mala`: 2^14 chains."""
    blocks = fold_in_each(key, jnp.arange(2**8))
    chain_keys = jax.vmap(lambda key: jax.random.split(key, 64))(blocks).reshape(-1)

    def words(key, move):
        noise_key, accept_key = jax.random.split(jax.random.fold_in(key, move))
        noise, accept = jax.random.bits(noise_key, (3,)), jax.random.bits(accept_key)
        return jnp.append(noise, accept)

    moves = part * 2**6 + jnp.arange(2**6)
    return jax.vmap(jax.vmap(words, (0, None)), (None, 0))(chain_keys, moves)


def seeds(seed, part, impl):
    numbers = seed + part * 2**21 + jnp.arange(2**21, dtype=jnp.uint32)
    keys = jax.vmap(functools.partial(jax.random.key, impl=impl))(numbers)
    return jax.vmap(lambda key: jax.random.bits(key, (2,)))(keys)


def reverse(words):
    """Returns the same words, last bits first: batteries look hardest at the first."""
    for shift, mask in enumerate(
        (0x55555555, 0x33333333, 0x0F0F0F0F, 0x00FF00FF, 0x0000FFFF)
    ):
        low = words & np.uint32(mask)
        words = (low << 2**shift) | ((words >> 2**shift) & np.uint32(mask))
    return words


def low(words):
    """Returns the last bytes alone, four to a word."""
    return jax.lax.bitcast_convert_type(
        words.astype(jnp.uint8).reshape(-1, 4), jnp.uint32
    )


STREAMS = {f.__name__: f for f in (counter, fold_in, split, nested, chains, seeds)}
BITS = {"all": lambda words: words, "reversed": reverse, "low": low}


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stream", choices=STREAMS, default="counter")
    parser.add_argument("--impl", choices=("counter", "threefry"), default="counter")
    parser.add_argument("--bits", choices=BITS, default="all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_bytes", type=int, help="default: until the pipe closes")
    parser.add_argument("--rounds", type=int, choices=(2, 3), default=3)
    parser.add_argument("--key_rounds", type=int, choices=(1, 2, 3, 4), default=4)
    return parser.parse_args(arguments)


def parts(args):
    """Yields the stream in pieces, without end."""
    impl = {"counter": counter_prng.IMPL, "threefry": "threefry2x32"}[args.impl]
    if args.stream == "seeds":
        stream = functools.partial(seeds, args.seed, impl=impl)
    else:
        key = jax.random.key(args.seed, impl=impl)
        stream = functools.partial(STREAMS[args.stream], key)
    draw = jax.jit(lambda part: BITS[args.bits](stream(part).reshape(-1)))
    return (np.asarray(draw(np.uint32(part))) for part in itertools.count())


def main(arguments=None):
    args = parse(arguments)
    if args.impl == "counter":
        counter_prng._WORD_ROUNDS = counter_prng._WORD_ROUNDS[: args.rounds]
        counter_prng._KEY_ROUNDS = args.key_rounds
    left = args.num_bytes
    try:
        for words in parts(args):
            data = words.tobytes()[:left]
            sys.stdout.buffer.write(data)
            left = None if left is None else left - len(data)
            if left == 0:
                break
    except BrokenPipeError:  # the battery has had enough
        sys.stderr.close()


if __name__ == "__main__":
    main()
