"""Every script starts from any folder, explains itself with an example, and reports an error with exit code 2."""

import importlib
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


@pytest.fixture(scope="module")
def helps(tmp_path_factory) -> dict[Path, str]:
    """What each script prints for --help, in a process of its own and from another folder."""
    folder = tmp_path_factory.mktemp("elsewhere")

    def help_of(script: Path) -> str:
        done = subprocess.run([sys.executable, script, "--help"], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with ThreadPoolExecutor(2) as pool:
        texts = dict(zip([*SCRIPTS, OLD_NAME], pool.map(help_of, [*SCRIPTS, OLD_NAME])))
    assert not list(folder.iterdir())
    return texts


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_has_an_example_and_an_error_is_code_2(helps, script, tmp_path):
    assert f"python {script.name}" in helps[script]
    done = run_here(importlib.import_module(f"{script.parent.name}.{script.stem}"), "--no-such", folder=tmp_path)
    assert done.returncode == 2 and "error:" in done.stderr and not list(tmp_path.iterdir())


def test_all_scripts_are_here():
    assert len(SCRIPTS) == 12


def test_the_old_name_of_a_script_still_works(helps):
    assert "candidate classifier" in helps[OLD_NAME]
