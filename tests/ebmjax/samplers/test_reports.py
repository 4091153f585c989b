"""What a run tells people: a bar of its progress, and divergent moves."""

import importlib
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import STANDARD

from ebmjax import samplers
from ebmjax.samplers.reports import reports_divergence

KEY = jax.random.key(0)
LANGEVIN = samplers.langevin(step_size=0.1)
X = jnp.ones((3, 2))


class Terminal:
    """Text that is written to a terminal."""

    def __init__(self, is_terminal):
        self.text, self.is_terminal = "", is_terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return self.is_terminal


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_counts_the_moves_of_the_run_in_a_terminal_alone(
    monkeypatch, is_terminal
):
    """Also where a run is resumed, and by parts that no other call reports."""
    terminal, calls = Terminal(is_terminal), []
    monkeypatch.setattr("sys.stderr", terminal)
    run = partial(samplers.sample_chains, LANGEVIN, STANDARD, KEY)
    state, _ = run(X, 5)
    resumed, _ = run(
        None,
        7,
        state=state,
        first_move=5,
        progress=True,
        on_progress=calls.append,
        progress_every=3,
    )
    assert calls == [8, 11]
    assert ("12/12" in terminal.text) == is_terminal
    assert bool(terminal.text) == is_terminal
    whole, _ = run(X, 12)
    np.testing.assert_array_equal(resumed.position, whole.position)


def test_a_bar_asks_for_tqdm_in_one_line_before_any_work(monkeypatch):
    def import_nothing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", import_nothing)
    traces = []
    energy_fn = lambda x: traces.append(1) or jnp.sum(x**2)  # noqa: E731
    message = "progress=True needs tqdm: pip install tqdm"
    with pytest.raises(ModuleNotFoundError, match=message):
        samplers.sample_chains(LANGEVIN, energy_fn, KEY, X, 2, progress=True)
    assert not traces


@pytest.mark.quick
@pytest.mark.parametrize(
    "option, message",
    [
        ({"progress": True}, "progress must be False where arrays are traced"),
        ({"on_progress": print}, "on_progress must be None where arrays are traced"),
    ],
)
def test_progress_is_not_reported_where_arrays_are_traced(option, message):
    run = partial(samplers.sample_chains, LANGEVIN, STANDARD, KEY, num_steps=2)
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda x: run(x, **option)[0].position)(X)


# --- divergent moves ---------------------------------------------------------------

UNSTABLE = samplers.hmc(step_size=3.0, num_leapfrog=8)
"""On |x|^2 / 2 a step above 2 grows by (7 + 45^0.5) / 2 = 6.9 a leapfrog: 10^13 in
energy."""


def harmonic(x, precision):
    return 0.5 * precision * jnp.sum(x**2)


@pytest.mark.parametrize("collect", [None, lambda state, info: ()])
def test_divergent_moves_are_counted_and_warned_of_once(collect):
    """Two of four chains diverge in all of the five moves after the burn-in, as the
    infos say; the energy of the others is flat. It does not matter what is collected,
    nor in how many parts."""
    run = partial(samplers.sample_chains, UNSTABLE, harmonic, KEY, jnp.ones((4, 2)), 7)
    run = partial(run, num_burn_in=2, condition=jnp.array([1.0, 0.0, 1.0, 0.0]))
    message = (
        "^10 of 20 moves after the burn-in diverged, in 2 of 4 chains: .*step_size"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        if collect is None:
            _, means = run(collect=None)
            np.testing.assert_array_equal(means.is_divergent, [1, 0, 1, 0])
        else:
            run(collect=collect, progress_every=3, on_progress=len_of)
    assert len(caught) == 1 and caught[0].filename == __file__


def len_of(num_moves):
    assert num_moves in (3, 6)


def test_a_move_diverges_where_its_energy_error_is_large_or_nan():
    """A thousand temperatures, and not nats; a decrease of the energy is harmless."""

    def is_divergent(energy_of_end, temperature):
        energy_fn = lambda x: jnp.where(x < 50, 0.0, energy_of_end)  # noqa: E731
        # One leapfrog of this length leaves [0, 50) in half of the chains.
        sampler = samplers.hmc(step_size=1e4, num_leapfrog=1, temperature=temperature)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = jnp.zeros(64)
            _, infos = samplers.sample_chains(sampler, energy_fn, KEY, x, 1)
        assert 0.2 < np.mean(infos.energy_error != 0) < 0.8
        np.testing.assert_array_equal(
            infos.is_divergent & (infos.energy_error == 0), False
        )
        return bool(infos.is_divergent.any())

    assert is_divergent(1001.0, 1.0) and not is_divergent(999.0, 1.0)
    assert is_divergent(2001.0, 2.0) and not is_divergent(1999.0, 2.0)
    assert is_divergent(np.inf, 1.0) and is_divergent(np.nan, 1.0)
    assert not is_divergent(-np.inf, 1.0)


def test_moves_that_do_not_diverge_warn_of_nothing():
    """Nor the burn-in, nor a sampler that reports no divergence."""
    far = jnp.full((3, 2), 1e3)
    sampler = samplers.hmc(step_size=1.0, num_leapfrog=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samplers.sample_chains(sampler, STANDARD, KEY, X, 4)
        samplers.sample_chains(UNSTABLE, STANDARD, KEY, far, 4, num_burn_in=4)
        wide = samplers.langevin(step_size=9.0)
        samplers.sample_chains(wide, STANDARD, KEY, far, 4)
        jax.jit(lambda x: samplers.sample_chains(UNSTABLE, STANDARD, KEY, x, 4))(far)


def test_a_sampler_of_unknown_energies_reports_no_divergence():
    def init(energy_fn, x):
        return samplers.LangevinState(x, energy_fn.of_its_own(x), x)

    assert not reports_divergence(samplers.Sampler(init, init), X[0])
    assert reports_divergence(UNSTABLE, X[0])
