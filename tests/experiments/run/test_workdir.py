"""The folder of a run: its log, and who may write there."""

import json
import os
import threading
import time

import numpy as np
import pytest
from small_experiment import build, config, state_of, step_of

from experiments import load
from experiments.run import workdir
from experiments.run.files import occupied
from experiments.run.loop import run
from experiments.run.workdir import (
    METRICS,
    TRAINER_LOCK,
    Log,
    finite_evaluations,
    read_lines,
)


def test_two_writers_of_the_log_lose_no_line(tmp_path, monkeypatch):
    """A trainer appends while an evaluation has read the log and not yet replaced it,
    as it tries to for all of a fifth of a second."""
    trainer, evaluation = Log(tmp_path, 3), Log(tmp_path, 3)
    trainer.write("train", 1, {"loss": 0.5})
    has_read = threading.Event()

    def read_and_wait(workdir):
        found = read_lines(workdir)
        has_read.set()
        time.sleep(0.2)
        return found

    def train():
        has_read.wait()
        trainer.write("train", 2, {"loss": 0.5})

    monkeypatch.setattr(workdir, "read_lines", read_and_wait)
    thread = threading.Thread(target=train)
    thread.start()
    evaluation.write_evaluation(1, {"draw": 0.0}, tmp_path)
    thread.join()
    found = [(line["kind"], line["step"]) for line in read_lines(tmp_path)]
    assert found == [("train", 1), ("eval", 1), ("train", 2)]


def test_a_second_trainer_is_refused_and_an_evaluation_is_not(tmp_path):
    run(build, config(train__num_steps=5), tmp_path)
    before = (tmp_path / METRICS).read_text()
    with occupied(tmp_path / TRAINER_LOCK, str(tmp_path)):
        with pytest.raises(ValueError, match=f"being trained by process {os.getpid()}"):
            run(build, config(), tmp_path)
        assert (tmp_path / METRICS).read_text() == before and step_of(tmp_path) == 5
        run(build, config(train__num_steps=5), tmp_path, evaluate_only=True)
    run(build, config(train__num_steps=10), tmp_path)
    assert step_of(tmp_path) == 10


def test_another_config_that_began_in_the_meantime_is_refused(tmp_path):
    """Both starts see an empty folder; the other is first, and ends."""

    def build_slowly(settings, keys):
        run(build, config(train__num_steps=5), tmp_path)
        return build(settings, keys)

    with pytest.raises(ValueError, match="seed: 0 -> 1"):
        run(build_slowly, config(seed=1), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0


DAMAGED = [
    "null",
    "[]",
    "12",
    '"text"',
    "[" * 100_000,
    "9" * 5_000,
    "\0\0\0",
    '{"kind": "train"}',
    *(
        f'{{"kind": {kind}, "step": {step}, "x": {value}}}'
        for kind, step, value in [
            ('"eval"', "null", "1.0"),
            ('"eval"', '"10"', "1.0"),
            ('"train"', "[10]", "1.0"),
            ('"train"', "10.5", "1.0"),
            ('"train"', "true", "1.0"),
            ('"train"', "-1", "1.0"),
            ('"train"', "1" + "0" * 400, "1.0"),
            ("null", "10", "1.0"),
            ("[]", "10", "1.0"),
            ('"eval"', "10", '"text"'),
            ('"eval"', "10", "null"),
            ('"eval"', "10", "{}"),
            ('"eval"', "10", "1" + "0" * 400),
        ]
    ),
]


def test_no_line_of_the_log_stops_a_run_or_ends_in_it(tmp_path, caplog):
    """All of them after step 10 of a run; the log is then that of an uninterrupted
    run, and the last evaluation counts."""
    run(build, config(train__num_steps=10), tmp_path)
    path = tmp_path / METRICS
    path.write_text(path.read_text() + "\n".join([*DAMAGED, '{"kind": "eval", "st']))
    before = finite_evaluations(read_lines(tmp_path))
    assert list(before) == [10]
    assert f"left out: {', '.join(map(str, range(4, 14)))}, ..." in caplog.text
    run(build, config(train__num_steps=15), tmp_path)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in found] == [
        ("train", 5),
        ("train", 10),
        ("eval", 10),
        ("train", 15),
        ("eval", 15),
    ]
    assert finite_evaluations(found)[10] == before[10]


