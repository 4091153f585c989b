"""The command line: presets by name, help, and errors of one line."""

import json
import pathlib
import subprocess
import sys
import types

import pytest
import small_experiment
from ml_collections import ConfigDict
from small_experiment import step_of

from experiments.run import cli
from experiments.run.config import parse_option, with_options
from experiments.run.errors import CommandError
from experiments.run.sweep import Cell, Sweep
from experiments.short_run import plane


@pytest.fixture
def command(monkeypatch, capsys):
    """`command(*arguments) -> (status, out, err)` of the small experiment."""

    def call(*arguments, sweep=None, problem=small_experiment):
        monkeypatch.setattr(sys, "argv", ["small", *arguments])
        status = 0
        try:
            cli.main(problem.build, problem.__file__, sweep)
        except SystemExit as stop:
            status = stop.code
        found = capsys.readouterr()
        return status, found.out, found.err

    return call


def test_help_lists_flags_presets_and_options_with_their_comments(command):
    status, out, _ = command("--help")
    assert not status
    assert "--workdir" in out and "Presets: small, long" in out
    assert "Changes one option" in out
    (line,) = [x for x in out.splitlines() if x.startswith("  train.keep")]
    assert line.split() == ["train.keep=2", "#", "newest", "checkpoints"]
    (line,) = [x for x in out.splitlines() if "factor" in x]
    assert line.split("#")[0].strip() == "evaluation.sampler.factor=1.0"
    assert "Options of the preset 'small'" in out  # that of `get_config()`
    assert "  train.num_steps=400" in command("--config=long", "--help")[1]


