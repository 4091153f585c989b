"""The benchmark's peers sample what they should, before anybody times them."""

import functools

import jax
import numpy as np
import pytest

from ebmjax import energies, networks, samplers
from experiments.throughput import jax_programs, peers, process
from experiments.throughput.jax_programs import jax_contender, quickest
from experiments.throughput.peers import plain_scan
from experiments.throughput.samplers import SAMPLERS
from experiments.throughput.verify import (
    NUM_CHAINS,
    check_jumps,
    check_moments,
    verify,
)
from experiments.throughput.workload import Kernel, Workload

SAMPLER_PEERS = peers.having("make")
TORCH = ("torch", "torchebm", "ebm")
MISSING = {
    ("numpyro", "langevin"),
    ("numpyro", "mala"),
    ("torchebm", "mala"),
}


def as_numpy(tree):
    return jax.tree.map(np.asarray, tree)


def workload(name: str) -> tuple[Workload, np.ndarray]:
    """A small one of that kind, and four chains."""
    shape = {"gaussian": (3,), "mixture": (2,), "mlp": (2,)}.get(name, (8, 8, 2))
    if name == "latent":
        made = process.workload(name, 4)
        return made, process.starts(process.Cell(name, "mala", 0.1, 0, 4, 1, 4))
    random = np.random.default_rng(0)
    x0 = random.standard_normal((4, *shape), np.float32)
    if name == "gaussian":
        params = {"mean": x0[0], "precision": np.float32([1, 2, 3])}
        return Workload(name, params, energies.gaussian), x0
    if name == "mixture":
        params = {
            "means": 2 * random.standard_normal((5, 2), np.float32),
            "precisions": np.float32(4),
            "log_weights": np.log(np.float32([0.1, 0.2, 0.3, 0.2, 0.2])),
        }
        return Workload(name, params, energies.gaussian_mixture), x0
    if name == "mlp":
        network = networks.mlp_energy(shape, widths=(16, 16))
    else:
        network = networks.short_run_energy(shape, width=4)
    params = as_numpy(network.init(jax.random.key(0))[0])
    return Workload(name, params, network.apply), x0


@pytest.fixture(autouse=True)
def promotion():
    """The peers' own code lets ranks differ."""
    with jax.numpy_rank_promotion("allow"):
        yield


def test_a_peer_is_a_file_with_a_program_an_environment_and_a_package():
    assert {"plain scan", "blackjax", "ebmkit", "torch compile"} <= set(peers.PEERS)
    assert set(SAMPLER_PEERS) | set(peers.having("make_program")) == set(peers.PEERS)
    for name in peers.PEERS:
        peer = peers.load(name)
        assert isinstance(peer.PACKAGE, str) and isinstance(peer.ENVIRONMENT, dict)
    # The sampler table's own eager program tries this layout.
    assert "torch channels last" not in SAMPLER_PEERS and "torch eager" in SAMPLER_PEERS


@pytest.mark.slow
@pytest.mark.parametrize("kernel", SAMPLERS)
@pytest.mark.parametrize("name", SAMPLER_PEERS)
def test_peers_have_the_moments_and_the_moves_of_their_sampler(
    name, kernel, monkeypatch
):
    pytest.importorskip(peers.load(name).PACKAGE)
    # Each layout of the JAX peers is checked, not the one that is quicker.
    monkeypatch.setattr(jax_programs, "quickest", None)
    make = peers.load(name).make
    if (name, kernel) in MISSING or kernel == "underdamped":
        with pytest.raises(NotImplementedError, match="no"):
            verify(name, kernel, make)
    else:
        verify(name, kernel, make)


@pytest.mark.parametrize("kernel", ["langevin", "mala"])
def test_the_plain_scan_moves_as_far_as_our_samplers(kernel):
    """All other peers are compared with the plain scan."""
    settings = Kernel(kernel, SAMPLERS[kernel].check[0])
    params = {"mean": np.zeros(5, np.float32), "precision": np.geomspace(1, 10, 5)}
    params["precision"] = np.float32(params["precision"])
    normal = np.random.default_rng(0).standard_normal((NUM_CHAINS, 5))
    start = np.float32(normal / np.sqrt(params["precision"]))
    gaussian = Workload("gaussian", params, energies.gaussian)
    found = plain_scan.make(gaussian, settings, start, 1).run(0)
    sampler = getattr(samplers, kernel)(step_size=settings.step_size)
    energy_fn = functools.partial(energies.gaussian, params)
    key = jax.random.key(1)
    state, _ = samplers.sample_chains(sampler, energy_fn, key, start, 1)
    check_jumps(kernel, start, found, np.asarray(state.position))


