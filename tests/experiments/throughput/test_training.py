"""The table of training steps: what is timed, what is refused, and what is written."""

import json

import jax
import numpy as np
import pytest

from experiments.throughput import __main__ as throughput
from experiments.throughput import peers, starts, tasks, training, updates
from experiments.throughput.metric_tasks import METRICS
from experiments.throughput.torch_networks import convert

SMALL = {
    "short_run": lambda: tasks.short_run(
        "digits",
        (8, 8, 1),
        **{"network.width": 4, "objective.num_steps": 3, "data.batch_size": 8},
    ),
    "score_based": lambda: tasks.score_based(
        "digits", (8, 8, 2), **{"network.widths": (4, 8), "data.batch_size": 8}
    ),
    "max_entropy": lambda: tasks.max_entropy(
        "images",
        "digits",
        (7, 7, 2),
        **{
            "networks.widths": (4, 8),
            "networks.hidden_width": 6,
            "players.num_energy_updates": 2,
            "data.batch_size": 8,
        },
    ),
    "max_entropy of a table": lambda: tasks.max_entropy(
        "anomalies", "kdd99", (5,), **{"data.batch_size": 16}
    ),
    "generalized": lambda: tasks.generalized(
        "fashion_mnist_small",
        (8, 8, 1),
        **{
            "network.widths": (4, 6),
            "players.num_energy_updates": 2,
            "data.batch_size": 8,
        },
    ),
    **{
        name: lambda name=name: tasks.tutorial(
            name, **{"network.widths": (8, 8), "data.batch_size": 16}
        )
        for name in (
            "denoising_score_matching",
            "contrastive_divergence",
            "noise_contrastive",
            "score_matching",
        )
    },
    **{
        name: lambda name=name: tasks.flow_update(
            name,
            **{
                "network.widths": (8, 8),
                "network.num_layers": 2,
                "data.batch_size": 16,
            },
        )
        for name in ("real_nvp", "masked_autoregressive")
    },
}
FUNCTIONS = {
    "score": lambda: tasks.score(
        "digits", (8, 8, 1), num=5, **{"network.widths": (4, 8)}
    ),
    "sampling": lambda: tasks.sampling(
        "digits",
        (8, 8, 1),
        num=8,
        **{"network.widths": (4, 8), "evaluation.sampler.num_steps": 2},
    ),
    "log_prob": lambda: tasks.flow_log_prob("masked_autoregressive", num=20),
}
LAYOUTS = {"eager": ("NCHW", False), "channels last": ("NHWC", False)}
LAYOUTS["compile"] = ("NCHW", True)


@pytest.fixture(autouse=True)
def promotion():
    """The tutorial's energies let ranks differ."""
    with jax.numpy_rank_promotion("allow"):
        yield


# --- what is timed --------------------------------------------------------------------


def test_every_paper_has_updates_at_the_sizes_of_the_table():
    names = set(tasks.TASKS)
    assert {
        "max_entropy stacked_mnist",
        "score_based mnist",
        "short_run 32x32x3",
        "generalized fashion_mnist_small",
        "score_based digits",
    } <= names
    assert names < set(throughput.get_config("training").workloads)
    assert set(throughput.get_config("training_small").workloads) < names


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, num_params, shape",
    [
        # The published widths: 13.6 million parameters, one update of the generator
        # and five of the energy.
        ("max_entropy stacked_mnist", 13_581_701, (6, 64, 28, 28, 3)),
        ("score_based mnist", 4_496_001, (1, 128, 28, 28, 1)),
        ("short_run 32x32x3", 2_763_393, (1, 64, 32, 32, 3)),
    ],
)
def test_tasks_have_the_sizes_of_their_presets(name, num_params, shape):
    task = tasks.TASKS[name]()
    assert sum(leaf.size for leaf in jax.tree.leaves(task.params)) == num_params
    assert task.batch.shape == shape and np.abs(task.batch).max() <= 1


