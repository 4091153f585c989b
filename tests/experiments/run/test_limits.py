"""An option outside its limits is refused by its path, before anything is made."""

import importlib
import math
import pathlib
import random

import fuzz_options
import pytest

from experiments.run import limits
from experiments.run.config import CHOICES, flat, options_of
from experiments.run.limits import check_options

REFUSED = {
    "a negative count": {"evaluation": {"num_samples": -1}},
    "no examples": {"data": {"batch_size": 0}},
    "a count that is a fraction": {"train": {"num_steps": 1.5}},
    "a count of more than 31 bits": {"evaluation": {"num_samples": 2**31}},
    "a flag in place of a count": {"train": {"num_steps": True}},
    "an infinite step": {"sampler": {"step_size": math.inf}},
    "a step that is not a number": {"sampler": {"step_size": math.nan}},
    "a negative temperature": {"sampler": {"visible_temperature": -1.0}},
    "infinite noise at the end": {"data_noise": {"final": math.inf}},
    "a rate that no training survives": {"learning_rate": {"start": 1e30}},
    "a decay of one": {"optimizer": {"b1": 1.0}},
    "a momentum of one": {"optimizer": {"momentum": 1.0}},
    "a negative decay of weights": {"optimizer": {"weight_decay": -1.0}},
    "a probability above one": {"start": {"reinit_prob": 1.5}},
    "no widths": {"network": {"widths": ()}},
    "lengths of text": {"evaluation": {"chain_lengths": ("x", "x")}},
    "no numbers of chains": {"num_chains": ()},
    "no chains among others": {"num_chains": (64, 0)},
    "names that are numbers": {"samplers": ("mala", 3)},
    "no names": {"samplers": ()},
    "a temperature of zero among others": {"sampler": {"temperatures": (1.0, 0.0)}},
    "text in place of a flag": {"data": {"download": "no"}},
    "a number in place of text": {"network": {"name": 3}},
    "none in place of a number": {"sampler": {"step_size": None}},
    "an infinity of a fork's own option": {"mine": {"strength": -math.inf}},
    "an area whose square overflows": {"evaluation": {"bound": 1e30}},
    "a large number of a fork's own": {"mine": {"num": 2**40}},
    "one more than the largest number": {"mine": {"strength": 1e12 + 1}},
    "one more than the largest rate": {"learning_rate": {"final": 1e4 + 1}},
}


@pytest.mark.quick
@pytest.mark.parametrize("case", REFUSED)
def test_an_option_outside_its_limits_is_refused_by_its_path(case):
    ((path, value),) = flat(REFUSED[case]).items()
    with pytest.raises(ValueError) as error:
        check_options(REFUSED[case])
    text = str(error.value)
    assert text.startswith(f"{path} must ") and text.endswith(f", got {value!r}")


@pytest.mark.quick
def test_what_means_none_or_the_bounds_themselves_pass():
    check_options(
        {
            "seed": 0,
            "train": {"num_steps": 0, "abort_above": 0.0, "keep": 1, "best": ""},
            "ema_decay": 0.0,
            "start": {"name": "replay", "reinit_prob": 1.0},
            "objective": {"start": "data", "bandwidth": None, "energy_floor": -5.0},
            "optimizer": {"learning_rate": {"start": 1e-3, "final": None}},
            "num_chains": (1, 64),
            "samplers": ("mala",),
            "mine": {"strength": -1e12, "num": 2**31 - 1, "anything": object()},
            "learning_rate": {"start": 1e4, "final": 1e4},
        }
    )


def problems():
    """Every module of a problem, and the benchmark."""
    root = pathlib.Path(limits.__file__).parents[2]
    for path in sorted(root.glob("experiments/**/*.py")):
        text, parts = path.read_text(), path.relative_to(root).with_suffix("").parts
        if "\ndef get_config" in text:
            yield importlib.import_module(".".join(parts))


def test_every_preset_is_within_the_limits_and_its_options_are_known():
    """What is not listed has only the limits of all options, and is named here."""
    free = {"decay", "energy_floor", "final", "label", "names", "out_of_distribution"}
    free |= {"start", "log_ridge", "log_widths"}
    free |= {"commands"}  # a tuple that may be empty, which the benchmark checks
    free |= {"position_clip", "weights"}  # of other constructors than the presets'
    listed = {
        *(limits.COUNTS | limits.COUNTS_OR_ZERO | limits.POSITIVE),
        *(limits.NOT_NEGATIVE | limits.BELOW_ONE | limits.FRACTIONS),
        *(limits.POSITIVE_TUPLES | limits.COUNT_TUPLES | limits.TEXT_TUPLES),
        *(limits.FLAGS | limits.TEXTS),
    }
    found = set()
    for module in problems():
        plan = getattr(module, "sweep", None)
        presets = set(module.PRESETS)
        for preset in module.PRESETS if plan else ():
            presets |= {cell.preset for cell in plan(preset).cells.values()}
        for preset in presets:
            config = module.get_config(preset).to_dict()
            check_options(config)
            found |= {path.rpartition(".")[2] for path in flat(config)}
        for constructors in (CHOICES | getattr(module, "CHOICES", {})).values():
            for constructor in constructors.values():
                found |= set(options_of(constructor))
    assert found - listed == free
    assert {
        name.rpartition(".")[2] for name in listed
    } <= found  # no limit of an option that is gone


@pytest.mark.slow
def test_a_sample_of_bad_values_is_refused_by_name_or_trains():
    """`python tests/fuzz_options.py` tries all values of all problems."""
    draw = random.Random(0)
    every = fuzz_options.cases(fuzz_options.PROBLEMS)
    todo = [(*case, False) for case in draw.sample(every, 60)]
    todo += [(*case, True) for case in draw.sample(every, 8)]
    faults = {case: fuzz_options.find_fault(*case) for case in todo}
    assert not {case: fault for case, fault in faults.items() if fault}
