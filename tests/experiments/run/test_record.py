"""Tables are copied into results and pages by a command, with their origin."""

import json

import pytest
from small_experiment import build, config, get_config

from experiments.run import record
from experiments.run.loop import run
from experiments.run.sweep import Cell, Sweep, run_sweep


def test_a_run_s_last_evaluation_is_recorded_with_its_origin(tmp_path):
    workdir, target = tmp_path / "run", tmp_path / "results" / "small.md"
    scalars = run(build, config(train__num_steps=5), workdir)
    record.main([f"--workdir={workdir}", f"--to={target}"])
    text = target.read_text()
    assert f"| draw | {scalars['draw']:.4g} |" in text
    written = json.loads((workdir / "run.json").read_text())
    for name in ("command", "commit", "device"):
        assert (written[name] or "unknown") in text
    assert "Seeds: 0\n" in text and "1 run," in text


def test_a_sweep_s_table_is_recorded_with_all_seeds(tmp_path):
    plan = Sweep({"a": Cell("", {"train.num_steps": 1})}, num_seeds=2)
    table = run_sweep(build, get_config, plan, tmp_path)
    text = record.record(tmp_path)
    assert text.startswith(table) and "Seeds: 0, 1\n" in text and "2 runs" in text
    assert "standard deviation over the seeds" in text


def test_minutes_are_those_of_steps_and_evaluations(tmp_path):
    """10 steps at 2 a second, 10 at 1, and two evaluations: 5 + 10 + 45 s."""
    lines = [
        {"kind": "train", "step": 10, "steps_per_second": 2.0},
        {"kind": "eval", "step": 10, "evaluation_seconds": 15.0},
        {"kind": "train", "step": 20, "steps_per_second": 1.0},
        {"kind": "eval", "step": 20, "evaluation_seconds": 30.0},
    ]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(f"{json.dumps(x)}\n" for x in lines)
    )
    assert record.minutes(tmp_path) == pytest.approx(1.0)


@pytest.mark.quick
def test_a_page_shows_the_recorded_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.md").write_text("| a |\n| --- |\n| 1 |\n\n- Command: `make`\n")
    page = tmp_path / "page.md"
    before = "Before.\n<!-- table x.md -->\n"
    page.write_text(f"{before}old\n<!-- end of table -->\nAfter.\n")
    record.main(["--pages", "page.md"])
    shown = "| a |\n| --- |\n| 1 |\n"
    assert page.read_text() == f"{before}{shown}<!-- end of table -->\nAfter.\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--workdir=none", "--to=x.md"], "none holds no run that has been evaluated"),
        (["--pages", "empty.md"], "empty.md has no place"),
        (["--pages", "gone.md"], "gone.txt, which is missing"),
    ],
)
def test_what_cannot_be_recorded_is_named(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.md").write_text("")
    place = "<!-- table gone.txt -->\n<!-- end of table -->"
    (tmp_path / "gone.md").write_text(place)
    with pytest.raises(SystemExit) as stop:
        record.main(arguments)
    assert message in str(stop.value)
    assert not (tmp_path / "x.md").exists()
