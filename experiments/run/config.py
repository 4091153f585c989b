"""Sections of a config, and what is made from them."""

import ast
import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ebmjax.checks import check_count

OPTIONAL = frozenset(["bandwidth", "final", "variance_reduction"])
"""Options for which None stands for a choice of its own."""


def construct(section: Mapping[str, Any], constructors: Mapping[str, Callable], *args):
    """Calls the constructor that `section.name` names with the section's other keys.

    Raises:
      ValueError: If the name is unknown, or the section does not fit the constructor.
    """
    options = dict(section)
    name = options.pop("name")
    if name not in constructors:
        raise ValueError(f"name must be one of {sorted(constructors)}, got {name!r}")
    try:
        return constructors[name](*args, **options)
    except TypeError as error:
        raise ValueError(f"section {name!r} does not fit: {error}") from error


def schedule(
    *,
    start: float,
    final: float | None = None,
    warmup_steps: int = 0,
    decay: str = "cosine",
    decay_start: int = 0,
    decay_steps: int = 0,
) -> optax.Schedule:
    """A number as a function of the update count.

    Rises linearly from 0 to `start` in `warmup_steps`, stays, and from `decay_start` on
    falls to `final` in `decay_steps`, where it remains. All lengths are given in
    updates, none is derived from the run's length: a longer run goes on as it was.

    Args:
      start: The value before the decay.
      final: The value after it; `start` by default.
      warmup_steps: Length of the rise; 0 for none.
      decay: `"cosine"`, `"linear"` or `"exponential"`.
      decay_start: Count at which the decay begins.
      decay_steps: Its length; 0 for no decay.
    """
    if decay not in ("cosine", "linear", "exponential"):
        raise ValueError(
            f"decay must be 'cosine', 'linear' or 'exponential', got {decay!r}"
        )
    for name, value in (
        ("warmup_steps", warmup_steps),
        ("decay_start", decay_start),
        ("decay_steps", decay_steps),
    ):
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    final = start if final is None else final
    if decay == "exponential" and not (start > 0 and final > 0):
        raise ValueError(f"exponential decay needs positive ends, got {start}, {final}")

    def value(count):
        progress = jnp.clip((count - decay_start) / max(decay_steps, 1), 0.0, 1.0)
        if decay_steps == 0:
            level = jnp.float32(start)
        elif decay == "exponential":
            level = start * (final / start) ** progress
        else:
            if decay == "cosine":
                progress = 0.5 * (1.0 - jnp.cos(jnp.pi * progress))
            level = start + (final - start) * progress
        return level * jnp.minimum(1.0, (count + 1) / (warmup_steps + 1))

    return value


def adam_section(learning_rate: float, *, b1: float, b2: float) -> dict[str, Any]:
    """A config's section of `make_optimizer`: Adam with a constant rate."""
    return {
        "name": "adam",  # or "adamw", "sgd", with the options of that optimizer
        "b1": b1,  # decay of the gradient's running mean
        "b2": b2,  # decay of the running mean of its square
        "gradient_clip": 0.0,  # largest norm; 0 for none
        "learning_rate": {
            "start": learning_rate,  # before the decay
            "final": learning_rate,  # after the decay
            "warmup_steps": 0,  # updates of a linear rise from 0
            "decay": "cosine",  # or "linear", "exponential"
            "decay_start": 0,  # updates before the decay
            "decay_steps": 0,  # updates; 0 for a constant rate
        },
    }


def train_section(num_steps: int, **others) -> dict[str, Any]:
    """A config's section `train`, which `run` goes by."""
    return {
        "num_steps": num_steps,  # updates of all players together
        "log_every": 100,  # steps; 0 for the last step alone
        "eval_every": 0,  # steps; 0 for never; the last step is evaluated in any case
        "checkpoint_every": 1_000,  # steps; 0 for never; the last step is saved too
        "keep": 2,  # newest checkpoints
        "best": "",  # a scalar of the evaluation: where lowest is kept too
        "abort_above": 1e8,  # a metric this large: training has diverged; 0: no limit
        **others,
    }


