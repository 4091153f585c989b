"""Options of many networks: their type, their memory, and whose batch statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ebmjax import networks, objectives, training
from ebmjax.objectives import Aux, Objective
from ebmjax.types import BATCH, DEVICE

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
SHAPE = (8, 8, 2)
LATENT = {"latent_dim": 3}

# Number of convolutions on the longest way through a network. Everything between them
# is a sum, a mean, a normalisation by stored numbers or an activation that does not
# decrease, so a network of positive numbers has the largest values.
MONOTONE = {
    "short_run_energy": ({"width": 4}, 2),
    "resnet_energy": ({"widths": (4, 8), "num_blocks": 1}, 6),
    "wide_resnet_energy": ({"depth": 10, "widen_factor": 1}, 9),
    "strided_energy": ({"widths": (4, 8)}, 2),
    "convnet_energy": ({"widths": (4, 8)}, 3),
    "sngan_energy": ({"widths": (4, 8)}, 3),
    "sngan_resnet_energy": ({"width": 4}, 8),
    "dcgan_energy": ({"widths": (4, 8)}, 2),
    "strided_generator": (LATENT | {"widths": (4, 8)}, 2),
    "convnet_generator": (LATENT | {"widths": (4, 8)}, 2),
    "sngan_base": (LATENT | {"widths": (4, 8)}, 2),
    "sngan_resnet_base": (LATENT | {"width": 4, "num_blocks": 2}, 5),
    "dcgan_base": (LATENT | {"widths": (4, 8)}, 2),
}
GENERATORS = [name for name in MONOTONE if name.endswith(("generator", "base"))]
CONVOLUTIONS = (
    "conv_general_dilated",
    "convolution",
    "convolution_images",
    "convolution_kernel",
)


def make(name, **options):
    return getattr(networks, name)(SHAPE, **MONOTONE[name][0], **options)


def example(name):
    shape = (3,) if name in GENERATORS else SHAPE
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def arguments(name):
    """What the network takes: an example, and the U-Net a noise scale too."""
    return (example(name), jnp.float32(0.7))[: 1 + (name == "unet")]


def small_params(network):
    """Kernels whose images are far from a tanh's ends, and no parameter zero."""
    random = np.random.default_rng(0)
    shapes, _ = jax.eval_shape(network.init, KEY)

    def draw(leaf):
        scale = 0.2 * max(leaf.size // leaf.shape[-1], 4) ** -0.5
        return scale * random.standard_normal(leaf.shape, np.float32)

    return jax.tree.map(draw, shapes)


def operand_types(jaxpr):
    """Types of the operands of every convolution, in programs within it as well."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in CONVOLUTIONS:
            found += [(str(x.aval.dtype)) for x in equation.invars]
        for value in jax.tree.leaves(equation.params, is_leaf=is_program):
            if is_program(value):
                found += operand_types(getattr(value, "jaxpr", value))
    return found


def is_program(value):
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


@pytest.mark.parametrize("name", MONOTONE)
def test_in_bfloat16_values_are_off_by_rounding_only(name):
    """Roundings of relative size 2^-8 each are bounded by those of positive numbers.

    Of a layer: its input, kernel, sum, bias, its sum, a normalisation's sum or that of
    a block or a mean, and an activation; and the example's own. The same network with
    positive parameters and a positive example bounds what they are relative to; a
    tanh at the end has a slope of at most 1, so its argument's bound is the value's.
    """
    exact, rounded = make(name), make(name, compute_dtype="bfloat16")
    params = small_params(exact)
    shapes, _ = jax.eval_shape(rounded.init, KEY)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(shapes)} == {"float32"}
    x = example(name)
    apply = jax.jit(exact.apply)
    value, expected = jax.jit(rounded.apply)(params, x), apply(params, x)
    size = apply(jax.tree.map(jnp.abs, params), jnp.abs(x))
    if name in GENERATORS:
        assert float(size.max()) < 0.999
        size = jnp.arctanh(size)
    bound = jnp.expm1((7 * MONOTONE[name][1] + 1) * jnp.log1p(2.0**-8))
    error = jnp.abs(value - expected)
    assert value.dtype == expected.dtype == "float32"
    assert jnp.all(error < bound * size) and jnp.any(error > 0)


@pytest.mark.parametrize("name", [*MONOTONE, "unet"])
def test_in_bfloat16_every_convolution_is_of_that_type(name):
    """Those of the value and of its gradients; in float32 none is."""

    def types(**options):
        sizes = {"widths": (4, 8)} if name == "unet" else MONOTONE[name][0]
        network = getattr(networks, name)(SHAPE, **sizes, **options)
        params, _ = jax.eval_shape(network.init, KEY)

        def total(params, *arguments):
            return jnp.sum(network.apply(params, *arguments))

        gradient = jax.grad(total, (0, 1))
        return operand_types(jax.make_jaxpr(gradient)(params, *arguments(name)).jaxpr)

    assert set(types(compute_dtype="bfloat16")) == {"bfloat16"}
    assert set(types()) == {"float32"}


@pytest.mark.parametrize("is_energy", [False, True])
def test_a_unet_in_bfloat16_is_off_by_rounding_only(is_energy):
    """The maps have unit size before every activation, so each of the 8 convolutions
    adds an error of a few 2^-8 of it: 4 are allowed, for input, kernel, bias and sum.
    """
    options = {"widths": (4, 8), "activation": "swish", "is_energy": is_energy}
    exact = networks.unet(SHAPE, **options)
    rounded = networks.unet(SHAPE, **options, compute_dtype="bfloat16")
    params = small_params(exact)
    value, expected = (
        net.apply(params, *arguments("unet")) for net in (rounded, exact)
    )
    assert value.dtype == "float32"
    error = np.sqrt(np.mean((value - expected) ** 2))
    assert 0 < error < 8 * 4 * 2.0**-8 * np.sqrt(np.mean(np.square(expected)))


@pytest.mark.quick
def test_another_type_is_refused():
    for name in MONOTONE:
        with pytest.raises(ValueError) as error:
            make(name, compute_dtype="float16")
        expected = "compute_dtype must be one of ['float32', 'bfloat16'], got 'float16'"
        assert str(error.value) == expected


# --- memory --------------------------------------------------------------------------

BLOCKS = {
    "resnet_energy": {"widths": (4, 8), "num_blocks": 2, "normalization": "group"}
    | {"num_groups": 2, "activation": "swish"},
    "wide_resnet_energy": {"depth": 10, "widen_factor": 1},
    "unet": {"widths": (4, 8), "is_energy": True, "activation": "swish"},
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_that_are_computed_again_give_the_same(name):
    """Names of parameters, values, gradients, and a gradient of the squared score."""
    ends = []
    for options in ({}, {"rematerialize": True}):
        network = getattr(networks, name)(SHAPE, **BLOCKS[name], **options)
        params = small_params(network)

        def penalty(params, x, *scale, energy=network.apply):
            return jnp.sum(jax.grad(energy, 1)(params, x, *scale) ** 2)

        values = [
            jax.jit(jax.value_and_grad(function, (0, 1)))(params, *arguments(name))
            for function in (network.apply, penalty)
        ]
        ends.append((values, jax.jit(network.init)(KEY)[0]))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *ends
    )


@pytest.mark.parametrize("name", BLOCKS)
def test_a_derivative_stores_no_more_than_the_maps_between_blocks(name):
    """What a derivative stores is what `jax.vjp` hands from its one half to the other.

    A CPU's compiler moves what is computed again to where it was computed first, so
    its memory tells nothing.
    """
    sizes = []
    for options in ({}, {"rematerialize": True}):
        network = getattr(networks, name)(SHAPE, **BLOCKS[name], **options)

        def stored(params, *arguments, apply=network.apply):
            return jax.tree.leaves(jax.vjp(apply, params, *arguments)[1])

        leaves = jax.eval_shape(stored, small_params(network), *arguments(name))
        is_map = [leaf for leaf in leaves if leaf.ndim > 2 and leaf.shape[:2] != (3, 3)]
        sizes.append(sum(leaf.size for leaf in is_map))
    assert sizes[1] < sizes[0] / 2


# --- batch statistics ----------------------------------------------------------------


def in_training(network, params, state, latents):
    """Images and statistics of latents `[n, latent_dim]` of one device."""

    def one(z):
        return network.apply_stateful(params, state, z, train=True)

    return jax.vmap(one, out_axes=(0, None), axis_name=BATCH)(latents)


def over_devices(network, params, state, latents):
    """The same of latents `[devices, n, latent_dim]`."""
    on_device = functools.partial(in_training, network, params, state)
    return jax.vmap(on_device, axis_name=DEVICE)(latents)


LATENTS = np.random.default_rng(1).normal(size=(2, 6, 3)).astype(np.float32)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_device_may_have_batch_statistics_of_its_own(name):
    """Each half is what it would be on one device alone, and needs no other's axis."""
    alone, apart = make(name), make(name, is_synchronized=False)
    params, state = jax.jit(alone.init)(KEY)
    run = jax.jit(functools.partial(over_devices, apart))
    images, renewed = run(params, state, LATENTS)
    lone = jax.jit(functools.partial(over_devices, alone))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    for half in range(2):
        expected, of_half = lone(params, state, LATENTS[None, half])
        close(images[half], expected[0])
        jax.tree.map(lambda a, b, i=half: close(a[i], b[0]), renewed, of_half)
        unmapped, _ = in_training(apart, params, state, LATENTS[half])
        close(images[half], unmapped)
    assert np.abs(images - lone(params, state, LATENTS)[0]).max() > 1e-3


@pytest.mark.parametrize("is_synchronized", [True, False])
def test_an_update_averages_the_running_statistics_of_devices(is_synchronized):
    """Means of halves have the mean of the whole; mean variances are those of halves.

    With synchronisation the variances are also between the halves.
    """
    network = make("strided_generator", is_synchronized=is_synchronized)
    params, state = jax.jit(network.init)(KEY)

    def loss(params, key, batch, carry):
        x, renewed = objectives.generate(network, params, batch)
        return jnp.mean(x**2), Aux(carry, {}, renewed)

    objective = Objective(lambda key: (), loss)
    players = {"g": training.Player(("generator",), objective, optax.sgd(0.0))}
    start = training.init_state(
        players,
        {"generator": params},
        KEY,
        2,
        model_state={"generator_state": state},
    )
    shifted = LATENTS + np.array([[[2.0]], [[-2.0]]], np.float32)
    end, _ = training.pmap_update(players)(start, shifted[:, None])
    first = end.model_state["generator_state"]["batch_stats"]["BatchNorm_0"]
    kernel, bias = map(np.asarray, (params["Dense_0"][x] for x in ("kernel", "bias")))
    halves = (shifted @ kernel + bias).reshape(2, -1, 8)
    np.testing.assert_allclose(first["mean"], 0.1 * halves.mean((0, 1)), rtol=1e-4)
    whole, parts = halves.reshape(-1, 8).var(0), halves.var(1).mean(0)
    variance = whole if is_synchronized else parts
    np.testing.assert_allclose(first["var"], 0.9 + 0.1 * variance, rtol=1e-4)
