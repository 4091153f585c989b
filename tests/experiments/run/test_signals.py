"""Signals: nothing unsaved is lost, and nothing saved is waited for."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from experiments.run.signals import Preemption

ROOT = pathlib.Path(__file__).parents[3]

BUSY = """
import hashlib, signal, sys
from experiments.run.signals import Preemption

def work(rounds):
    # One call of C, as a compilation is: no handler runs before it ends.
    print("busy", file=sys.stderr, flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)

FOR_EVER, A_SECOND = 2_000_000_000, 2_000_000
preemption = Preemption()
with preemption.watching((signal.SIGTERM, signal.SIGINT)):
    print("not flushed")
"""


def send(number, block):
    """A process that is sent a signal while it is busy; its end and its seconds."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY + textwrap.indent(textwrap.dedent(block), 4 * " ")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr.readline() == "busy\n"
    start = time.perf_counter()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err, time.perf_counter() - start


@pytest.mark.quick
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_with_nothing_unsaved_the_process_leaves_at_once(number):
    """Also in the middle of a call of C, with all that it printed."""
    status, out, err, seconds = send(number, "work(FOR_EVER)")
    assert status == 0 and out == "not flushed\n"
    assert "nothing is unsaved" in err and seconds < 10


def test_unsaved_work_is_waited_for():
    block = """
        with preemption.holding_unsaved_work():
            work(A_SECOND)
        print("stop", preemption.is_requested)
    """
    status, out, err, _ = send(signal.SIGTERM, block)
    assert status == 0 and out == "not flushed\nstop True\n" and not err


def test_a_signal_that_waited_ends_the_process_where_all_is_saved():
    block = """
        with preemption.holding_unsaved_work():
            work(A_SECOND)
            with preemption.leaving_at_once(is_saved=False):
                print("not left")
            with preemption.leaving_at_once():
                work(FOR_EVER)
    """
    status, out, err, seconds = send(signal.SIGTERM, block)
    assert status == 0 and out == "not flushed\nnot left\n"
    assert "nothing is unsaved" in err and "busy" not in err and seconds < 10


def test_ctrl_c_twice_ends_unsaved_work_too():
    block = """
        import os, time
        with preemption.holding_unsaved_work():
            work(1)
            while not preemption.is_requested:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
    """
    status, _, err, seconds = send(signal.SIGINT, block)
    assert status != 0 and err.endswith("KeyboardInterrupt\n") and seconds < 10


def test_handlers_come_back_and_only_the_outer_block_watches():
    before = signal.getsignal(signal.SIGTERM)
    preemption = Preemption()
    with preemption.watching():
        ours = signal.getsignal(signal.SIGTERM)
        with preemption.watching(), preemption.holding_unsaved_work():
            assert signal.getsignal(signal.SIGTERM) == ours != before
            os.kill(os.getpid(), signal.SIGTERM)
            deadline = time.monotonic() + 10
            while not preemption.is_requested and time.monotonic() < deadline:
                time.sleep(0.01)
            assert preemption.must_stop(1)
        assert signal.getsignal(signal.SIGTERM) == ours
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_while_modules_are_imported_ends_the_command_at_once():
    command = [sys.executable, "-X", "importtime", "-m", "experiments.short_run"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    with process:
        for line in process.stderr:  # a line for each module that is imported
            if "numpy" in line:
                process.send_signal(signal.SIGTERM)
                break
        process.stderr.read()
    assert process.returncode == 0


def test_a_signal_while_python_ends_does_not_change_the_exit_status():
    program = """
        import os, signal, sys
        sys.argv = ["-m"]
        import experiments

        class AtTheEnd:
            def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGTERM):
                kill(pid, number)

        kept = AtTheEnd()
    """
    code = textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
