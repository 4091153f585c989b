"""Sections of a config, and what is made from them."""

import ast
import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ebmjax.checks import check_count
from ebmjax.types import Array

OPTIONAL = frozenset(["bandwidth", "final", "variance_reduction"])
"""Options for which None stands for a choice of its own."""

OPTIMIZERS = {"adam": optax.adam, "adamw": optax.adamw, "sgd": optax.sgd}

CHOICES = {"optimizer": OPTIMIZERS}
"""Section -> name -> the constructor that the section's other keys go to, where the
command line may choose another: those of every problem. A problem's own `CHOICES` has
more of them."""

EXAMPLES = {bool: False, int: 0, float: 0.0, str: "", tuple: ()}
"""Type of an option -> a value of that type."""


def construct(
    path: str, section: Mapping[str, Any], constructors: Mapping[str, Callable], *args
):
    """Calls the constructor that `section.name` names with the section's other keys.

    Args:
      path: Path of the section, for messages.
      section: A config's section.
      constructors: Name -> constructor.
      *args: Positional arguments of the constructor.

    Raises:
      ValueError: If the name is unknown, or the section does not fit the constructor.
    """
    options = dict(section)
    name = options.pop("name")
    check_name(f"{path}.name", name, constructors)
    try:
        return constructors[name](*args, **options)
    except TypeError as error:
        raise ValueError(f"{path}: {name!r} does not fit: {error}") from error


def options_of(constructor: Callable) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a constructor that a section can give.

    They are of a plain type: a number, text, a flag or a tuple. What has no default is
    one of them if it is given by keyword alone, as the program gives the others.
    """

    def is_option(parameter):
        if parameter.default is parameter.empty:
            return parameter.kind is parameter.KEYWORD_ONLY
        if parameter.default is None:
            return not EXAMPLES.keys().isdisjoint(_types(parameter.annotation))
        return isinstance(parameter.default, tuple(EXAMPLES))

    parameters = inspect.signature(constructor).parameters
    return {name: x for name, x in parameters.items() if is_option(x)}


def _types(annotation: Any) -> list[Any]:
    """Returns the types of an annotation, without None and arrays."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = typing.get_args(annotation) if is_union else (annotation,)
    found = [typing.get_origin(member) or member for member in members]
    found = [tuple if member is Sequence else member for member in found]
    return [member for member in found if member not in (Array, types.NoneType)]


def _example(parameter: inspect.Parameter) -> Any:
    """Returns a value of a parameter's type; None if it has several, or none."""
    if isinstance(parameter.default, tuple(EXAMPLES)):
        return parameter.default
    found = _types(parameter.annotation)
    return EXAMPLES.get(found[0]) if len(found) == 1 else None


def schedule(
    *,
    start: float,
    final: float | None = None,
    warmup_steps: int = 0,
    decay: str = "cosine",
    decay_start: int = 0,
    decay_steps: int = 0,
) -> optax.Schedule:
    """Returns a number as a function of the update count.

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
    """Returns a config's section of `make_optimizer`: Adam with a constant rate."""
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
    """Returns a config's section `train`, which `run` goes by."""
    return {
        "num_steps": num_steps,  # updates of all players together
        "log_every": 100,  # steps; 0 for the last step alone
        "eval_every": 0,  # steps; 0 for never; the last step is evaluated in any case
        "checkpoint_every": 1_000,  # steps; 0 for never; the last step is saved too
        "keep": 2,  # newest checkpoints
        "best": "",  # a scalar of the evaluation: where lowest is kept too
        "num_accumulated": 1,  # parts of a batch, one after another to save memory
        "abort_above": 1e8,  # a metric this large: training has diverged; 0: no limit
        "on_divergence": "stop",  # or "restart" from a checkpoint with other noise
        "max_restarts": 3,  # after which a run that diverges stops
        **others,
    }