def test_help_may_be_read_in_part(tmp_path):
    """As `--help | head -1` does, which closes the pipe."""
    script = (
        "import sys; sys.argv = ['run', '--help']\n"
        "from experiments.tutorial import run; from experiments.run import cli\n"
        "cli.main(run.build, run.__file__)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.wait(120) == 0
    assert b"Broken pipe" not in process.stderr.read()


@pytest.mark.parametrize("steps", ["5", "5,x", "5,6,7", "-1,3", "9,3", "0,999"])
def test_a_profile_that_is_none_is_one_line(steps, command, tmp_path):
    status, _, _ = command(f"--workdir={tmp_path / 'run'}", f"--profile={steps}")
    assert status.startswith("error: --profile must be two steps")
    assert "\n" not in status and not (tmp_path / "run").exists()


def test_the_config_is_printed_with_the_options_given(command):
    status, out, _ = command("--config=long", "--config.data.std=3", "--print_config")
    assert not status
    assert "num_steps: 400" in out and "std: 3.0" in out


def test_a_preset_and_options_reach_the_run(command, tmp_path):
    options = "--config.train.num_steps=3", "--config.ema_decay=0.5"
    status, out, err = command(f"--workdir={tmp_path}", "--config=long", *options)
    assert not status and "precision: " in out and step_of(tmp_path) == 3
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["train"]["num_steps"] == 3 and config["ema_decay"] == 0.5
    # A long silence is announced before it.
    assert "compiling" in err and "evaluating step 3" in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--workdir=x", "--config.train.num_step=5"],
            "did you mean 'train.num_steps'",
        ),
        (["--workdir=x", "--config=smal"], "preset must be one of"),
        (["--workdir=x", "--config=smal"], "did you mean 'small'"),
        (["--workdir=x", "--config.train.num_steps=many"], "must be a whole number"),
        (["--workdir=x", "--config.train.num_steps"], "must have a value"),
        (["--workdr=x"], "unknown flag --workdr; did you mean --workdir?"),
        (["--workdir=x", "y"], "unknown argument: y"),
        ([], "--workdir must be given"),
        (["--workdir=x", "--config=none.py"], "no file none.py"),
        (["--workdir=x", "--seeds=2"], "need --sweep"),
        (["--workdir=x", "--sweep", "--evaluate_only"], "cannot be combined"),
        (["--workdir=x", "--distributed=a,b"], "--distributed must be"),
        (["--workdir=x", "--distributed=a,1"], "--distributed must be"),
        (["--workdir=x", "--distributed=a,1,b"], "--distributed must be"),
        (["--workdir=x", "--over=data.std"], "'option=value,value'"),
        (
            ["--workdir=x", "--over=data.std=1,1"],
            "each value once, got 1 twice in 'data.std=1,1'",
        ),
        (
            ["--workdir=x", "--over=seed=1,2,1.0"],
            "got 1.0 twice in 'seed=1,2,1.0'",
        ),
        (
            ["--workdir=x", "--over=seed=1", "--over=seed=2"],
            "each option once, got 'seed' twice",
        ),
        (["--workdir=x", "--evaluate_only"], "holds no run to evaluate"),
        (["--workdir=foo://x"], "workdir foo://x cannot be used: Protocol not known"),
        (["--workdir=https://x/y"], "but https:// can only be read"),
        (["--workdir=x", "--sweep", "--cells=3/2"], "must have 1 <= i <= n, got '3/2'"),
        (["--workdir=x", "--config.data.batch_size=12"], "multiple of the 8 devices"),
    ],
)
def test_an_error_is_one_line_and_makes_nothing(
    arguments, message, command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    status, _, _ = command(*arguments)
    assert isinstance(status, str) and message in status
    assert len(status.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_command_that_needs_a_local_folder_refuses_another(monkeypatch):
    monkeypatch.setattr("sys.argv", ["small", "--workdir=memory://runs/a"])
    with pytest.raises(SystemExit, match="must be a local folder, got memory://runs/a"):
        cli.command_line(lambda *_: None, small_experiment, small_experiment.__file__)


def test_a_contender_that_fails_is_one_line(monkeypatch, tmp_path):
    def start(command, workdir):
        raise CommandError("torch: build failed: no memory")

    monkeypatch.setattr(sys, "argv", ["small", f"--workdir={tmp_path}"])
    with pytest.raises(SystemExit, match="^error: torch: build failed: no memory$"):
        cli.command_line(start, small_experiment, small_experiment.__file__)


def test_traceback_shows_where_an_error_arose(command):
    with pytest.raises(ValueError, match="workdir must be given"):
        command("--traceback")


def test_a_file_gives_a_config_of_its_own(command, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import small_experiment\n"
        "def get_config(preset='a'):\n"
        "    found = small_experiment.get_config().unlock()\n"
        "    found.seed = {'a': 5, 'b': 6}[preset]\n"
        "    return found.lock()\n"
    )
    assert "seed: 5\n" in command(f"--config={path}", "--print_config")[1]
    assert "seed: 6\n" in command(f"--config={path}:b", "--print_config")[1]


@pytest.mark.quick
def test_a_preset_of_a_neighbouring_problem_is_named_with_its_command(tmp_path):
    (tmp_path / "one.py").write_text("PRESETS = {}\n")
    (tmp_path / "two.py").write_text('PRESETS = {\n    "mine": dict,\n}\n')
    problem = type(sys)("one")
    problem.PRESETS = {}
    package = f"experiments.{tmp_path.name}.two"
    found = cli.hint("mine,variant", problem, pathlib.Path(tmp_path / "one.py"))
    assert found == f"; it is a preset of python -m {package}"


def test_a_sweep_runs_its_plan_and_what_is_given(command, tmp_path):
    cells = {"a": Cell("small"), "b": Cell("long", {"train.num_steps": 2})}
    status, out, _ = command(
        f"--workdir={tmp_path}",
        "--sweep",
        "--seeds=2",
        "--config.train.num_steps=3",
        sweep=lambda preset: Sweep(cells, ("precision",)),
    )
    assert not status
    found = {x.name: step_of(x) for x in (tmp_path / "cells").iterdir()}
    assert found == {"a,0": 3, "a,1": 3, "b,0": 2, "b,1": 2}
    table = (tmp_path / "table.md").read_text()
    assert "| a |" in table and out.endswith(table + "\n")


def test_any_option_can_be_swept_without_a_plan(command, tmp_path):
    status, _, _ = command(
        f"--workdir={tmp_path}",
        "--over=train.num_steps=1,2",
        "--over=learning_rate=0.1",
        "--config.data.std=1.5",
    )
    assert not status
    found = {x.name: step_of(x) for x in (tmp_path / "cells").iterdir()}
    first, second = (f"train.num_steps={n},learning_rate=0.1,0" for n in (1, 2))
    assert found == {first: 1, second: 2}
    config = json.loads((tmp_path / "cells" / first / "config.json").read_text())
    assert config["data"]["std"] == 1.5 and config["learning_rate"] == 0.1


@pytest.mark.quick
@pytest.mark.parametrize(
    "text, current, expected",
    [
        ("3", 1, 3),
        ("1e3", 1, 1000),
        ("2", 1.0, 2.0),
        ("true", False, True),
        ("(1, 2)", (3,), (1, 2)),
        ("1,2", (3,), (1, 2)),
        ("uniform,gaussian", ("a",), ("uniform", "gaussian")),
        ("('x',)", ("a",), ("x",)),
        ("12", "text", "12"),
        ("", "text", ""),
        ("None", None, None),
    ],
)
def test_text_is_read_as_the_option_s_type(text, current, expected):
    found = parse_option("option", text, current)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    "text, current", [("1.5", 1), ("x", 1.0), ("1", False), ("3", (1,)), ("", 1)]
)
def test_text_of_another_type_is_refused_by_name(text, current):
    with pytest.raises(ValueError, match="section.option must be (a|True)") as error:
        parse_option("section.option", text, current)
    assert repr(current) in str(error.value) and repr(text) in str(error.value)


def test_none_is_read_where_it_stands_for_a_choice_and_refused_elsewhere():
    assert parse_option("objective.bandwidth", "None", 0.3) is None
    assert parse_option("objective.variance_reduction", "None", "antithetic") is None
    with pytest.raises(ValueError, match="objective.noise_scale must be a number"):
        parse_option("objective.noise_scale", "None", 0.3)


@pytest.mark.quick
def test_options_are_set_on_a_copy():
    config = small_experiment.get_config()
    found = with_options(config, {"data.std": "7", "train.num_steps": 5})
    assert (found.data.std, found.train.num_steps) == (7.0, 5)
    assert (config.data.std, config.train.num_steps) == (2.0, 40)
    with pytest.raises(ValueError, match="no option 'data.sdt'.*'data.std'"):
        with_options(config, {"data.sdt": 1.0})


REPLAY = [
    "--config.start.name=replay",
    "--config.start.capacity=1e3",
    "--config.start.reinit_prob=1",
]


def test_the_name_of_a_section_chooses_its_options(command):
    """What both take is kept, what the other alone takes is gone, and the rest are the
    defaults of the constructor or what is given, read as its type."""
    status, out, _ = command(
        "--config.data.name=rings",
        "--config.data.radii=1,2.5",
        "--config.optimizer.name=sgd",
        "--config.optimizer.momentum=0.5",
        *REPLAY,
        "--print_config",
        problem=plane,
    )
    expected = plane.get_config().to_dict()
    rate = expected["optimizer"]["learning_rate"]
    expected["data"] = {
        "name": "rings",
        "radii": (1, 2.5),
        "std": 0.15,  # the preset's
        "batch_size": 256,  # no constructor's, but the problem's
    }
    expected["optimizer"] = {
        "name": "sgd",
        "momentum": 0.5,
        "nesterov": False,
        "gradient_clip": 0.0,
        "learning_rate": rate,
    }
    expected["start"] |= {"name": "replay", "capacity": 1000, "reinit_prob": 1.0}
    assert not status and out == f"{ConfigDict(expected)}\n"
    # Another preset has what the default one lacks, and goes back without it.
    convergent = "--config=toy_convergent", "--print_config"
    _, out, _ = command(*convergent, "--config.start.name=noise", problem=plane)
    expected = plane.get_config("toy_convergent").to_dict()
    expected["start"] = {"name": "noise", "law": "normal", "scale": 1.0}
    assert out == f"{ConfigDict(expected)}\n"


def test_a_constructor_s_options_are_known_without_being_listed(command):
    _, out, _ = command(
        "--config.sampler.name=langevin",  # the preset's own: nothing changes
        "--config.sampler.gradient_clip=2",
        "--config.optimizer.eps=1e-6",
        "--print_config",
        problem=plane,
    )
    expected = plane.get_config().to_dict()
    expected["sampler"]["gradient_clip"] = 2.0
    expected["optimizer"]["eps"] = 1e-6
    assert out == f"{ConfigDict(expected)}\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["optimizer.name=adamm"],
            "optimizer.name must be one of ['adam', 'adamw', 'sgd'], got 'adamm'; did"
            " you mean 'adam'?",
        ),
        (["optimizer.name=1"], "optimizer.name must be one of"),
        (
            ["optimizer.name=sgd", "optimizer.b1=0.5"],
            "optimizer.name 'sgd' takes no option 'optimizer.b1'",
        ),
        (
            ["optimizer.name=sgd", "optimizer.momentun=0.5"],
            "has no option 'optimizer.momentun'; did you mean 'optimizer.momentum'?",
        ),
        (
            ["start.name=replay"],
            "start.name 'replay' needs start.capacity and start.reinit_prob",
        ),
        (
            ["start.name=replay", "start.capacity=9"],
            "start.name 'replay' needs start.reinit_prob",
        ),
        (
            ["start.name=replay", "start.capacity=1.5", "start.reinit_prob=0"],
            "start.capacity must be a whole number",
        ),
        (["data.name=rings", "data.radii=1"], "data.radii must be a tuple"),
    ],
)
def test_a_choice_that_cannot_be_is_one_line(arguments, message, command):
    given = [f"--config.{text}" for text in arguments]
    status, _, _ = command(*given, "--print_config", problem=plane)
    assert isinstance(status, str) and message in status
    assert len(status.splitlines()) == 1


