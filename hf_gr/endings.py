"""How a command ends: its failure as one line on standard error, and its exit status."""

import contextlib
import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import typer

from .errors import HfGrError
from .terminal import clean


INTERRUPTED = 130  # exit status
_UsageError: Any = typer.BadParameter.__bases__[0]  # click's, which newer releases of typer carry within


@contextlib.contextmanager
def run_reporting_errors(debug: bool = False) -> Iterator[None]:
    """Turns whatever a block raises into one line on standard error and a non-zero exit status.

    Args:
        debug: Print the traceback before the line.
    """
    try:
        yield
    except _UsageError as error:
        _fail(f"{error.format_message().rstrip('.')}; --help lists the options.", 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; earlier artifacts are whole, and the same command goes on where it can.", INTERRUPTED)
    except Exception as error:  # the last frame before the user
        if debug:
            traceback.print_exc()
        _fail(_line(error), 1)


def leave_after(run: Callable[[], None]) -> NoReturn:
    """Runs a command, then ends the process without taking the interpreter apart.

    Threads of Daft that are still at work would crash it: one refusal in forty ended in an abort or a segmentation
    fault instead of status 1.
    """
    status: str | int | None = 0
    try:
        run()
    except SystemExit as end:
        status = end.code
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 0 if status is None else 1)


def _line(error: BaseException) -> str:
    if isinstance(error, HfGrError):
        return str(error)
    if _disk_is_full(error):
        where = f" while writing {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return f"the disk is full{where}; free some space and run the same command again: earlier artifacts are whole."
    first = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first[0]} (an unforeseen error; run again with --debug for the traceback)"


def _disk_is_full(error: BaseException) -> bool:
    """Told by the error's number or, since Rust and C++ libraries give none, by its text."""
    codes = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError) and error.errno in codes:
        return True
    texts = [*map(os.strerror, codes), "PytorchStreamWriter failed writing"]
    return any(text in str(error) for text in texts)


def _fail(line: str, status: int) -> NoReturn:
    print(f"error: {clean(line)}", file=sys.stderr, flush=True)
    sys.exit(status)