def make_optimizer(
    section: Mapping[str, Any], path: str = "optimizer"
) -> optax.GradientTransformation:
    """Returns an optimizer from a config section, whose path is for messages.

    Keys: `name` ("adam", "adamw" or "sgd"), `learning_rate` (a section of `schedule`),
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
    optimizer = construct(path, options, OPTIMIZERS, rate)
    if clip > 0:
        optimizer = optax.chain(optax.clip_by_global_norm(clip), optimizer)
    return optimizer


def nearest(name: str, known) -> str:
    """Returns the end of a message on an unknown name: which of `known` is nearest."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_name(what: str, name: str, known) -> None:
    """Raises a ValueError, which names the nearest one, unless `name` is known."""
    if name not in known:
        raise ValueError(
            f"{what} must be one of {sorted(known)}, got {name!r}{nearest(name, known)}"
        )


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested sections as one dict: dotted path -> value."""
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


def with_options(
    config: ConfigDict,
    given: Mapping[str, Any],
    choices: Mapping[str, Mapping[str, Callable]] | None = None,
) -> ConfigDict:
    """Returns a locked copy of a config with other values.

    A section of `choices` also has the options that its constructor takes and the
    config does not list. Where `given` names another constructor for it, its keys
    become those of that one: keys that both take keep their values, keys that the other
    alone took are dropped, and those that are new have the constructor's own defaults.
    Keys that neither takes are the problem's and stay.

    Args:
      config: Any config.
      given: Dotted path -> value. Text is read as the type of the config's own value.
      choices: Section -> name -> constructor, as in `CHOICES`; None for none.

    Raises:
      ValueError: If the config has no such option, with the nearest one, if the text is
        not of the option's type, or if a constructor is unknown or lacks an option.
    """
    sections, unlisted = _choose(config, given, choices or {})
    known = flat(sections) | unlisted
    values = {}
    for path, value in given.items():
        if path not in known:
            raise _no_option(path, known, config, given)
        if isinstance(value, str):
            value = parse_option(path, value, known[path])
        values[path] = value
        if path in unlisted:
            section, _, name = path.partition(".")
            sections[section][name] = unlisted[path]
    found = ConfigDict(sections)
    for path, value in values.items():
        try:
            found.update_from_flattened_dict({path: value})
        except TypeError:
            raise _refusal(path, value, known[path]) from None
    return found.lock()


def known_options(
    config: ConfigDict,
    given: Mapping[str, Any],
    choices: Mapping[str, Mapping[str, Callable]],
) -> frozenset[str]:
    """Returns the paths of `with_options`, where `given` names the constructors."""
    sections, unlisted = _choose(config, given, choices)
    return frozenset(flat(sections) | unlisted)


def _choose(config, given, choices) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the sections of a config with the keys of the constructors that `given`
    names, and what these also take: dotted path -> a value of the option's type."""
    sections, unlisted = config.to_dict(), {}
    for section, constructors in choices.items():
        options, path = sections.get(section), f"{section}.name"
        if not isinstance(options, Mapping) or options.get("name") not in constructors:
            continue  # the problem has no such section, or makes it in its own way
        name = parse_option(path, str(given.get(path, options["name"])), "")
        check_name(path, name, constructors)
        taken = options_of(constructors[name])
        if name != options["name"]:
            for key in options_of(constructors[options["name"]]).keys() - taken.keys():
                options.pop(key, None)
            for key, parameter in taken.items():
                if isinstance(parameter.default, tuple(EXAMPLES)):
                    options.setdefault(key, parameter.default)
            lacking = [
                f"{section}.{key}"
                for key, parameter in taken.items()
                if parameter.default is parameter.empty
                and not (key in options or f"{section}.{key}" in given)
            ]
            if lacking:
                raise ValueError(f"{path} {name!r} needs {' and '.join(lacking)}")
        unlisted |= {
            f"{section}.{key}": _example(parameter)
            for key, parameter in taken.items()
            if key not in options
        }
    return sections, unlisted


def _no_option(path: str, known, config: ConfigDict, given) -> ValueError:
    """Returns the error for an option that is not known, or that was dropped."""
    if path in flat(config.to_dict()):
        chosen = f"{path.partition('.')[0]}.name"
        return ValueError(f"{chosen} {given[chosen]!r} takes no option {path!r}")
    near = difflib.get_close_matches(path, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"the config has no option {path!r}{hint}")


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
