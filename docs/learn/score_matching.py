# %% [markdown]
# # Score matching, and what it does not see
#
# The score of a density is the slope of its logarithm, `-grad E(x)`. It does not
# contain `log Z`, so score matching needs neither MCMC nor `log Z`. It minimises
#
# $$\mathbb{E}_{\mathrm{data}} \left[\tfrac12 \lVert \nabla E_\theta(x) \rVert^2
# - \Delta E_\theta(x)\right],$$
#
# which equals the Fisher divergence, the mean squared difference of the scores of data
# and model, up to a constant. This page shows what that is good for, and to what it is
# blind.
#
# ## Data
#
# The data are two normal distributions on a line. The right one has 80 % of the mass.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from ebmjax import networks, objectives, targets, training

weights = np.array([0.2, 0.8])
target = targets.gaussian_mixture(means=[[-3.0], [3.0]], std=0.4, weights=weights)
axis = jnp.linspace(-6.0, 6.0, 1201)[:, None]
width = float(axis[1, 0] - axis[0, 0])


def density(energy_fn):
    """Returns exp(-E) / Z on the axis."""
    values = np.asarray(jax.vmap(energy_fn)(axis), float)
    weights = np.exp(-(values - values.min()))
    return weights / (weights.sum() * width)


def score(energy_fn):
    return -np.asarray(jax.vmap(jax.grad(energy_fn))(axis), float)[:, 0]


truth = density(target.energy_fn)


def fisher_divergence(energy_fn):
    """Returns half of the mean squared difference of the scores, under the data."""
    squares = (score(energy_fn) - score(target.energy_fn)) ** 2
    return 0.5 * float((truth * squares).sum() * width)


def right_share(energy_fn):
    """Returns the share of the mass at x > 0."""
    return float(density(energy_fn)[np.asarray(axis[:, 0]) > 0].sum() * width)


def show(energies_by_name):
    figure, panels = plt.subplots(1, 2, figsize=(9, 2.8))
    for name, energy_fn in {"truth": target.energy_fn, **energies_by_name}.items():
        style = {"color": "black", "linestyle": "--"} if name == "truth" else {}
        panels[0].plot(axis[:, 0], density(energy_fn), label=name, **style)
        panels[1].plot(axis[:, 0], score(energy_fn), label=name, **style)
    panels[0].set(xlabel="x", ylabel="density")
    panels[1].set(xlabel="x", ylabel="score", ylim=(-12, 12))
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    plt.show()


# %% [markdown]
# ## Score matching fits the slopes
#
# The network is smooth (swish), because the loss has second derivatives of it.

# %%
network = networks.mlp_energy((1,), widths=(64, 64), activation="swish")


def train(objective, num_updates=1000):
    params, _ = network.init(jax.random.key(0))
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, num_updates))
    players = {"energy": training.Player(("energy",), objective, optimizer)}
    state = training.init_state(players, {"energy": params}, jax.random.key(1))
    update = training.jit_update(players)
    for step in range(num_updates):
        x = target.sample(jax.random.fold_in(jax.random.key(2), step), 512)
        state, _ = update(state, x)
    return partial(network.apply, state.params["energy"])


matched = train(objectives.score_matching(network))
show({"score matching": matched})
print(f"Fisher divergence {fisher_divergence(matched):.4f}")
print(f"share of the right mode {right_share(matched):.3f}, truth 0.8")

# %% [markdown]
# The learned score follows the true one wherever there are data. But the share of the
# right mode depends on the score between the modes, where there are none.
#
# ## Why the weights are invisible
#
# Compare the data with the same two modes in other shares. The Fisher divergence hardly
# changes, because each mode alone has the same slopes whatever its weight is.

# %%
for share in (0.8, 0.5, 0.2):
    other = targets.gaussian_mixture(
        means=[[-3.0], [3.0]], std=0.4, weights=[1 - share, share]
    )
    ratio = np.log(truth / density(other.energy_fn))
    kl = float((truth * ratio).sum() * width)
    fisher = fisher_divergence(other.energy_fn)
    print(f"share {share}: KL {kl:.3f} nats, Fisher divergence {fisher:.5f}")
assert fisher < 0.05 < kl

# %% [markdown]
# The KL divergence, which likelihood minimises, sees the difference at once. A loss
# that is nearly the same for all shares cannot teach the right one.
#
# ## Noise makes the weights visible
#
# Denoising score matching adds noise to the data and learns the score of the noised
# data. Noise that is wide enough connects the modes. The model then has the right
# shares, but it is the density of the noised data.

# %%
models = {}
for noise_scale in (0.1, 1.5):
    objective = objectives.denoising_score_matching(network, noise_scale=noise_scale)
    models[f"noise {noise_scale}"] = train(objective)
show(models)
for name, energy_fn in models.items():
    print(f"{name}: share of the right mode {right_share(energy_fn):.3f}, truth 0.8")
assert abs(right_share(models["noise 1.5"]) - 0.8) < 0.05

# %% [markdown]
# Score-based models use this: they learn the scores at many noise scales, from wide to
# narrow, and sample through all of them.
#
# ## What to remember
#
# - Score matching is cheap and needs no MCMC. It is as good as likelihood where the
#   modes of the data touch.
# - It cannot weigh modes that are far apart, and its loss does not tell.
# - Noise helps, at the price of a blurred density. So does a method that compares
#   densities: [noise contrastive estimation](noise_contrastive.py).
#
# [The tutorial's methods](../papers/tutorial.md) measures all kinds of score matching
# on data of known density.
