"""Networks: known answers on paper, gradients against lax, no example sees another."""

import functools
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebmjax import networks
from ebmjax.types import Network

SHAPE = (8, 8, 2)
NETWORKS = {
    "mlp": lambda: networks.mlp_energy(SHAPE, widths=(16, 8)),
    "short_run": lambda: networks.short_run_energy(SHAPE, width=4),
    "short_run_bfloat16": lambda: networks.short_run_energy(
        SHAPE, width=4, compute_dtype="bfloat16"
    ),
    "resnet": lambda: networks.resnet_energy(SHAPE, widths=(4, 8), num_blocks=1),
    "resnet_group": lambda: networks.resnet_energy(
        SHAPE, widths=(4, 8), num_blocks=1, normalization="group", num_groups=2
    ),
    "wide_resnet": lambda: networks.wide_resnet_energy(SHAPE, depth=10, widen_factor=1),
}


def images(num: int, shape: tuple[int, ...] = SHAPE) -> jax.Array:
    return jax.random.uniform(jax.random.key(5), (num, *shape), minval=-1.0)


def zero_params(network: Network):
    params, _ = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)


def random_params(network: Network):
    """Of the size at which parameters start, but none zero: that would hide others."""
    random = np.random.default_rng(0)

    def draw(leaf):
        scale = max(leaf.size // leaf.shape[-1], 4) ** -0.5
        return scale * random.standard_normal(leaf.shape, np.float32)

    return jax.tree.map(draw, zero_params(network))


def num_params(network: Network) -> int:
    params, _ = jax.eval_shape(network.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def leaky(x, slope=0.2):
    return np.where(x >= 0, x, slope * x)


# --- convolution


def lax_convolution(x, kernel, strides, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def our_convolution(x, kernel, strides, padding):
    return networks.convolution(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


CONVOLUTIONS = {  # (height, width), kernel, strides, padding
    "14 to 7": ((14, 14), (4, 4), (2, 2), ((1, 1), (1, 1))),
    "7 to 3, last row unused": ((7, 7), (4, 4), (2, 2), ((1, 1), (1, 1))),
    "same": ((6, 5), (3, 3), (1, 1), "SAME"),
    "same, stride 2": ((6, 7), (3, 4), (2, 2), "SAME"),
    "valid, stride 2, rows unused": ((8, 7), (3, 3), (2, 2), "VALID"),
    "kernel smaller than stride": ((7, 6), (1, 2), (2, 3), ((0, 0), (1, 0))),
    "uneven": ((9, 11), (5, 3), (3, 1), ((2, 1), (0, 3))),
    "window wider than the image": ((2, 3), (5, 5), (2, 2), ((2, 2), (2, 2))),
    "window higher than the image": ((1, 4), (4, 4), (1, 1), ((2, 2), (1, 2))),
    "more taps than places": ((4, 4), (5, 5), (2, 2), ((2, 2), (2, 2))),
    "pixels cut off": ((9, 8), (3, 3), (2, 1), ((-1, 0), (-2, -1))),
    "padding longer than the kernel's reach": (
        (5, 5),
        (2, 2),
        (2, 1),
        ((3, 4), (2, 0)),
    ),
}


def derivatives(convolution, x, kernel, v, w):
    """All that the library takes of a convolutional energy, by name."""

    def energy(kernel, x):  # of one example, smooth, with mixed derivatives
        h = convolution(x[None], kernel)
        return jnp.sum(jnp.sin(h) + 0.1 * h**3)

    def total(kernel, x):
        return jnp.sum(jax.vmap(energy, (None, 0))(kernel, x))

    grad_x = jax.grad(energy, 1)

    def penalty(kernel, x):
        return jnp.sum(jax.vmap(grad_x, (None, 0))(kernel, x) ** 2)

    one = x[0]
    return {
        "value": energy(kernel, one),
        "gradient in x, over examples": jax.vmap(grad_x, (None, 0))(kernel, x),
        "gradient in kernel": jax.grad(total)(kernel, x),
        "gradient in kernel, by example": jax.vmap(jax.grad(energy), (None, 0))(
            kernel, x
        ),
        "forward mode": jax.jvp(total, (kernel, x), (w, v))[1],
        "hvp, forward over reverse": jax.jvp(
            functools.partial(grad_x, kernel), (one,), (v[0],)
        )[1],
        "hvp, reverse over reverse": jax.grad(
            lambda one: jnp.sum(grad_x(kernel, one) * v[0])
        )(one),
        "gradient in kernel of the squared gradient in x": jax.grad(penalty)(kernel, x),
        "gradient in x, over kernels and examples": jax.vmap(grad_x)(
            jnp.stack([kernel, w]), x
        ),
        "gradient in both, over kernels": jax.vmap(jax.grad(total, (0, 1)), (0, None))(
            jnp.stack([kernel, w]), x
        ),
    }


@pytest.fixture(params=["as chosen", "as a convolution"])
def spelling(request, monkeypatch):
    """So few channels and pixels would all be matrix products."""
    if request.param == "as a convolution":
        module = sys.modules["ebmjax.networks.convolution_forms"]
        monkeypatch.setattr(module, "FEW_CHANNELS", 0)
        monkeypatch.setattr(module, "FEW_PLACES", 0)


@pytest.mark.usefixtures("spelling")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_has_every_derivative_of_lax(name):
    size, window, strides, padding = CONVOLUTIONS[name]
    keys = jax.random.split(jax.random.key(0), 4)
    x, v = (jax.random.normal(k, (2, *size, 2)) for k in keys[:2])
    kernel, w = (jax.random.normal(k, (*window, 2, 3)) for k in keys[2:])
    ours, theirs = (
        jax.jit(
            functools.partial(
                derivatives,
                functools.partial(convolution, strides=strides, padding=padding),
            )
        )(x, kernel, v, w)
        for convolution in (our_convolution, lax_convolution)
    )
    # Only the order of sums differs. Rounding errors of 6e-8 in each of 2 * 14^2 * 3
    # terms, those of the longest, add up at the worst to 7e-5 of the largest value.
    for quantity, expected in theirs.items():
        for mine, other in zip(
            jax.tree.leaves(ours[quantity]), jax.tree.leaves(expected)
        ):
            np.testing.assert_allclose(
                mine,
                other,
                rtol=0.0,
                atol=7e-5 * np.max(np.abs(other)),
                err_msg=quantity,
            )


def energy_of_two(params, batch):
    """A convolution and a transposed one, of images of 12 x 12."""
    first, second = params
    h = our_convolution(batch, first, (2, 2), "SAME")
    pads = ((1, 1), (1, 1))
    h = networks.transposed_convolution(jnp.sin(h), second, (2, 2), pads, (12, 12))
    return jnp.sum(jnp.sin(h))


def squared_gradient(params, batch):
    return jnp.sum(jax.grad(energy_of_two, 1)(params, batch) ** 2)


def two_kernels(channels):
    kernels = images(2, (4, 4, channels, channels))
    return (kernels[0], kernels[1]), images(3, (12, 12, channels))


@pytest.mark.parametrize(
    "function, num_convolutions",
    [(energy_of_two, {16: 2, 17: 6}), (squared_gradient, {16: 4, 17: 12})],
    ids=["an energy", "a squared gradient"],
)
def test_in_a_loop_gradients_are_of_the_kind_that_is_fast_on_a_cpu(
    function, num_convolutions
):
    """Otherwise a scan of gradients takes two to a hundred times as long.

    XLA prints the order of axes as `dim_labels`: batch b, features f, input and output
    channels i and o. Only this order, without reversal, is on the fast path. The energy
    has two operations, its gradient in images four, and a gradient in both operands of
    each takes two more for each. Of 16 channels only those are convolutions that give a
    kernel; of 17 all are.
    """

    @jax.jit
    def run(params, batch):
        def step(carry, _):
            gradient = jax.grad(function, (0, 1))(*carry)
            return jax.tree.map(lambda a, b: a - 0.1 * b, carry, gradient), None

        return jax.lax.scan(step, (params, batch), length=3)[0]

    for channels, expected in num_convolutions.items():
        program = run.lower(*two_kernels(channels)).compile().as_text()
        lines = program.splitlines()
        assert sum(" while(" in line for line in lines) == 1
        found = [line for line in lines if " convolution(" in line]
        assert len(found) == expected
        for line in found:
            assert "dim_labels=b01f_01io->b01f" in line
            assert "rhs_reversal" not in line


def test_the_form_is_chosen_by_the_platform_of_the_program():
    """Compiled here for another platform, it has the six convolutions that `lax` has,
    and none of the gathers, products and copies of the forms for a CPU."""
    gradient = jax.jit(jax.grad(energy_of_two, (0, 1))).trace(*two_kernels(3))

    def count(platform, operation):
        text = gradient.lower(lowering_platforms=(platform,)).as_text()
        return text.count(f"stablehlo.{operation}")

    for platform in ("cuda", "rocm", "tpu"):
        assert count(platform, "convolution") == 6
        assert count(platform, "dot_general") == count(platform, "concatenate") == 0
    assert count("cpu", "convolution") == 2
    assert count("cpu", "dot_general") == 4


def test_on_a_mesh_convolutions_are_those_of_one_device():
    """With the check of what varies over devices, the gradient in a kernel is the sum
    of those of the devices' examples. With an explicit axis, `lax` propagates it."""
    kinds = jax.sharding.AxisType
    plain, typed = (
        jax.make_mesh((2,), ("d",), (kind,)) for kind in (kinds.Auto, kinds.Explicit)
    )
    specs = (jax.P(), jax.P("d"))

    def energy(params, batch):
        return jnp.sum(jnp.sin(our_convolution(batch, params[0], (2, 2), "SAME")))

    def on_two(gradient, params, batch):
        mapped = jax.shard_map(gradient, mesh=plain, in_specs=specs, out_specs=specs)
        return jax.jit(mapped)(params, batch)

    def explicit(gradient, params, batch):
        with jax.set_mesh(typed):
            sharded = jax.device_put(batch, jax.P("d"))
            (found,) = jax.jit(gradient)(params, sharded)
            assert jax.typeof(found).sharding.spec[0] == "d"
            return (found,)

    params, batch = two_kernels(17)
    batch = jnp.concatenate([batch, batch[:1]])
    for function, arguments, run in (
        (energy_of_two, (0, 1), on_two),
        (squared_gradient, (0, 1), on_two),
        (energy, (1,), explicit),
    ):
        gradient = jax.grad(function, arguments)
        found, expected = run(gradient, params, batch), gradient(params, batch)
        for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
            # Sums of at most 4 * 17 * 36 terms in another order, as above.
            atol = 7e-5 * np.max(np.abs(want))
            np.testing.assert_allclose(got, want, rtol=0.0, atol=atol)


def test_large_images_are_no_products_and_empty_maps_are_lax_s():
    """25 windows of 256 x 256 x 16 elements would be 105 MB an example."""
    module = sys.modules["ebmjax.networks.convolution_forms"]
    five, three = (
        module.Options((1, 1), ((pad, pad), (pad, pad)), None) for pad in (2, 1)
    )
    assert not module.is_product((1, 256, 256, 16), (5, 5, 16, 4), five)
    assert module.is_product((1, 32, 32, 3), (3, 3, 3, 4), three)
    x = images(1, (2, 2, 3))
    empty = our_convolution(x, jnp.ones((5, 5, 3, 4)), (1, 1), "VALID")
    assert empty.shape == (1, 0, 0, 4)
    assert our_convolution(x, jnp.ones((1, 1, 3, 0)), (1, 1), "VALID").shape[-1] == 0
    none = jax.vmap(our_convolution, (0, None, None, None))(
        jnp.ones((0, 1, 4, 4, 3)), jnp.ones((3, 3, 3, 2)), (1, 1), "SAME"
    )
    assert none.shape == (0, 1, 4, 4, 2)
    with pytest.raises(TypeError, match="dtype"):
        our_convolution(x, jnp.ones((1, 1, 3, 2), jnp.bfloat16), (1, 1), "VALID")


@pytest.mark.parametrize(
    "options, is_left",
    [
        ({}, False),
        ({"strides": 2, "padding": "VALID"}, False),
        ({"kernel_dilation": 2}, True),
        ({"input_dilation": 2, "padding": 1}, True),
        ({"feature_group_count": 2}, True),
    ],
)
def test_nothing_is_left_to_lax_of_a_plain_layer_of_flax(options, is_left):
    layer = nn.Conv(4, (3, 3), conv_general_dilated=networks.convolution, **options)
    x = images(2, (6, 6, 4))
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    program = str(jax.make_jaxpr(layer.apply)(variables, x))
    assert ("conv_general_dilated[" in program) == is_left


def test_convolution_leaves_to_lax_what_it_does_not_know():
    x = images(2, (6, 6, 4))
    dilated = nn.Conv(
        4, (3, 3), kernel_dilation=2, conv_general_dilated=networks.convolution
    )
    grouped = nn.Conv(
        4, (3, 3), feature_group_count=2, conv_general_dilated=networks.convolution
    )
    for layer in (dilated, grouped):
        variables = jax.jit(layer.init)(jax.random.key(0), x)
        plain = layer.copy(conv_general_dilated=None)
        np.testing.assert_array_equal(
            jax.jit(layer.apply)(variables, x), jax.jit(plain.apply)(variables, x)
        )
    line = nn.Conv(4, (3,), conv_general_dilated=networks.convolution)
    variables = jax.jit(line.init)(jax.random.key(0), x[0])
    plain = line.copy(conv_general_dilated=None)
    np.testing.assert_array_equal(
        line.apply(variables, x[0]), plain.apply(variables, x[0])
    )


# --- every network


@pytest.mark.parametrize("name", NETWORKS)
def test_no_example_has_any_say_in_the_energy_of_another(name):
    network = NETWORKS[name]()
    params, x = random_params(network), images(3)
    together = jax.jit(jax.vmap(network.apply, (None, 0)))
    one_alone = jax.jit(network.apply)
    alone = jnp.stack([one_alone(params, one) for one in x])
    energies = together(params, x)
    # A batched product may sum in another order: float32 rounding of some hundred
    # terms, or, in bfloat16, one rounding of 2^-8 the other way.
    tolerance = 1e-2 if "bfloat16" in name else 1e-5
    np.testing.assert_allclose(energies, alone, rtol=tolerance, atol=tolerance)
    changed = together(params, x.at[0].add(1.0))
    np.testing.assert_array_equal(changed[1:], energies[1:])
    assert abs(changed[0] - energies[0]) > 1e-3  # the change was one that matters


@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_is_refused_with_both_shapes(name):
    network = NETWORKS[name]()
    params, _ = jax.eval_shape(network.init, jax.random.key(0))
    with pytest.raises(ValueError, match=r"\(8, 8, 2\), got \(3, 8, 8, 2\)"):
        jax.eval_shape(network.apply, params, images(3))
    with pytest.raises(ValueError, match=r"\(8, 8, 2\), got \(1, 8, 2\)"):
        jax.eval_shape(network.apply, params, jnp.zeros((1, 8, 2)))


@pytest.mark.parametrize("name", ["mlp", "short_run", "resnet"])
def test_weights_and_biases_start_uniform_up_to_one_over_the_root_of_fan_in(name):
    """As PyTorch's layers do: see `networks.layer`. A uniform draw on [-b, b] has
    variance b^2 / 3; that of n draws has relative standard error sqrt(0.8 / n)."""
    params, model_state = jax.jit(NETWORKS[name]().init)(jax.random.key(0))
    assert model_state == {}
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    kernels = {path[:-1]: leaf for path, leaf in leaves if path[-1].key == "kernel"}
    num_checked = 0
    for path, leaf in leaves:
        if path[0].key.startswith("Block") and path[-2].key == "Conv_1":
            np.testing.assert_array_equal(leaf, 0.0)
        elif path[-1].key == "kernel" or path[:-1] in kernels:
            bound = np.prod(kernels[path[:-1]].shape[:-1]) ** -0.5
            assert np.max(np.abs(leaf)) <= bound
            if leaf.size >= 32:
                tolerance = 5 * (0.8 / leaf.size) ** 0.5
                np.testing.assert_allclose(
                    np.mean(np.square(leaf)), bound**2 / 3, rtol=tolerance
                )
                num_checked += 1
    assert num_checked >= 2


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: networks.mlp_energy(SHAPE, widths=(16,), **options),
        lambda **options: networks.short_run_energy(SHAPE, width=4, **options),
        lambda **options: networks.resnet_energy(
            SHAPE, widths=(4,), num_blocks=1, **options
        ),
    ],
)
def test_with_leaky_relus_the_energy_is_piecewise_linear_and_with_swish_it_is_not(make):
    x, v = images(2)

    def hvp(network):
        params = random_params(network)
        gradient = jax.grad(functools.partial(network.apply, params))
        return jax.jit(lambda x, v: jax.jvp(gradient, (x,), (v,))[1])(x, v)

    np.testing.assert_array_equal(hvp(make()), 0.0)
    assert jnp.max(jnp.abs(hvp(make(activation="swish")))) > 1e-4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: networks.mlp_energy((2,), widths=(8, 0)), r"widths .* got \(8, 0\)"),
        (
            lambda: networks.mlp_energy((2,), widths=(8,), activation="swisch"),
            "activation must be one of .*'swish'.* got 'swisch'",
        ),
        (lambda: networks.short_run_energy((8, 8), width=4), r"got \(8, 8\)"),
        (lambda: networks.short_run_energy(SHAPE, width=0), "width .* got 0"),
        (
            lambda: networks.short_run_energy(SHAPE, width=4, compute_dtype="half"),
            "compute_dtype .*'bfloat16'.* got 'half'",
        ),
        (
            lambda: networks.resnet_energy(SHAPE, widths=(4,) * 4),
            r"multiples of 16, got \(8, 8, 2\)",
        ),
        (lambda: networks.resnet_energy(SHAPE, widths=()), r"widths .* got \(\)"),
        (
            lambda: networks.resnet_energy(SHAPE, widths=(4,), num_blocks=0),
            "num_blocks .* got 0",
        ),
        (
            lambda: networks.resnet_energy(SHAPE, widths=(4,), normalization="batch"),
            "normalization must be one of .*'group'.* got 'batch'",
        ),
        (
            lambda: networks.resnet_energy(
                SHAPE, widths=(4, 6), normalization="group", num_groups=4
            ),
            r"num_groups must divide \(4, 6\), got 4",
        ),
        (
            lambda: networks.wide_resnet_energy(SHAPE, depth=12),
            "depth must be 6 n \\+ 4 .* got 12",
        ),
        (
            lambda: networks.wide_resnet_energy(SHAPE, widen_factor=0),
            "widen_factor .* got 0",
        ),
        (lambda: networks.wide_resnet_energy((6, 8, 1)), r"multiples of 4, got \(6"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_was_given(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- one by one


@pytest.mark.quick
def test_an_mlp_on_paper():
    network = networks.mlp_energy((2, 1), widths=(2,))
    params = {
        "Dense_0": {
            "kernel": jnp.array([[1.0, 2.0], [3.0, -1.0]]),
            "bias": jnp.ones(2),
        },
        "Dense_1": {"kernel": jnp.array([[1.0], [10.0]]), "bias": jnp.array([0.5])},
    }
    # Hidden: 1 + 1 + 6 = 8, and 1 + 2 - 2 = 1; at -x: 1 - 7 = -6 and 1 - 0 = 1.
    x = jnp.array([[1.0], [2.0]])
    np.testing.assert_allclose(network.apply(params, x), 8 + 10 + 0.5, rtol=1e-6)
    np.testing.assert_allclose(
        network.apply(params, -x), -6 * 0.2 + 10 + 0.5, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("shape", "square", "linear"),
    [
        # 3x3: 9 c n + n; 4x4: 16 * 2 n^2 + 2 n, 128 n^2 + 4 n, 512 n^2 + 8 n, and
        # 16 * 64 n^2 + 8 n once capped; the last: pixels * channels + 1.
        ((8, 8, 1), 32, 10 + 2 + 16 * 2),
        ((28, 28, 1), 672, 10 + 2 + 4 + 8 + 9 * 8),  # 28, 14, 7, 3: the map is 3x3
        ((32, 32, 3), 672, 28 + 2 + 4 + 8 + 16 * 8),
        ((64, 64, 3), 672 + 1024, 28 + 2 + 4 + 8 + 8 + 16 * 8),
        ((128, 128, 3), 672 + 2048, 28 + 2 + 4 + 8 + 8 + 8 + 16 * 8),
    ],
)
def test_the_short_run_energy_has_as_many_parameters_as_on_paper(shape, square, linear):
    for n in (32, 64, 128):
        network = networks.short_run_energy(shape, width=n)
        assert num_params(network) == square * n**2 + linear * n + 1


def test_the_short_run_energy_of_cifar_has_the_released_codes_parameters():
    for width, count in ((32, 693_569), (64, 2_763_393), (128, 11_031_809)):
        network = networks.short_run_energy((32, 32, 3), width=width)
        assert num_params(network) == count


def test_the_short_run_energy_on_paper():
    """One tap a layer; with padding 1 the strided one at [1, 1] takes pixel 2 i."""
    network = networks.short_run_energy((8, 8, 1), width=1, negative_slope=0.5)
    params = zero_params(network)
    params["Conv_0"]["kernel"][1, 1, 0, 0] = 1.0
    params["Conv_1"]["kernel"][1, 1, 0, 1] = -3.0
    weights = np.arange(16.0, dtype=np.float32)  # rows, columns, and of them channel 1
    params["Dense_0"]["kernel"].reshape(16, 2)[:, 1] = weights
    params["Dense_0"]["bias"][:] = 7.0
    x = np.asarray(images(1, (8, 8, 1)))[0]
    h = leaky(-3.0 * leaky(x[::2, ::2, 0], 0.5), 0.5)
    expected = np.sum(weights * h.reshape(-1)) + 7.0
    energy = jax.jit(network.apply)
    np.testing.assert_allclose(energy(params, x), expected, rtol=1e-5)


def test_in_bfloat16_energy_and_gradients_are_float32_and_off_by_rounding_only():
    """Rounding errors are bounded by those of the same sums of absolute values.

    Of relative size 2^-8 each: the image; in both layers the kernel, its product, the
    bias, the sum, the slope and its product. As leaky ReLUs stretch nothing, the energy
    with all parameters and the image made positive bounds what they are relative to.
    """
    options = {"width": 16, "compute_dtype": "bfloat16"}
    rounded = networks.short_run_energy((8, 8, 1), **options)
    exact = networks.short_run_energy((8, 8, 1), width=16)
    params, _ = jax.jit(rounded.init)(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}

    grads = jax.jit(jax.value_and_grad(rounded.apply, (0, 1)))
    expected_grads = jax.jit(jax.value_and_grad(exact.apply, 1))
    bound = jnp.expm1(13 * jnp.log1p(2.0**-8))
    for x in images(4, (8, 8, 1)):
        energy, gradients = grads(params, x)
        leaves = jax.tree.leaves((energy, gradients))
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
        size, _ = expected_grads(jax.tree.map(jnp.abs, params), jnp.abs(x))
        expected_energy, expected = expected_grads(params, x)
        error = jnp.abs(energy - expected_energy)
        assert 0 < error < bound * size
        # Of the gradient the same few roundings, 1e-2, and leaky ReLUs that change
        # sides: of units within 1e-2 of 0, about one in a hundred, worth 0.8 each, so
        # 0.8 sqrt(0.01) = 0.08 of the norm.
        error = jnp.linalg.norm((gradients[1] - expected).reshape(-1))
        assert 0 < error < 0.1 * jnp.linalg.norm(expected.reshape(-1))


def test_the_resnet_on_paper():
    """Blocks that start from zero pass their input on, so only the means remain."""
    network = networks.resnet_energy((8, 8, 1), widths=(1, 1), num_blocks=2)
    params = zero_params(network)
    params["Conv_0"]["kernel"][1, 1, 0, 0] = 1.0
    params["Dense_0"]["kernel"][:] = 1.0
    x = np.asarray(images(1, (8, 8, 1)))[0]
    pixels = x.reshape(2, 4, 2, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(
        jax.jit(network.apply)(params, x), leaky(pixels).sum(), rtol=1e-5, atol=1e-6
    )
    started, _ = jax.jit(network.init)(jax.random.key(0))
    gradient = jax.jit(jax.grad(network.apply))(started, x)
    for block in (f"Block_{i}" for i in range(4)):
        np.testing.assert_array_equal(gradient[block]["Conv_0"]["kernel"], 0.0)
        assert jnp.max(jnp.abs(gradient[block]["Conv_1"]["kernel"])) > 1e-6


def test_group_normalisation_is_over_all_pixels_and_knows_no_rows():
    """Without neighbours in the kernels, rows and columns may change places."""
    network = networks.resnet_energy(
        (8, 8, 1), widths=(4,), normalization="group", num_groups=2
    )
    params = jax.tree_util.tree_map(
        lambda p: (
            np.pad(p[1:2, 1:2], ((1, 1), (1, 1), (0, 0), (0, 0)))
            if p.shape[:2] == (3, 3)
            else p
        ),
        random_params(network),
    )
    x = images(1, (8, 8, 1))[0]
    energy = jax.jit(network.apply)
    np.testing.assert_allclose(
        energy(params, x), energy(params, x.swapaxes(0, 1)), rtol=1e-5
    )


def test_the_wide_resnet_on_paper():
    """One tap a layer: the first block adds leaky(leaky(x)), the others skip pixels."""
    network = networks.wide_resnet_energy((8, 8, 1), depth=10, widen_factor=1)
    params = zero_params(network)
    params["Conv_0"]["kernel"][1, 1, 0, 0] = 1.0
    for name in ("Conv_0", "Conv_1"):
        params["Block_0"][name]["kernel"][1, 1, 0, 0] = 1.0
    for name in ("Block_1", "Block_2"):
        params[name]["Conv_2"]["kernel"][0, 0, 0, 0] = 1.0
    params["Dense_0"]["kernel"][0] = 2.0
    x = np.asarray(images(1, (8, 8, 1)))[0]
    pixels = x[::4, ::4]
    expected = 2.0 * leaky(pixels + leaky(leaky(pixels))).mean()
    energy = jax.jit(network.apply)
    np.testing.assert_allclose(energy(params, x), expected, rtol=1e-5)


def test_the_wide_resnet_has_as_many_parameters_as_on_paper():
    """A 3x3 convolution from a to b has 9 a b + b, a shortcut a b + b.

    At depth 10 and factor 1: stem 27 * 16 + 16 = 448; 16 to 16, 2 * 2,320; 16 to 32,
    4,640 + 9,248 + 544 = 14,432; 32 to 64, 18,496 + 36,928 + 2,112 = 57,536; head 65.
    WRN-28-10: 448 + 1,639,840 + 6,966,080 + 27,858,560 + 641. With 10 classes and the
    norms it is the 36.5 million of the paper.
    """
    small = networks.wide_resnet_energy((32, 32, 3), depth=10, widen_factor=1)
    assert num_params(small) == 448 + 4_640 + 14_432 + 57_536 + 65
    assert num_params(networks.wide_resnet_energy((32, 32, 3))) == 36_465_569


# --- from_module


class Spectral(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        layer = nn.SpectralNorm(nn.Dense(3, use_bias=False), collection_name="spectral")
        return layer(x, update_stats=train)


def test_what_is_mutable_stays_out_of_the_parameters_and_moves_only_in_training():
    network = networks.from_module(Spectral(), (5,))
    params, initial = network.init(jax.random.key(0))
    assert list(initial) == ["spectral"] and list(params) == ["Dense_0"]
    x = images(1, (5,))[0]
    y, kept = network.apply_stateful(params, initial, x)
    jax.tree.map(np.testing.assert_array_equal, kept, initial)
    np.testing.assert_array_equal(network.apply(params, x), y)

    state = initial
    refresh = jax.jit(functools.partial(network.apply_stateful, train=True))
    for _ in range(100):  # power iteration: the error falls by (s2 / s1)^2 each time
        y, state = refresh(params, state, x)
    kernel = np.asarray(params["Dense_0"]["kernel"])
    largest = np.linalg.svd(kernel, compute_uv=False)[0]
    np.testing.assert_allclose(y, x @ kernel / largest, rtol=1e-4)


class Bilinear(nn.Module):
    @nn.compact
    def __call__(self, x, latent, scale=1.0):
        return scale * jnp.sum(x * nn.Dense(2, use_bias=False)(latent))


def test_a_network_of_two_arguments_checks_both_and_passes_options_on():
    network = networks.from_module(Bilinear(), (2,), (3,))
    params = {"Dense_0": {"kernel": jnp.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])}}
    x, latent = jnp.array([1.0, 10.0]), jnp.array([3.0, 4.0, 5.0])
    assert network.apply(params, x, latent) == 83.0  # 1 * 3 + 10 * 2 * 4
    assert network.apply(params, x, latent, scale=2.0) == 166.0
    assert network.apply_stateful is None
    with pytest.raises(
        ValueError, match=r"\(\(2,\), \(3,\)\), got \(\(2,\), \(4, 3\)\)"
    ):
        network.apply(params, x, jnp.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"\(\(2,\), \(3,\)\), got \(2,\)"):
        network.apply(params, x)


@pytest.mark.usefixtures("spelling")
@pytest.mark.parametrize("size", [(7, 7), (8, 6), (4, 4)])
@pytest.mark.parametrize(
    "stride, window, pads", [(2, 5, 2), (2, 4, 1), (1, 3, 1), (1, 3, -1)]
)
def test_a_transposed_convolution_is_the_transpose(size, stride, window, pads):
    """<conv(x), y> = <x, transpose(y)> for lax's convolution, in float64; and so are
    its derivatives, in the map and in the kernel, of both orders."""
    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        kernel = random.standard_normal((window, window, 3, 4))
        x = random.standard_normal((2, *size, 3))
        padding = ((pads, pads), (pads, pads))
        strides = (stride, stride)

        def conv(x, kernel):
            return jax.lax.conv_general_dilated(
                x,
                kernel,
                strides,
                padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )

        y = random.standard_normal(jax.eval_shape(conv, x, kernel).shape)

        def ours(y, kernel):
            return networks.transposed_convolution(y, kernel, strides, padding, size)

        def theirs(y, kernel):
            (image,) = jax.linear_transpose(lambda x: conv(x, kernel), x)(y)
            return image

        def energy(images):
            return lambda y, kernel: jnp.sum(jnp.sin(images(y, kernel)) * x)

        inner = np.vdot(jax.jit(ours)(y, kernel), x)
        expected = np.vdot(jax.jit(conv)(x, kernel), y)
        np.testing.assert_allclose(inner, expected, rtol=1e-12)

        @functools.partial(jax.jit, static_argnums=0)  # one program of all
        def derivatives(images, y, kernel):
            found = []
            for argument in (0, 1):
                gradient = jax.grad(energy(images), argument)
                along = jnp.sin(y), jnp.cos(kernel)
                found += [gradient(y, kernel)]
                found += [jax.jvp(gradient, (y, kernel), along)[1]]
                bent = functools.partial(
                    lambda g, *a: jnp.sum(jnp.cos(g(*a))), gradient
                )
                found += jax.grad(bent, (0, 1))(y, kernel)
            return found

        for mine, other in zip(
            derivatives(ours, y, kernel), derivatives(theirs, y, kernel)
        ):
            np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match=r"images of size \(99, 99\) has size .*got"):
        networks.transposed_convolution(y, kernel, strides, padding, (99, 99))
