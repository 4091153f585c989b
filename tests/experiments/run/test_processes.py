"""Several processes of a run: what they must agree on before they train."""

import jax
import numpy as np
import pytest

from experiments.run import processes


@pytest.mark.quick
def test_processes_that_see_different_checkpoints_are_refused(tmp_path, monkeypatch):
    mine = []

    def gather(step):
        mine.append(int(step))
        return np.array([found[0], step, *found[1:]])

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", gather)
    found = [40, 40]
    processes.check_shared(tmp_path, [40, 35])
    message = f"{tmp_path} must be shared by all processes, but process"
    with pytest.raises(ValueError, match=f"{message} 1 found step 35 .* one step 40"):
        processes.check_shared(tmp_path, [35, 20])
    with pytest.raises(ValueError, match=f"{message} 1 found no checkpoint and"):
        processes.check_shared(tmp_path, [])
    found = [40, 0]
    with pytest.raises(ValueError, match=f"{message} 2 found step 0 and the first one"):
        processes.check_shared(tmp_path, [40, 35])
    found = [-1, 20]
    with pytest.raises(ValueError, match="2 found step 20 .* first one no checkpoint"):
        processes.check_shared(tmp_path, [])
    assert mine == [40, 35, -1, 40, -1]
    monkeypatch.undo()
    processes.check_shared(tmp_path, [])


class Ended(BaseException):
    """Stands for the end of the process."""


@pytest.mark.quick
@pytest.mark.parametrize(
    "error, told, seconds",
    [
        (
            jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce: reset\nat 0x7"),
            "error: another process of the run has ended, and its own output says why:"
            " UNKNOWN: Gloo all-reduce: reset\n",
            0,
        ),
        (
            SystemExit("error: UNKNOWN: Gloo AllGather failed"),
            " and its own output says why: UNKNOWN: Gloo AllGather failed\n",
            0,
        ),
        (SystemExit("error: the disk is full"), "error: the disk is full\n", 3),
        (jax.errors.JaxRuntimeError("Out of memory"), "Out of memory\n", 3),
        (KeyError("a fault"), "KeyError: 'a fault'\n", 3),
    ],
)
def test_one_of_several_processes_that_fails_says_so_and_ends_at_once(
    error, told, seconds, monkeypatch, capsys
):
    """All others wait for it, and it would wait for them."""

    def end(status):
        assert status == 1
        raise Ended

    slept = []
    monkeypatch.setattr(processes.os, "_exit", end)
    monkeypatch.setattr(processes.time, "sleep", slept.append)
    with pytest.raises(type(error)), processes.ending_together():
        raise error  # the only process: as usual
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with pytest.raises(Ended), processes.ending_together():
        raise error
    assert capsys.readouterr().err.endswith(told) and slept == [seconds]
    with pytest.raises(SystemExit), processes.ending_together():
        raise SystemExit(0)  # preempted
    with processes.ending_together():
        pass
