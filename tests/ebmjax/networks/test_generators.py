"""Networks of generators, bases, their energies and statistics: sizes as published,
layers as on paper, normalisation that looks where it may."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebmjax import networks
from ebmjax.networks.layer import TransposedConv
from ebmjax.types import BATCH, DEVICE

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)


def num_params(network):
    params, _ = jax.eval_shape(network.init, KEY)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def trio(kind, shape, **options):
    return [
        getattr(networks, f"{kind}_{role}")(
            shape, **options, **({} if role == "energy" else {"latent_dim": 128})
        )
        for role in ("generator", "energy", "statistics")
    ]


@pytest.mark.parametrize(
    "kind, shape, options, sizes",
    [
        ("strided", (28, 28, 1), {}, (4_568_961, 4_305_409, 4_697_729)),
        ("strided", (28, 28, 3), {}, (4_572_163, 4_308_609, 4_700_929)),
        ("strided", (28, 28, 4), {}, (4_573_764, 4_310_209, 4_702_529)),
        ("convnet", (32, 32, 3), {}, (3_812_355, 2_935_873, 4_108_481)),
        (
            "convnet",
            (64, 64, 3),
            {"widths": (64, 128, 256, 512, 512), "is_normal": False},
            (8_008_195, 9_490_497, 10_663_105),
        ),
    ],
)
def test_networks_of_images_have_as_many_parameters_as_published(
    kind, shape, options, sizes
):
    found = trio(kind, shape, **options)
    assert tuple(map(num_params, found)) == sizes
    generator, energy, statistics = found
    params, state = jax.eval_shape(generator.init, KEY)
    image = jax.eval_shape(
        lambda p, s, z: generator.apply_stateful(p, s, z)[0],
        params,
        state,
        jnp.zeros(128),
    )
    assert image.shape == shape and list(state) == ["batch_stats"]
    params, state = jax.eval_shape(energy.init, KEY)
    assert jax.eval_shape(energy.apply, params, image).shape == () and state == {}
    params, state = jax.eval_shape(statistics.init, KEY)
    value = jax.eval_shape(statistics.apply, params, image, jnp.zeros(128))
    assert value.shape == () and state == {}


def dense(length, features):
    return (length + 1) * features


def conv(size, channels, features):
    return (size**2 * channels + 1) * features


SIZES = {  # of the base, with two numbers a channel for normalisation, and the energy
    "sngan": (
        dense(128, 4 * 4 * 512)
        + conv(4, 512, 256)
        + conv(4, 256, 128)
        + conv(4, 128, 64)
        + conv(3, 64, 3)
        + 2 * (512 + 256 + 128 + 64),
        conv(3, 3, 64)
        + conv(4, 64, 128)
        + conv(3, 128, 128)
        + conv(4, 128, 256)
        + conv(3, 256, 256)
        + conv(4, 256, 512)
        + conv(3, 512, 512)
        + dense(4 * 4 * 512, 1),
    ),
    "sngan_resnet": (
        dense(128, 4 * 4 * 128) + 6 * conv(3, 128, 128) + conv(3, 128, 3) + 2 * 7 * 128,
        conv(3, 3, 128)
        + conv(1, 3, 128)
        + conv(1, 128, 128)
        + 7 * conv(3, 128, 128)
        + dense(128, 1),
    ),
    "dcgan": (
        dense(128, 4 * 4 * 256)
        + conv(4, 256, 128)
        + conv(4, 128, 64)
        + conv(4, 64, 3)
        + 2 * (256 + 128 + 64),
        conv(4, 3, 64) + conv(4, 64, 128) + conv(4, 128, 256) + dense(4 * 4 * 256, 1),
    ),
}


@pytest.mark.parametrize("kind", SIZES)
def test_bases_and_their_energies_have_the_layers_that_are_published(kind):
    base = getattr(networks, f"{kind}_base")((32, 32, 3), latent_dim=128)
    energy = getattr(networks, f"{kind}_energy")((32, 32, 3))
    assert (num_params(base), num_params(energy)) == SIZES[kind]


@pytest.mark.parametrize(
    "dims, widths, sizes",
    [
        ((2, 2), ((512,) * 3, (512,) * 3), (527_874, 527_361, 528_385)),
        ((121, 32), ((64, 128), (256, 128, 128)), (26_041, 80_769, 88_961)),
    ],
)
def test_networks_of_vectors_have_as_many_parameters_as_published(dims, widths, sizes):
    (dim, latent_dim), (generator_widths, energy_widths) = dims, widths
    found = (
        networks.mlp((latent_dim,), (dim,), widths=generator_widths),
        networks.mlp_energy((dim,), widths=energy_widths),
        networks.mlp_statistics((dim,), latent_dim=latent_dim, widths=energy_widths),
    )
    assert tuple(map(num_params, found)) == sizes


def test_a_statistics_network_of_vectors_sees_both_side_by_side():
    network = networks.mlp_statistics((2,), latent_dim=3, widths=())
    params, _ = jax.jit(network.init)(KEY)
    kernel, bias = (np.asarray(params["Dense_0"][name]) for name in ("kernel", "bias"))
    x, z = np.float32([1.0, 2.0]), np.float32([3.0, 4.0, 5.0])
    exact = np.concatenate([x, z]) @ kernel + bias
    found = jax.jit(network.apply)(params, x, z)
    np.testing.assert_allclose(found, exact[0], rtol=1e-6)


@pytest.mark.parametrize(
    "kind, options, is_normal",
    [
        ("strided", {}, True),
        ("convnet", {}, True),
        ("convnet", {"is_normal": False}, False),
    ],
)
def test_weights_start_as_published(kind, options, is_normal):
    """Kernels of convolutions N(0, .02) and scales N(1, .02), or uniform up to
    1 / sqrt(fan-in) and ones; dense layers and biases uniform in either."""
    generator, *others = trio(kind, (8, 8, 1), widths=(32, 64), **options)
    for network in others:
        params, _ = jax.jit(network.init)(KEY)
        kernel = np.asarray(params["trunk"]["Conv_0"]["kernel"])
        bound = kernel[..., 0].size ** -0.5
        deviation = 0.02 if is_normal else bound / 3**0.5
        np.testing.assert_allclose(
            kernel.std(), deviation, rtol=4 / (2 * kernel.size) ** 0.5
        )
    params, _ = jax.jit(generator.init)(jax.random.key(1))
    params = jax.tree.map(np.asarray, params)
    kernel = params["TransposedConv_0"]["kernel"]
    layers = [layer for layer in params if layer.startswith("BatchNorm")]
    scale = np.concatenate([params[layer]["scale"] for layer in layers])
    fan_in = kernel.shape[0] * kernel.shape[1] * kernel.shape[2]  # PyTorch's: features
    bound = fan_in**-0.5
    deviation = 0.02 if is_normal else bound / 3**0.5
    # Of so many numbers the deviation is known to 4 / sqrt(2 n).
    np.testing.assert_allclose(
        kernel.std(), deviation, rtol=4 / (2 * kernel.size) ** 0.5
    )
    assert (np.abs(kernel).max() <= bound) != is_normal
    assert np.any(scale == 1) != is_normal
    if is_normal:
        np.testing.assert_allclose(scale.std(), 0.02, rtol=4 / (2 * scale.size) ** 0.5)
        np.testing.assert_allclose(scale.mean(), 1, atol=4 * 0.02 / scale.size**0.5)
    np.testing.assert_array_equal(params["BatchNorm_0"]["bias"], 0)
    bias = params["TransposedConv_0"]["bias"]
    assert 0 < np.abs(bias).max() <= bound
    dense = params["Dense_0"]["kernel"]
    assert np.abs(dense).max() <= len(dense) ** -0.5
    np.testing.assert_allclose(
        dense.std(), (3 * len(dense)) ** -0.5, rtol=4 / (2 * dense.size) ** 0.5
    )


@pytest.mark.parametrize("name", ["sngan", "sngan_resnet", "dcgan"])
def test_weights_of_bases_start_from_xavier_s_uniform_law(name):
    """Up to sqrt(6 / (fan-in + fan-out)). The mean square of n draws of U[-b, b] is
    b^2 / 3 with relative standard error sqrt(0.8 / n)."""
    params, _ = jax.jit(GENERATORS[name]().init)(KEY)
    for path, leaf in jax.tree.leaves_with_path(params):
        if path[-1].key == "kernel":
            *window, inputs, outputs = leaf.shape
            bound = (6 / (np.prod(window) * (inputs + outputs))) ** 0.5
            assert np.abs(leaf).max() <= bound
            error = 5 * (0.8 / leaf.size) ** 0.5
            np.testing.assert_allclose(
                np.mean(np.square(leaf)), bound**2 / 3, rtol=error
            )
        elif path[-2].key.startswith(("Conv", "Dense")):
            np.testing.assert_array_equal(leaf, 0.0)


@pytest.mark.quick
def test_a_transposed_layer_spreads_each_pixel_as_on_paper():
    """3x3, stride 2, padding 1, from 2x2 to 4x4: place (i, j) of the map goes to rows 2
    i - 1 + (0, 1, 2), the same of columns, and what is outside is cut off."""
    layer = TransposedConv(1, (4, 4), 3, 2, 1)
    kernel = np.arange(9.0, dtype=np.float32).reshape(3, 3, 1, 1) + 1
    x = np.float32([[1.0, 10.0], [100.0, 1000.0]])[..., None]
    params = {"params": {"kernel": kernel, "bias": np.float32([0.5])}}
    found = np.asarray(jax.jit(layer.apply)(params, x))[..., 0]
    exact = np.full((6, 6), 0.0)
    for i in range(2):
        for j in range(2):
            window = exact[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            window += float(x[i, j, 0]) * np.asarray(kernel[..., 0, 0])
    np.testing.assert_allclose(found, exact[1:5, 1:5] + 0.5, rtol=1e-6)


def copying(network):
    """Returns variables by which layers of one channel copy, and dense ones add up."""
    params, state = jax.jit(network.init)(KEY)

    def copy(path, leaf):
        if path[-1].key == "kernel" and leaf.ndim == 4:
            middle = (len(leaf) - 1) // 2
            return jnp.zeros(leaf.shape).at[middle, middle].set(1.0)
        is_one = path[-1].key in ("kernel", "scale")
        return jnp.full(leaf.shape, 1.0 if is_one else 0.0)

    return jax.tree.map_with_path(copy, params), state


@pytest.mark.parametrize(
    "name, widths, expected",
    [
        ("strided_energy", (1,), -0.2),
        ("convnet_energy", (1, 1), -(0.1**3)),
        ("sngan_energy", (1, 1), -(0.1**3)),
        ("dcgan_energy", (1,), -0.2),
    ],
)
def test_an_energy_that_copies_the_first_pixel_multiplies_it_by_its_slopes(
    name, widths, expected
):
    network = getattr(networks, name)((2, 2, 1), widths=widths)
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]])[..., None]
    params, state = copying(network)
    if state:
        found = [network.apply_stateful(params, state, y)[0] for y in (x, -x)]
    else:
        found = [network.apply(params, y) for y in (x, -x)]
    np.testing.assert_allclose(found, [1.0, expected], rtol=1e-5)


@pytest.mark.parametrize("kind, slope", [("strided", 0.2), ("convnet", 0.1)])
def test_statistics_that_copy_add_the_pixel_and_the_latent(kind, slope):
    network = getattr(networks, f"{kind}_statistics")(
        (1, 1, 1), latent_dim=1, widths=(1,), hidden_width=1
    )
    params, _ = copying(network)
    x = jnp.full((1, 1, 1), -1.0)
    found = [network.apply(params, x, jnp.array([z])) for z in (0.0, 1.5)]
    np.testing.assert_allclose(found, [-(slope**2), 1.5 - slope], rtol=1e-5)


def test_a_residual_energy_that_copies_is_this_number():
    """Means over 2x2 pixels are h = mean relu(x) + mean x after the first block. After
    the second they are a = mean (relu(h) + h), which the last two blocks double."""
    network = networks.sngan_resnet_energy((4, 4, 1), width=1)
    x = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    x[:2, :2] = -np.abs(x[:2, :2])
    h = (np.maximum(x, 0) + x).reshape(2, 2, 2, 2).mean((1, 3))
    a = (np.maximum(h, 0) + h).mean()
    assert a > 0 > h[0, 0]
    found, _ = network.apply_stateful(*copying(network), x[..., None])
    np.testing.assert_allclose(found, 4 * a, rtol=1e-5)


def test_a_residual_base_that_copies_is_this_number():
    """Each of its blocks doubles a positive latent, up to the 1e-5 that batch
    normalisation adds to variances of 1."""
    network = networks.sngan_resnet_base((8, 4, 1), latent_dim=1, width=1, num_blocks=2)
    for z, expected in ((0.3, np.tanh(4 * 0.3)), (-0.3, 0.0)):
        found, _ = network.apply_stateful(*copying(network), jnp.array([z]))
        np.testing.assert_allclose(found, np.full((8, 4, 1), expected), rtol=1e-4)


SHAPE = (8, 12, 2)
GENERATORS = {
    "strided": lambda: networks.strided_generator(SHAPE, latent_dim=3, widths=(4, 8)),
    "convnet": lambda: networks.convnet_generator(SHAPE, latent_dim=3, widths=(4, 8)),
    "sngan": lambda: networks.sngan_base(SHAPE, latent_dim=3, widths=(4, 8)),
    "sngan_resnet": lambda: networks.sngan_resnet_base(
        SHAPE, latent_dim=3, width=4, num_blocks=1
    ),
    "dcgan": lambda: networks.dcgan_base(SHAPE, latent_dim=3, widths=(4, 8)),
}


def train(network, params, state, latents):
    """Images and statistics of latents `[devices, n, latent_dim]`, as in training."""

    def one(z):
        return network.apply_stateful(params, state, z, train=True)

    of_batch = jax.vmap(one, out_axes=(0, None), axis_name=BATCH)
    return jax.vmap(of_batch, axis_name=DEVICE)(latents)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_s_batch_statistics(name):
    """Images in [-1, 1]; of the same latents on one device and on two the same images;
    evaluation by what training left sees one latent alone, and is what training would
    give where the running statistics are the batch's."""
    network = GENERATORS[name]()
    params, state = jax.jit(network.init)(KEY)
    latents = np.random.default_rng(1).normal(size=(12, 3)).astype(np.float32)
    trained = jax.jit(functools.partial(train, network))
    images, renewed = jax.tree.map(np.asarray, trained(params, state, latents[None]))
    assert images.shape == (1, 12, *SHAPE) and np.abs(images).max() <= 1
    halves, of_halves = trained(params, state, latents.reshape(2, 6, 3))
    halves, of_halves = jax.tree.map(np.asarray, (halves, of_halves))
    np.testing.assert_allclose(
        halves.reshape(12, *SHAPE), images[0], rtol=1e-4, atol=1e-5
    )
    for one, two in zip(
        jax.tree.leaves(renewed), jax.tree.leaves(of_halves), strict=True
    ):
        np.testing.assert_allclose(two[0], two[1], rtol=1e-6)
        np.testing.assert_allclose(two[0], one[0], rtol=1e-4, atol=1e-6)
    # A tenth of the way each time: after so many the statistics are the batch's.
    for _ in range(150):
        state = jax.tree.map(lambda x: np.asarray(x)[0], renewed)
        _, renewed = trained(params, state, latents[None])
    single, kept = jax.jit(network.apply_stateful)(params, state, latents[4])
    np.testing.assert_allclose(single, images[0, 4], rtol=1e-2, atol=2e-3)
    jax.tree.map(np.testing.assert_array_equal, kept, state)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_bias_that_normalisation_removes_is_fixed(name):
    """Its gradient is 0 and no rounding error; the last layer's, of the image, is not.
    The plain base of SNGAN ends in another kind of layer."""
    network = GENERATORS[name]()
    params, state = jax.jit(network.init)(KEY)
    latents = np.random.default_rng(1).normal(size=(1, 4, 3)).astype(np.float32)
    slopes = np.random.default_rng(2).normal(size=(1, 4, *SHAPE)).astype(np.float32)

    def loss(params):
        return jnp.sum(slopes * train(network, params, state, latents)[0])

    gradient = jax.jit(jax.grad(loss))(params)
    layers = sorted(layer for layer in gradient if layer.startswith("TransposedConv"))
    is_free = [bool(np.any(gradient[layer]["bias"])) for layer in layers]
    free = {"strided": 1, "convnet": 1, "dcgan": 1}.get(name, 0)
    assert is_free == [False] * (len(layers) - free) + [True] * free
    for layer in layers:
        assert np.any(gradient[layer]["kernel"])


