"""What every script shares: how it starts, and how a user's mistake ends it."""

import argparse
import logging
import sys
from collections.abc import Callable


class InputError(Exception):
    """A mistake in what the user gave: one sentence with the key or file, the value, and the valid choices."""


def run_script(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], object]) -> None:
    """Parse the command line and call ``run(args)``; leave with exit code 2 and one sentence on a user's mistake.

    An ``InputError`` and an ``OSError`` (missing file, no permission, disk full) are mistakes that the user can mend;
    any other exception is a defect of this project and keeps its traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    args = parser.parse_args()
    try:
        run(args)
    except InputError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:
        parser.exit(2, f"{parser.prog}: error: {error.filename or 'input or output'}: {error.strerror or error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted\n")
