"""Where chains begin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebmjax import starts

KEY = jax.random.key(0)


def counting(key, shape):
    """Noise that can be told from everything else: negative."""
    return -jax.random.uniform(key, shape, minval=1.0, maxval=2.0)


def replay(**options):
    arguments = {"event_shape": (3,), "capacity": 64, "reinit_prob": 0.25}
    return starts.replay(counting, **arguments | options)


def test_noise_begins_anew_every_time_and_remembers_nothing():
    start = starts.noise(counting)
    batch = jnp.zeros((5, 3))
    x, slots = start.draw(jax.random.key(1), start.init(KEY), batch)
    again, _ = start.draw(jax.random.key(2), (), batch)
    assert x.shape == batch.shape and (x != again).all()
    assert start.write((), slots, x) == ()


def test_data_begins_at_the_batch():
    start = starts.data()
    batch = jnp.arange(6.0).reshape(2, 3)
    x, slots = start.draw(KEY, start.init(KEY), batch)
    np.testing.assert_array_equal(x, batch)
    assert start.write((), slots, x) == ()


def test_replay_draws_distinct_rows_of_its_memory_and_new_ones_at_the_given_rate():
    start = replay()
    memory = 1.0 + jnp.arange(64.0)[:, None] * jnp.ones((1, 3))
    batch = jnp.zeros((48, 3))

    def fresh(key):
        x, slots = start.draw(key, memory, batch)
        is_fresh = (x < 0).all(1)
        is_old = (x == memory[slots]).all(1)
        return is_fresh, is_old, jnp.sort(slots)

    is_fresh, is_old, slots = jax.vmap(fresh)(jax.random.split(KEY, 400))
    assert (is_fresh ^ is_old).all()
    assert (jnp.diff(slots, axis=1) > 0).all()
    # 19,200 draws of probability 1/4: standard error 0.0031.
    np.testing.assert_allclose(is_fresh.mean(), 0.25, atol=5 * 0.0031)
    # Each chain is decided alone: the number of new ones in a draw of 48 has variance
    # 48 * 3 / 16 = 9, its estimate over 400 draws a relative error of sqrt(2 / 400).
    np.testing.assert_allclose(is_fresh.sum(1).var(), 9.0, rtol=5 * (2 / 400) ** 0.5)
    # Every slot is as likely: 400 * 48 / 64 = 300 draws, variance 400 * .75 * .25.
    counts = np.bincount(np.asarray(slots).ravel(), minlength=64)
    assert (np.abs(counts - 300) < 5 * 75**0.5).all()


@pytest.mark.parametrize("capacity", [5, 40])
def test_every_sequence_of_distinct_slots_is_as_likely(capacity):
    """A permutation draws 2 of 5 slots, and 2 of 40 are drawn without sorting them.

    The chi-square statistic of uniform counts in m cells has mean m - 1 and variance
    2 (m - 1).
    """
    draw = jax.vmap(lambda key: starts.draw_slots(key, 2, capacity))
    first, second = np.asarray(draw(jax.random.split(KEY, 200_000))).T
    counts = np.bincount(first * capacity + second, minlength=capacity**2)
    counts = counts.reshape(capacity, capacity)
    assert counts.sum() == 200_000 and not counts.diagonal().any()
    counts = counts[~np.eye(capacity, dtype=bool)]
    expected = 200_000 / counts.size
    statistic = ((counts - expected) ** 2 / expected).sum()
    mean = counts.size - 1
    assert abs(statistic - mean) < 5 * (2 * mean) ** 0.5


@pytest.mark.parametrize("num, most", [(1, 1), (64, 110), (128, 180), (4_000, 8_192)])
def test_few_numbers_are_sorted_to_draw_few_slots(num, most):
    draw = jax.jit(lambda key: starts.draw_slots(key, num, 8_192))
    slots = np.asarray(draw(KEY))
    assert len(np.unique(slots)) == num and 0 <= slots.min() <= slots.max() < 8_192
    program = jax.make_jaxpr(draw)(KEY).jaxpr
    sizes = [var.aval.size for var in _sorted(program)]
    assert sizes and max(sizes) <= most


def _sorted(jaxpr):
    """Yields the arrays that a program sorts."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "sort":
            yield equation.invars[0]
        for part in jax.tree.leaves(equation.params):
            if hasattr(part, "eqns"):
                yield from _sorted(getattr(part, "jaxpr", part))


@pytest.mark.parametrize("reinit_prob", [0.0, 1.0])
def test_replay_never_or_always_begins_anew(reinit_prob):
    start = replay(reinit_prob=reinit_prob)
    x, _ = start.draw(KEY, jnp.ones((64, 3)), jnp.zeros((64, 3)))
    assert ((x < 0) == bool(reinit_prob)).all()


def test_replay_writes_only_its_slots():
    start = replay()
    memory = jnp.zeros((64, 3))
    got = start.write(memory, jnp.array([5, 2]), jnp.array([[1.0] * 3, [2.0] * 3]))
    expected = np.zeros((64, 3))
    expected[5], expected[2] = 1.0, 2.0
    np.testing.assert_array_equal(got, expected)


def test_replay_is_filled_with_noise_at_first():
    memory = replay().init(KEY)
    assert memory.shape == (64, 3) and (memory < 0).all()
    assert len(np.unique(memory)) == memory.size


@pytest.mark.quick
def test_replay_names_what_is_wrong():
    with pytest.raises(
        ValueError, match="capacity must be a whole number of at least 1, got 0"
    ):
        replay(capacity=0)
    with pytest.raises(ValueError, match=r"reinit_prob must be in \[0, 1\], got 1.5"):
        replay(reinit_prob=1.5)
    start = replay(capacity=8)
    memory = start.init(KEY)
    with pytest.raises(ValueError, match="batch of 9 chains exceeds replay capacity 8"):
        start.draw(KEY, memory, jnp.zeros((9, 3)))
    with pytest.raises(ValueError, match=r"shape \(3,\), the batch has \(4,\)"):
        start.draw(KEY, memory, jnp.zeros((2, 4)))
