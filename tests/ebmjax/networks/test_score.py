"""Networks that know a noise scale: on paper, by their symmetries, and trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ebmjax import networks, objectives, training
from ebmjax.networks import score

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE = (8, 8, 2)
MAKES = {
    "unet": functools.partial(networks.unet, SHAPE, widths=(4, 8), activation="swish"),
    "noise_mlp": functools.partial(networks.noise_mlp, SHAPE, widths=(16, 8)),
}
every_network = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


def random_params(network, seed=0):
    """None zero, as the last layer starts: that would hide all others."""
    shapes, _ = jax.eval_shape(network.init, jax.random.key(0))
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: 0.3 * random.standard_normal(leaf.shape, np.float32), shapes
    )


def example():
    return jnp.asarray(np.random.default_rng(1).normal(size=SHAPE), jnp.float32)


@pytest.mark.slow
@every_network
def test_division_is_all_that_an_unconditional_score_knows_of_the_noise(make):
    network = make(conditioning="division")
    params, x = random_params(network), example()
    one = network.apply(params, x, 1.0)
    np.testing.assert_allclose(network.apply(params, x, 0.1), 10 * one, rtol=1e-5)
    assert one.shape == SHAPE and jnp.abs(one).min() > 0
    told = make()
    params = random_params(told)
    scaled = jnp.sqrt(1 + jnp.square(jnp.array([1.0, 0.1])))
    # The same field's argument: only the embedding tells the scales apart.
    first, second = (
        noise_scale * told.apply(params, x * scale, noise_scale)
        for scale, noise_scale in zip(scaled, (1.0, 0.1))
    )
    assert jnp.abs(first - second).max() > 0.01


@every_network
def test_an_embedded_score_sees_data_and_noise_in_units_of_their_own(make, monkeypatch):
    """Without the embedding it is field(x / sqrt(1 + s^2)) / s."""
    monkeypatch.setattr(score, "embed", lambda scale: jnp.ones(32) + 0 * scale)
    network, x = make(), example()
    params, apply = random_params(network), jax.jit(network.apply)
    one = np.asarray(apply(params, 2**0.5 * x, 1.0))
    three = np.asarray(apply(params, 10**0.5 * x, 3.0))
    np.testing.assert_allclose(3 * three, one, rtol=2e-4, atol=1e-5)


@every_network
def test_an_energy_is_the_inner_product_with_the_same_field(make):
    """-<x, field> / s = -<x, score>, with the score of the same parameters."""
    x = example()
    for conditioning in score.CONDITIONINGS:
        network = make(conditioning=conditioning)
        scalar = make(conditioning=conditioning, is_energy=True)

        @jax.jit
        def both(params, x, scalar=scalar, network=network):
            return scalar.apply(params, x, 0.5), network.apply(params, x, 0.5)

        energy, found = map(np.asarray, both(random_params(network), x))
        assert energy.shape == ()
        np.testing.assert_allclose(energy, -np.sum(x * found), rtol=1e-5)


def test_scales_of_a_ladder_are_told_apart():
    """Neighbours by their fine frequencies, ends by the coarse: a circle each."""
    scales = jnp.asarray(np.geomspace(0.01, 100, 400), jnp.float32)
    embedded = np.asarray(jax.jit(jax.vmap(score.embed))(scales))
    np.testing.assert_allclose((embedded**2).sum(1), score.NUM_FREQUENCIES, rtol=1e-5)
    squares = ((embedded[:, None] - embedded[None]) ** 2).sum(-1)
    squares = squares + 100 * np.eye(len(scales))
    gaps = np.abs(np.subtract.outer(range(400), range(400)))
    assert squares.min() > 0.05
    assert squares[gaps > 40].min() > 5


@pytest.mark.quick
def test_the_normalisation_on_paper():
    """Two channels of two pixels, means 2 and 4 and deviations 1 and 2: the means are
    1 below and above their own, of a deviation of 1."""
    norm = score.InstanceNorm(epsilon=0.0)
    x, apply = jnp.array([[[1.0, 2.0], [3.0, 6.0]]]), jax.jit(norm.apply)
    params = {
        "gain": jnp.array([1.0, 3.0]),
        "shift": jnp.array([0.5, 0.0]),
        "again": jnp.array([1.0, 10.0]),
    }
    found = np.asarray(apply({"params": params}, x, None))
    first = [-1 + 0.5 - 1, 1 + 0.5 - 1]
    second = [-3 + 10, 3 + 10]
    np.testing.assert_allclose(found[0, :, 0], first, rtol=1e-5)
    np.testing.assert_allclose(found[0, :, 1], second, rtol=1e-5)
    # Conditioned: each of the three is an affine function of the embedding.
    embedding = jnp.array([2.0, -1.0])
    layers = {
        name: {"kernel": jnp.array([[0.5, 1.0], [1.0, 2.0]]), "bias": bias}
        for name, bias in params.items()
    }
    told = apply({"params": layers}, x, embedding)
    # 2 (.5, 1) - (1, 2) is 0: with this embedding all are as they were.
    np.testing.assert_allclose(told, found, rtol=1e-5)
    other = np.asarray(apply({"params": layers}, x, jnp.array([1.0, 0.0])))
    np.testing.assert_allclose(
        other[0, :, 0], [-1.5 + 1 - 1.5, 1.5 + 1 - 1.5], rtol=1e-5
    )


def test_a_fresh_block_is_its_shortcut():
    """The identity, or a 1 x 1 convolution: what it adds starts from zero."""
    x = example()

    @functools.partial(jax.jit, static_argnums=0)
    def fresh(block, x):
        params = block.init(jax.random.key(0), x, None)
        return params, block.apply(params, x, None)

    _, found = fresh(score._Block(2, jax.nn.elu), x)
    np.testing.assert_allclose(found, x, rtol=1e-6)
    wider = score._Block(3, jax.nn.elu)
    params, found = fresh(wider, x)
    (layer,) = (
        layer
        for layer in params["params"].values()
        if jnp.shape(layer.get("kernel")) == (1, 1, 2, 3)
    )
    kernel, bias = map(np.asarray, (layer["kernel"], layer["bias"]))
    expected = np.asarray(x) @ kernel[0, 0] + bias[None, None]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # And it adds what both convolutions and both activations make of it.
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, leaf.dtype), params)
    linear = jax.jit(score._Block(3, lambda h: h).apply)(params, x, None)
    found = jax.jit(wider.apply)(params, x, None)
    assert np.abs(np.asarray(found) - np.asarray(linear)).max() > 0.01


def test_the_score_starts_from_zero_and_its_size_is_as_on_paper():
    """Per block of c to n channels: three coefficients a channel of each norm, every
    one an affine function of the 64 numbers of the embedding; two convolutions; a
    shortcut where channels change."""
    network = networks.unet(SHAPE, widths=(4, 8))
    params, model_state = jax.jit(network.init)(jax.random.key(0))
    assert model_state == {}
    np.testing.assert_array_equal(jax.jit(network.apply)(params, example(), 0.5), 0.0)

    def block(c, n):
        shortcut = c * n + n if c != n else 0
        norms = 3 * 65 * (c + n)
        return norms + 9 * c * n + n + 9 * n * n + n + shortcut

    embedding = 32 * 64 + 64 + 64 * 64 + 64
    ends = 9 * 2 * 4 + 4 + 3 * 65 * 4 + 9 * 4 * 2 + 2
    expected = embedding + ends + block(4, 4) + block(4, 8) + block(12, 4)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected
    plain = networks.unet(SHAPE, widths=(4, 8), conditioning="division")
    params, _ = jax.eval_shape(plain.init, jax.random.key(0))
    coefficients = 3 * ((4 + 4) + (4 + 8) + (12 + 4) + 4)
    convolutions = expected - embedding - 65 * coefficients
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert total == convolutions + coefficients


def test_the_waves_of_levels_repeat_and_vanish_with_the_noise():
    """Without the pixels themselves, a network that sees waves of 8 levels repeats
    after two levels, 2 / 4, and not after one. Noise of scale 1 leaves exp(-(4 pi)^2 /
    2) of a wave, below 1e-34, so that no pixel is seen at all."""
    network = networks.unet(SHAPE, widths=(4, 8), activation="swish", num_levels=8)
    params, _ = jax.jit(network.init)(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
    params = jax.tree.unflatten(tree, leaves)
    kernel = params["Conv_0"]["kernel"]
    channels = SHAPE[-1]
    assert kernel.shape[2] == 5 * channels
    params["Conv_0"]["kernel"] = kernel.at[:, :, :channels].set(0.0)
    apply = jax.jit(network.apply)
    x = example()
    fine = apply(params, x, 0.05)
    scale = np.abs(fine).max()
    np.testing.assert_allclose(apply(params, x + 0.5, 0.05), fine, atol=1e-3 * scale)
    assert np.abs(apply(params, x + 0.25, 0.05) - fine).max() > 0.05 * scale
    coarse = apply(params, x, 1.0)
    assert np.isfinite(coarse).all()
    np.testing.assert_allclose(apply(params, x + 0.1, 1.0), coarse, rtol=1e-6)


def test_a_wave_is_that_of_the_noised_pixel_on_average():
    """The deviation of a sine or cosine is at most 1: five standard errors of means
    over 10,000 draws are 0.05."""
    x, scale = jnp.linspace(-1.0, 1.0, 8)[:, None, None], 0.05
    noise = jax.random.normal(jax.random.key(3), (10_000, *x.shape))
    noised = jax.vmap(lambda n: score._level_waves(x + scale * n, jnp.float32(0), 8))
    means = [wave.mean(0) for wave in noised(noise)]
    expected = score._level_waves(x, jnp.float32(scale), 8)
    assert 0.3 < np.abs(expected).max() < 0.9
    np.testing.assert_allclose(means, expected, atol=0.05)


@pytest.fixture(scope="module")
def fresh_unet():
    network = networks.unet(
        (4, 6, 1), widths=(1, 1), activation="relu", conditioning="division"
    )
    params, _ = jax.jit(network.init)(jax.random.key(0))
    return params, jax.jit(network.apply)


@pytest.mark.parametrize("coarse, fine", [(1.0, 0.0), (0.0, 1.0), (2.0, -0.5)])
def test_a_fresh_unet_joins_an_image_with_its_own_means(fresh_unet, coarse, fine):
    """With the first and last convolutions set to the identity: blocks add nothing, and
    the shortcut of the one on the way up weighs the means over 2 x 2, each repeated,
    and the image itself. What is left is the last normalisation and the activation."""
    fresh, apply = fresh_unet
    params = {name: dict(layer) for name, layer in fresh.items()}
    identity = np.zeros((3, 3, 1, 1), np.float32)
    identity[1, 1] = 1.0
    for name in ("Conv_0", "Conv_1"):
        params[name] = {"kernel": identity, "bias": np.zeros(1, np.float32)}
    weights = np.array([coarse, fine], np.float32)[None, None, :, None]
    params["_Block_2"]["Conv_2"] = {"kernel": weights, "bias": np.zeros(1, np.float32)}
    params["InstanceNorm_0"]["shift"] = np.array([0.25], np.float32)
    x = np.random.default_rng(0).normal(size=(4, 6, 1))
    means = x.reshape(2, 2, 3, 2).mean((1, 3))
    joined = coarse * np.kron(means, np.ones((2, 2)))[..., None] + fine * x
    normal = (joined - joined.mean()) / joined.std() + 0.25
    found = apply(params, np.asarray(x, np.float32), 0.5)
    np.testing.assert_allclose(found, normal.clip(0) / 0.5, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["score", "energy"])
def test_it_learns_the_score_of_normal_data_at_every_scale(kind):
    """Data N(1, .25): the score at scale s is (1 - x) / (.25 + s^2)."""
    network = networks.noise_mlp((1,), widths=(32, 32), is_energy=kind == "energy")
    scales = np.geomspace(3.0, 0.1, 12)
    option = {"energy": network} if kind == "energy" else {"score_network": network}
    objective = objectives.multi_scale_denoising_score_matching(
        **option, noise_scales=scales
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 1_500))
    players = {kind: training.Player((kind,), objective, optimizer)}
    params, _ = network.init(jax.random.key(0))
    state = training.init_state(players, {kind: params}, jax.random.key(1), 1)
    update = training.pmap_update(players)
    for step in range(1_500):
        key = jax.random.fold_in(jax.random.key(2), step)
        x = 1 + 0.5 * jax.random.normal(key, (256, 1))
        state, _ = update(state, x[None, None])
    found = jax.tree.map(jnp.asarray, state.params[kind])
    apply = functools.partial(network.apply, found)
    if kind == "energy":
        apply = lambda x, s, energy=apply: -jax.grad(energy)(x, s)  # noqa: E731
    for scale in (0.1, 0.5, 2.0):
        width = (0.25 + scale**2) ** 0.5
        x = 1 + width * jnp.linspace(-2, 2, 41)[:, None]
        learned = jax.vmap(apply, (0, None))(x, jnp.float32(scale))
        # In units of the exact score's own deviation, 1 / width.
        error = width * (learned - (1 - x) / width**2)
        assert jnp.sqrt((error**2).mean()) < 0.15, scale


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: networks.unet((6, 8, 1), widths=(2, 2, 2)),
            r"multiples of 4, got \(6, 8, 1\)",
        ),
        (lambda: networks.unet(SHAPE, widths=()), "widths must be positive"),
        (lambda: networks.unet(SHAPE, widths=(2,), num_blocks=0), "num_blocks .* 0"),
        (
            lambda: networks.unet(SHAPE, widths=(2,), num_levels=-1),
            "num_levels must be .* got -1",
        ),
        (
            lambda: networks.unet(SHAPE, widths=(2,), conditioning="film"),
            "conditioning must be one of .* got 'film'",
        ),
        (lambda: networks.noise_mlp(SHAPE, widths=(2, 0)), r"widths .* got \(2, 0\)"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_was_given(make, message):
    with pytest.raises(ValueError, match=message):
        make()
