"""The help of every command, with a comment for every option of every problem."""

import importlib
import pathlib
import runpy
import sys

import pytest
from ml_collections import ConfigDict

from experiments.run import options
from experiments.run.config import flat
from experiments.run.options import list_options

ROOT = pathlib.Path(options.__file__).parents[2]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text()
    for path in sorted(ROOT.glob("experiments/**/*.py"))
}
PROBLEMS = [name for name, text in MODULES.items() if "\ndef get_config" in text]
COMMANDS = [name for name, text in MODULES.items() if "\nif __name__ == " in text]


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_option_of_every_preset_has_a_comment(name):
    problem = importlib.import_module(name)
    presets = set(problem.PRESETS)
    if plan := getattr(problem, "sweep", None):
        for preset in problem.PRESETS:
            presets |= {cell.preset for cell in plan(preset).cells.values()}
    seen = set()
    for preset in sorted(presets):
        config = problem.get_config(preset)
        found = flat(config.to_dict())
        named = {(x, found.get(f"{x.rpartition('.')[0]}.name")) for x in found}
        if named <= seen:  # their comments were looked at
            continue
        seen |= named
        lines = list_options(config, problem)
        assert len(lines) == len(found)
        assert not [line for line in lines if "  # " not in line], preset


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_is_printed(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as stop:
        status = stop.code
    out = capsys.readouterr().out
    assert not status
    assert out.startswith("usage: ") or "\nFlags:\n  --" in out


@pytest.mark.quick
def test_comments_are_found_in_tables_of_sections(tmp_path, monkeypatch):
    """Where a section is an argument by name, is shared, or goes by its own name."""
    (tmp_path / "tables_of_sections.py").write_text(
        "def shared():\n"
        '    return {"width": 3}  # units\n'
        "TABLE = {\n"
        '    "one": dict(data={\n'
        '        "scale": 1.0,  # x\n'
        "    }),\n"
        '    "two": dict(data={"scale": 2.0}, network=shared()),\n'
        "}\n"
        "STEPS = {\n"
        '    "mala": {\n'
        '        "step": 0.1,  # x^2\n'
        "    },\n"
        "}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("tables_of_sections")
    config = {"data": {"scale": 2.0}, "network": {"width": 3}, "scale": 1.0}
    config["sampler"] = {"name": "mala", "step": 0.2}
    lines = list_options(ConfigDict(config), module)
    assert [" ".join(line.split()) for line in lines] == [
        "data.scale=2.0 # x",
        "network.width=3 # units",
        "sampler.name='mala'",
        "sampler.step=0.2 # x^2",
        "scale=1.0",  # not that of the section
    ]


@pytest.mark.quick
def test_a_section_may_hold_another_of_its_own_kind(tmp_path, monkeypatch):
    (tmp_path / "sections_in_sections.py").write_text(
        "def tree():\n"
        "    return {\n"
        '        "width": 3,  # units\n'
        '        "child": tree(),\n'
        "    }\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("sections_in_sections")
    lines = list_options(ConfigDict({"child": {"child": {"width": 2}}}), module)
    assert [" ".join(x.split()) for x in lines] == ["child.child.width=2 # units"]