@pytest.mark.parametrize("name", ["short_run", "noise_contrastive"])
def test_our_updates_train_one_at_a_time_and_several_together(name):
    task = SMALL[name]()
    one, several = updates.ours(task), updates.several_steps(task)
    first, last = one.run(1), one.run(5)
    assert np.isfinite(first) and last != first
    np.testing.assert_allclose([several.run(1), several.run(5)], [first, last], 1e-4)
    assert f"{jax.local_device_count()} cpu devices" in one.settings


def test_our_evaluations_return_a_number_of_the_result():
    task = FUNCTIONS["log_prob"]()
    (x,) = task.batch
    expected = task.function(task.params, x)
    np.testing.assert_allclose(updates.ours(task).run(2), expected[-1], rtol=1e-5)
    assert updates.takes_part("ebmjax", task.kind, is_update=False)
    assert not updates.takes_part("ebmjax steps", task.kind, is_update=False)


# --- peers ----------------------------------------------------------------------------


def make_peer(task, how="eager"):
    pytest.importorskip("torch")
    from experiments.throughput.torch_updates import hand_written_update

    layout, is_compiled = LAYOUTS[how]
    return hand_written_update(task, layout=layout, is_compiled=is_compiled)


@pytest.mark.parametrize("name", [*SMALL, *FUNCTIONS])
def test_pytorch_has_our_losses_and_gradients(name):
    task = (SMALL | FUNCTIONS)[name]()
    program = make_peer(task)
    program.verify()
    assert np.isfinite(program.run(2)) and "eager" in program.settings


@pytest.mark.slow
@pytest.mark.parametrize("how", ["channels last", "compile"])
@pytest.mark.parametrize("name", [*SMALL, *FUNCTIONS])
def test_other_programs_of_pytorch_have_them_too(name, how):
    task = (SMALL | FUNCTIONS)[name]()
    array = task.batch[0]
    if how == "channels last" and array.ndim < 4:
        with pytest.raises(NotImplementedError, match="there are no images"):
            make_peer(task, how)
        return
    program = make_peer(task, how)
    assert np.isfinite(program.run(2))
    program.verify()


@pytest.mark.parametrize(
    "name, function, message",
    [
        ("short_run", "conv_energy", "energy: .* is off"),
        ("max_entropy", "conv_energy", "generator: .* is off"),
        ("max_entropy", "statistics", "generator: .* is off"),
        ("generalized", "spectral", "energy: .* is off"),
        ("score_based", "instance_norm", "score: .* is off"),
        ("real_nvp", "real_nvp_log_prob", "energy: .* is off"),
        ("score", "unet", "the result is off by 1.0e-02"),
    ],
)
def test_other_mathematics_is_refused(name, function, message, monkeypatch):
    """One percent more is another network."""
    pytest.importorskip("torch")
    from experiments.throughput import torch_networks

    right = getattr(torch_networks, function)

    def wrong(*arguments, **options):
        return jax.tree.map(lambda x: 1.01 * x, right(*arguments, **options))

    task = (SMALL | FUNCTIONS)[name]()
    monkeypatch.setattr(torch_networks, function, wrong)
    with pytest.raises(AssertionError, match=message):
        make_peer(task).verify()


@pytest.mark.parametrize("lacking", ["step", "penalty"])
def test_a_chain_and_a_weight_are_compared_too(lacking):
    """Of the config that the peer reads, one number is another."""
    task = SMALL["short_run"]()
    config = task.config.copy_and_resolve_references().unlock()
    if lacking == "step":
        config.sampler.step_size *= 1.01
    else:
        config.objective.energy_penalty = 0.0
    program = make_peer(task._replace(config=config))
    with pytest.raises(AssertionError, match="energy: .* is off by .* what is allowed"):
        program.verify()


def test_each_kind_has_the_peers_that_know_it():
    taking_part = {
        kind: [name for name in updates.PEERS if updates.takes_part(name, kind, True)]
        for kind in ("short_run", "sliced_score_matching", "ess", "ksd", "ais")
    }
    torch = ["torch channels last", "torch compile", "torch eager"]
    assert taking_part == {
        "short_run": torch,
        "sliced_score_matching": [],
        "ess": ["arviz"],
        "ksd": ["numpy"],
        "ais": ["plain scan"],
    }


