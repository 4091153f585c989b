# %% [markdown]
# # Maximum likelihood with MCMC
#
# The tutorial of Song & Kingma ([arXiv:2101.03288](https://arxiv.org/abs/2101.03288))
# begins with maximum likelihood. The gradient of the mean log-likelihood is
#
# $$\nabla_\theta\, \mathbb{E}_{\mathrm{data}} \log p_\theta(x)
# = -\mathbb{E}_{\mathrm{data}} \nabla_\theta E_\theta(x)
# + \mathbb{E}_{p_\theta} \nabla_\theta E_\theta(x).$$
#
# The first term lowers the energy of data. The second raises the energy of draws of the
# model, and those need MCMC. Where the chains begin makes the method:
#
# | chains begin | method |
# | --- | --- |
# | at data | contrastive divergence (CD) |
# | where they ended before | persistent contrastive divergence (PCD) |
# | at noise | short-run learning |
#
# ## Data of known density
#
# The data are eight Gaussians on a circle, the density of which is known.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from ebmjax import metrics, networks, objectives, samplers, starts, targets, training

target = targets.eight_gaussians(radius=1.0, std=0.15)
data = target.sample(jax.random.key(0), 5000)

axis = np.linspace(-2.0, 2.0, 121)
grid = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), -1)


def show(energies_by_name):
    """Shows the density of each energy on one square, next to the true one."""
    panels = {"truth": target.energy_fn} | energies_by_name
    figure, axes = plt.subplots(1, len(panels), figsize=(2.6 * len(panels), 2.8))
    for panel, (name, energy_fn) in zip(axes, panels.items(), strict=True):
        values = np.asarray(jax.vmap(jax.vmap(energy_fn))(grid), float)
        weights = np.exp(-(values - values.min()))
        panel.imshow(weights.T / weights.sum(), origin="lower", extent=(-2, 2, -2, 2))
        panel.set(title=name, xticks=(), yticks=())
    figure.tight_layout()
    plt.show()


def divergence(energy_fn):
    """Returns KL(data, model) in nats, with log Z summed over the square."""
    log_z = metrics.quadrature(energy_fn, [(-2.0, 2.0), (-2.0, 2.0)], 301)
    model = jax.vmap(energy_fn)(data) + log_z
    return float((model - jax.vmap(target.energy_fn)(data)).mean())


# %% [markdown]
# ## The loss of chains
#
# `contrastive_divergence` returns an objective whose gradient is the one above. The
# network, the sampler and the optimizer are the same in all three runs.

# %%
network = networks.mlp_energy((2,), widths=(64, 64, 64), negative_slope=0.05)
sampler = samplers.langevin(step_size=0.0078)


def train(num_steps, start, num_updates=1500):
    """Returns the trained energy, and the losses of all updates."""
    params, _ = network.init(jax.random.key(1))
    objective = objectives.contrastive_divergence(
        network, sampler=sampler, num_steps=num_steps, start=start
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, num_updates))
    players = {"energy": training.Player(("energy",), objective, optimizer)}
    state = training.init_state(players, {"energy": params}, jax.random.key(2))
    update = training.jit_update(players)
    losses = []
    for step in range(num_updates):
        x = target.sample(jax.random.fold_in(jax.random.key(3), step), 256)
        state, scalars = update(state, x)
        losses.append(scalars["energy/energy_difference"])
    return partial(network.apply, state.params["energy"]), np.asarray(losses)


def draw_noise(key, shape):
    return jax.random.normal(key, shape)


replay = starts.replay(draw_noise, event_shape=(2,), capacity=4096, reinit_prob=0.01)
models, losses = {}, {}
for name, num_steps, start in (
    ("CD, 5 moves", 5, starts.data()),
    ("PCD, 20 moves", 20, replay),
    ("short run, 5 moves", 5, starts.noise(draw_noise)),
):
    models[name], losses[name] = train(num_steps, start)
    print(f"{name}: KL(data, model) = {divergence(models[name]):.3f} nats")

# %% [markdown]
# ## The loss does not measure progress
#
# The loss is the difference of the mean energies of data and of draws. It stays near 0
# while training goes well, so it says nothing about the model.

# %%
figure, panel = plt.subplots(figsize=(7, 2.5))
for name, values in losses.items():
    panel.plot(values, linewidth=0.5, label=name)
panel.set(xlabel="update", ylabel="loss, nats", ylim=(-2, 2))
panel.legend(fontsize=8)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## The densities
#
# Compare the densities instead. Contrastive divergence and persistent chains come near
# the truth. The short-run model is further away: its chains need more than 5 moves to
# forget the noise, and the energy makes up for that.

# %%
show(models)
assert divergence(models["PCD, 20 moves"]) < 0.15
assert divergence(models["short run, 5 moves"]) > 0.15

# %% [markdown]
# ## A short-run model is its chain
#
# The same 5 moves from noise nevertheless end near the data. With 1,000 moves the
# samples follow the density of the energy, which is another distribution.

# %%
energy_fn = models["short run, 5 moves"]
z = draw_noise(jax.random.key(4), (2000, 2))
figure, axes = plt.subplots(1, 3, figsize=(8, 2.8))
samples = {"data": data[:2000]}
for num_steps in (5, 1000):
    state, _ = samplers.sample_chains(
        sampler, energy_fn, jax.random.key(5), z, num_steps, collect=None
    )
    samples[f"{num_steps} moves from noise"] = state.position
for panel, (name, points) in zip(axes, samples.items(), strict=True):
    panel.plot(*np.asarray(points).T, ".", markersize=1)
    panel.set(title=name, xlim=(-2, 2), ylim=(-2, 2), xticks=(), yticks=())
figure.tight_layout()
plt.show()

# %% [markdown]
# ## What to remember
#
# - Judge a model by its density or its samples, never by the loss.
# - Start at data for a cheap update, and keep the chains (PCD) for a better density.
# - Use a short-run model with the chain it was trained with.
#
# [The tutorial's methods](../papers/tutorial.md) compares these with 18 other methods,
# and [Diagnose a failing run](../howto/diagnose.md) lists what can go wrong.
