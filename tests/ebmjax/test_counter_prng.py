"""The counter generator: known words, and every word independent of every other."""

import copy
import functools
import itertools
import math
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from cases import STANDARD
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ebmjax import counter_prng, samplers
from experiments.throughput import prng_battery

partial = functools.partial
make_key = partial(jax.random.key, impl=counter_prng.IMPL)
wrap = partial(jax.random.wrap_key_data, impl=counter_prng.IMPL)
fold_in = jax.random.fold_in

RAW = np.uint32([0x01234567, 0x89ABCDEF])
SIGMAS = 5.5  # two-sided 4e-8: with the most cells below, 6,144, once in 4,000 keys


def data(keys):
    return np.asarray(jax.random.key_data(keys))


# --- known words: of a plain Python program written apart from this one ------------


def test_keys_are_these_words():
    seeds = [data(make_key(seed)).tolist() for seed in (0, 1, 2**31 + 5)]
    assert seeds == [
        [0x7F3AE1D4, 0xB98FE44C],
        [0x82B04902, 0xDE879808],
        [0x92ED1639, 0x3A737A0C],
    ]
    assert data(jax.random.split(make_key(0), 3)).tolist() == [
        [0x79C9D8D2, 0x32CBC832],
        [0x488EB366, 0x8658B101],
        [0xAF7621D9, 0x265370CF],
    ]
    numbers = (0, 1, 2**31 + 5, 2**32 - 1)
    assert [data(fold_in(make_key(0), n)).tolist() for n in numbers] == [
        [0x5546F75B, 0x11163AF2],
        [0xD0B678BF, 0xF641C436],
        [0xDAD33858, 0x3ACD2EAD],
        [0x8E280A1E, 0x8D1456A6],
    ]


@pytest.mark.quick
def test_words_are_these_words():
    words = [0x0850C597, 0xD76FDA02, 0x7E450B73, 0xA0AD420C, 0xB4E08E46, 0x93F7E7B0]
    key = make_key(0)
    assert jax.random.bits(key).tolist() == words[0]
    assert jax.random.bits(key, (6,)).tolist() == words
    # Numbered in row-major order, whatever the shape.
    assert jax.random.bits(key, (2, 1, 3)).ravel().tolist() == words
    drawn = jax.random.bits(wrap(RAW), (1_000, 1_000)).ravel()
    some = drawn[np.array([0, 1, 99_999, 999_999])]
    assert some.tolist() == [0x3A05D96C, 0x29B7780D, 0xB2BC3AB0, 0x60F44EBC]
    ends = jnp.array([2**31, 2**32 - 1], jnp.uint32)  # too far to draw in a test
    words = counter_prng._words(jnp.asarray(RAW), np.uint32(0), ends)
    assert words.tolist() == [0x05AB8300, 0x9F96CB46]
    for dtype, first in (
        ("uint8", [0x3A, 0x29, 0x09, 0xF5]),
        ("uint16", [0x3A05, 0x29B7, 0x0907, 0xF5C1]),
    ):
        bits = jax.random.bits(wrap(RAW), (4,), dtype)
        assert bits.dtype == dtype and bits.tolist() == first


def test_64_bits_are_two_words_and_seeds_of_64_bits_count():
    with jax.enable_x64(True):
        bits = jax.random.bits(wrap(RAW), (2,), "uint64")
        assert bits.tolist() == [0xBD921DA93A05D96C, 0xD34C60F429B7780D]
        seeds = [data(make_key(seed)).tolist() for seed in (0, 2**40 + 7, -1)]
    assert seeds == [
        [0x7F3AE1D4, 0xB98FE44C],
        [0x54061720, 0xA21DF9F1],
        [0xD4070AAA, 0x27DC0D4C],
    ]


# --- avalanche ----------------------------------------------------------------------


