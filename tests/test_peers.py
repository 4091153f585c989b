"""The benchmark's peers sample what they should, before anybody times them."""

import functools

import jax
import numpy as np
import pytest

from ebmjax import energies, networks, samplers
from experiments.throughput import contest, peers

PACKAGES = {
    "plain scan": "jax",
    "blackjax": "blackjax",
    "numpyro": "numpyro",
    "tfp": "tensorflow_probability",
    "torchebm": "torchebm",
    "torch eager": "torch",
    "torch.compile": "torch",
}
MISSING = {
    ("numpyro", "langevin"),
    ("numpyro", "mala"),
    ("torchebm", "mala"),
}


def as_numpy(tree):
    return jax.tree.map(np.asarray, tree)


def workload(name: str) -> tuple[peers.Workload, np.ndarray]:
    """A small one of that kind, and four chains."""
    shape = {"gaussian": (3,), "mixture": (2,), "mlp": (2,)}.get(name, (8, 8, 2))
    if name == "latent":
        made = contest.workload(name, 4)
        return made, contest.starts(contest.Cell(name, "mala", 0.1, 0, 4, 1, 4))
    random = np.random.default_rng(0)
    x0 = random.standard_normal((4, *shape), np.float32)
    if name == "gaussian":
        params = {"mean": x0[0], "precision": np.float32([1, 2, 3])}
        return peers.Workload(name, params, energies.gaussian), x0
    if name == "mixture":
        params = {
            "means": 2 * random.standard_normal((5, 2), np.float32),
            "precisions": np.float32(4),
            "log_weights": np.log(np.float32([0.1, 0.2, 0.3, 0.2, 0.2])),
        }
        return peers.Workload(name, params, energies.gaussian_mixture), x0
    if name == "mlp":
        network = networks.mlp_energy(shape, widths=(16, 16))
    else:
        network = networks.short_run_energy(shape, width=4)
    params = as_numpy(network.init(jax.random.key(0))[0])
    return peers.Workload(name, params, network.apply), x0


@pytest.fixture(autouse=True)
def promotion():
    """The peers' own code lets ranks differ."""
    with jax.numpy_rank_promotion("allow"):
        yield


def test_every_peer_has_an_environment_and_a_package():
    assert set(peers.PEERS) == set(peers.ENVIRONMENTS) == set(PACKAGES)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", peers.CHECKS)
@pytest.mark.parametrize("name", peers.PEERS)
def test_peers_have_the_moments_and_the_moves_of_their_sampler(
    name, kernel, monkeypatch
):
    pytest.importorskip(PACKAGES[name])
    if "torch" not in name:  # each layout is checked, not the one that is quicker
        monkeypatch.setattr(_peers, "quickest", None)
    if (name, kernel) in MISSING:
        with pytest.raises(NotImplementedError, match="no"):
            peers.verify(name, kernel, peers.PEERS[name])
    else:
        peers.verify(name, kernel, peers.PEERS[name])


@pytest.mark.parametrize("kernel", ["langevin", "mala"])
def test_the_plain_scan_moves_as_far_as_our_samplers(kernel):
    """All other peers are compared with the plain scan."""
    settings, _ = peers.CHECKS[kernel]
    params = {"mean": np.zeros(5, np.float32), "precision": np.geomspace(1, 10, 5)}
    params["precision"] = np.float32(params["precision"])
    normal = np.random.default_rng(0).standard_normal((peers.NUM_CHAINS, 5))
    start = np.float32(normal / np.sqrt(params["precision"]))
    gaussian = peers.Workload("gaussian", params, energies.gaussian)
    found = peers.plain_scan(gaussian, settings, start, 1).run(0)
    sampler = getattr(samplers, kernel)(step_size=settings.step_size)
    energy_fn = functools.partial(energies.gaussian, params)
    key = jax.random.key(1)
    state, _ = samplers.sample_chains(sampler, energy_fn, key, start, 1)
    peers.check_jumps(kernel, start, found, np.asarray(state.position))


@pytest.mark.slow
@pytest.mark.parametrize(
    "energy", ["gaussian", "mixture", "mlp", "conv 8x8x2", "latent"]
)
@pytest.mark.parametrize("name", peers.PEERS)
def test_peers_run_every_energy(name, energy):
    """Those with energies of their own compare them with ours, and raise."""
    pytest.importorskip(PACKAGES[name])
    settings = peers.Kernel("hmc" if name == "numpyro" else "langevin", 0.01, 2)
    options = {"num_threads": 1} if "torch" in name else {}
    made, x0 = workload(energy)
    contender = peers.PEERS[name](made, settings, x0, 2, **options)
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
        monkeypatch.setattr(_peers, "quickest", functools.partial(choose, choice))
        contender = peers.jax_contender(program, {"by": np.float32(5)}, x0, "it")
        assert words in contender.settings
        draws = contender.run(0)
        assert len(np.unique(draws, axis=0)) == len(draws)
        peers.check_moments("it", draws, np.full(2, 5.0), np.ones(2))
    assert offered == [[False, True]] * 2
    monkeypatch.setattr(_peers, "quickest", lambda runs: True)
    few = peers.jax_contender(program, {"by": 5.0}, x0[:3], "").run(0)
    assert few.shape == (3, 2) and len(np.unique(few)) == 6


def test_the_quickest_is_found_after_what_a_first_run_costs(monkeypatch):
    now = 0.0

    def take(seconds):
        def run(seed):
            nonlocal now
            now += seconds[min(seed, 1)]

        return run

    monkeypatch.setattr(peers.time, "perf_counter", lambda: now)
    assert peers.quickest({"a": take([1.0, 0.5]), "b": take([9.0, 0.4])}) == "b"
    assert peers.quickest({"a": take([1.0, 0.3]), "b": take([9.0, 0.4])}) == "a"


@pytest.mark.parametrize("energy", ["mixture", "conv 8x8x2"])
@pytest.mark.parametrize("name", ["plain scan", "torch eager", "torch.compile"])
def test_a_peer_with_another_energy_is_refused(name, energy):
    pytest.importorskip(PACKAGES[name])
    made, x0 = workload(energy)
    other = made._replace(energy=lambda params, x: 1.01 * made.energy(params, x))
    settings = peers.Kernel("langevin", 0.01)
    with pytest.raises(AssertionError, match="the energy is off by"):
        peers.PEERS[name](other, settings, x0, 2)


def test_wrong_moments_name_the_peer_and_the_coordinate():
    draws = np.random.default_rng(0).standard_normal((4_000, 3))
    ones = np.ones(3)
    peers.check_moments("me", draws, 0 * ones, ones)
    with pytest.raises(AssertionError, match="me: the variance of coordinate 1"):
        peers.check_moments("me", draws * [1, 1.1, 1], 0 * ones, ones)
    with pytest.raises(AssertionError, match="me: the mean of coordinate 2"):
        peers.check_moments("me", draws + [0, 0, 0.1], 0 * ones, ones)
    with pytest.raises(AssertionError, match="me: the mean of coordinate 0 is nan"):
        peers.check_moments("me", draws * [np.nan, 1, 1], 0 * ones, ones)
