"""The loop: it resumes bitwise, guards its folder, and stops by name."""

import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import small_experiment
from small_experiment import build, config, state_of, step_of

from ebmjax import training
from experiments.run import loop
from experiments.run.loop import run
from experiments.run.workdir import METRICS

ROOT = pathlib.Path(__file__).parents[3]


def lines(workdir, *, without_clock=True):
    found = [json.loads(x) for x in (workdir / METRICS).read_text().splitlines()]
    if without_clock:
        clock = ("seconds", "_per_second")
        found = [{k: v for k, v in x.items() if not k.endswith(clock)} for x in found]
    return found


def assert_same_run(one, other):
    jax.tree.map(np.testing.assert_array_equal, state_of(one), state_of(other))
    assert lines(one) == lines(other)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("straight")
    run(build, config(), workdir)
    return workdir


def test_a_run_leaves_its_config_metrics_checkpoints_and_figures(straight):
    assert json.loads((straight / "config.json").read_text()) == config().to_dict()
    found = lines(straight, without_clock=False)
    train = [x for x in found if x["kind"] == "train"]
    assert [x["step"] for x in train] == list(range(5, 41, 5))
    assert [x["step"] for x in found if x["kind"] == "eval"] == [20, 40]
    assert {"energy/loss", "energy/chain_energy", "steps_per_second"} <= set(train[-1])
    assert (straight / "figures" / "seen.txt").read_text() == "40"
    assert list((straight / "tensorboard").iterdir())


def test_the_newest_checkpoints_are_kept_and_the_best(straight):
    """The precision falls from 1 to 1/4, so the last evaluation is the best one."""
    kept = {int(p.name) for p in (straight / "checkpoints").iterdir()}
    values = {x["step"]: x["precision"] for x in lines(straight) if x["kind"] == "eval"}
    assert kept == {35, 40, min(values, key=values.get)}


def test_the_best_checkpoint_outlives_newer_ones(tmp_path):
    """Learning backwards from the data's precision: the first evaluation is best."""
    settings = config(data__std=0.2, train__num_steps=60)  # precision grows
    run(build, settings, tmp_path)
    assert {int(p.name) for p in (tmp_path / "checkpoints").iterdir()} == {20, 55, 60}


def test_a_stopped_run_goes_on_where_it_was_bitwise(straight, tmp_path):
    """Stopped after 15 steps by its length, which alone may change."""
    run(build, config(train__num_steps=15), tmp_path)
    run(build, config(), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, state_of(straight), state_of(tmp_path))
    kept = [x for x in lines(tmp_path) if (x["kind"], x["step"]) != ("eval", 15)]
    assert kept == lines(straight)


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["one step", "all steps"])
def test_how_many_steps_a_program_makes_changes_no_bit(
    straight, tmp_path, monkeypatch, seconds
):
    """One a program, or as many as there are to the next line of the log; and batches
    made one by one, or all at once."""
    monkeypatch.setattr(loop, "PROGRAM_SECONDS", seconds)
    monkeypatch.setattr("experiments.run.experiment.MOST_STEPS", 3 if seconds else 64)
    counts, original = [], training.pmap_updates

    def spy(players, **options):
        updates = original(players, **options)

        def counted(state, batches, first, count):
            counts.append(count)
            return updates(state, batches, first, count)

        return counted

    monkeypatch.setattr(training, "pmap_updates", spy)
    run(build, config(), tmp_path)
    assert_same_run(straight, tmp_path)
    # Batches of three steps, and a line of the log at every fifth.
    expected = [1] * 40
    if seconds:
        # The first program compiles, and the second one is timed.
        starts = sorted({*range(0, 40, 3), *range(0, 40, 5)} | {1, 2, 40})
        expected = np.diff(starts).tolist()
    assert counts == expected