def flips(function, inputs):
    """Share of flips of each output bit for each input bit, `[in, out]`.

    `function` takes `[n, words]` to `[n, words]`; inputs are `[n, words]`.
    """

    places = np.arange(32, dtype=np.uint32)

    def bits_of(words):
        bits = words[:, :, None] >> places[None, None] & 1
        return bits.reshape(len(words), -1)

    @jax.jit
    def shares(inputs):
        before = function(inputs)

        def share(mask):
            return bits_of(function(inputs ^ mask[None]) ^ before).mean(0)

        masks = np.kron(np.eye(inputs.shape[1], dtype=np.uint32), 1 << places[:, None])
        return jax.lax.map(share, masks.astype(np.uint32))

    return np.asarray(shares(jnp.asarray(inputs)))


AVALANCHES = {  # inputs: two words of a key and a number, of which some bits count
    "words": (lambda key, n: counter_prng._words(key, np.uint32(0), n)[None], 32),
    "second_lane": (lambda key, n: counter_prng._words(key, np.uint32(1), n)[None], 32),
    "fold_in": (counter_prng._fold_in, 32),
    # Of a split and a seed the numbers are not inputs of the function: 0 bits of them.
    "split": (lambda key, n: counter_prng._split(key, (4,))[3], 0),
    "seed": (lambda key, n: counter_prng._derive(counter_prng._SEED, key, n & 0), 0),
}


@pytest.mark.parametrize("name", AVALANCHES)
@pytest.mark.parametrize("kind", ["any", "small"])
def test_every_input_bit_flips_every_output_bit_half_of_the_time(name, kind):
    """A share of N coins has standard deviation 1 / (2 sqrt N)."""
    function, num_bits = AVALANCHES[name]
    num = 2**14
    inputs = np.random.default_rng(0).integers(0, 2**32, (num, 3), dtype=np.uint32)
    if kind == "small":  # keys and numbers as a careless caller would make them
        shape = (2**4, 2**5, 2**5) if num_bits else (2**7, 2**7, 1)
        inputs = np.stack([i.ravel() for i in np.indices(shape)], 1)
        num = (
            num // 2
        )  # both ends of a flip of a low bit are inputs: half as many coins
    batched = jax.vmap(lambda words: function(words[:2], words[2]))
    shares = flips(batched, inputs.astype(np.uint32))[: 64 + num_bits]
    np.testing.assert_allclose(shares, 0.5, atol=SIGMAS * 0.5 / math.sqrt(num))


# --- independence -------------------------------------------------------------------


