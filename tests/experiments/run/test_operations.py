"""Operations are counted as by hand."""

import jax
import jax.numpy as jnp
import pytest

from ebmjax import networks
from experiments.compile.programs import build_problem, state_shapes
from experiments.run.operations import Chip, count_operations, count_update
from experiments.short_run import images


def count(function, *args):
    return count_operations(jax.make_jaxpr(function)(*args))


@pytest.mark.quick
def test_a_product_is_counted_in_every_kind_of_loop():
    x = jnp.ones((4, 5))
    one = 2 * 4 * 5 * 4

    def product(x):
        return (x @ x.T) @ x / 9  # twice as many operations

    def scanned(x):
        return jax.lax.scan(lambda x, _: (product(x), None), x, None, length=7)[0]

    def nested(x):
        return jax.lax.fori_loop(0, 3, lambda i, x: scanned(x), x)

    def chosen(x):
        return jax.lax.cond(x[0, 0] > 0, product, lambda x: x, x)

    assert count(product, x)[:2] == (2 * one, 0)
    assert count(scanned, x)[:2] == (14 * one, 0)
    assert count(nested, x)[:2] == (42 * one, 0)  # a known length makes it a scan
    assert count(chosen, x)[:2] == (2 * one, 0)  # the most expensive branch
    assert count(jax.vmap(scanned), jnp.ones((6, 4, 5)))[:2] == (84 * one, 0)
    # Three products of the same size each: of the two, and of their transposes.
    assert count(jax.grad(lambda x: product(x).sum()), x).products == 6 * one - one


def test_a_loop_of_unknown_length_is_one_turn_and_is_said():
    def loop(x, num):
        return jax.lax.fori_loop(0, num, lambda i, x: x @ x, x)

    assert count(loop, jnp.ones((3, 3)), 5)[:2] == (2 * 27, 1)


def test_what_no_result_needs_is_not_counted():
    def half(x):
        return jax.lax.scan(
            lambda c, _: ((c[0] @ c[0], c[1] + 1), None), (x, x), None, 5
        )

    assert count(lambda x: half(x)[0][1], jnp.ones((3, 3))).products == 0


@pytest.mark.parametrize("strides, padding", [(1, "SAME"), (2, "SAME"), (2, "VALID")])
def test_a_convolution_and_its_derivatives_are_counted_as_lax_writes_them(
    strides, padding
):
    x, kernel = jnp.ones((5, 8, 8, 3)), jnp.ones((4, 4, 3, 7))
    numbers = ("NHWC", "HWIO", "NHWC")

    def ours(x, kernel):
        return networks.convolution(
            x, kernel, (strides, strides), padding, dimension_numbers=numbers
        )

    def laxs(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (strides, strides), padding, dimension_numbers=numbers
        )

    side = {(1, "SAME"): 8, (2, "SAME"): 4, (2, "VALID"): 3}[strides, padding]
    by_hand = 2 * 5 * side**2 * 7 * 4 * 4 * 3
    assert count(ours, x, kernel).products == by_hand == count(laxs, x, kernel).products

    def square(function):
        return jax.grad(lambda *args: (function(*args) ** 2).sum(), (0, 1))

    assert count(square(ours), x, kernel).products == 3 * by_hand


def test_an_update_of_a_convolutional_preset_is_counted_as_by_hand():
    problem = build_problem(images, images.get_config("digits"), 4)
    config = problem.config
    batch = jax.ShapeDtypeStruct((1, 16, 8, 8, 1), jnp.float32)
    counted = count_update(
        problem.experiment.players, config.ema_decay, state_shapes(problem), batch
    )
    # Kernels 3x3 from 1 to 32 channels on 8x8 pixels, 4x4 to 64 on 4x4 pixels, and a
    # dense layer. A gradient in x is twice the energy; K of them make a chain whose
    # last one is left out and whose start has one. The gradient in the parameters is
    # three times the energy but for the images of the first layer, on data and chains.
    first, second, dense = 64 * 9 * 32, 16 * 16 * 32 * 64, 16 * 64
    energy = 2 * (first + second + dense)
    update = config.objective.num_steps * 2 * energy + 2 * (3 * energy - 2 * first)
    assert counted.num_unknown_loops == 0
    assert counted.products == pytest.approx(16 * update, rel=0.02)


def test_products_are_timed_by_their_precision():
    x = jnp.ones((4, 5))
    half = x.astype(jnp.bfloat16)
    one = 2 * 4 * 5 * 4

    def precise(x):
        with jax.default_matmul_precision("highest"):
            return networks.convolution(
                x[None, :, :, None],
                jnp.ones((3, 3, 1, 2)),
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )

    mixed = count(lambda x, half: (x @ x.T, precise(x), half @ half.T), x, half)
    convolution = 2 * 4 * 5 * 2 * 9
    assert mixed == (2 * one + convolution, 0, convolution, one)
    chip = Chip(100.0, 10.0, 1000.0, 0.0, 0.0, "")
    expected = one / 100 + convolution / 10 + one / 1000
    assert mixed.seconds(chip) == pytest.approx(expected)
