"""Every script starts on its own, from any folder, explains itself with an example, and ends on a mistake with code 2."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [
    path
    for folder in ("pipeline_classifier", "single_pulse_classifier_training")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "\n    main()\n" in path.read_text()
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_has_an_example_and_a_mistake_is_code_2(script, tmp_path):
    done = subprocess.run([sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"python {script.name}" in done.stdout
    done = subprocess.run([sys.executable, script, "--no-such"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr and not list(tmp_path.iterdir())


def test_all_scripts_are_here():
    assert len(SCRIPTS) == 12
