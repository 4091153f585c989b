"""Draws as ArviZ takes them: axes, names, and the same diagnostics."""

import sys
from functools import partial
from types import SimpleNamespace

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebmjax import metrics, samplers

KEY = jax.random.key(0)


def energy_fn(x):
    return 0.5 * jnp.sum(x["a"] ** 2) + x["b"][0] ** 2


@pytest.fixture(scope="module")
def collected():
    sampler = samplers.hmc(step_size=0.7, num_leapfrog=2)
    x = {"a": jnp.ones((4, 2)), "b": (jnp.zeros(4),)}
    collect = lambda state, info: (state.position, info)  # noqa: E731
    run = partial(samplers.sample_chains, sampler, energy_fn, KEY, x, 50)
    return run(collect=collect)[1]


def test_draws_and_infos_have_arviz_s_axes_and_names(collected):
    positions, infos = collected
    data = samplers.to_arviz(positions, infos)
    posterior, stats = data["posterior"], data["sample_stats"]
    assert posterior["a"].dims[:2] == ("chain", "draw")
    np.testing.assert_array_equal(
        posterior["a"].values, np.asarray(positions["a"]).transpose(1, 0, 2)
    )
    np.testing.assert_array_equal(
        posterior["b_0"].values, np.asarray(positions["b"][0]).T
    )
    named = {
        "acceptance_rate": infos.acceptance_rate,
        "diverging": infos.is_divergent,
        "n_steps": infos.num_leapfrog,
        "energy": infos.energy,
        "lp": -infos.energy,
        "is_accepted": infos.is_accepted,
        "energy_error": infos.energy_error,
        "gradient_norm": infos.gradient_norm,
    }
    assert set(stats.data_vars) == set(named)
    for name, values in named.items():
        np.testing.assert_array_equal(stats[name].values, np.asarray(values).T)
    assert stats["diverging"].dtype == bool


def test_arviz_summarises_the_draws_as_the_library_does(collected):
    positions, _ = collected
    data = samplers.to_arviz(positions["a"], name="angle")
    assert "sample_stats" not in data.groups()
    summary = arviz.summary(data, round_to="none")
    assert list(summary.index) == ["angle[0]", "angle[1]"]
    np.testing.assert_allclose(summary["mean"], positions["a"].mean((0, 1)), rtol=1e-5)
    ours = metrics.potential_scale_reduction(positions["a"])
    np.testing.assert_allclose(summary["r_hat"], ours, rtol=1e-3)


@pytest.mark.quick
def test_the_energy_with_a_momentum_is_arviz_s_if_it_is_known():
    infos = {"energy": np.ones((5, 3)), "total_energy": np.full((5, 3), 4.0)}
    stats = samplers.to_arviz(np.zeros((5, 3)), infos)["sample_stats"]
    assert (stats["energy"] == 4).all() and (stats["lp"] == -1).all()
    assert set(stats.data_vars) == {"energy", "lp"}


def test_groups_are_handed_over_as_arviz_1_takes_them(monkeypatch, collected):
    """There `from_dict` has one dict of groups instead of an argument for each."""

    def from_dict(data, *, name=None, sample_dims=None):
        return data

    monkeypatch.setitem(sys.modules, "arviz", SimpleNamespace(from_dict=from_dict))
    data = samplers.to_arviz(*collected)
    assert list(data) == ["posterior", "sample_stats"]
    assert data["posterior"]["a"].shape == (4, 50, 2)
    assert data["sample_stats"]["diverging"].shape == (4, 50)


def test_infos_of_other_moves_and_means_are_refused(collected):
    positions, infos = collected
    message = r"{} must be \[draws, chains, ...\] as a is, \(50, 4\), got {}"
    with pytest.raises(ValueError, match=message.format("energy", r"\(49, 4\)")):
        samplers.to_arviz(positions, jax.tree.map(lambda leaf: leaf[1:], infos))
    with pytest.raises(ValueError, match=message.format("energy", r"\(4,\)")):
        samplers.to_arviz(positions, jax.tree.map(lambda leaf: leaf[0], infos))


def test_arviz_is_asked_for_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ModuleNotFoundError, match="^to_arviz needs arviz: pip install"):
        samplers.to_arviz(np.zeros((5, 3)))
