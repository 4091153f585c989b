# %% [markdown]
# # Noise contrastive estimation
#
# Noise contrastive estimation (NCE) trains a classifier to tell data from noise of
# known density `q`. The classifier's log odds are
#
# $$h(x) = -E_\theta(x) - \log Z_\theta - \log q(x),$$
#
# and the best log odds are `log p(x) - log q(x)`. Therefore the best energy is that of
# the data, and the parameter `log Z` takes its right value: no MCMC and no integral is
# needed. Everything depends on the noise.
#
# ## Data, and a normal distribution as noise
#
# The data are two normal distributions on a line; the right one has 80 % of the mass.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from ebmjax import metrics, networks, objectives, targets, training

weights = np.array([0.2, 0.8])
target = targets.gaussian_mixture(means=[[-2.0], [2.0]], std=0.5, weights=weights)
axis = jnp.linspace(-6.0, 6.0, 1201)[:, None]
width = float(axis[1, 0] - axis[0, 0])
truth = np.exp(-np.asarray(jax.vmap(target.energy_fn)(axis), float))


def normal(mean, std):
    """Returns a noise distribution: a function that draws, and its log density."""

    def sample(key):
        return mean + std * jax.random.normal(key, (1,))

    def log_prob(x):
        return jax.scipy.stats.norm.logpdf(x, mean, std).sum()

    return sample, log_prob


data = target.sample(jax.random.key(0), 5000)
fitted = normal(float(data.mean()), float(data.std()))

# %% [markdown]
# ## Train
#
# The player trains two entries of the parameters: the energy and `log_partition`.

# %%
network = networks.mlp_energy((1,), widths=(64, 64), activation="swish")


def train(noise_distribution, num_updates=1000):
    params = {"energy": network.init(jax.random.key(1))[0]}
    params["log_partition"] = jnp.zeros(())
    objective = objectives.noise_contrastive(
        network, noise_distribution=noise_distribution, num_noise=1
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, num_updates))
    player = training.Player(("energy", "log_partition"), objective, optimizer)
    state = training.init_state({"nce": player}, params, jax.random.key(2))
    update = training.jit_update({"nce": player})
    for step in range(num_updates):
        x = target.sample(jax.random.fold_in(jax.random.key(3), step), 512)
        state, scalars = update(state, x)
    energy_fn = partial(network.apply, state.params["energy"])
    return energy_fn, float(state.params["log_partition"]), scalars


def report(name, noise_distribution):
    energy_fn, log_partition, scalars = train(noise_distribution)
    log_z = float(metrics.quadrature(energy_fn, [(-6.0, 6.0)], 1201))
    model = np.exp(-np.asarray(jax.vmap(energy_fn)(axis), float) - log_z)
    noise = np.exp(np.asarray(jax.vmap(noise_distribution[1])(axis), float))
    kl = float((truth * np.log(truth / model)).sum() * width)
    share = float(model[np.asarray(axis[:, 0]) > 0].sum() * width)
    print(f"{name}: KL(data, model) {kl:.4f} nats")
    print(f"  share of the right mode {share:.3f}, truth 0.8")
    print(f"  log Z learned {log_partition:.3f}, by quadrature {log_z:.3f} nats")
    print(f"  accuracy on data {float(scalars['nce/accuracy_data']):.2f}")
    figure, panel = plt.subplots(figsize=(7, 2.5))
    panel.plot(axis[:, 0], truth, "k--", label="truth")
    panel.plot(axis[:, 0], model, label="model")
    panel.plot(axis[:, 0], noise, linewidth=0.8, label="noise")
    panel.set(title=name, xlabel="x", ylabel="density")
    panel.legend(fontsize=8)
    figure.tight_layout()
    plt.show()
    return kl, share, log_partition - log_z


good = report("fitted normal distribution", fitted)
assert good[0] < 0.02 and abs(good[1] - 0.8) < 0.03 and abs(good[2]) < 0.1

# %% [markdown]
# The model has the shape, the weights of the modes, which [score
# matching](score_matching.py) does not see, and the value of `log Z`.
#
# ## The noise decides
#
# This noise covers the right mode alone. At the left mode there are data and no noise,
# so that the classifier is right there with any low energy. Nothing bounds the energy
# from below, and the model puts nearly all of its mass there.

# %%
narrow = report("noise at the right mode alone", normal(2.0, 0.7))
assert narrow[0] > good[0]

# %% [markdown]
# Much wider noise is far from the data almost everywhere. Most of its draws are told
# from data at once, and only the few near the data teach anything. On a line this costs
# accuracy; in many dimensions no draw of such noise comes near the data.

# %%
wide = report("noise a hundred times as wide as the modes", normal(0.0, 50.0))

# %% [markdown]
# ## What to remember
#
# - NCE learns the density with `log Z`, without MCMC.
# - Choose noise that covers the data and is as close to them as possible. An accuracy
#   near 1 says that the noise is too far away.
# - In many dimensions no simple noise is close. Telescoping density ratios
#   (`objectives.telescoping`) divide the way from noise to data into steps, and flow
#   contrastive estimation (`objectives.flow_contrastive`) learns the noise.
#
# [The tutorial's methods](../papers/tutorial.md) measures these on data of known
# density.
