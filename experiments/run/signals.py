"""Signals that end a run: SIGTERM of a machine that is taken away, and Ctrl-C."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence


class Preemption:
    """Notices that the process is asked to end.

    A signal only sets a flag. Training looks at it after each step, saves and returns.
    While nothing is unsaved, as in an evaluation or a compilation, a thread ends the
    process at once with the exit status 0. It ends it without Python's own end: that
    would destroy objects which compiled programs still use.
    """

    def __init__(self):
        self.is_requested = False
        self._lock = threading.Lock()
        self._num_unsaved = 0
        self._num_interrupts = 0
        self._is_watching = False

    @contextlib.contextmanager
    def watching(
        self, signals: Sequence[signal.Signals] = (signal.SIGTERM,)
    ) -> Iterator[None]:
        """Handles the signals; does nothing if an outer block does already.

        Only the main thread can handle signals.
        """
        is_main = threading.current_thread() is threading.main_thread()
        if self._is_watching or not is_main or not signals:
            yield
            return
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        # Python calls a handler between two of its instructions. While a program
        # compiles there are none, but the thread reads the signal's number at once.
        thread = threading.Thread(
            target=self._listen, args=(reader, set(signals)), daemon=True
        )
        thread.start()
        previous = {number: signal.signal(number, self._notice) for number in signals}
        previous_file = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._is_watching = True
        try:
            yield
        finally:
            self._is_watching = False
            signal.set_wakeup_fd(previous_file)
            for number, handler in previous.items():
                signal.signal(number, handler)
            writer.close()  # ends the thread
            thread.join()
            reader.close()

    def _notice(self, number, frame) -> None:
        """Sets no flag: `_listen` does, together with its choice to leave or not."""
        self._num_interrupts += number == signal.SIGINT
        if self._num_interrupts > 1:
            raise KeyboardInterrupt  # asked twice: without saving

    def _listen(self, reader: socket.socket, signals: set[int]) -> None:
        while received := reader.recv(1):
            if received[0] in signals:
                with self._lock:
                    self.is_requested = True
                    if self._num_unsaved == 0 and self._num_interrupts < 2:
                        leave()

    @contextlib.contextmanager
    def holding_unsaved_work(self) -> Iterator[None]:
        """Returns a block that a signal does not end."""
        with self._lock:
            self._num_unsaved += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_unsaved -= 1

    @contextlib.contextmanager
    def leaving_at_once(self, is_saved: bool = True) -> Iterator[None]:
        """Returns a block in `holding_unsaved_work` in which nothing is unsaved.

        Args:
          is_saved: False makes the block one like any other.
        """
        with self._lock:
            self._num_unsaved -= is_saved
            if self.is_requested and self._num_unsaved == 0:
                leave()  # the signal came while something was unsaved
        try:
            yield
        finally:
            with self._lock:
                self._num_unsaved += is_saved

    def must_stop(self, num_calls: int) -> bool:
        """Returns whether training must save its step and end.

        Args:
          num_calls: Number of this call, the same one in all processes. JAX looks for
            one number at which all of them stop, so that none may be left out.
        """
        import jax
        from jax.experimental import multihost_utils

        if jax.process_count() > 1:
            # All processes must stop at the same step, which only JAX can arrange.
            return multihost_utils.reached_preemption_sync_point(num_calls)
        return self.is_requested


def leave() -> None:
    """Says that the process is preempted, and ends it now."""
    # A thread of its own: the main thread may hold the lock of a stream.
    flushing = threading.Thread(target=_flush, daemon=True)
    flushing.start()
    flushing.join(timeout=1.0)
    os._exit(0)


def _flush() -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"preempted: nothing is unsaved; the same command goes on\n")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