@pytest.mark.slow
def test_every_task_has_a_peer():
    known = {kind for name in updates.PEERS for kind in peers.load(name).KINDS}
    made = [make() for make in (*SMALL.values(), *FUNCTIONS.values())]
    assert {task.kind for task in made} <= known


SMALL_METRICS = {
    "r_hat": {"num_steps": 50, "num_chains": 4, "dim": 3},
    "ess": {"num_steps": 50, "num_chains": 4, "dim": 3},
    "ksd": {"num": 50},
    "ksd by the median": {"num": 50},
    "mmd": {"num": 50, "dim": 5},
    "ais": {"num_fractions": 50},
}


@pytest.mark.parametrize("name", METRICS)
def test_peers_have_our_values_of_metrics(name):
    task = METRICS[name](**SMALL_METRICS[name])
    (peer,) = (x for x in updates.PEERS if updates.takes_part(x, task.kind, False))
    pytest.importorskip(peers.load(peer).PACKAGE)
    program = peers.load(peer).make_program(task)
    program.verify()
    assert np.isfinite([program.run(2), updates.ours(task).run(1)]).all()

    def other(params, *batch):
        return 1.2 * task.function(params, *batch)

    wrong = peers.load(peer).make_program(task._replace(function=other))
    with pytest.raises(AssertionError, match=f"{task.kind} is off by"):
        wrong.verify()


def test_the_annealed_estimate_is_that_of_a_normal():
    task = METRICS["ais"](num_fractions=200)
    # Two dimensions of precision 4.
    expected = np.log(2 * np.pi / 4)
    for program in (updates.ours(task), peers.load("plain scan").make_program(task)):
        np.testing.assert_allclose(program.run(1), expected, atol=0.05)


@pytest.mark.quick
def test_parameters_are_converted_by_moving_their_elements():
    """A dense layer after a map takes it with its channels first, and one before a map
    makes it so."""
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 3, 3, 4)).astype(np.float32)  # rows, columns, 4
    kernel = random.standard_normal((36, 5)).astype(np.float32)
    energy = {
        "trunk": {"Conv_0": {"kernel": np.zeros((5, 5, 1, 4)), "bias": np.zeros(4)}},
        "Dense_0": {"kernel": kernel, "bias": np.zeros(5)},
    }
    found = convert(energy)
    assert found["trunk"]["Conv_0"]["kernel"].shape == (4, 1, 5, 5)
    flat = np.moveaxis(x, -1, 1).reshape(2, 36)
    expected = x.reshape(2, 36) @ kernel
    np.testing.assert_allclose(flat @ found["Dense_0"]["kernel"].T, expected, 1e-5)
    generator = {
        "Dense_0": {"kernel": kernel.T, "bias": kernel[:, 0]},
        "BatchNorm_0": {"scale": np.ones(4), "bias": np.zeros(4)},
    }
    found = convert(generator)["Dense_0"]
    z = random.standard_normal((2, 5)).astype(np.float32)
    made = (z @ found["kernel"].T + found["bias"]).reshape(2, 4, 3, 3)
    expected = (z @ kernel.T + kernel[:, 0]).reshape(2, 3, 3, 4)
    np.testing.assert_allclose(np.moveaxis(made, 1, -1), expected, 1e-5, 1e-5)


# --- the table ------------------------------------------------------------------------


class Clock:
    """In place of a process: updates of known lengths, and a record of turns."""

    turns = []
    seconds = {
        "ebmjax": [0.2, 0.4, 0.3],
        "ebmjax steps": [0.1, 0.1, 0.1],
        "torch eager": [0.5, 0.9, 0.6],
        "torch compile": [0.3, 0.5, 0.9],
    }

    def __init__(self, name, own):
        self.name, self.index = name, 0

    def ask(self, do, **request):
        if do == "build":
            if self.name == "ebmjax devices":
                return {"skipped": "NotImplementedError: one core"}
            return {
                "seconds": 0.25,
                "is_finite": True,
                "first_seconds": 3.0,
                "peak_bytes": 2**21,
                "settings": "as it comes",
                "kind": "short_run",
                "is_update": True,
            }
        if do == "verify":
            absent = {"skipped": "ImportError: torch"}
            return absent if self.name == "torch channels last" else {}
        assert request["count"] == 4  # of a quarter of a second in one
        Clock.turns.append(self.name)
        self.index += 1
        is_finite = not (self.name == "torch eager" and Clock.fails)
        seconds = 4 * Clock.seconds[self.name][self.index - 1]
        return {"seconds": seconds, "is_finite": is_finite}

    def close(self):
        pass

    fails = False


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(updates, "Process", Clock)
    monkeypatch.setattr(Clock, "turns", [])
    return Clock