ENERGIES = {
    "sngan": lambda: networks.sngan_energy(SHAPE, widths=(4, 8)),
    "sngan_resnet": lambda: networks.sngan_resnet_energy(SHAPE, width=4),
    "dcgan": lambda: networks.dcgan_energy(SHAPE, widths=(4, 8)),
}


@pytest.mark.parametrize("name", ENERGIES)
def test_spectral_normalisation_forgets_the_scale_of_each_matrix(name):
    """Every kernel but an unnormalised last one times 7: the energy is the same, its
    biases being 0; and the vectors move whatever the example."""
    network = ENERGIES[name]()
    params, state = jax.jit(network.init)(KEY)
    params, state = jax.tree.map(np.asarray, (params, state))
    assert list(state) == ["spectral"]
    x, other = np.random.default_rng(2).normal(size=(2, *SHAPE)).astype(np.float32)
    renew = jax.jit(functools.partial(network.apply_stateful, train=True))
    value, kept = jax.jit(network.apply_stateful)(params, state, x)
    jax.tree.map(np.testing.assert_array_equal, kept, state)
    last = "Dense_0" if name == "sngan" else None

    def scaled(path, leaf):
        is_kernel = path[-1].key == "kernel" and path[0].key != last
        return 7 * leaf if is_kernel else leaf

    larger = jax.tree.map_with_path(scaled, params)
    assert any(
        np.any(a != b)
        for a, b in zip(jax.tree.leaves(larger), jax.tree.leaves(params), strict=True)
    )
    # Stored singular values are of the last renewal, as the vectors are.
    found, _ = renew(larger, state, x)
    np.testing.assert_allclose(found, value, rtol=2e-3, atol=1e-5)
    _, one = renew(params, state, x)
    _, two = renew(params, state, other)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), one, state)
    assert any(jax.tree.leaves(moved))


