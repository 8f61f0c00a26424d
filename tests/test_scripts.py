"""Every script starts from any folder, explains itself with an example, and reports an error with exit code 2."""

import importlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.command_line import run_here

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [
    path
    for folder in ("pipeline_classifier", "single_pulse_classifier_training")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "\n    main()\n" in path.read_text()
]


OLD_NAME = ROOT / "pipeline_classifier" / "create_peak_dataset.py"
LARGE = {"torch", "numba", "scipy", "matplotlib", "h5py", "astropy"}


@pytest.fixture(scope="module")
def helps(tmp_path_factory) -> dict[Path, tuple[str, set[str]]]:
    """What each script prints for --help, and imports for it, in a process of its own and from another folder."""
    folder = tmp_path_factory.mktemp("elsewhere")

    def help_of(script: Path) -> tuple[str, set[str]]:
        command = [sys.executable, "-X", "importtime", script, "--help"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout, {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}

    with ThreadPoolExecutor(2) as pool:
        texts = dict(zip([*SCRIPTS, OLD_NAME], pool.map(help_of, [*SCRIPTS, OLD_NAME])))
    assert not list(folder.iterdir())
    return texts


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_has_an_example_and_an_error_is_code_2(helps, script, tmp_path):
    assert f"python {script.name}" in helps[script][0]
    done = run_here(importlib.import_module(f"{script.parent.name}.{script.stem}"), "--no-such", folder=tmp_path)
    assert done.returncode == 2 and "error:" in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_does_not_wait_for_large_packages(helps, script):
    imported = helps[script][1]
    assert "argparse" in imported and not imported & LARGE


@pytest.mark.parametrize("ignored", [False, True])
def test_ctrl_c_while_packages_are_imported_leaves_no_traceback(tmp_path, ignored):
    """Every script ends by the signal, unless it began with the signal ignored, as with nohup."""
    for package in ("numpy", "torch", "tqdm", "pydantic"):
        (tmp_path / f"{package}.py").write_text(
            "import os, signal, sys\nos.kill(os.getpid(), signal.SIGINT)\nfor _ in range(100): pass\nsys.exit(3)\n"
        )

    def interrupted(script: Path) -> None:
        how = "ignore" if ignored else "default"
        command = ["env", f"--{how}-signal=INT", f"PYTHONPATH={tmp_path}", sys.executable, script, "--help"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (3 if ignored else -signal.SIGINT, ""), script

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(interrupted, SCRIPTS[:1] if ignored else SCRIPTS))


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense"])
def test_the_backend_of_a_notebook_does_not_matter(backend):
    code = (
        "import argparse\n"
        "from single_pulse_classifier_training.cli import run_script\n"
        "run_script(argparse.ArgumentParser(), lambda args: __import__('matplotlib.backends.backend_agg'))"
    )
    environment = os.environ | {"MPLBACKEND": backend}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_all_scripts_are_here():
    assert len(SCRIPTS) == 12


def test_the_old_name_of_a_script_still_works(helps):
    assert "candidate classifier" in helps[OLD_NAME][0]
