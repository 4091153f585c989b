"""Limits of a config's options, checked before anything is made from them.

An option is known by the last part of its path, such as `step_size`: it means the same
in all problems. A problem that gives a new option a name that is not listed here has
only what holds for all of them: numbers are finite and not so large that float32
overflows, and whole numbers fit 32 bits.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.run.config import OPTIONAL, flat

# Whole numbers of at least 1, and of at least 0.
COUNTS = frozenset(
    """batch_size capacity chunk_size depth dim every hidden_width keep latent_dim
    max_steps num_accumulated num_bins num_blocks num_chains num_critic_updates
    num_digits num_draws num_energy_updates num_flow_updates num_fractions
    num_generator_updates num_groups num_hidden num_image_rounds num_importance
    num_inducing num_inverted num_layers num_leapfrog num_long num_long_run num_noise
    num_points num_projections num_rounds num_squares num_steps_per_level
    num_updates widen_factor""".split()
)
COUNTS_OR_ZERO = frozenset(
    """channels checkpoint_every classifier_steps crop decay_every decay_start
    decay_steps eval_every extra_every log_every long_run_steps matrix_seed most_chains
    most_chains_of_all max_restarts num_burn_in num_cores num_corrections num_examples
    num_extra_updates num_inception num_inpainted num_iterations num_joint_steps
    num_levels num_likelihoods num_probes num_samples num_saved num_scales num_shown
    num_steps patience samples_a_mode seed size split_seed tuple_seed
    warmup_steps""".split()
)
# Numbers above 0, and of at least 0. The last two parts of a path go before
# the last one, as a step of 0 stands for none in some objectives.
POSITIVE = frozenset(
    """bandwidth bound iteration_step radius sampler.step_size scale_bound seconds
    side signal_to_noise smallest spacing start.scale std step temperature time_min
    tolerance transport_step_size visible_step_size visible_temperature
    weight_scale widening width""".split()
)
NOT_NEGATIVE = frozenset(
    """abort_above concentration energy_penalty entropy_weight eps eps_root
    friction gradient_clip gradient_penalty information_weight l2 l2_weight
    largest negative_slope noise_max noise_min noise_scale rate_max rate_min
    relative_step_size scale score_penalty step_size weight_decay""".split()
)
# Numbers from 0 to below 1, and from 0 to 1.
BELOW_ONE = frozenset("b1 b2 ema_decay momentum".split())
FRACTIONS = frozenset("held_out_share min_accuracy quantile reinit_prob".split())
NUMBERS = POSITIVE | NOT_NEGATIVE | BELOW_ONE | FRACTIONS
# Tuples of at least one positive number, of at least one positive whole number, and of
# at least one name. A benchmark has a tuple of numbers of chains.
POSITIVE_TUPLES = frozenset("noise_scales radii temperatures waymarks".split())
COUNT_TUPLES = frozenset(
    """chain_lengths energy_widths generator_widths num_chains num_image_chains
    widths""".split()
)
TEXT_TUPLES = frozenset("contenders samplers workloads".split())
FLAGS = frozenset(
    """download has_offset is_energy is_mirrored is_normal is_smooth
    is_synchronized last_step_gradient leaks nesterov prior redescends rematerialize
    saves_scores
    transforms_log_partition variance_reduced""".split()
)
TEXTS = frozenset(
    """activation best categorical columns compute_dtype conditioning csv data_dir
    divergence estimator first held_out_path inception_weights jacobian kernel
    label_column law marginal missing name normalization on_divergence path
    penalty_on precision predictor preset projection reduction scaling score_csv
    statistic variance_reduction weighting whiten""".split()
)
LARGEST = 1e12  # of a number in magnitude: its square does not overflow float32
LARGEST_RATE = 1e4  # of a schedule of learning rates: far above any that trains


def check_options(config: Mapping[str, Any]) -> None:
    """Raises ValueError for the first option that is outside its limits.

    Args:
      config: A config, or a part of one.
    """
    for path, value in flat(config).items():
        if value is not None or path.rpartition(".")[2] not in OPTIONAL:
            _check(path, value)


def _check(path: str, value: Any) -> None:
    names = {path.rpartition(".")[2], ".".join(path.split(".")[-2:])}

    def demand(holds: bool, rule: str) -> None:
        if not holds:
            raise ValueError(f"{path} {rule}, got {value!r}")

    is_tuple = isinstance(value, tuple | list)
    if names & COUNTS and not (is_tuple and names & COUNT_TUPLES):
        holds = _is_whole(value) and value >= 1
        demand(holds, "must be a whole number of at least 1")
    elif names & COUNTS_OR_ZERO:
        holds = _is_whole(value) and value >= 0
        demand(holds, "must be a whole number of at least 0")
    elif names & NUMBERS or _is_level(path):
        demand(_is_number(value), "must be a finite number")
        if names & POSITIVE:
            demand(value > 0, "must be positive")
        demand(value >= 0, "must not be negative")
        if names & BELOW_ONE:
            demand(value < 1, "must be below 1")
        if names & FRACTIONS:
            demand(value <= 1, "must be at most 1")
        if path.endswith(("learning_rate.start", "learning_rate.final")):
            demand(value <= LARGEST_RATE, f"must be at most {LARGEST_RATE:g}")
    elif names & POSITIVE_TUPLES:
        holds = _all(value, lambda x: _is_number(x) and x > 0)
        demand(holds, "must be a tuple of one or more positive numbers")
    elif names & COUNT_TUPLES:
        holds = _all(value, lambda x: _is_whole(x) and x >= 1)
        demand(holds, "must be a tuple of one or more whole numbers above 0")
    elif names & TEXT_TUPLES:
        holds = _all(value, lambda x: isinstance(x, str))
        demand(holds, "must be a tuple of one or more names")
    elif names & FLAGS:
        demand(isinstance(value, bool), "must be True or False")
    elif names & TEXTS:
        demand(isinstance(value, str), "must be text")
    if isinstance(value, float):
        demand(math.isfinite(value), "must be a finite number")
        demand(abs(value) <= LARGEST, f"must be at most {LARGEST:g} in magnitude")
    if _is_whole(value):
        demand(abs(value) < 2**31, "must be below 2^31 in magnitude")


def _is_level(path: str) -> bool:
    """Returns whether an option is an end of a schedule; a section is also `start`."""
    section, _, name = path.rpartition(".")
    return name in ("start", "final") and section.endswith(
        ("learning_rate", "data_noise")
    )


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float | np.integer | np.floating)
    return is_real and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _all(values: Any, holds) -> bool:
    return isinstance(values, tuple | list) and bool(values) and all(map(holds, values))