def test_a_program_makes_no_step_of_another_phase(tmp_path, monkeypatch):
    """Steps 0, 1, 10, 11, 20, ... are of a phase with two inner updates."""

    def phase(step):
        return "two" if step % 10 < 2 else ""

    def build_phases(config, keys):
        experiment = build(config, keys)
        player = experiment.players["energy"]
        twice = {"energy": player._replace(num_updates=2)}

        def batch(step):
            seen.append(step)
            x = np.asarray(experiment.batch(step))
            return np.concatenate([x, x]) if phase(step) else x

        return experiment._replace(phases={"two": twice}, phase=phase, batch=batch)

    ends = []
    for most_steps in (1, 64):
        monkeypatch.setattr("experiments.run.experiment.MOST_STEPS", most_steps)
        seen, workdir = [], tmp_path / str(most_steps)
        run(build_phases, config(), workdir)
        assert set(seen) == set(range(40))
        ends.append(workdir)
    assert_same_run(*ends)


def test_a_finished_run_trains_nothing_and_evaluates_again(straight):
    before = lines(straight), state_of(straight)
    scalars = run(build, config(), straight)
    assert scalars["draw"] == before[0][-1]["draw"]
    assert lines(straight) == before[0]
    jax.tree.map(np.testing.assert_array_equal, before[1], state_of(straight))
    again = run(build, config(), straight, evaluate_only=True)
    assert again == scalars


def test_an_evaluation_that_was_missed_is_made_up_for(straight, tmp_path):
    """Killed between the checkpoint of step 20 and its evaluation."""
    run(build, config(train__num_steps=20), tmp_path)
    path = tmp_path / METRICS
    kept = [x for x in path.read_text().splitlines() if '"eval"' not in x]
    path.write_text("\n".join([*kept, '{"kind": "eval", "st']))  # and a torn line
    run(build, config(), tmp_path)
    assert_same_run(straight, tmp_path)


@pytest.mark.quick
def test_another_config_is_refused_with_every_difference(straight):
    before = (straight / "config.json").read_text()
    with pytest.raises(ValueError, match="holds another run") as error:
        run(build, config(learning_rate=0.5, data__std=3.0), straight)
    assert "learning_rate: 0.01 -> 0.5" in str(error.value)
    assert "data.std: 2.0 -> 3.0" in str(error.value)
    assert (straight / "config.json").read_text() == before


def test_a_nan_stops_the_run_by_name_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError, match="step 15: energy/.* is nan"):
        run(build, config(nan_at=12), tmp_path)
    last = lines(tmp_path)[-1]
    assert last["step"] == 15 and np.isnan(last["energy/loss"])
    assert step_of(tmp_path) == 10
    # The same command stops again, and overwrites nothing.
    with pytest.raises(FloatingPointError, match="step 15"):
        run(build, config(nan_at=12), tmp_path)
    assert step_of(tmp_path) == 10


def test_a_nan_between_logs_is_not_saved(tmp_path):
    """Checkpoints come every step here, logs never."""
    settings = config(nan_at=7, train__log_every=0, train__checkpoint_every=1)
    with pytest.raises(FloatingPointError, match="step 8: energy/.* is nan"):
        run(build, settings, tmp_path)
    assert step_of(tmp_path) == 7


def test_a_run_that_diverges_stops_by_name(tmp_path):
    """Energies of data of size 1e4 are far above the limit of 1e3."""
    settings = config(data__std=1e4, train__abort_above=1e3)
    with pytest.raises(FloatingPointError, match="above train.abort_above = 1000.0"):
        run(build, settings, tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


def nan_at_20(config, keys):
    experiment = build(config, keys)

    def evaluate(state, key, directory):
        scalars = experiment.evaluate(state, key, directory)
        return scalars | {"precision": np.nan} if int(state.step) == 20 else scalars

    return experiment._replace(evaluate=evaluate)


def test_a_nan_in_an_evaluation_stops_every_start_and_is_never_the_best(tmp_path):
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="step 20: precision is nan"):
            run(nan_at_20, config(), tmp_path)
        assert step_of(tmp_path) == 20
    # Mended, the same command goes on, and the evaluation is repeated.
    run(build, config(), tmp_path)
    evaluations = [x for x in lines(tmp_path) if x["kind"] == "eval"]
    assert [x["step"] for x in evaluations] == [20, 40]
    assert all(np.isfinite(x["precision"]) for x in evaluations)


