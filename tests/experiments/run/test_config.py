"""What is made from the sections of a config."""

import importlib
import inspect
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from ml_collections import ConfigDict

from ebmjax.types import Array
from experiments.run.config import (
    CHOICES,
    construct,
    make_optimizer,
    options_of,
    schedule,
    with_options,
)
from experiments.run.limits import check_options


@pytest.mark.quick
def test_schedules_are_these_numbers():
    rate = schedule(
        start=1.0, final=0.1, warmup_steps=4, decay_start=10, decay_steps=20
    )
    np.testing.assert_allclose(rate(0), 0.2)
    np.testing.assert_allclose(rate(4), 1.0)
    np.testing.assert_allclose(rate(10), 1.0)
    np.testing.assert_allclose(rate(20), 0.55, rtol=1e-6)  # half-way down a cosine
    np.testing.assert_allclose(rate(30), 0.1, rtol=1e-6)
    np.testing.assert_allclose(rate(1000), 0.1, rtol=1e-6)
    line = schedule(start=0.0, final=4.0, decay="linear", decay_steps=4)
    np.testing.assert_allclose([line(k) for k in range(6)], [0, 1, 2, 3, 4, 4])
    power = schedule(start=1.0, final=0.01, decay="exponential", decay_steps=2)
    np.testing.assert_allclose(
        [power(k) for k in range(3)], [1.0, 0.1, 0.01], rtol=1e-5
    )
    assert schedule(start=0.5)(10**6) == 0.5


def test_the_optimizer_clips_the_global_norm():
    optimizer = make_optimizer(
        {"name": "sgd", "learning_rate": {"start": 1.0}, "gradient_clip": 1.0}
    )
    gradient = {"a": np.float32(3.0), "b": np.float32(4.0)}
    change, _ = optimizer.update(gradient, optimizer.init(gradient))
    np.testing.assert_allclose([change["a"], change["b"]], [-0.6, -0.8], rtol=1e-6)


@pytest.mark.quick
def test_a_section_that_cannot_be_made_is_named_by_its_path():
    constructors = {"pair": lambda first, *, second: (first, second)}
    section = {"name": "pair", "second": 2}
    assert construct("a.b", section, constructors, 1) == (1, 2)
    with pytest.raises(ValueError) as error:
        construct("a.b", section | {"name": "pairs"}, constructors, 1)
    expected = "a.b.name must be one of ['pair'], got 'pairs'; did you mean 'pair'?"
    assert str(error.value) == expected
    with pytest.raises(ValueError, match="^a.b: 'pair' does not fit: .*'third'"):
        construct("a.b", section | {"third": 3}, constructors, 1)
    with pytest.raises(ValueError, match="^opponent.name must be one of .*'lion'"):
        make_optimizer(
            {"name": "lion", "learning_rate": {"start": 1.0}}, path="opponent"
        )


@pytest.mark.quick
def test_the_options_of_a_constructor_are_its_plain_parameters():
    def make(
        model,
        num=1,
        *,
        scale: float | Array,
        widths: Sequence[int] = (1,),
        limit: float | tuple[float, float] | None = None,
        norm: str | None = None,
        project: Callable = abs,
        network: Callable | None = None,
        **others,
    ):
        return model

    assert list(options_of(make)) == ["num", "scale", "widths", "limit", "norm"]
    config = ConfigDict({"a": {"name": "none", "mine": 3}})
    choices = {"a": {"none": lambda: 0, "make": make}, "absent": {}}
    given = {"a.name": "make", "a.scale": "2", "a.limit": "(-1, 1)", "a.norm": "1"}
    found = with_options(config, given, choices).a.to_dict()
    assert found == {
        "name": "make",
        "mine": 3,
        "num": 1,
        "scale": 2.0,
        "widths": (1,),
        "limit": (-1, 1),
        "norm": "1",
    }
    assert type(found["scale"]) is float
    # A section that is made in another way is left as it is.
    config = ConfigDict({"a": {"name": "mine", "num": 3}})
    assert with_options(config, {"a.name": "make"}, choices).a.num == 3


OWN = {  # section -> keys that the problem takes itself
    "data": {"name", "batch_size", "num_examples"},
    "network": {"name", "has_offset"},
    "optimizer": {"name", "gradient_clip", "learning_rate"},
    "opponent": {"name", "gradient_clip", "learning_rate"},
    "start": {"name", "law", "scale"},
}


@pytest.mark.parametrize(
    "problem",
    [
        "generalized.images:digits",
        "generalized.tables:red_wine",
        "max_entropy.images:digits",
        "max_entropy.plane:toy",
        "score_based.images:digits",
        "short_run.images:digits",
        "short_run.plane:toy_convergent",
        "tutorial.run:flow_contrastive,rings",
    ],
)
def test_every_choice_of_a_problem_fits_its_constructor(problem):
    name, _, preset = problem.partition(":")
    module = importlib.import_module(f"experiments.{name}")
    config, choices = module.get_config(preset), CHOICES | module.CHOICES
    texts = {int: "2", bool: "true", Sequence[int]: "2,3"}
    for section, constructors in choices.items():
        own = OWN.get(section, {"name"})
        for name, constructor in constructors.items():
            signature = inspect.signature(constructor)
            lacking = {
                f"{section}.{parameter.name}": texts.get(parameter.annotation, "0.5")
                for parameter in signature.parameters.values()
                if parameter.kind is parameter.KEYWORD_ONLY
                and parameter.default is parameter.empty
            }
            given = {f"{section}.name": name} | lacking
            found = with_options(config, given, choices)[section].to_dict()
            signature.bind_partial(**{k: found[k] for k in found.keys() - own})
            assert own & set(config[section]) <= found.keys()
            check_options({section: found})