def small_config(**changes):
    config = throughput.get_config("training_small").unlock()
    config.update({"num_rounds": 3, "seconds": 1.0, **changes})
    config.workloads = ("short_run digits",)
    return config


def test_ratios_are_to_the_fastest_peer_and_the_table_has_every_column(clock, tmp_path):
    config = small_config()
    rows = throughput.measure_all(config, tmp_path)
    found = {row["contender"]: row for row in rows}
    assert list(found) == [
        "ebmjax",
        "ebmjax steps",
        "ebmjax devices",
        "torch channels last",
        "torch compile",
        "torch eager",
    ]
    ours = found["ebmjax"]
    # Medians .3 and, of the fastest peer, .5; ratios of the rounds 1.5, 1.25 and 3.
    np.testing.assert_allclose(ours["seconds"], 0.3)
    assert (
        ours["fastest_peer"] == "torch compile"
        and "ratio" not in found["torch compile"]
    )
    ratios = [ours[name] for name in ("ratio", "ratio_low", "ratio_high")]
    np.testing.assert_allclose(ratios, (5 / 3, 1.25, 3))
    assert ours["num_updates"] == 12 and ours["peak_mib"] == 2
    assert found["ebmjax devices"]["skipped"].endswith("one core")
    assert found["torch channels last"]["skipped"] == "ImportError: torch"
    # Everyone once a round, another first every time.
    assert [clock.turns[4 * index] for index in range(3)] == [
        "ebmjax",
        "ebmjax steps",
        "torch compile",
    ]
    lines = (tmp_path / "training.jsonl").read_text().splitlines()
    assert [json.loads(line)["contender"] for line in lines] == list(found)
    text = (tmp_path / "training.md").read_text().splitlines()
    assert text[2] == (
        "| workload | ebmjax, ms | ebmjax steps, ms | ebmjax devices, ms |"
        " torch channels last, ms | torch compile, ms | torch eager, ms |"
        " fastest peer | fastest peer / ebmjax | fastest peer / ebmjax steps |"
        " fastest peer / ebmjax devices |"
    )
    assert text[0] == "## Updates and evaluations"
    assert text[4] == (
        "| short_run digits | 300 | 100 | none | none | 500 | 600 | torch compile |"
        " 1.67 (1.25-3.00) | 5.00 (3.00-9.00) | none |"
    )
    assert (
        "| short_run digits | 3.0 s, 2 MiB | 3.0 s, 2 MiB | none | none |"
        " 3.0 s, 2 MiB | 3.0 s, 2 MiB |" in text
    )
    assert "- torch channels last, short_run digits: ImportError: torch" in text


def test_a_contender_without_such_a_program_is_not_started(clock, monkeypatch):
    monkeypatch.setattr(peers.load("torch eager"), "KINDS", ())
    names = ("torch eager", "ebmjax", "numpy", "torch compile")
    rows = training.measure_workload("short_run digits", names, 1, 1.0)
    assert [row["contender"] for row in rows] == ["ebmjax", "torch compile"]


def test_metrics_and_commands_have_tables_of_their_own(tmp_path):
    row = {"settings": "", "first_seconds": 1.0, "peak_mib": 1.0}
    ours = {"contender": "ebmjax", "seconds": 2.0, "fastest_peer": "arviz"}
    ratios = {"ratio": 0.5, "ratio_low": 0.4, "ratio_high": 0.6}
    start = {
        "command": "short_run digits",
        "first_start_seconds": 20.0,
        "second_start_seconds": 5.0,
        "share": 0.25,
        "share_low": 0.2,
        "share_high": 0.3,
    }
    text = training.report(
        [
            row | ours | ratios | {"workload": "metric ess"},
            row | {"contender": "arviz", "seconds": 1.0, "workload": "metric ess"},
            start,
        ]
    )
    assert text.startswith(
        "## Metrics\n\n"
        "| workload | ebmjax, ms | arviz, ms | fastest peer | fastest peer / ebmjax |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| metric ess | 2,000 | 1,000 | arviz | 0.50 (0.40-0.60) |\n"
    )
    assert "| short_run digits | 20.0 | 5.0 | 0.25 (0.20-0.30) |\n" in text