def test_an_evaluation_alone_changes_nothing_of_the_run(tmp_path):
    with pytest.raises(FloatingPointError):
        run(build, config(nan_at=12), tmp_path)
    unfinished = tmp_path / "checkpoints" / "11.orbax-checkpoint-tmp-5"
    unfinished.mkdir()
    before = (tmp_path / "config.json").read_text(), lines(tmp_path)
    settings = config(nan_at=12, train__num_steps=7)
    run(build, settings, tmp_path, evaluate_only=True)
    after = (tmp_path / "config.json").read_text(), lines(tmp_path)
    assert before[0] == after[0]
    # The record of why it stopped is still there; NaN is not equal to itself.
    assert repr(after[1][:-1]) == repr(before[1])
    assert after[1][-1]["kind"] == "eval" and after[1][-1]["step"] == 10
    assert unfinished.is_dir()


def test_an_evaluation_alone_may_use_another_sampler(tmp_path):
    """Its line is told from the run's own evaluation, which stays as it is."""
    own = run(build, config(train__num_steps=5), tmp_path)
    before, text = lines(tmp_path), (tmp_path / "config.json").read_text()
    settings = config(train__num_steps=5)
    settings.evaluation.sampler.factor = 3.0
    options = {"evaluate_only": True}
    with pytest.raises(ValueError, match="evaluation.sampler.factor: 1.0 -> 3.0"):
        run(build, settings, tmp_path)
    (tmp_path / "figures" / "seen.txt").write_text("own")
    found = run(build, settings, tmp_path, **options)
    assert found["draw"] == 3 * own["draw"]
    assert lines(tmp_path)[:-1] == before
    last = lines(tmp_path)[-1]
    assert (last["kind"], last["step"]) == ("other_eval", 5)
    assert (
        last["options"] == {"evaluation.sampler.factor": 3.0}
        and last["draw"] == found["draw"]
    )
    assert (tmp_path / "figures_other" / "seen.txt").read_text() == "5"
    assert (tmp_path / "figures" / "seen.txt").read_text() == "own"
    assert (tmp_path / "config.json").read_text() == text
    with pytest.raises(ValueError, match="learning_rate: 0.01 -> 0.5"):
        run(build, config(learning_rate=0.5), tmp_path, **options)
    # With the run's own it is the run's evaluation again, in its place.
    assert run(build, config(train__num_steps=5), tmp_path, **options) == own
    assert [x for x in lines(tmp_path) if x["kind"] == "eval"] == before[-1:]


def test_a_start_that_fails_before_its_first_step_claims_nothing(tmp_path):
    """A replay smaller than the batch is found when the update is traced."""
    with pytest.raises(ValueError, match="exceeds replay capacity"):
        run(build, config(capacity=8), tmp_path)
    with pytest.raises(ValueError, match="ema_decay"):
        run(build, config(ema_decay=1.5), tmp_path)
    run(build, config(), tmp_path)
    assert step_of(tmp_path) == 40