def test_an_evaluation_below_a_torn_line_is_read(tmp_path):
    run(build, config(train__num_steps=5), tmp_path)
    path = tmp_path / METRICS
    path.write_text(path.read_text() + '{"kind": "train", "st')
    settings = config(train__num_steps=5, evaluation__sampler={"factor": 3.0})
    run(build, settings, tmp_path, evaluate_only=True)
    last = read_lines(tmp_path)[-1]
    assert (last["kind"], last["options"]) == (
        "other_eval",
        {"evaluation.sampler.factor": 3.0},
    )


def test_a_run_that_stops_says_which_checkpoint_is_kept(tmp_path):
    settings = config(nan_at=2, train__log_every=1)
    with pytest.raises(FloatingPointError, match="nan; no checkpoint was saved before"):
        run(build, settings, tmp_path / "none")
    with pytest.raises(FloatingPointError, match="the checkpoint of step 10 is kept"):
        run(build, config(nan_at=12, train__log_every=1), tmp_path / "ten")


def test_a_workdir_that_is_a_file_is_named(tmp_path):
    path = tmp_path / "run"
    path.write_text("text")
    for folder in (path, path / "below"):
        with pytest.raises(ValueError, match=f"must be a folder, but {path} is a file"):
            run(build, config(), folder)
    assert path.read_text() == "text"


def test_leftovers_of_the_lock_do_not_matter(tmp_path):
    """A killed process leaves its number in the file, but not the lock."""
    (tmp_path / TRAINER_LOCK).write_text("process 1 on elsewhere\n")
    run(build, config(train__num_steps=5), tmp_path)
    assert np.isfinite(state_of(tmp_path)["params"]["energy"]["precision"])


@pytest.mark.quick
@pytest.mark.parametrize("name", ["config.json", "run.json"])
def test_another_number_in_a_file_of_the_run_is_never_loaded(name, tmp_path):
    """JSON as good as before, which says something else."""
    run(build, config(train__num_steps=2), tmp_path)
    path = tmp_path / name
    assert load(tmp_path).config.data.std == 2.0
    old, new = {"config.json": ('"std": 2.0', '"std": 6.0')}.get(
        name, ('"num_dims": 2', '"num_dims": 3')
    )
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=f"{name} is damaged: it has changed since"):
        load(tmp_path)


def test_a_start_that_is_killed_between_its_two_files_claims_both(tmp_path):
    """`run.json` is of the new start, `config.json` of the one before."""
    run(build, config(train__num_steps=2), tmp_path)
    old = (tmp_path / "config.json").read_text()
    run(build, config(train__num_steps=3), tmp_path)
    assert load(tmp_path).config.train.num_steps == 3
    (tmp_path / "config.json").write_text(old)
    assert load(tmp_path).config.train.num_steps == 2


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    """A run without a digest, such as one of an older version, takes any."""

    def with_data(digest):
        return lambda settings, keys: build(settings, keys)._replace(data_digest=digest)

    run(build, config(train__num_steps=2), tmp_path)
    run(with_data("a"), config(train__num_steps=3), tmp_path)
    for options in ({}, {"evaluate_only": True}):
        with pytest.raises(ValueError, match="the data are not those that the run beg"):
            run(with_data("b"), config(train__num_steps=4), tmp_path, **options)
    assert step_of(tmp_path) == 3
    run(with_data("a"), config(train__num_steps=4), tmp_path)
    assert step_of(tmp_path) == 4
