# %% [markdown]
# # Score-based models
#
# [Score matching](score_matching.py) cannot weigh modes that are far apart, and noise
# on the data cures that. A score-based model learns the scores of the data with noise
# of many scales, with one network. Sampling starts at the widest noise, where the modes
# are one, and goes to the narrowest.
#
# ## Data
#
# The data are two normal distributions in the plane, far apart. The right one has 80 %
# of the mass.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from ebmjax import (
    diffusions,
    energies,
    networks,
    objectives,
    samplers,
    targets,
    training,
)

modes = [[-4.0, -4.0], [4.0, 4.0]]
target = targets.gaussian_mixture(means=modes, std=1.0, weights=[0.2, 0.8])


def right_share(x):
    return float((np.asarray(x).sum(1) > 0).mean())


def show(samples_by_name):
    figure, panels = plt.subplots(1, len(samples_by_name), figsize=(9, 2.8))
    for panel, (name, x) in zip(panels, samples_by_name.items(), strict=True):
        panel.plot(*np.asarray(x)[:2000].T, ".", markersize=1)
        panel.set(title=name, xlim=(-9, 9), ylim=(-9, 9), aspect="equal")
    figure.tight_layout()
    plt.show()


# %% [markdown]
# ## One network for all noise scales
#
# `noise_mlp` takes the noise scale as an argument. The loss is denoising score matching
# at scales that are drawn from a ladder, from twice the distance of the modes to a
# tenth of their width.

# %%
ladder = diffusions.noise_ladder(20.0, 0.1, num_scales=12)
network = networks.noise_mlp((2,), widths=(64, 64))
objective = objectives.multi_scale_denoising_score_matching(
    score_network=network, noise_scales=ladder
)
num_updates = 3000
optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, num_updates))
players = {"score": training.Player(("score",), objective, optimizer)}
params, _ = network.init(jax.random.key(0))
state = training.init_state(players, {"score": params}, jax.random.key(1))
update = training.jit_update(players)
residuals = []
for step in range(num_updates):
    x = target.sample(jax.random.fold_in(jax.random.key(2), step), 512)
    state, scalars = update(state, x)
    residuals.append(scalars["score/residual"])
score = partial(network.apply, state.params["score"])  # of (x, noise_scale)
print(f"residual {np.mean(residuals[-100:]):.3f}; a score of zero has 1")

# %% [markdown]
# ## What wide noise does
#
# Noise of a scale like the distance of the modes makes one mode of the two. There the
# score points to the right mode more often than to the left one, and so knows the
# weights.

# %%
line = jnp.stack([jnp.linspace(-9, 9, 200)] * 2, 1)
figure, panel = plt.subplots(figsize=(7, 2.8))
for noise_scale in ladder[[2, 5, 8]]:
    learned = jax.vmap(score, (0, None))(line, noise_scale)
    std = (1 + noise_scale**2) ** 0.5
    noised = targets.gaussian_mixture(means=modes, std=std, weights=[0.2, 0.8])
    exact = -jax.vmap(jax.grad(noised.energy_fn))(line)
    (curve,) = panel.plot(line[:, 0], exact.sum(1) * std, "--", linewidth=0.8)
    label = f"noise {noise_scale:.2f}"
    color = curve.get_color()
    panel.plot(line[:, 0], learned.sum(1) * std, color=color, label=label)
panel.set(xlabel="place on the diagonal", ylabel="score times width")
panel.legend(fontsize=8)
figure.tight_layout()
plt.show()

# %% [markdown]
# Dashed lines are exact, the others learned.
#
# ## Plain chains fail, annealed chains do not
#
# Plain Langevin dynamics at the narrowest noise stay in the mode they start next to.
# Annealed Langevin dynamics make moves at every scale, from the widest on.

# %%
num_chains, num_moves = 2000, 50
with_score = energies.from_score(network.apply)


def energy(params, noise_scale, x):
    return with_score(params, x, noise_scale)


def bind(params, noise_scale):
    """Returns an energy with the score of one noise scale; it has no values."""
    return partial(energy, params, noise_scale)


def make_sampler(noise_scale):  # the step suits the width of the noised data
    return samplers.langevin(step_size=0.05 * (1 + noise_scale**2))


start = jax.random.uniform(jax.random.key(3), (num_chains, 2), minval=-8, maxval=8)
bound = partial(bind, state.params["score"])
plain, _ = samplers.sample_annealed(
    make_sampler, bound, np.full(12, ladder[-1]), jax.random.key(4), start, num_moves
)
annealed, _ = samplers.sample_annealed(
    make_sampler, bound, ladder, jax.random.key(4), start, num_moves
)
show(
    {
        "data": target.sample(jax.random.key(5), 2000),
        "plain chains": plain.position,
        "annealed chains": annealed.position,
    }
)
print(f"plain: share of the right mode {right_share(plain.position):.3f}, truth 0.8")
print(f"annealed: share of the right mode {right_share(annealed.position):.3f}")
assert abs(right_share(plain.position) - 0.5) < 0.05
assert abs(right_share(annealed.position) - 0.8) < 0.06

# %% [markdown]
# ## A diffusion run backwards
#
# The same scores reverse a diffusion, which turns data into noise continuously. It
# needs one score for each step and no step size.

# %%
process = diffusions.variance_exploding(noise_min=0.1, noise_max=20.0)
timed = diffusions.with_time(network.apply, process)
prior = process.prior_std * jax.random.normal(jax.random.key(6), (num_chains, 2))
drawn, _ = samplers.sample_diffusion(
    process, partial(timed, state.params["score"]), jax.random.key(7), prior, 200
)
print(f"diffusion: share of the right mode {right_share(drawn):.3f}, truth 0.8")
right = np.asarray(drawn)[np.asarray(drawn).sum(1) > 0]
print(f"right mode: mean {right.mean(0).round(2)}, std {right.std(0).round(2)}")
assert abs(right_share(drawn) - 0.8) < 0.06

# %% [markdown]
# ## What to remember
#
# - Learn the scores at many noise scales, the widest of the size of the data.
# - Sample from wide noise to narrow, by annealed Langevin dynamics or by a diffusion.
# - With `samplers.probability_flow` the same scores also give a likelihood, which [the
#   page of the papers](../papers/score_based.md) measures on digits.