def make_optimizer(section: Mapping[str, Any]) -> optax.GradientTransformation:
    """An optimizer from a config section.

    Keys: `name` ("adam" or "sgd"), `learning_rate` (a section of `schedule`),
    `gradient_clip` (largest global norm of the gradient; 0 for none), and what the
    optax constructor of that name takes.
    """
    options = dict(section)
    of_rate = options.pop("learning_rate")
    for name in ("start", "final"):
        value = of_rate.get(name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(
                f"learning_rate.{name} must be a number of at least 0, got {value}"
            )
    rate = schedule(**of_rate)
    clip = options.pop("gradient_clip", 0.0)
    if not clip >= 0:
        raise ValueError(f"gradient_clip must not be negative, got {clip}")
    for name in ("b1", "b2"):
        if not 0 <= options.get(name, 0.0) < 1:
            raise ValueError(f"{name} must be from 0 to below 1, got {options[name]}")
    optimizers = {"adam": optax.adam, "adamw": optax.adamw, "sgd": optax.sgd}
    optimizer = construct(options, optimizers, rate)
    if clip > 0:
        optimizer = optax.chain(optax.clip_by_global_norm(clip), optimizer)
    return optimizer


def check_name(what: str, name: str, known) -> None:
    """Raises a ValueError, which names the nearest one, unless `name` is known."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{what} must be one of {sorted(known)}, got {name!r}{hint}")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one dict: dotted path -> value."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def check_counts(section: str, values: Mapping[str, Any], **least: int) -> None:
    """Raises ValueError, with the option's path, unless each of these of a config's
    section is a whole number of at least so many: before training, not after it."""
    for name, count in least.items():
        check_count(f"{section}.{name}", values[name], count)


def with_options(config: ConfigDict, given: Mapping[str, Any]) -> ConfigDict:
    """Returns a locked copy of a config with other values.

    Args:
      config: Any config.
      given: Dotted path -> value. Text is read as the type of the config's own value.

    Raises:
      ValueError: If the config has no such option, with the nearest one, or if the text
        is not of the option's type.
    """
    known = flat(config.to_dict())
    values = {}
    for path, value in given.items():
        if path not in known:
            near = difflib.get_close_matches(path, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"the config has no option {path!r}{hint}")
        if isinstance(value, str):
            value = parse_option(path, value, known[path])
        values[path] = value
    found = ConfigDict(config.to_dict())
    for path, value in values.items():
        try:
            found.update_from_flattened_dict({path: value})
        except TypeError:
            raise _refusal(path, value, known[path]) from None
    return found.lock()


def parse_option(path: str, text: str, current: Any) -> Any:
    """Reads the text of an option as the type of its current value.

    Raises:
      ValueError: If the text is not of that type.
    """
    refusal = _refusal(path, text, current)
    if text == "None" and path.rpartition(".")[2] in OPTIONAL:
        return None
    if isinstance(current, str):
        return _literal(text) if text[:1] in "'\"" and text[:1] else text
    if isinstance(current, bool):
        if text.lower() not in ("true", "false"):
            raise refusal
        return text.lower() == "true"
    if isinstance(current, int | float):
        try:
            value = float(text)
        except ValueError:
            raise refusal from None
        if isinstance(current, float):
            return value
        if not value.is_integer():
            raise refusal
        return int(text) if text.lstrip("+-").isdigit() else int(value)
    value = _literal(text)
    if isinstance(current, tuple | list):
        if not isinstance(value, tuple | list):
            raise refusal
        return tuple(value)
    return value


def _refusal(path: str, value: Any, current: Any) -> ValueError:
    kind = {
        bool: "True or False",
        int: "a whole number",
        float: "a number",
        str: "text",
        tuple: "a tuple",
        list: "a tuple",
    }.get(type(current), f"a {type(current).__name__}")
    return ValueError(f"{path} must be {kind}, as {current!r} is, got {value!r}")


def _literal(text: str) -> Any:
    """Reads a Python literal; other text stands for itself, or for a tuple of words."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return tuple(text.split(",")) if "," in text else text