def test_the_limits_hold_for_the_options_of_a_choice(command, tmp_path):
    given = "--config.optimizer.name=sgd", "--config.optimizer.momentum=1.0"
    status, _, _ = command(f"--workdir={tmp_path}", *given, problem=plane)
    assert status == "error: optimizer.momentum must be below 1, got 1.0"


def test_a_run_of_a_choice_is_gone_on_with_by_the_same_command(
    command, tmp_path, quick_compilation
):
    small = ("train.num_steps=1", "data.batch_size=8", "network.widths=(4,)")
    small += ("objective.num_steps=1", "evaluation.num_samples=16")
    small += ("evaluation.num_steps=1", "evaluation.long_run_steps=1")
    small += ("evaluation.num_long_run=16", "start.capacity=16")
    given = [*REPLAY, *(f"--config.{text}" for text in small)]
    given += [f"--workdir={tmp_path}", "--config.data.name=rings"]
    sgd = "--config.optimizer.name=sgd"
    status, out, _ = command(*given, sgd, problem=plane)
    assert not status and "density_kl" in out
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["start"]["capacity"] == 16 and config["data"]["std"] == 0.15
    status, again, _ = command(*given, sgd, problem=plane)
    assert not status and again == out
    status, _, _ = command(*given, problem=plane)
    assert "optimizer.name: 'sgd' -> 'adam'" in status
    assert "optimizer.nesterov: False -> '(absent)'" in status


