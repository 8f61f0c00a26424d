"""Start of every script, and its exit on an error of the user."""

import argparse
import io
import logging
import os
import signal
import sys
from collections.abc import Callable


class InputError(Exception):
    """An error in the input: one sentence with the key or file, what it must be, and what it is."""


def quiet_interrupts() -> None:
    """Let Ctrl-C end a script without a traceback while it imports its packages, until `run_script` begins."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # nohup and & may ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def run_script(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], object],
    prepare: Callable[[], None] | None = None,
) -> None:
    """Parse the command line and call ``run(args)``; exit with code 2 and one sentence if the input has an error.

    An ``InputError`` or ``OSError`` (missing file, no permission, disk full) is an error that the user can correct. Any
    other exception is a defect of this project and keeps its traceback.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    run : callable
        The work of the script.
    prepare : callable, optional
        Called before, but not for ``--help`` and errors of the command line.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["MPLBACKEND"] = "agg"  # scripts draw into files; that of a notebook may not be installed here
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a folder may have a name that is not UTF-8
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    args = parser.parse_args()
    try:
        if prepare:
            prepare()
        run(args)
    except InputError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:
        parser.exit(2, f"{parser.prog}: error: {error.filename or 'input or output'}: {error.strerror or error}\n")
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # another one while threads end leaves no traceback
        parser.exit(130, f"{parser.prog}: interrupted\n")
