"""Modules of Flax NNX and Equinox as networks: the same numbers, and one example."""

from functools import partial

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ebmjax import energies, networks

KEY = jax.random.key(3)
X = jnp.array([0.3, -1.2])


class Energy(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.Linear(2, 4, rngs=rngs)
        self.outer = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x, scale=1.0):
        return scale * self.outer(jnp.tanh(self.inner(x)))[0]


class Dropped(nnx.Module):
    """With batch statistics, and a key and counter of dropout."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 64, rngs=rngs)
        self.norm = nnx.BatchNorm(64, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.linear(x)))


def mlp(key):
    return equinox.nn.MLP(2, "scalar", 4, 1, activation=jnp.tanh, key=key)


@pytest.mark.parametrize("name", ["nnx", "equinox"])
def test_a_network_has_the_numbers_of_its_module(name):
    """By the formula, from the parameters that the network returns."""
    if name == "nnx":
        network = networks.from_nnx(Energy, (2,))
        params, model_state = network.init(KEY)
        inner, outer = params["inner"], params["outer"]
        layers = (inner["kernel"].T, inner["bias"], outer["kernel"].T, outer["bias"])
    else:
        network = networks.from_equinox(mlp, (2,))
        params, model_state = network.init(KEY)
        layers = [
            leaf for layer in params.layers for leaf in (layer.weight, layer.bias)
        ]
    assert model_state == {} and network.apply_stateful is None
    w1, b1, w2, b2 = (np.asarray(layer, np.float64) for layer in layers)
    hidden = np.tanh(w1 @ np.asarray(X) + b1)
    np.testing.assert_allclose(network.apply(params, X), w2 @ hidden + b2, rtol=1e-5)
    expected = -w1.T @ (w2.reshape(-1) * (1 - hidden**2))
    found = jax.jit(energies.score(network.apply))(params, X)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Parameters are differentiated and added as those of any network.
    slope = jax.grad(network.apply)(params, X)
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, params, slope)
    assert network.apply(moved, X) < network.apply(params, X)
    other, _ = network.init(jax.random.key(4))
    assert network.apply(other, X) != network.apply(params, X)


@pytest.mark.quick
def test_parameters_of_a_module_that_exists_are_those_of_its_network():
    module = Energy(nnx.Rngs(7))
    params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    apply = networks.from_nnx(Energy, (2,)).apply
    np.testing.assert_allclose(apply(params, X, scale=2.0), 2 * module(X), rtol=1e-6)
    module = mlp(jax.random.key(7))
    params = equinox.filter(module, equinox.is_inexact_array)
    apply = networks.from_equinox(mlp, (2,)).apply
    np.testing.assert_allclose(apply(params, X), module(X), rtol=1e-6)


@pytest.mark.parametrize(
    "make, name",
    [(partial(networks.from_nnx, Energy), "Energy")]
    + [(partial(networks.from_equinox, mlp), "MLP")],
)
def test_a_batch_is_refused_by_the_name_of_the_module(make, name):
    network = make((2,))
    params, _ = network.init(KEY)
    message = rf"{name} takes one example of shape \(2,\), got \(5, 2\); .*jax.vmap"
    with pytest.raises(ValueError, match=message):
        network.apply(params, jnp.ones((5, 2)))


def test_variables_that_are_no_parameters_of_nnx_are_the_model_state():
    """In training the running mean moves half of the way to the batch's, and half of
    the units are dropped, others at the next call. Otherwise nothing changes."""
    network = networks.from_nnx(Dropped, (3, 2))
    params, model_state = network.init(KEY)
    assert set(params) == {"linear", "norm"} and set(model_state) == {"nnx"}
    batch = jax.random.normal(KEY, (3, 2))
    train = jax.jit(partial(network.apply_stateful, train=True))
    y, once = train(params, model_state, batch)
    z, twice = train(params, once, batch)
    hidden = batch @ params["linear"]["kernel"]
    mean = once["nnx"]["norm"]["mean"]
    np.testing.assert_allclose(mean, hidden.mean(0) / 2, rtol=1e-4, atol=1e-6)
    assert 0.3 < np.mean(y == 0) < 0.7 and ((y == 0) != (z == 0)).any()
    y, kept = network.apply_stateful(params, twice, batch)
    np.testing.assert_array_equal(
        kept["nnx"]["norm"]["mean"], twice["nnx"]["norm"]["mean"]
    )
    assert (y != 0).all()
    # The initial mean is 0 and the initial variance 1.
    np.testing.assert_allclose(
        network.apply(params, batch), hidden, rtol=1e-3, atol=1e-5
    )


def test_equinox_is_asked_for_in_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "equinox", None)
    message = "^from_equinox needs equinox: pip install equinox$"
    with pytest.raises(ModuleNotFoundError, match=message):
        networks.from_equinox(mlp, (2,))
