"""A copy of a problem's file is a problem of its own, and the tests still pass."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROBLEM = "experiments/generalized/curve.py"
TINY = [
    "--config.train.num_steps=2",
    "--config.train.num_joint_steps=1",
    "--config.data.batch_size=8",
    "--config.network.widths=(4,)",
    "--config.evaluation.num_samples=16",
    "--config.evaluation.num_bins=4",
    "--config.evaluation.sampler.num_steps=2",
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of this checkout with a fork of one problem, in which a line differs."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("ebmjax", "experiments"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "test_layers.py", folder / "tests")
    text = (folder / PROBLEM).read_text()
    forked = text.replace(
        "python -m experiments.generalized.curve",
        "python -m experiments.generalized.mine",
    )
    forked = forked.replace('"seed": 0', '"seed": 7')
    (folder / PROBLEM).with_name("mine.py").write_text(forked)
    return folder


def call(checkout, *arguments):
    environment = dict(os.environ, PYTHONPATH=str(checkout), XLA_FLAGS="")
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
    )


def lines(folder):
    found = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in x.items() if "second" not in k} for x in found]


@pytest.mark.slow
def test_a_fork_runs_resumes_sweeps_evaluates_and_loads(checkout):
    command = ["-m", "experiments.generalized.mine", *TINY]
    half = "--config.train.num_steps=1"
    for more in ([half], []):
        done = call(checkout, *command, *more, "--workdir=runs/two")
        assert done.returncode == 0, done.stderr
    done = call(checkout, *command, "--workdir=runs/one")
    assert done.returncode == 0, done.stderr
    one, two = (lines(checkout / "runs" / name)[-2:] for name in ("one", "two"))
    assert one == two and one[-1]["kind"] == "eval"
    done = call(checkout, *command, "--workdir=runs/one", "--evaluate_only")
    assert done.returncode == 0, done.stderr
    assert lines(checkout / "runs" / "one")[-1] == one[-1]
    done = call(checkout, *command, "--workdir=runs/all", "--sweep", "--seeds=1")
    assert done.returncode == 0, done.stderr
    assert (checkout / "runs" / "all" / "table.md").is_file()
    program = "from experiments import load; print(load('runs/one').config.seed)"
    done = call(checkout, "-c", program)
    assert done.returncode == 0, done.stderr
    record = json.loads((checkout / "runs" / "one" / "run.json").read_text())
    assert record["problem"] == "experiments.generalized.mine"


def test_the_import_table_holds_with_a_fork(checkout):
    """The tests that look at every file of the tree look at the fork's too."""
    done = call(checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert done.returncode == 0, done.stdout
    assert "failed" not in done.stdout