def keys_in_a_row(name, num):
    """Keys that a user makes one after another, in that order."""
    key, numbers = make_key(0), jnp.arange(num)
    side = jnp.arange(math.isqrt(num))

    def nested(a, b):
        return fold_in(fold_in(key, a), b)

    if name == "fold_in":
        return jax.vmap(partial(fold_in, key))(numbers)
    if name == "fold_in_far":  # numbers that differ in their high bits alone
        far = numbers.astype(jnp.uint32) << np.uint32(32 - (num - 1).bit_length())
        return jax.vmap(partial(fold_in, key))(far)
    if name == "split":
        return jax.random.split(key, num)
    if name == "pairs":
        return jax.vmap(jax.random.split)(jax.random.split(key, num // 2)).reshape(-1)
    if name == "seeds":
        return jax.vmap(make_key)(numbers)
    if name == "raw":
        zeros = jnp.zeros(num, jnp.uint32)
        return wrap(jnp.stack([zeros, numbers.astype(jnp.uint32)], 1))
    if name == "nested":
        return jax.vmap(jax.vmap(nested, (None, 0)), (0, None))(side, side).reshape(-1)
    assert name == "swapped"  # (a, b), (b, a), (a, b + 1), (b + 1, a), ...
    pairs = jax.vmap(lambda a, b: jnp.stack([nested(a, b), nested(b, a)]))
    a, b = jnp.divmod(jnp.arange(num // 2), 64)
    return pairs(a + 64, b).reshape(-1)


ROWS = ["fold_in", "fold_in_far", "split", "pairs", "seeds", "raw", "nested", "swapped"]


@partial(jax.jit, static_argnums=0)
def rows(name):
    """Words `[2^14 keys, 8]`."""
    return jax.vmap(lambda key: jax.random.bits(key, (8,)))(keys_in_a_row(name, 2**14))


def check_uniform(words, what):
    """Every bit, every pair of bits a byte apart or nearer, in each of four places."""
    words, num = np.asarray(words).ravel(), words.size
    counts = [np.bincount(words >> s & 255, minlength=256) for s in (0, 8, 16, 24)]
    for place, found in enumerate(counts):
        p = scipy.stats.chisquare(found).pvalue
        assert p > 1e-7, f"bytes {place} of {what}"
        ones = found @ (np.arange(256)[:, None] >> np.arange(8) & 1)
        error = np.abs(ones / num - 0.5).max()
        assert error < SIGMAS * 0.5 / math.sqrt(num), f"bits of byte {place} of {what}"


@pytest.mark.parametrize("name", ROWS)
def test_words_of_keys_in_a_row_are_independent(name):
    words = np.asarray(rows(name))
    check_uniform(words, "words")
    check_uniform(words[1:] ^ words[:-1], "one key and the next")
    check_uniform(words[2:] ^ words[:-2], "one key and the next but one")
    check_uniform(words[1:] - words[:-1], "differences of one key and the next")
    check_uniform(words[:, 1:] ^ words[:, :-1], "one word and the next")
    check_uniform(words[1:, :-1] ^ words[:-1, 1:], "one word and the next key's last")


def test_lanes_and_the_words_of_one_key_are_independent():
    with jax.enable_x64(True):
        bits = np.asarray(jax.random.bits(make_key(3), (2**17,), "uint64"))
    low, high = bits.astype(np.uint32), (bits >> np.uint64(32)).astype(np.uint32)
    check_uniform(high ^ low, "lanes")
    for step in (1, 2, 3, 64, 2**10, 2**16):
        check_uniform(low[step:] ^ low[:-step], f"words {step} apart")
        check_uniform(low[step:] - low[:-step], f"differences {step} apart")


def num_repeats(values):
    return np.count_nonzero(np.diff(np.sort(values)) == 0)  # faster than np.unique


@pytest.mark.parametrize(
    "name", ["one_key", "high_lane", "fold_in", "pairs", "seeds", "nested"]
)
def test_words_repeat_as_often_as_chance_has_it(name):
    """Of n words, n^2 / 2^33 pairs coincide, Poisson; a permutation repeats none."""
    if name == "high_lane":
        counters = jnp.arange(2**20, dtype=jnp.uint32)
        words = counter_prng._words(jnp.asarray(RAW), np.uint32(1), counters)
    elif name == "one_key":
        words = jax.random.bits(make_key(0), (2**20,))
    else:
        words = rows_of_pairs(name)
    words = np.asarray(words).ravel()
    expected = words.size**2 / 2**33  # 128
    assert abs(num_repeats(words) - expected) < SIGMAS * math.sqrt(expected)


@partial(jax.jit, static_argnums=0)
def rows_of_pairs(name):
    """Words `[2^19 keys, 2]`, as few of many keys as chains of small events draw."""
    return jax.vmap(lambda key: jax.random.bits(key, (2,)))(keys_in_a_row(name, 2**19))


def test_no_key_of_a_family_meets_another():
    """1.3 million keys of 64 bits: two coincide by chance once in 20 million runs."""
    make = jax.jit(keys_in_a_row, static_argnums=(0, 1))
    names = ("fold_in", "split", "pairs", "seeds", "nested")
    families = [data(make(name, 2**18)) for name in names]
    keys = np.concatenate(families).astype(np.uint64)
    assert num_repeats(keys[:, 0] << np.uint64(32) | keys[:, 1]) == 0


def test_the_order_of_numbers_counts():
    key, numbers = make_key(0), jnp.arange(64)

    def nested(a, b):
        return fold_in(fold_in(key, a), b)

    pairs = jax.jit(jax.vmap(jax.vmap(nested, (None, 0)), (0, None)))
    keys = data(pairs(numbers, numbers))
    same = (keys == keys.swapaxes(0, 1)).all(-1)
    np.testing.assert_array_equal(same, np.eye(64, dtype=bool))


def test_a_use_of_a_key_tells_nothing_of_another():
    """The same number: a child of a split, a fold, a seed and the words differ."""
    key = make_key(0)
    uses = [
        data(jax.random.split(key, 2**12)),
        data(jax.jit(jax.vmap(partial(fold_in, key)))(jnp.arange(2**12))),
        np.asarray(jax.random.bits(key, (2**12, 2))),
        data(jax.jit(jax.vmap(make_key))(jnp.arange(2**12))),
    ]
    for i, one in enumerate(uses):
        for other in uses[:i]:
            check_uniform(one ^ other, "two uses")
    # Nor at numbers as far apart as the constants of the uses are.
    uses = [counter_prng._SPLIT, counter_prng._FOLD_IN, counter_prng._BITS]
    for one, other in itertools.permutations([*uses, counter_prng._SEED], 2):
        number = jnp.uint32(7) + jnp.uint32(other) - jnp.uint32(one)
        found = counter_prng._derive(one, jnp.asarray(RAW), number)
        there = counter_prng._derive(other, jnp.asarray(RAW), jnp.uint32(7))
        assert (found != there).all()


# --- jax.random ---------------------------------------------------------------------


def test_uniforms_and_normals_have_their_laws():
    """Kolmogorov-Smirnov distances under the bound of p = 1e-6."""
    num = 10**5
    bound = math.sqrt(-math.log(1e-6 / 2) / 2 / num)
    for key in (make_key(1), wrap(np.zeros(2, np.uint32))):
        uniform = np.asarray(jax.random.uniform(key, (num,)))
        assert 0 <= uniform.min() and uniform.max() < 1
        assert scipy.stats.kstest(uniform, "uniform").statistic < bound
        normal = np.asarray(jax.random.normal(key, (num,)))
        assert scipy.stats.kstest(normal, "norm").statistic < bound
        # Even moments of a normal and their variances: E x^2k = (2k - 1)!!.
        for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
            error = (normal.astype(np.float64) ** power).mean() - mean
            assert abs(error) < 5 * math.sqrt(variance / num)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_other_types_have_their_laws_too(dtype):
    """Against float64's, and against the type's own rounding: one part in 2^7."""
    num = 10**5
    bound = math.sqrt(-math.log(1e-6 / 2) / 2 / num)
    with jax.enable_x64(dtype == "float64"):
        normal = jax.random.normal(make_key(2), (num,), dtype)
        uniform = jax.random.uniform(make_key(3), (num,), dtype)
    assert normal.dtype == uniform.dtype == dtype
    normal, uniform = np.asarray(normal, np.float64), np.asarray(uniform, np.float64)
    coarse = 0.0 if dtype == "float64" else 2.0**-7
    assert scipy.stats.kstest(normal, "norm").statistic < bound + coarse
    assert scipy.stats.kstest(uniform, "uniform").statistic < bound + coarse
    if dtype == "float64":  # all 52 bits are drawn
        last = (uniform * 2**52).astype(np.uint64).astype(np.uint32)
        check_uniform(last, "the last bits of float64")


def test_permutations_categories_and_whole_numbers_are_fair():
    keys = jax.random.split(make_key(4), 6_000)
    permuted = jax.jit(jax.vmap(lambda key: jax.random.permutation(key, 3)))(keys)
    found = np.unique(np.asarray(permuted) @ [9, 3, 1], return_counts=True)[1]
    assert len(found) == 6 and scipy.stats.chisquare(found).pvalue > 1e-6
    logits = jnp.log(jnp.array([0.1, 0.2, 0.7]))
    draws = jax.random.categorical(make_key(5), logits, shape=(6_000,))
    found = np.bincount(draws, minlength=3)
    assert scipy.stats.chisquare(found, [600, 1200, 4200]).pvalue > 1e-6
    found = np.bincount(jax.random.randint(make_key(6), (7_000,), 0, 7), minlength=7)
    assert scipy.stats.chisquare(found).pvalue > 1e-6
    order = jax.random.permutation(make_key(7), 1_000)
    np.testing.assert_array_equal(np.sort(order), np.arange(1_000))
    chosen = jax.random.choice(make_key(8), 50, (50,), replace=False)
    np.testing.assert_array_equal(np.sort(chosen), np.arange(50))


def test_numbers_are_the_same_whatever_transforms_them():
    """Alone, compiled, batched, in a scan, on devices, sharded: bit for bit."""
    key, num = make_key(9), 16

    def draw(key, number):
        one, other = jax.random.split(fold_in(key, number))
        return jax.random.bits(one, (5, 3)), jax.random.bits(other, (), "uint8")

    numbers = jnp.arange(num)
    batched = jax.vmap(draw, (None, 0))
    expected = jax.jit(batched)(key, numbers)

    def scan(key, numbers):
        return jax.lax.scan(lambda c, n: (c, draw(key, n)), 0, numbers)[1]

    def grouped(function, shape):
        """Of numbers in a shape, and back."""
        drawn = function(numbers.reshape(shape))
        return jax.tree.map(lambda x: x.reshape(num, *x.shape[len(shape) :]), drawn)

    mesh = Mesh(jax.devices(), "device")
    spec = PartitionSpec("device")
    sharded = jax.device_put(numbers, NamedSharding(mesh, spec))
    mapped = jax.shard_map(
        batched, mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=spec
    )
    keys = jnp.stack([key] * num)
    ways = {
        "alone": [np.stack(x) for x in zip(*[draw(key, n) for n in range(3)])],
        "jit": [x[None] for x in jax.jit(draw)(key, 0)],
        "keys": jax.jit(jax.vmap(draw))(keys, numbers),
        "vmap twice": grouped(jax.jit(jax.vmap(partial(batched, key))), (4, 4)),
        "scan": jax.jit(scan)(key, numbers),
        "sharded": jax.jit(batched)(key, sharded),
        "sharded keys": jax.jit(jax.vmap(draw))(
            jax.device_put(keys, NamedSharding(mesh, spec)), sharded
        ),
        "shard_map": jax.jit(mapped)(key, sharded),
        "pmap": grouped(jax.pmap(partial(batched, key)), (8, 2)),
    }
    for way, found in ways.items():
        for x, y in zip(found, expected):
            x, y = np.asarray(x), np.asarray(y)
            np.testing.assert_array_equal(x, y[: len(x)], err_msg=way)


def test_one_draw_is_the_same_on_eight_devices():
    mesh = Mesh(jax.devices(), "device")
    sharding = NamedSharding(mesh, PartitionSpec("device"))
    draw = partial(jax.random.bits, make_key(10), (64, 3))
    sharded = jax.jit(draw, out_shardings=sharding)()
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_array_equal(sharded, draw())


def test_keys_can_be_saved_printed_and_told_apart():
    key = make_key(11)
    again = wrap(jax.random.key_data(key))
    named = jax.random.wrap_key_data(
        jax.random.key_data(key), impl=jax.random.key_impl(key)
    )
    assert jax.random.key_impl(key) == counter_prng.IMPL
    for other in (again, named, copy.deepcopy(key), pickle.loads(pickle.dumps(key))):
        assert other.dtype == key.dtype and bool(other == key)
    assert "key<ctr>" in repr(key)
    assert key.dtype != jax.random.key(11).dtype
    assert jax.vmap(make_key)(jnp.arange(4)).shape == (4,)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: make_key(1.5), TypeError, "seed must be an integer, got float32"),
        (lambda: jax.random.bits(make_key(0), (2**16 + 1, 2**16)), ValueError, "2.*32"),
        (lambda: jax.random.split(make_key(0), (2**17, 2**16)), ValueError, "in parts"),
        (lambda: wrap(np.zeros(3, np.uint32)), TypeError, r"\(2,\)"),
    ],
)
def test_what_is_wrong_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_as_many_values_as_there_are_counters_are_fine():
    shape = jax.eval_shape(lambda: jax.random.bits(make_key(0), (2**16, 2**16)))
    assert shape.shape == (2**16, 2**16)


def test_the_numbers_of_a_move_fuse():
    """One loop, the chain's own: threefry brings loops into every move on a CPU."""

    def chain(key, x):
        def move(x, step):
            one, other = jax.random.split(fold_in(key, step))
            noise = jax.random.normal(one, x.shape)
            return jnp.where(jax.random.uniform(other) < 0.5, x + noise, x), None

        return jax.lax.scan(move, x, jnp.arange(100))[0]

    def num_loops(key):
        keys = jax.random.split(key, 64)
        compiled = jax.jit(jax.vmap(chain)).lower(keys, jnp.zeros((64, 10))).compile()
        return len(re.findall(r" while\(", compiled.as_text()))

    assert num_loops(make_key(0)) == 1
    assert num_loops(jax.random.key(0)) > 1


# --- samplers, and the battery that reads what they draw ----------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_langevin_keeps_its_exact_bias(temperature):
    """As `test_samplers` has it of threefry: variance T / (1 - h / 2), law normal."""
    num_chains, step_size = 20_000, 0.8
    sampler = samplers.langevin(step_size=step_size, temperature=temperature)
    state, _ = samplers.sample_chains(
        sampler, STANDARD, make_key(0), jnp.zeros(num_chains), 100
    )
    expected = temperature / (1.0 - step_size / 2.0)
    # A sample variance of N normals has relative standard error sqrt(2 / N).
    np.testing.assert_allclose(
        jnp.var(state.position), expected, rtol=5.0 * (2.0 / num_chains) ** 0.5
    )
    law = scipy.stats.norm(scale=math.sqrt(expected))
    assert scipy.stats.kstest(np.asarray(state.position), law.cdf).pvalue > 1e-6


def test_mala_keeps_its_exact_law():
    """Chains that start in the law stay in it: normal, and coordinates independent."""
    num_chains, dimension = 20_000, 4
    x = jax.random.normal(make_key(1), (num_chains, dimension))
    state, infos = samplers.sample_chains(
        samplers.mala(step_size=1.0), STANDARD, make_key(2), x, 30
    )
    assert 0.3 < infos.is_accepted.mean() < 0.95  # both branches were taken
    position = np.asarray(state.position, np.float64)
    assert scipy.stats.kstest(position.ravel(), "norm").pvalue > 1e-6
    covariance = np.cov(position.T)
    # Variances of N normals have standard error sqrt(2 / N), covariances less.
    np.testing.assert_allclose(
        covariance, np.eye(dimension), atol=5.0 * (2.0 / num_chains) ** 0.5
    )


def test_the_battery_reads_what_chains_draw():
    """Moves of two blocks of chains against the same words in the battery's stream."""
    num_chains, num_steps = 128, 3

    def step(energy_fn, key, state):
        noise_key, accept_key = jax.random.split(key)  # as `mala` does
        words = (jax.random.bits(noise_key, (3,)), jax.random.bits(accept_key))
        return state, jnp.append(*words)

    probe = samplers.Sampler(lambda energy_fn, x: x, step)
    _, words = samplers.sample_chains(
        probe,
        STANDARD,
        make_key(0),
        jnp.zeros(num_chains),
        num_steps,
        collect=lambda state, words: words,
    )
    (found,) = (next(prng_battery.parts(prng_battery.parse(["--stream=chains"]))),)
    found = found.reshape(64, 2**14, 4)[:num_steps, :num_chains]
    np.testing.assert_array_equal(found, words)


@pytest.mark.quick
def test_the_battery_turns_and_packs_words():
    words = jnp.array([1, 0x80000000, 0x12345678, 0xFF], jnp.uint32)
    reversed_words = [0x80000000, 1, 0x1E6A2C48, 0xFF000000]
    assert prng_battery.reverse(words).tolist() == reversed_words
    assert prng_battery.low(words).tolist() == [0xFF780001]
