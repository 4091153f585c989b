"""Measures of score-based models against numbers that are known."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import digits
from experiments.judge.judge import make_judge
from experiments.score_based import images, measures
from experiments.score_based.model import (
    DIFFUSIONS,
    make_annealed_inpainting,
    make_diffusion,
    make_ladder,
    make_log_prob,
    make_reversed,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def normal_score(params, x, noise_scale):
    return (params["mean"] - x) / (params["variance"] + noise_scale**2)


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_bits_of_a_known_density_are_right(name, tmp_path):
    """The data have two levels and are uniform on [-1, 1]; the model is N(0, 1/3) in
    every pixel. A level is 1 wide, which adds no bits, and the cross-entropy in bits is
    log2(2 pi / 3) / 2 + 1 / (2 log 2). Pixels in the middle of their level would have a
    mean square that is 1/12 less, and 0.18 bits less. Both standard errors come from
    the place of a pixel within its level: the variance of x^2 on [0, 1] is 4 / 45, and
    x^2 counts 3/2 / log 2 bits."""
    config = images.get_config(f"digits,{name}").unlock()
    config.evaluation.update(num_likelihoods=200, num_probes=2, chunk_size=120)
    rng = np.random.default_rng(0)
    data = digits.load()._replace(
        held_out=rng.integers(0, 2, (200, 8, 8, 1), np.uint8), num_levels=2
    )
    log_prob = make_log_prob(
        normal_score, make_diffusion(config.process, 30.0), tolerance=1e-4
    )
    params = {"mean": jnp.float32(0.0), "variance": jnp.float32(1 / 3)}
    measure = measures.likelihood(config.evaluation, log_prob, data)
    scalars = measure(params, jax.random.key(0), tmp_path)
    rows = np.loadtxt(tmp_path / "log_likelihoods.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(rows[:, 1].mean(), scalars["bits_per_dim"], rtol=1e-6)
    # A level is 1 wide, so that bits and nats differ by their unit and sign alone.
    np.testing.assert_allclose(rows[:, 0], -64 * math.log(2) * rows[:, 1], rtol=1e-6)
    expected = 0.5 * math.log2(2 * math.pi / 3) + 0.5 / math.log(2)
    error = 5 * scalars["bits_per_dim_error"]
    # The variance-exploding diffusion starts from noise of variance 0.02^2.
    np.testing.assert_allclose(scalars["bits_per_dim"], expected, atol=error + 2e-3)
    # This is the error of one image's mean over two noises and 64 pixels. The random
    # signs add nothing, because the Jacobian is diagonal.
    one = 1.5 / math.log(2) * (4 / 45 / 64 / 2) ** 0.5
    np.testing.assert_allclose(scalars["bits_per_dim_noise"], one, rtol=5 / 400**0.5)
    known = one / 200**0.5
    np.testing.assert_allclose(scalars["bits_per_dim_error"], known, rtol=5 / 400**0.5)


@pytest.mark.slow
@pytest.mark.parametrize("process", ["ladder", "variance_exploding"])
def test_inpainting_draws_the_unknown_half_given_the_known(process, tmp_path):
    """The lower half of the data is the mirror image of the upper half, except for
    noise of 0.1, and both are normal, so the law of the lower half is known."""
    config = images.get_config(f"digits,{process}").unlock()
    sampler = config.evaluation.sampler
    if process == "ladder":
        config.process.update(largest=8.0, smallest=0.02, num_scales=60)
        sampler.num_steps_per_level = 20
    else:
        sampler.update(num_steps=60, num_corrections=40, signal_to_noise=0.1)
    rng = np.random.default_rng(0)
    half = rng.normal(0.0, 0.3, (100, 4, 8, 1))
    noise = rng.normal(0.0, 0.1, (100, 8, 8, 1))
    x = np.concatenate([half, half[:, ::-1]], 1) + noise
    levels = 2**8
    held_out = np.clip((x + 1) * levels / 2, 0, levels - 1).astype(np.uint8)
    data = digits.load()._replace(num_levels=levels)

    def score(params, x, noise_scale):
        same, other = x, x[::-1]
        common, apart = (same + other) / 2, (same - other) / 2
        own = params["noise"] + noise_scale**2
        return -common / (2 * params["signal"] + own) - apart / own

    params = {"signal": jnp.float32(0.09), "noise": jnp.float32(0.01)}
    if process == "ladder":
        ladder = make_ladder(config.process, 64, 0.0)
        inpaint = make_annealed_inpainting(sampler, score, ladder, (8, 8, 1))
    else:
        law = make_diffusion(config.process, 8.0)
        _, inpaint = make_reversed(sampler, score, law, (8, 8, 1))
    measure = measures.inpainting(inpaint, held_out, data, 60)
    scalars = measure(params, jax.random.key(0), tmp_path)
    # The variance of a pixel given its mirror image is s + n - s^2 / (s + n). The draw
    # and the truth both differ from the mean by as much.
    s, n = 0.09, 0.01
    conditional = (s + n) - s**2 / (s + n)
    error = 5 * (2 / (100 * 32)) ** 0.5
    np.testing.assert_allclose(scalars["inpainting_mse"], 2 * conditional, rtol=error)


def test_inpainting_asks_for_scores_where_the_known_has_its_level_s_noise(tmp_path):
    """Scores are computed only where the known pixels have the noise of their level: a
    score that is NaN everywhere else does not reach the result."""
    config = images.get_config("digits,ladder").unlock()
    config.process.update(largest=2.0, smallest=0.1, num_scales=3)
    sampler = config.evaluation.sampler
    sampler.num_steps_per_level = 2
    data = digits.load()

    def score(params, x, noise_scale):
        # The score is zero if the farthest of 32 known pixels is 1 to 4.5 standard
        # deviations of the level from the image. It is NaN without noise, with that of
        # the level before, which is 4.5 times as large, and at pure noise.
        distance = jnp.abs(x[:4] - params[:4]).max()
        is_noised = (distance > noise_scale) & (distance < 4.5 * noise_scale)
        return jnp.where(is_noised, 0.0, jnp.nan) * x

    ladder = make_ladder(config.process, 64, 0.0)
    inpaint = make_annealed_inpainting(sampler, score, ladder, (8, 8, 1))
    known = np.full((3, 8, 8, 1), 16, np.uint8)
    measure = measures.inpainting(inpaint, known, data, 500)
    scalars = measure(jnp.ones((8, 8, 1)), jax.random.key(0), tmp_path)
    assert np.isfinite(scalars["inpainting_mse"])


def test_energies_tell_what_is_further_from_the_data_s_mean(tmp_path):
    """The energy is |x|^2 / 2. Uniform noise is farther from grey than grey images are,
    and draws from a normal law with the data's moments are as far as the images."""
    config = images.get_config("digits,ladder").unlock()
    config.evaluation.update(num_examples=400, chunk_size=100)
    rng = np.random.default_rng(0)
    grey = rng.integers(5, 12, (800, 8, 8, 1), np.uint8)
    data = digits.load()._replace(train=grey[:400], held_out=grey[400:])
    judge = make_judge(data, 400, 0)

    def energy(params, x, noise_scale):
        # It is NaN except at the noise scale of a tenth of the range.
        return params * jnp.sum(x**2) / jnp.where(noise_scale == 0.2, 2.0, jnp.nan)

    detection = functools.partial(measures.detection, config, energy)
    measure = detection(judge, jax.random.key(0))
    found = measure(jnp.float32(1.0), jax.random.key(1), tmp_path)
    assert found["auroc_uniform"] > 0.999
    # The means of the sums of 64 squares agree, so the area is a half, except for the
    # skews and the fit of the law to 400 images.
    np.testing.assert_allclose(found["auroc_gaussian"], 0.5, atol=0.1)
    opposite = measure(jnp.float32(-1.0), jax.random.key(1), tmp_path)
    assert opposite["auroc_uniform"] < 0.001
    # The images are compared with the held-out ones, not with those trained on.
    white = judge._replace(train=np.ones_like(judge.train))
    measure = detection(white, jax.random.key(0))
    found = measure(jnp.float32(1.0), jax.random.key(1), tmp_path)
    assert found["auroc_uniform"] > 0.999


@pytest.mark.quick
def test_asymmetry_is_of_the_jacobian_where_images_have_the_noise():
    """If J shifts 64 pixels by one and v are signs, |J v|^2 is 64, and |J v - J^T v|^2
    is 128 less twice the sum of 64 products of signs. The score is this shift far from
    the images, where the noise is 4. It is the identity, which is symmetric, near them,
    where the noise is 0.2."""

    def score(params, x, noise_scale):
        is_far = jnp.mean(x**2) > 1.2 + noise_scale**2 / 4
        return params * jnp.where(is_far, jnp.roll(x.ravel(), 1).reshape(x.shape), x)

    measure = measures.asymmetry(score, digits.load())
    scalars = measure(jnp.float32(3.0), jax.random.key(0), None)
    assert scalars["asymmetry_0.2"] == 0
    # The mean is over 100 images; the sum of products has standard deviation 8.
    error = 5 * 2 * 8 / 64 / 100**0.5
    np.testing.assert_allclose(scalars["asymmetry_4"], 2, atol=error)
    # A score that does not change at all is not asymmetric.
    measure = measures.asymmetry(lambda params, x, scale: 0 * x, digits.load())
    assert measure(jnp.float32(3.0), jax.random.key(0), None)["asymmetry_1"] == 0
