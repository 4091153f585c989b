"""The samplers of score-based models against scores and laws that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebmjax import diffusions
from experiments.judge.inverse import upper_half
from experiments.score_based import images
from experiments.score_based.model import (
    DIFFUSIONS,
    find_step_size,
    make_annealed,
    make_annealed_inpainting,
    make_diffusion,
    make_family,
    make_ladder,
    make_model,
    make_reversed,
    needs_distance,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def sections(preset, **process):
    """The sections of a preset's process and sampler, to be changed."""
    config = images.get_config(preset).unlock()
    config.process.update(process)
    return config.process, config.evaluation.sampler


def exact_params():
    return {"mean": jnp.float32(0.2), "variance": jnp.float32(0.3)}


def normal_score(params, x, noise_scale):
    return (params["mean"] - x) / (params["variance"] + noise_scale**2)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFUSIONS)
def test_samples_of_an_exact_score_are_the_data_s(name):
    """The preset's own sampler is run with the known score of normal data N(.2, .3)."""
    process, sampler = sections(f"digits,{name}")
    law = make_diffusion(process, 8.0)
    sample, inpaint = make_reversed(sampler, normal_score, law, (4, 4, 1))
    x = np.asarray(sample(exact_params(), jax.random.key(0), 2_000))
    error = 5 * (2 / x.size) ** 0.5
    np.testing.assert_allclose(x.mean(), 0.2, atol=5 * (0.3 / x.size) ** 0.5 + 0.01)
    # The corrector widens by 1 + .16^2 at most.
    np.testing.assert_allclose(x.var(), 0.3, rtol=error + 0.05)
    # Known pixels come back as given. Pixels are independent, so the others are drawn
    # from the same law as before.
    is_known = upper_half((4, 4, 1))
    given = np.full_like(x, -0.7)
    y = np.asarray(inpaint(exact_params(), jax.random.key(1), given, is_known))
    np.testing.assert_array_equal(y[:, is_known], given[:, is_known])
    rest = y[:, ~is_known]
    np.testing.assert_allclose(
        rest.mean(), 0.2, atol=5 * (0.3 / rest.size) ** 0.5 + 0.01
    )
    np.testing.assert_allclose(rest.var(), 0.3, rtol=1.5 * error + 0.05)


def test_samples_of_a_ladder_are_those_of_its_recursion():
    """On normal data, a level's move multiplies the distance from the mean by 1 - h / V
    and adds noise of variance 2 h. At the end the last noise is taken away. The paper's
    step suits data at one point. Chains do not forget a start in time for data as wide
    as these, so the draws are too wide, which is a property of the method."""
    # The smallest scale is large enough for the last denoising to matter.
    process, sampler = sections("digits,ladder", smallest=0.2)
    ladder = make_ladder(process, 16, 8.0)
    relative = find_step_size(sampler, ladder)
    sample = make_annealed(sampler, normal_score, ladder, (4, 4, 1))
    x = np.asarray(sample(exact_params(), jax.random.key(0), 2_000))
    mean, variance = -0.2, ladder[0] ** 2
    for scale in ladder:
        for _ in range(sampler.num_steps_per_level):
            kept = 1 - relative * scale**2 / (0.3 + scale**2)
            mean = kept * mean
            variance = kept**2 * variance + 2 * relative * scale**2
    kept = 1 - ladder[-1] ** 2 / (0.3 + ladder[-1] ** 2)
    mean, variance = kept * mean, kept**2 * variance
    assert 1.1 < variance / 0.3 < 1.5
    error = 5 * (2 / x.size) ** 0.5
    np.testing.assert_allclose(x.var(), variance, rtol=error)
    error = 5 * (variance / x.size) ** 0.5
    np.testing.assert_allclose(x.mean() - 0.2, mean, atol=error)


@pytest.mark.quick
def test_a_ladder_s_section_gives_the_papers_numbers():
    """0 stands for the largest distance, the overlap and the step of the papers."""
    process, sampler = sections("digits,ladder")
    assert needs_distance(process)
    ladder = make_ladder(process, 64, 9.0)
    overlaps = diffusions.noise_overlap(ladder[0] / ladder[1], 64)
    assert ladder[0] == 9.0 and 0.5 <= overlaps < 0.56
    expected = diffusions.relative_step_size(ladder[0] / ladder[1], 20)
    assert find_step_size(sampler, ladder) == expected
    process.update(largest=2.0, num_scales=7)
    assert not needs_distance(process)
    sampler.relative_step_size = 0.1
    ladder = make_ladder(process, 64, 9.0)
    assert ladder[0] == 2.0 and len(ladder) == 7
    assert find_step_size(sampler, ladder) == 0.1


def test_a_diffusion_s_largest_noise_is_the_largest_distance_or_as_given():
    process, _ = sections("digits,variance_exploding")
    assert needs_distance(process)
    assert make_diffusion(process, 9.0).prior_std == 9.0
    process.noise_max = 4.0
    assert not needs_distance(process)
    assert make_diffusion(process, 9.0).prior_std == 4.0
    assert not needs_distance(sections("digits,variance_preserving")[0])


def test_a_ladder_s_likelihood_is_of_all_scales_between_its_ends():
    config = images.get_config("digits,ladder").unlock()
    config.network.widths = (2,)
    process = make_model(config.lock(), (8, 8, 1), 7.0).process
    assert process.prior_std == pytest.approx(7.0)
    np.testing.assert_allclose(process.std(1.0), 7.0, rtol=1e-6)
    np.testing.assert_allclose(process.std(0.0), config.process.smallest, rtol=1e-6)


def test_inpainting_puts_back_the_known_with_a_noise_of_its_own_at_every_level():
    """There are two levels with one move of step h each. The lower half's score is the
    upper half over h s^2, so a move adds the upper half as it is put back, and the last
    denoising adds it once more over h. The lower half is then the start, the noises of
    two moves, and s1 n1 + (1 + 1 / h) s2 n2 from the known pixels. Its variance is 22;
    with one noise for both levels it would be 30."""
    process, sampler = sections("digits,ladder", largest=2.0, smallest=1.0)
    process.num_scales = 2
    sampler.update(num_steps_per_level=1, relative_step_size=1.0)

    def score(params, x, noise_scale):
        return params * jnp.concatenate([0 * x[:4], x[:4]]) / noise_scale**2

    ladder = make_ladder(process, 64, 0.0)
    inpaint = make_annealed_inpainting(sampler, score, ladder, (8, 8, 1))
    is_known = upper_half((8, 8, 1))
    x = np.zeros((500, 8, 8, 1), np.float32)
    found = np.asarray(inpaint(jnp.float32(1), jax.random.key(0), x, is_known))
    # The start has variance 4, the moves 2 h s^2 = 8 and 2, the known pixels 4 and 4.
    rest = found[:, 4:]
    np.testing.assert_allclose(rest.var(), 22, rtol=5 * (2 / rest.size) ** 0.5)


def test_a_level_s_energy_has_the_score_s_gradient():
    """At noise scale 0.5 the score of N(.2, .3) at 1 is -0.8 / 0.55."""
    family = make_family(normal_score)(exact_params())
    gradient = jax.grad(family(jnp.float32(0.5)))(jnp.ones(3))
    np.testing.assert_allclose(gradient, 0.8 / 0.55, rtol=1e-5)
