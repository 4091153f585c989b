# %% [markdown]
# # Sample your own energy, with diagnostics
#
# You have an energy, a function of one example, and want draws of the density
# `exp(-energy) / Z`. This page draws them with four samplers. It shows how a bias
# looks, how diagnostics detect chains that do not mix, and how to estimate `log Z`.
#
# The energy has two wells, at `x[0] = -2` and `x[0] = 2`, and a curved valley through
# both. Its density is known, so that every answer can be compared with the truth.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from ebmjax import metrics, samplers


def energy(params, x):
    left, right = -0.5 * ((x[0] + jnp.array([2.0, -2.0])) / params["width"]) ** 2
    wells = -jnp.logaddexp(left, right + params["tilt"])
    return wells + 4.0 * (x[1] - jnp.sin(x[0])) ** 2


params = {"width": jnp.array(1.0), "tilt": jnp.array(0.7)}
energy_fn = partial(energy, params)

# %% [markdown]
# `partial` binds the parameters. With other parameters nothing is compiled again.
#
# ## The truth
#
# In two dimensions the density can be summed on a grid. `quadrature` does so for `log
# Z`. The right well has the share `1 / (1 + exp(-tilt))` of the mass.

# %%
axis_x, axis_y = np.linspace(-6.0, 6.0, 301), np.linspace(-3.0, 3.0, 301)
grid = jnp.stack(jnp.meshgrid(axis_x, axis_y, indexing="ij"), -1)
log_z = float(metrics.quadrature(energy_fn, [(-6.0, 6.0), (-3.0, 3.0)], 301))
density = np.exp(-np.asarray(jax.vmap(jax.vmap(energy_fn))(grid)) - log_z)
density_x = density.sum(1) * (axis_y[1] - axis_y[0])
truth = float(1 / (1 + jnp.exp(-params["tilt"])))
print(f"log Z = {log_z:.3f} nats; the right well has {truth:.3f} of the mass")


def show(draws_by_name):
    """Shows draws over the true density, and their first coordinate next to its own."""
    figure, axes = plt.subplots(1, len(draws_by_name) + 1, figsize=(10, 3))
    for axis, (name, draws) in zip(axes, draws_by_name.items(), strict=False):
        axis.contour(axis_x, axis_y, density.T, colors="grey", linewidths=0.7)
        axis.plot(*np.asarray(draws).reshape(-1, 2)[:2000].T, ".", markersize=2)
        axis.set(title=name, xlim=(-6, 6), ylim=(-3, 3))
        points = np.asarray(draws)[..., 0].ravel()
        axes[-1].hist(
            points, 80, range=(-6, 6), density=True, histtype="step", label=name
        )
    axes[-1].plot(axis_x, density_x, "k", linewidth=1, label="truth")
    axes[-1].legend(fontsize=7)
    figure.tight_layout()
    plt.show()


# %% [markdown]
# ## Unadjusted Langevin dynamics have a bias
#
# `langevin` takes one gradient for a move and accepts every move. Its chain leaves a
# density invariant that is wider than the right one, by an amount of the order of the
# step. The same number of moves with a Metropolis test (`mala`) has no such bias.


# %%
def keep_position(state, info):  # defined once: a new function is compiled anew
    return state.position


x = 2.0 * jax.random.normal(jax.random.key(0), (500, 2))  # where 500 chains begin
run = partial(samplers.sample_chains, num_burn_in=200, thin=10, collect=keep_position)
drawn = {}
for name, sampler in {
    "Langevin, step 0.05": samplers.langevin(step_size=0.05),
    "MALA, step 0.05": samplers.mala(step_size=0.05),
}.items():
    state, drawn[name] = run(sampler, energy_fn, jax.random.key(1), x, 1000)
show(drawn)


def valley_width(draws):
    """Returns the variance across the valley, which is 1 / 8 in the exact density."""
    draws = np.asarray(draws, float)
    return (draws[..., 1] - np.sin(draws[..., 0])).var()


for name, draws in drawn.items():
    print(f"{name}: variance across the valley {valley_width(draws):.3f}, truth 0.125")
assert valley_width(drawn["Langevin, step 0.05"]) > 0.15
assert abs(valley_width(drawn["MALA, step 0.05"]) - 0.125) < 0.01

# %% [markdown]
# Both kinds of chains show the right picture, but the unadjusted one is too wide. No
# diagnostic of the chains alone detects such a bias: the chains agree with each other.
# Compare two steps, or use a sampler with a Metropolis test.
#
# ## Choose the step, and count independent draws
#
# `adapt` finds the step size of a Metropolis sampler for an acceptance rate. Then
# `effective_sample_size` says how many independent draws the chains are worth, and
# `potential_scale_reduction` (R-hat) compares the chains with each other: it is close
# to 1 where they agree.