@pytest.mark.parametrize("text", ["", '{"seed": 0,', "[]"])
def test_a_damaged_config_is_named(text, tmp_path):
    run(build, config(train__num_steps=2), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json is damaged"):
        run(build, config(), tmp_path)


def test_damaged_metrics_are_passed_over(tmp_path):
    run(build, config(train__num_steps=10), tmp_path)
    path = tmp_path / METRICS
    path.write_bytes(path.read_bytes() + b'12\n{}\n\xff\xfe\n{"kind": "tr')
    run(build, config(train__num_steps=15), tmp_path)
    assert [x["step"] for x in lines(tmp_path) if x["kind"] == "train"] == [5, 10, 15]


def test_cadences_of_zero_mean_never_but_for_the_end(tmp_path):
    settings = config(
        train__log_every=0, train__eval_every=0, train__checkpoint_every=0
    )
    run(build, settings, tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["40"]
    assert [(x["kind"], x["step"]) for x in lines(tmp_path)] == [
        ("train", 40),
        ("eval", 40),
    ]


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"train__num_steps": -1},
            "train.num_steps must be a whole number of at least 0, got -1",
        ),
        ({"train__keep": 0}, "train.keep must be a whole number of at least 1, got 0"),
        (
            {"data__batch_size": 12},
            "data.batch_size must be a positive multiple of the 8 devices, got 12; to"
            " use all devices with a small batch, train several seeds side by side,"
            " each on devices of its own",
        ),
        (
            {"train__num_accumulated": 3},
            "train.num_accumulated must divide the rows of data.batch_size on each of"
            " the 8 devices, which are 2, got 3",
        ),
    ],
)
def test_a_config_that_cannot_work_is_refused_before_anything_is_made(
    changes, message, tmp_path
):
    with pytest.raises(ValueError, match=message):
        run(build, config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("num_accumulated", [1, 2])
def test_every_player_takes_its_batches_in_parts(num_accumulated, tmp_path):
    """Two rows on each device: the objective sees them together, or one by one."""
    sizes = []

    def watched(config, keys):
        experiment = build(config, keys)
        player = experiment.players["energy"]

        def loss(params, key, batch, carry):
            sizes.append(len(batch))
            return player.objective.loss(params, key, batch, carry)

        objective = player.objective._replace(loss=loss)
        players = {"energy": player._replace(objective=objective)}
        return experiment._replace(players=players)

    settings = config(train__num_accumulated=num_accumulated, train__num_steps=1)
    run(watched, settings, tmp_path)
    assert set(sizes) == {2 // num_accumulated}


def test_evaluating_nothing_is_refused_and_makes_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        run(build, config(), tmp_path / "run", evaluate_only=True)
    assert not (tmp_path / "run").exists()


# --- processes ---------------------------------------------------------------------


SMALL = ("tests/small_experiment.py",)


def start(workdir, *options, devices=8, program=SMALL, **variables):
    environment = dict(
        os.environ, PYTHONPATH=f"{ROOT}:{ROOT}/tests", JAX_PLATFORMS="cpu", **variables
    )
    flag = f"--xla_force_host_platform_device_count={devices}"
    environment["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} {flag}"  # the last counts
    command = [sys.executable, *program, f"--workdir={workdir}"]
    return subprocess.Popen(
        [*command, *options],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process, seconds=240):
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err
    return out, err


LONG = "--config.train.num_steps=4000", "--config.train.log_every=20"


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_bitwise_as_if_it_had_not_been(tmp_path):
    """kill -9 after some steps, three times; saved every 5 steps, so in saves too."""
    moments = random.Random(0)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    length = "--config.train.num_steps=200"
    for _ in range(3):
        process = start(killed, length, devices=2)
        for _ in range(moments.randrange(1, 7)):  # progress lines come every 5 steps
            if not process.stderr.readline():
                break
        time.sleep(moments.random() * 0.05)
        process.kill()
        process.communicate()
    finish(start(killed, length, devices=2))
    finish(start(whole, length, devices=2))
    assert_same_run(killed, whole)
    assert step_of(killed) == 200
    leftovers = [p.name for p in (killed / "checkpoints").iterdir()]
    assert all(name.isdigit() for name in leftovers), leftovers


@pytest.mark.slow
def test_sigterm_finishes_the_step_saves_and_exits_zero(tmp_path):
    never = "--config.train.checkpoint_every=0", "--config.train.eval_every=0"
    process = start(tmp_path, *LONG, *never, devices=1)
    for _ in range(2):  # the update is compiled, and steps are unsaved
        process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, err = finish(process)
    assert "preempted: saved step" in err
    saved = [int(p.name) for p in (tmp_path / "checkpoints").iterdir()]
    assert len(saved) == 1 and 0 < saved[0] < 4000


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_first_compilation_leaves_at_once(number, tmp_path):
    process = start(tmp_path, devices=1)
    assert "compiling" in process.stderr.readline()
    process.send_signal(number)
    _, err = finish(process, seconds=60)
    assert err == "preempted: nothing is unsaved; the same command goes on\n"
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_second_command_on_one_workdir_is_refused_by_the_first_ones_number(tmp_path):
    first = start(tmp_path, *LONG)
    first.stderr.readline()
    second = start(tmp_path, *LONG)
    _, err = second.communicate(timeout=120)
    assert second.returncode == 1 and len(err.splitlines()) == 1
    assert f"is being trained by process {first.pid} on " in err
    finish(start(tmp_path, *LONG, "--evaluate_only"))  # beside the trainer
    first.send_signal(signal.SIGTERM)
    finish(first)
    steps = [x["step"] for x in lines(tmp_path) if x["kind"] == "train"]
    assert steps == sorted(set(steps))


@pytest.mark.slow
def test_sigterm_in_an_evaluation_leaves_at_once_and_the_next_start_repeats_it(
    tmp_path, straight
):
    """The evaluation of step 20 never ends the first time."""
    first = start(tmp_path, HANG_AT="20")
    while "evaluating 20" not in first.stdout.readline():
        assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    finish(first, seconds=60)
    assert step_of(tmp_path) == 20
    finish(start(tmp_path))
    assert_same_run(straight, tmp_path)


def test_the_command_line_names_a_typo_and_a_missing_workdir(tmp_path):
    process = start(tmp_path, "--config.train.num_step=5")
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0 and "num_steps" in err  # did you mean
    command = [sys.executable, "tests/small_experiment.py"]
    environment = dict(os.environ, PYTHONPATH=f"{ROOT}:{ROOT}/tests")
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0 and "workdir" in done.stdout + done.stderr


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def both_processes(workdir, *options, program=SMALL):
    address = f"127.0.0.1:{free_port()}"
    pair = [
        start(
            workdir,
            f"--distributed={address},2,{index}",
            *options,
            devices=2,
            program=program,
        )
        for index in range(2)
    ]
    return [finish(process) for process in pair]


@pytest.mark.slow
@pytest.mark.parametrize("num_accumulated", [1, 2])
def test_two_processes_train_save_and_resume_as_one_does(num_accumulated, tmp_path):
    """2 processes of 2 devices, stopped and resumed, against 1 process of 4."""
    both, one = tmp_path / "both", tmp_path / "one"
    parts = f"--config.train.num_accumulated={num_accumulated}"
    both_processes(both, parts, "--config.train.num_steps=15")
    both_processes(both, parts)
    finish(start(one, parts, devices=4))
    pair, alone = state_of(both), state_of(one)
    assert step_of(both) == 40
    # Reductions over processes may add in another order.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), pair, alone
    )
    assert pair["training"]["carry/energy/memory"].shape == (4, 16, 2)
    # And what two processes saved, one process on one device goes on from.
    finish(start(both, parts, "--config.train.num_steps=45", devices=1))
    assert step_of(both) == 45


@pytest.mark.slow
def test_two_processes_with_a_workdir_elsewhere_train_as_with_a_folder(tmp_path):
    """Each process works in a copy, and the first one sends its own."""
    here, there = tmp_path / "here", f"file://{tmp_path}/there"
    length = "--config.train.num_steps=15"
    both_processes(here, length)
    both_processes(there, "--config.train.num_steps=10")
    both_processes(there, length)
    jax.tree.map(np.testing.assert_array_equal, state_of(here), state_of(there))
    assert step_of(there) == 15
    both_processes(there, length, "--evaluate_only")
    assert lines(tmp_path / "there")[-1] == lines(here)[-1]


@pytest.mark.slow
def test_a_process_ends_by_name_soon_after_another_was_killed(tmp_path):
    """Its usual end would wait for that one for more than a minute, and abort."""
    address = f"127.0.0.1:{free_port()}"
    pair = [
        start(tmp_path, f"--distributed={address},2,{index}", *LONG, devices=1)
        for index in range(2)
    ]
    while not (line := pair[0].stderr.readline()).startswith("step 40/"):
        assert line
    pair[1].kill()
    since = time.monotonic()
    _, err = pair[0].communicate(timeout=240)
    assert pair[0].returncode == 1 and time.monotonic() - since < 30
    last = err.splitlines()[-1]
    assert last.startswith("error: another process of the run has ended")
    pair[1].communicate()


@pytest.mark.slow
def test_processes_with_different_folders_are_refused(tmp_path):
    """The second process sees a copy of the folder from before the last steps."""
    workdirs = tmp_path / "new", tmp_path / "old"
    run(build, config(train__num_steps=5), workdirs[0])
    shutil.copytree(*workdirs)
    run(build, config(train__num_steps=10), workdirs[0])
    address = f"127.0.0.1:{free_port()}"
    pair = [
        start(workdir, f"--distributed={address},2,{index}", devices=2)
        for index, workdir in enumerate(workdirs)
    ]
    for process, workdir in zip(pair, workdirs):
        _, err = process.communicate(timeout=240)
        assert process.returncode == 1
        assert err.splitlines()[-1] == (
            f"error: {workdir}/checkpoints must be shared by all processes, but process"
            " 1 found step 5 and the first one step 10"
        )
    assert step_of(workdirs[0]) == 10 and step_of(workdirs[1]) == 5


@pytest.mark.slow
@pytest.mark.parametrize("process", ["ladder", "sub_variance_preserving"])
def test_scores_of_images_train_in_two_processes_as_in_one(
    process, tmp_path, quick_compilation
):
    """An experiment's own data, network and evaluation, on 2 x 2 devices and on 4."""
    both, one = tmp_path / "both", tmp_path / "one"
    program = "-m", "experiments.score_based"
    options = [
        f"--config=digits,{process}",
        *("--config.data.batch_size=16", "--config.train.num_steps=3"),
        "--config.network.widths=(2,)",
        *("--config.evaluation.num_samples=0", "--config.evaluation.num_shown=8"),
        *("--config.evaluation.chunk_size=8", "--config.evaluation.num_likelihoods=6"),
        *("--config.evaluation.num_probes=1", "--config.evaluation.tolerance=0.01"),
        "--config.evaluation.num_inpainted=3",
    ]
    if process == "ladder":
        options += ["--config.evaluation.sampler.num_steps_per_level=1"]
        options += ["--config.process.num_scales=4"]
    else:
        options += ["--config.evaluation.sampler.num_steps=4"]
    both_processes(both, *options, program=program)
    finish(start(one, *options, devices=4, program=program))
    # Adam divides by the gradient's size: sums in another order move what is near 0.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        state_of(both)["params"],
        state_of(one)["params"],
    )
    pair, alone = (lines(folder)[-1] for folder in (both, one))
    assert pair["kind"] == "eval" and pair.keys() == alone.keys()
    for name in ("samples_abs_max", "asymmetry_1", "bits_per_dim", "inpainting_mse"):
        np.testing.assert_allclose(pair[name], alone[name], rtol=1e-2)


def test_small_experiment_learns(straight):
    """So that the tests above are about something: it moves towards 1 / 4 and 0."""
    params = state_of(straight)["params"]["energy"]
    assert params["precision"] < 0.8 and (params["mean"] < 0.9).all()
    assert small_experiment.__doc__.count("python") == 1
