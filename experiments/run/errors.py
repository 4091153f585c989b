"""Errors of the file system, of Orbax and of its store, as one sentence each."""

import contextlib
import errno
import logging
import os
import pathlib
import sys
from collections.abc import Iterator

CODES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""Errors of the file system that Orbax's errors quote."""


class CommandError(RuntimeError):
    """An error that ends a command with one sentence, as a ValueError does."""


class CheckpointError(CommandError):
    """A checkpoint that cannot be written, or none of several that can be read."""


@contextlib.contextmanager
def failing_as(what: str, folder: pathlib.Path) -> Iterator[None]:
    """Turns every error of a block into a `CheckpointError` of one line."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = reason_of(error) if folder.is_dir() else f"{folder} is missing"
        raise CheckpointError(f"{what}: {reason}") from error


def reason_of(error: BaseException) -> str:
    """Returns the sentence of an error that may have pages."""
    text = str(error).strip()
    for sentence in map(os.strerror, CODES):
        if sentence in text:
            return sentence
    line = (text.splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else line[:200] + "..."


def sentence_of(error: OSError) -> str:
    """Returns an error of the file system with its path, or one of ours as it is."""
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


@contextlib.contextmanager
def ending_in_one_line(
    *others: type[Exception], shows_traceback: bool = False
) -> Iterator[None]:
    """Ends the process with one sentence for what is wrong with input and files.

    Args:
      *others: Types of errors besides ValueError, FloatingPointError, CommandError and
        those of the file system.
      shows_traceback: Whether these errors are raised as they are instead.
    """
    try:
        yield
    except (ValueError, FloatingPointError, CommandError, *others) as error:
        if shows_traceback:
            raise
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # `... --help | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if shows_traceback:
            raise
        sys.exit(f"error: {sentence_of(error)}")


def hide_tracebacks_of_threads() -> None:
    """Hides what Orbax's threads print of an error that the run itself reports."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    show = sys.unraisablehook

    def show_others(unraisable):
        # The store answers to an event loop that ended with the error.
        if "Event loop is closed" not in str(unraisable.exc_value):
            show(unraisable)

    sys.unraisablehook = show_others