def test_choices_are_swept_and_each_has_what_is_given_of_its_own(
    command, tmp_path, monkeypatch
):
    found = {}

    def record(build, config, folder, preemption):
        found[folder.name] = config.optimizer.to_dict()
        return {"x": 1.0}

    monkeypatch.setattr("experiments.run.sweep.run", record)
    given = "--config.optimizer.momentum=0.5", "--config.optimizer.b1=0.7"
    over = "--over=optimizer.name=adam,sgd"
    status, _, _ = command(f"--workdir={tmp_path}", over, *given, problem=plane)
    assert not status
    adam = plane.get_config().optimizer.to_dict() | {"b1": 0.7}
    sgd = {k: adam[k] for k in ("gradient_clip", "learning_rate")}
    sgd |= {"name": "sgd", "momentum": 0.5, "nesterov": False}
    assert found == {"optimizer.name=adam,0": adam, "optimizer.name=sgd,0": sgd}
    given = "--config.start.capacity=8"
    status, _, _ = command(f"--workdir={tmp_path}", over, given, problem=plane)
    assert status == "error: no cell of the sweep has the options ['start.capacity']"


def test_trackers_are_told_of_every_run_of_a_command(command, tmp_path, monkeypatch):
    """A sweep of two learning rates is two runs there; a missing package costs none."""
    begun = []
    fake = types.SimpleNamespace(
        init=lambda project, name, config: begun.append((name, config)),
        log=lambda values, step: None,
        finish=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    given = "--config.train.num_steps=1", f"--workdir={tmp_path / 'sweep'}"
    over = "--over=learning_rate=0.01,0.02"
    status, _, _ = command(*given, over, "--log_to=wandb")
    assert not status
    rates = {name: config["learning_rate"] for name, config in begun}
    assert rates == {"learning_rate=0.01,0": 0.01, "learning_rate=0.02,0": 0.02}
    status, _, _ = command(f"--workdir={tmp_path / 'run'}", "--log_to=mlflow")
    assert (
        status == "error: --log_to=mlflow needs the package mlflow: pip install mlflow"
    )
    assert not (tmp_path / "run").exists()