# %%
hmc = partial(samplers.hmc, num_leapfrog=8, randomize_num_leapfrog=True)
adapted = samplers.adapt(
    hmc, energy_fn, jax.random.key(2), x, 300, target_acceptance_rate=0.8
)
print(f"step size {adapted.step_size:.3f}, acceptance {adapted.acceptance_rate:.2f}")
_, draws = samplers.sample_chains(
    adapted.sampler,
    energy_fn,
    jax.random.key(3),
    adapted.position,
    num_steps=500,
    collect=keep_position,
)
sizes = metrics.effective_sample_size(draws)
print(f"{draws.shape[0] * draws.shape[1]} draws are worth {np.round(sizes)}")
print(f"R-hat {metrics.potential_scale_reduction(draws)}")

# %% [markdown]
# ## Chains that are stuck
#
# Narrower wells have a higher barrier between them. Half of the chains begin in the
# left well, and they stay there. R-hat is far above 1: the chains do not agree on the
# mean.

# %%
high = partial(energy, params | {"width": jnp.array(0.4)})
signs = jnp.where(jnp.arange(200) % 2, 1.0, -1.0)
x = jnp.stack([2.0 * signs, signs], 1)
_, stuck = samplers.sample_chains(
    adapted.sampler, high, jax.random.key(4), x, num_steps=1000, collect=keep_position
)
stuck_rhat = float(metrics.potential_scale_reduction(stuck)[0])
stuck_share = float((stuck[..., 0] > 0).mean())
print(f"R-hat {stuck_rhat:.2f}; share of draws in the right well {stuck_share:.3f}")
assert stuck_rhat > 1.5

# %% [markdown]
# The share is the one with which the chains began, and tells nothing about the density.
# `replica_exchange` runs every chain at several temperatures at once and swaps
# neighbours. Hot replicas cross the barrier, and cold ones follow.

# %%
tempered = samplers.replica_exchange(
    lambda temperature: samplers.hmc(
        step_size=0.15, num_leapfrog=8, temperature=temperature
    ),
    temperatures=(1.0, 2.0, 4.0, 8.0),
    swap_every=2,
)
_, mixed = samplers.sample_chains(
    tempered, high, jax.random.key(5), x, num_steps=1000, collect=keep_position
)
kept = mixed[200:]
rhat = float(metrics.potential_scale_reduction(kept)[0])
share = float((kept[..., 0] > 0).mean())

print(
    f"R-hat {rhat:.2f}; share of draws in the right well {share:.3f}, truth {truth:.3f}"
)
figure, axes = plt.subplots(1, 2, figsize=(9, 2.5), sharey=True)
axes[0].plot(np.asarray(stuck[:, :4, 0]), linewidth=0.7)
axes[0].set(title="four chains of HMC", xlabel="move", ylabel="x[0]")
axes[1].plot(np.asarray(mixed[:, :4, 0]), linewidth=0.7)
axes[1].set(title="four chains of replica exchange", xlabel="move")
figure.tight_layout()
plt.show()
assert rhat < 1.1 and abs(share - truth) < 0.05

# %% [markdown]
# ## Estimate log Z
#
# Annealed importance sampling moves draws of a normal distribution, whose density is
# known, step by step to the energy. Its estimate of `log Z` is too small on average, by
# less with more steps.

# %%
scale = 2.0


def draw_reference(key):
    return scale * jax.random.normal(key, (2,))


def reference_log_prob(x):
    return jax.scipy.stats.norm.logpdf(x, scale=scale).sum()


annealed = metrics.annealed_importance_sampling(
    samplers.hmc(step_size=0.15, num_leapfrog=8),
    energy_fn,
    jax.random.key(6),
    reference=(draw_reference, reference_log_prob),
    num_chains=500,
    fractions=200,
)
print(f"log Z by annealing {float(annealed.log_partition):.3f}, truth {log_z:.3f} nats")
assert abs(float(annealed.log_partition) - log_z) < 0.1

# %% [markdown]
# ## What to remember
#
# - Use `mala` or `hmc` where the density has to be right, and `adapt` for their step.
# - Look at R-hat and at the effective sample size of every quantity you report.
# - Start chains in different places. Chains that all begin in one well agree, and are
#   wrong.
# - Where R-hat stays above 1, use `replica_exchange`.
#
# [Sample your own energy](../howto/sample.md) lists all samplers and options.
