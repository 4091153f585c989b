"""What a borrowed GPU runs: in order, within the time, resumed and recorded."""

import json
import sys
import time

import pytest

from experiments.gpu import __main__ as gpu
from experiments.gpu.items import ITEMS, Item

WRITE = (
    "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('done'); print('end')"
)
SLEEP = """
import pathlib, signal, sys, time
path = pathlib.Path(sys.argv[1])
if path.exists():
    sys.exit(0)
signal.signal(signal.SIGTERM, lambda *_: (path.write_text('saved'), sys.exit(0)))
time.sleep(60)
"""


def item(name, text, **others):
    return Item(name, ("-c", text, "{workdir}"), **{"limit": 1.0} | others)


@pytest.fixture
def items(monkeypatch):
    def choose(*chosen):
        monkeypatch.setattr(gpu, "ITEMS", chosen)

    monkeypatch.setattr(gpu, "GRACE", 0.5)
    monkeypatch.setattr(gpu, "describe", lambda: {"platform": "gpu", "device": "1 x G"})
    return choose


def statuses(records):
    return {record["item"]: record["status"] for record in records}


def read(workdir):
    return [json.loads(line) for line in (workdir / "items.jsonl").open()]


def test_an_item_that_ended_is_recorded_and_not_run_again(tmp_path, items):
    items(item("first", WRITE))
    assert statuses(gpu.run_items(tmp_path, "", 1.0, False)) == {"first": "ended"}
    (record,) = read(tmp_path)
    assert record["exit_status"] == 0 and record["last_lines"] == ["end"]
    assert record["item_command"][:2] == [sys.executable, "-c"]
    assert record["device"] == "1 x G" and record["minutes"] >= 0
    gpu.run_items(tmp_path, "", 1.0, False)
    assert len(read(tmp_path)) == 1


def test_an_item_that_reaches_its_limit_saves_and_goes_on_the_next_time(
    tmp_path, items
):
    items(item("long", SLEEP, limit=0.05), item("next", WRITE))
    found = gpu.run_items(tmp_path, "", 1.0, False)
    assert statuses(found) == {"long": "reached its limit", "next": "ended"}
    assert (tmp_path / "long" / "run").read_text() == "saved"
    assert statuses(gpu.run_items(tmp_path, "", 1.0, False))["long"] == "ended"
    assert [record["item"] for record in read(tmp_path)] == ["long", "next", "long"]


def test_what_fails_is_named_and_the_rest_is_run(tmp_path, items):
    items(item("bad", "raise SystemExit(3)"), item("next", WRITE))
    found = gpu.run_items(tmp_path, "", 1.0, False)
    assert statuses(found) == {"bad": "failed", "next": "ended"}
    items(item("tests", "raise SystemExit(1)", ends_with=(0, 1)))
    assert statuses(gpu.run_items(tmp_path, "", 1.0, False)) == {"tests": "ended"}


def test_what_has_no_data_or_no_time_is_not_begun(tmp_path, items):
    items(item("images", WRITE, data="mnist"), item("late", WRITE))
    found = gpu.run_items(tmp_path, str(tmp_path), 0.001, False)
    assert statuses(found) == {"images": "no data", "late": "not begun"}
    assert not (tmp_path / "items.jsonl").exists()


def test_a_small_item_has_the_arguments_that_cut_it(tmp_path, items):
    items(item("cut", "import sys; print(*sys.argv[2:])", small=("--less",)))
    gpu.run_items(tmp_path, "", 1.0, True)
    assert read(tmp_path)[0]["last_lines"] == ["--less"]


def test_what_describes_the_machine_comes_from_another_process():
    about = gpu.describe()
    assert about["platform"] == "cpu" and about["device"].endswith("x cpu")
    assert {"commit", "command", "versions"} <= set(about)


def test_the_tests_of_numbers_run_on_the_device(tmp_path, items):
    show = "import os; print(os.environ['JAX_PLATFORMS'])"
    items(item("tests", show, environment={"JAX_PLATFORMS": "{platform}"}))
    gpu.run_items(tmp_path, "", 1.0, False)
    assert read(tmp_path)[0]["last_lines"] == ["gpu"]
    tests = [found for found in ITEMS if "pytest" in found.command]
    assert len(tests) == 2
    for found in tests:
        assert found.environment["JAX_PLATFORMS"] == "{platform}"


def test_small_items_and_torn_lines_do_not_count_for_whole_ones(tmp_path, items):
    items(item("first", WRITE))
    gpu.run_items(tmp_path, "", 1.0, True)
    with (tmp_path / "items.jsonl").open("a") as file:
        file.write('{"item": "fir')
    gpu.run_items(tmp_path, "", 1.0, False)
    text = (tmp_path / "items.jsonl").read_text()
    assert text.count('"status": "ended"') == 2
    assert (tmp_path / "first" / "run").exists()


def test_an_item_ends_with_the_command(tmp_path, items, monkeypatch):
    items(item("long", SLEEP))

    def interrupt(process, seconds):
        time.sleep(1.0)  # it has begun
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu.subprocess.Popen, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        gpu.run_items(tmp_path, "", 1.0, False)
    assert (tmp_path / "long" / "run").read_text() == "saved"


def test_the_items_are_commands_of_this_checkout():
    import importlib

    for found in ITEMS:
        module = importlib.import_module(found.command[1])
        text = [x for x in found.command if x.startswith("--config=")]
        if text and hasattr(module, "PRESETS") and hasattr(module, "get_config"):
            module.get_config(text[0].removeprefix("--config="))