@pytest.mark.slow
@pytest.mark.parametrize(
    "energy", ["gaussian", "mixture", "mlp", "conv 8x8x2", "latent"]
)
@pytest.mark.parametrize("name", SAMPLER_PEERS)
def test_peers_run_every_energy(name, energy):
    """Those with energies of their own compare them with ours, and raise."""
    pytest.importorskip(peers.load(name).PACKAGE)
    settings = Kernel("hmc" if name == "numpyro" else "langevin", 0.01, 2)
    options = {"num_threads": 1} if peers.load(name).PACKAGE in TORCH else {}
    made, x0 = workload(energy)
    contender = peers.load(name).make(made, settings, x0, 2, **options)
    x = contender.run(0)
    assert x.shape == x0.shape and x.dtype == np.float32
    np.testing.assert_array_equal(x, contender.run(0))
    assert np.abs(x - x0).max() > 1e-3
    assert not np.array_equal(x, contender.run(1))


def test_peers_in_jax_may_share_their_chains_among_devices(monkeypatch):
    """Which is faster is a matter of the machine; both are right, and all differ."""

    def program(params, key, x0):
        return x0 + params["by"] + jax.random.normal(key, x0.shape)

    num_devices = jax.local_device_count()
    assert num_devices > 1
    x0 = np.zeros((250 * num_devices, 2), np.float32)
    offered = []

    def choose(choice, runs):
        offered.append(list(runs))
        return choice

    for choice, words in ((False, "on one device"), (True, f"on {num_devices} dev")):
        monkeypatch.setattr(jax_programs, "quickest", functools.partial(choose, choice))
        contender = jax_contender(program, {"by": np.float32(5)}, x0, "it")
        assert words in contender.settings
        draws = contender.run(0)
        assert len(np.unique(draws, axis=0)) == len(draws)
        check_moments("it", draws, np.full(2, 5.0), np.ones(2))
    assert offered == [[False, True]] * 2
    monkeypatch.setattr(jax_programs, "quickest", lambda runs: True)
    few = jax_contender(program, {"by": 5.0}, x0[:3], "").run(0)
    assert few.shape == (3, 2) and len(np.unique(few)) == 6


def test_the_quickest_is_found_after_what_a_first_run_costs(monkeypatch):
    now = 0.0

    def take(seconds):
        def run(seed):
            nonlocal now
            now += seconds[min(seed, 1)]

        return run

    monkeypatch.setattr(jax_programs.time, "perf_counter", lambda: now)
    assert quickest({"a": take([1.0, 0.5]), "b": take([9.0, 0.4])}) == "b"
    assert quickest({"a": take([1.0, 0.3]), "b": take([9.0, 0.4])}) == "a"


@pytest.mark.quick
@pytest.mark.parametrize("energy", ["mixture", "conv 8x8x2"])
@pytest.mark.parametrize("name", ["plain scan", "torch eager", "torch compile"])
def test_a_peer_with_another_energy_is_refused(name, energy):
    pytest.importorskip(peers.load(name).PACKAGE)
    made, x0 = workload(energy)
    other = made._replace(energy=lambda params, x: 1.01 * made.energy(params, x))
    settings = Kernel("langevin", 0.01)
    with pytest.raises(AssertionError, match="the energy is off by"):
        peers.load(name).make(other, settings, x0, 2)


def test_wrong_moments_name_the_peer_and_the_coordinate():
    draws = np.random.default_rng(0).standard_normal((4_000, 3))
    ones = np.ones(3)
    check_moments("me", draws, 0 * ones, ones)
    with pytest.raises(AssertionError, match="me: the variance of coordinate 1"):
        check_moments("me", draws * [1, 1.1, 1], 0 * ones, ones)
    with pytest.raises(AssertionError, match="me: the mean of coordinate 2"):
        check_moments("me", draws + [0, 0, 0.1], 0 * ones, ones)
    with pytest.raises(AssertionError, match="me: the mean of coordinate 0 is nan"):
        check_moments("me", draws * [np.nan, 1, 1], 0 * ones, ones)