@pytest.mark.parametrize("name", ENERGIES)
def test_after_many_renewals_every_matrix_has_the_largest_singular_value_one(name):
    network = ENERGIES[name]()
    params, state = jax.jit(network.init)(KEY)
    x = jnp.zeros(SHAPE)
    renew = jax.jit(
        lambda state: network.apply_stateful(params, state, x, train=True)[1]
    )
    for _ in range(200):
        state = renew(state)
    kernels = {
        path[0].key: np.asarray(leaf).reshape(-1, leaf.shape[-1])
        for path, leaf in jax.tree.leaves_with_path(params)
        if path[-1].key == "kernel"
    }
    checked = 0
    for path, leaf in jax.tree.leaves_with_path(state):
        text = jax.tree_util.keystr(path)
        if "sigma" not in text:
            continue
        (name,) = [kernel for kernel in kernels if f"{kernel}/" in text]
        largest = np.linalg.svd(kernels[name], compute_uv=False)[0]
        np.testing.assert_allclose(leaf, largest, rtol=1e-4, err_msg=text)
        checked += 1
    assert checked >= len(kernels) - 1


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: networks.sngan_base((10, 8, 1), latent_dim=2), "multiples of 8"),
        (lambda: networks.sngan_energy((10, 8, 1)), "multiples of 8"),
        (lambda: networks.convnet_energy((10, 8, 1)), "multiples of 8"),
        (lambda: networks.convnet_generator((10, 8, 1), latent_dim=2), "les of 8"),
        (lambda: networks.convnet_statistics((10, 8, 1), latent_dim=2), "les of 8"),
        (lambda: networks.strided_energy((8, 8)), "must be .height"),
        (lambda: networks.strided_energy((8, 8, 1), widths=()), "widths must be"),
        (lambda: networks.strided_energy((8, 8, 1), widths=(8, 0)), "widths must be"),
        (  # a multiple of twice the number of blocks, and not of its power of two
            lambda: networks.sngan_resnet_base((12, 12, 1), latent_dim=2, num_blocks=3),
            "multiples of 8",
        ),
        (
            lambda: networks.strided_generator((8, 8, 1), latent_dim=0),
            "latent_dim must be",
        ),
        (lambda: networks.mlp_statistics((2,), latent_dim=2, widths=(0,)), "widths"),
    ],
)
def test_what_cannot_be_built_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_batch_statistics_need_both_axes():
    network = GENERATORS["strided"]()
    params, state = jax.eval_shape(network.init, KEY)
    params, state = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), (params, state))
    with pytest.raises(NameError, match="unbound axis name"):
        network.apply_stateful(params, state, jnp.zeros(3), train=True)
