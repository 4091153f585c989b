"""No objective draws twice from one key, of one player or of several.

JAX's own check lets a key be both drawn from and folded into, as chains fold theirs.
"""

import collections

import jax
import jax.numpy as jnp
import pytest
from cases import GAUSSIAN_PARAMS, OBJECTIVES

from ebmjax import samplers
from ebmjax.objectives import (
    entropy_gradient,
    f_contrastive,
    flow_contrastive,
    generalized,
    learned_stein,
    max_entropy,
    variational,
)

DRAWS = {"random_bits", "random_split"}
VIEWS = {"slice", "squeeze", "reshape", "broadcast_in_dim", "copy"}


def is_key(variable):
    dtype = getattr(getattr(variable, "aval", None), "dtype", jnp.float32)
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def check_keys(jaxpr):
    """Returns how often each input is drawn from and folded into, and checks the rest.

    A key may be drawn from (or split) once, or folded into, and not both.
    """
    drawn, folded = collections.Counter(), collections.Counter()
    views = {}

    def place(variable):
        return views.get(id(variable), id(variable))

    for equation in jaxpr.eqns:
        name, inputs = equation.primitive.name, equation.invars
        inner = [
            getattr(value, "jaxpr", value)
            for parameter in equation.params.values()
            for value in (parameter if isinstance(parameter, tuple) else (parameter,))
            if hasattr(getattr(value, "jaxpr", value), "eqns")
        ]
        if name in DRAWS:
            drawn[place(inputs[0])] += 1
        elif name == "random_fold_in":
            folded[place(inputs[0])] += 1
        elif name in VIEWS and is_key(inputs[0]):
            # The same part of the same keys is the same key.
            part = (name, place(inputs[0]), str(equation.params))
            views[id(equation.outvars[0])] = views.setdefault(part, part)
        for sub in inner:
            found = check_keys(sub)
            # Of loops and branches the last inputs are those of the inner program.
            for variable, (num_drawn, num_folded) in zip(
                reversed(inputs), reversed(found)
            ):
                if is_key(variable):
                    drawn[place(variable)] += num_drawn
                    folded[place(variable)] += num_folded
    for key, number in drawn.items():
        assert number == 1 or number == 0, f"{number} draws from one key"
        assert not (number and folded[key]), "a key is drawn from and folded into"
    return [(drawn[id(v)], folded[id(v)]) for v in jaxpr.invars]


def quadratic(params, x):
    return jnp.sum(params * x**2)


def linear(scale, z):
    return scale * z


def sample(scale, key):
    return scale * jax.random.normal(key, (2,))


def log_prob(scale, x):
    return -0.5 * jnp.sum((x / scale) ** 2) - 2 * jnp.log(scale)


LATENTS = {"latent_dim": 2}
VERA = LATENTS | {"noise_scale": 0.1}
FLOW = (sample, log_prob)
PLAYERS = {
    "f_contrastive, critic": f_contrastive.critic_objective(
        quadratic, quadratic, sample=sample
    ),
    "f_contrastive, energy": f_contrastive.energy_objective(
        quadratic, quadratic, sample=sample
    ),
    "flow_contrastive, energy": flow_contrastive.energy_objective(quadratic, FLOW),
    "flow_contrastive, flow": flow_contrastive.flow_objective(quadratic, FLOW),
    "variational, energy": variational.energy_objective(quadratic, FLOW),
    "variational, flow": variational.flow_objective(quadratic, FLOW),
    "learned_stein, critic": learned_stein.critic_objective(
        quadratic, linear, l2_weight=1.0
    ),
    "learned_stein, energy": learned_stein.energy_objective(quadratic, linear),
    "entropy_gradient, energy": entropy_gradient.energy_objective(
        quadratic, linear, **VERA
    ),
    "entropy_gradient, generator": entropy_gradient.generator_objective(
        quadratic, linear, **VERA
    ),
    "entropy_gradient, posterior": entropy_gradient.posterior_objective(linear, **VERA),
    "generalized, energy": generalized.energy_objective(
        quadratic, linear, gradient_penalty=1.0, **LATENTS
    ),
    "generalized, base": generalized.base_objective(quadratic, linear, **LATENTS),
    "max_entropy, energy": max_entropy.energy_objective(
        quadratic, linear, score_penalty=0.1, **LATENTS
    ),
    "max_entropy, chains": max_entropy.energy_objective(
        quadratic,
        linear,
        score_penalty=0.1,
        sampler=samplers.mala(step_size=0.1),
        num_steps=2,
        **LATENTS,
    ),
} | {
    f"max_entropy, {marginal}": max_entropy.generator_objective(
        quadratic,
        linear,
        lambda scale, x, z: scale * jnp.sum(x * z),
        information_weight=1.0,
        marginal=marginal,
        **LATENTS,
    )
    for marginal in max_entropy.MARGINALS
}

PARAMS = {
    name: jnp.ones(())
    for name in ("energy", "critic", "flow", "generator", "statistics", "base")
} | {"log_partition": jnp.zeros(()), "posterior": jnp.zeros(2)}


@pytest.mark.parametrize("name", [*OBJECTIVES, *PLAYERS])
def test_no_key_is_drawn_from_twice(name):
    if name in PLAYERS:
        objective, params = PLAYERS[name], PARAMS
    else:
        objective, params = OBJECTIVES[name](), GAUSSIAN_PARAMS
    key, batch = jax.random.key(0), jnp.ones((8, 2))
    carry = jax.eval_shape(objective.init, key)
    check_keys(jax.make_jaxpr(objective.loss)(params, key, batch, carry).jaxpr)


@pytest.mark.parametrize(
    "draw",
    [
        lambda key: jax.random.normal(key) + jax.random.uniform(key),
        lambda key: (
            jax.random.normal(key) + jax.random.normal(jax.random.split(key)[0])
        ),
        lambda key: (
            jax.random.normal(key) + jax.random.normal(jax.random.fold_in(key, 0))
        ),
        lambda key: jax.jit(jax.random.normal)(key) + jax.jit(jax.random.bits)(key),
        lambda keys: sum(jax.random.normal(jax.random.split(keys)[0]) for _ in "ab"),
    ],
)
def test_the_check_notices_two_draws_from_one_key(draw):
    with pytest.raises(AssertionError, match="from"):
        check_keys(jax.make_jaxpr(draw)(jax.random.key(0)).jaxpr)


def test_the_check_lets_a_key_be_split_and_folded_into_often():
    def draw(key):
        first, second = jax.random.split(key)
        parts = [jax.random.fold_in(second, index) for index in range(3)]
        return jax.random.normal(first) + sum(jax.random.normal(k) for k in parts)

    check_keys(jax.make_jaxpr(draw)(jax.random.key(0)).jaxpr)
