r"""Makes the most of a GPU that is lent for a short time.

    python -m experiments.gpu --workdir=runs/gpu --data_dir=DATA --minutes=30

It runs, in the order of their worth: the tests of numbers at the default and at the
highest precision of products, both tables of the benchmark, and the longest training
runs of the papers that fit in the time. Each has a limit of its own. A run that reaches
its limit saves a checkpoint and goes on when the same command is given again, and what
has ended is not run again. Every item is recorded in `<workdir>/items.jsonl` when it
ends: its command, commit, device, minutes, exit status and last lines.

The machine needs no network and no tensorflow-datasets, but a jax that knows its GPU.
On another machine, carry what it lacks:

    pip download --no-deps -d wheels flax optax chex absl-py ml_collections \
        orbax-checkpoint tensorboardX pytest ...
    python -m experiments.data.images --name mnist --data_dir DATA
    python -m experiments.data.images --name cifar10 --data_dir DATA

Then `make gpu WHEELS=wheels DATA=DATA MINUTES=30` installs these wheels with the
packages of the machine, and runs the list. `--small` cuts all sizes, so that the whole
list runs on a CPU.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from typing import Any

from experiments.data import images
from experiments.gpu.items import ITEMS, Item
from experiments.run.files import append

GRACE = 60.0
"""Seconds in which an item that reached its limit saves and ends."""

LAST_LINES = 20


DESCRIBE = """
import json, jax
from experiments.run.workdir import describe_process
print(json.dumps(describe_process() | {"platform": jax.devices()[0].platform}))
"""


def describe() -> dict[str, Any]:
    """Returns what describes a run on this machine, with the platform of its devices.

    Another process looks: JAX would take the GPU's memory away from the items.
    """
    found = subprocess.run(
        [sys.executable, "-c", DESCRIBE], stdout=subprocess.PIPE, check=True, text=True
    )
    about = json.loads(found.stdout.splitlines()[-1])
    return about | {"command": shlex.join(["python", *sys.orig_argv[1:]])}


def has_data(item: Item, data_dir: str) -> bool:
    """Returns whether the data of an item are there."""
    if not item.data:
        return True
    try:
        images.read_split(
            item.data, images.SOURCES[item.data].splits[1], data_dir=data_dir
        )
    except (OSError, ValueError, ImportError):
        return False
    return True


def read_records(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Returns the last record of every item, by its name."""
    if not path.is_file():
        return {}
    records = {}
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # torn by a killed process
            record = json.loads(line)
            records[record["item"]] = record
    return records


def run_item(
    item: Item,
    folder: pathlib.Path,
    places: dict[str, str],
    seconds: float,
    small: bool,
) -> dict[str, Any]:
    """Runs an item for at most so many seconds, and returns its record.

    Args:
      item: The item.
      folder: Folder of its output.
      places: Mark in its command and environment -> text that takes its place.
      seconds: Limit.
      small: Whether its sizes are cut.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable]
    environment = dict(item.environment)
    for mark, place in places.items():
        environment = {k: v.replace(mark, place) for k, v in environment.items()}
    for text in (*item.command, *(item.small if small else ())):
        for mark, place in places.items():
            text = text.replace(mark, place)
        command.append(text)
    started = time.monotonic()
    status = "ended"
    with (folder / "output.txt").open("ab") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = "reached its limit"
            end(process)
        except BaseException:  # such as Ctrl-C: the item must not run on alone
            end(process)
            raise
    lines = (folder / "output.txt").read_text(errors="replace").splitlines()
    if status == "ended" and process.returncode not in item.ends_with:
        status = "failed"
    return {
        "item": item.name,
        "status": status,
        "exit_status": process.returncode,
        "minutes": (time.monotonic() - started) / 60,
        "item_command": command,
        "environment": environment,
        "is_small": small,
        "last_lines": lines[-LAST_LINES:],
    }


def end(process: subprocess.Popen) -> None:
    """Ends an item, which has some time to save its state."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_items(
    workdir: pathlib.Path, data_dir: str, minutes: float, is_small: bool
) -> list[dict[str, Any]]:
    """Runs every item that has not ended, until the time is over.

    Returns:
      The last record of every item; one that was not begun has the status "not begun",
      or "no data".
    """
    path, end = workdir / "items.jsonl", time.monotonic() + 60 * minutes
    workdir.mkdir(parents=True, exist_ok=True)
    records = {
        name: record
        for name, record in read_records(path).items()
        if record["is_small"] == is_small
    }
    about = describe()
    for item in ITEMS:
        folder = workdir / (f"{item.name}_small" if is_small else item.name)
        places = {
            "{workdir}": str(folder / "run"),
            "{data_dir}": str(data_dir),
            "{platform}": about["platform"],
        }
        if records.get(item.name, {}).get("status") == "ended":
            continue
        left = end - time.monotonic() - GRACE
        seconds = left if is_small else min(left, 60 * minutes * item.limit)
        if not has_data(item, data_dir):
            records[item.name] = {"item": item.name, "status": "no data"}
        elif seconds <= 0:
            records.setdefault(item.name, {"item": item.name, "status": "not begun"})
        else:
            print(f"{item.name}: at most {seconds / 60:.1f} minutes", flush=True)
            record = run_item(item, folder, places, seconds, is_small) | about
            append(path, json.dumps(record) + "\n")
            records[item.name] = record
        print(f"{item.name}: {records[item.name]['status']}", flush=True)
    return [records[item.name] for item in ITEMS]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--data_dir", default="", help="folder of the prepared images")
    parser.add_argument("--minutes", type=float, default=30.0, help="time of all")
    parser.add_argument("--small", action="store_true", help="cuts all sizes")
    options = parser.parse_args()
    if not options.minutes > 0:
        parser.error(f"--minutes must be positive, got {options.minutes}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    records = run_items(
        options.workdir, options.data_dir, options.minutes, options.small
    )
    failed = [record for record in records if record["status"] == "failed"]
    for record in failed:
        print(f"{record['item']}:", *record["last_lines"], sep="\n  ", file=sys.stderr)
    if failed:
        names = ", ".join(record["item"] for record in failed)
        sys.exit(f"error: failed: {names}; see {options.workdir}")


if __name__ == "__main__":
    main()
