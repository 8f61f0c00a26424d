"""A script's command line inside of the process of the tests: the two seconds that `import torch` takes are spent once.

That the scripts start on their own, from any folder, is what test_scripts.py and a test of each script show.
"""

import contextlib
import io
import subprocess
import sys
from types import ModuleType
from unittest import mock


def run_here(script: ModuleType, *options: object, folder: object = "/") -> subprocess.CompletedProcess:
    """Call ``script.main()`` as the command line would; what it wrote, and the exit code."""
    words = [script.__file__, *map(str, options)]
    stdout, stderr, returncode = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(folder),
        mock.patch.object(sys, "argv", words),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            script.main()
        except SystemExit as exit:
            returncode = exit.code
    return subprocess.CompletedProcess(words, returncode, stdout.getvalue(), stderr.getvalue())