def test_without_peers_there_are_times_and_no_ratios(clock, tmp_path):
    rows = throughput.measure_all(small_config(contenders=("ebmjax",)), tmp_path)
    assert "ratio" not in rows[0] and rows[0]["seconds"] == 0.3
    lines = (tmp_path / "training.md").read_text().splitlines()
    assert lines[4] == "| short_run digits | 300 | none | none |"


def test_a_loss_that_is_not_finite_stops_the_benchmark(clock, monkeypatch, tmp_path):
    monkeypatch.setattr(clock, "fails", True)
    with pytest.raises(RuntimeError, match="torch eager: short_run digits is not fin"):
        throughput.measure_all(small_config(), tmp_path)


@pytest.mark.quick
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"workloads": ("short_run digit",)}, "workloads must be.*mean 'short_run dig"),
        ({"contenders": ("ebmjax", "torch eagr")}, "did you mean 'torch eager'"),
        ({"contenders": ("ebmjax", "blackjax")}, "contenders must be one of.*'blackj"),
        ({"commands": ("short_run",)}, "commands must be one of.*got 'short_run'"),
        ({"contenders": ("torch eager",)}, "contenders must have 'ebmjax', got"),
        ({"num_rounds": 0}, "num_rounds must be a whole .* at least 1, got 0"),
        ({"seconds": 0.0}, "seconds must be positive, got 0.0"),
        ({"num_cores": -1}, "num_cores must be .* at least 0, got -1"),
        ({"num_cores": 10_000}, "num_cores must be at most the .*, got 10000"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_its_name(
    clock, changes, message, tmp_path
):
    config = throughput.get_config("training").unlock()
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        throughput.measure_all(config, tmp_path / "bench")
    assert not (tmp_path / "bench").exists() and not clock.turns


@pytest.mark.quick
def test_the_cores_are_given_back(monkeypatch):
    affinity = {3, 5, 6}
    monkeypatch.setattr(
        training.os, "sched_getaffinity", lambda pid: affinity, raising=False
    )

    def choose(pid, cores):
        nonlocal affinity
        affinity = set(cores)

    monkeypatch.setattr(training.os, "sched_setaffinity", choose, raising=False)
    with training.on_cores(2):
        assert affinity == {3, 5}
        # Before and after, the variables follow.
        assert "XLA_FLAGS" not in updates.wanted("ebmjax")
        assert updates.wanted("ebmjax devices")["XLA_FLAGS"].endswith("count=2")
        assert updates.wanted("torch eager")["OMP_NUM_THREADS"] == "2"
    assert affinity == {3, 5, 6}
    with training.on_cores(0):
        assert affinity == {3, 5, 6}


@pytest.mark.slow
def test_it_runs_in_processes(tmp_path):
    config = small_config(num_rounds=1, seconds=0.01, contenders=("ebmjax",))
    config.workloads = ("tutorial noise_contrastive",)
    (row,) = throughput.measure_all(config, tmp_path)
    assert 0 < row["seconds"] < 1 < row["first_seconds"] + 1
    assert "1 cpu device," in row["settings"]


@pytest.mark.slow
def test_a_command_is_stopped_after_its_first_step(tmp_path):
    module = starts.COMMANDS["tutorial noise_contrastive"]
    times = [
        starts.seconds_to_first_step(module, tmp_path / name, tmp_path / "cache")
        for name in ("first", "second")
    ]
    assert min(times) > 0.5 and list((tmp_path / "cache").rglob("*")) != []
    with pytest.raises(RuntimeError, match="ended before its first step: .*No module"):
        starts.seconds_to_first_step(f"{module}s", tmp_path / "a", tmp_path / "cache")
