"""The wheel holds every package and data file, and the version is the same everywhere."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from setuptools import Distribution
from setuptools.command.build_py import build_py
from setuptools.config.pyprojecttoml import apply_configuration

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ["pipeline_classifier", "single_pulse_classifier_training"]
NOT_IN_THE_WHEEL = r"\.py$|\.md$|\.gitkeep$|/images/"


@pytest.fixture
def distribution(monkeypatch) -> Distribution:
    """What setuptools makes of pyproject.toml, without a build."""
    monkeypatch.chdir(ROOT)
    return apply_configuration(Distribution(), "pyproject.toml")


def packaged(distribution: Distribution) -> tuple[list[str], set[str]]:
    """Packages and data files of the wheel, the latter relative to the root."""
    command = build_py(distribution)
    command.finalize_options()
    return command.packages, {
        f"{package.replace('.', '/')}/{name}" for package, _, _, names in command.data_files for name in names
    }


def test_every_folder_with_an_init_is_in_the_wheel(distribution):
    expected = [
        init.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for folder in FOLDERS
        for init in (ROOT / folder).rglob("__init__.py")
    ]
    packages, _ = packaged(distribution)
    assert len(expected) > 8 and sorted(packages) == sorted(expected)


def test_every_folder_with_modules_has_an_init():
    with_modules = {module.parent for folder in FOLDERS for module in (ROOT / folder).rglob("*.py")}
    assert [folder for folder in with_modules if not (folder / "__init__.py").exists()] == []


def test_every_data_file_is_in_the_wheel(distribution):
    listing = subprocess.run(["git", "ls-files", *FOLDERS], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode or not listing.stdout:
        pytest.skip("not a git checkout: the list of data files is unknown")
    expected = {
        name for name in listing.stdout.splitlines() if not re.search(NOT_IN_THE_WHEEL, name) and (ROOT / name).exists()
    }
    _, data_files = packaged(distribution)
    assert "pipeline_classifier/models/default.pth" in expected
    assert expected <= data_files


def test_the_files_of_requirements_are_the_dependencies(distribution):
    def listed(name: str) -> list[str]:
        lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
        return sorted(line for line in lines if line)

    assert sorted(distribution.install_requires) == listed("requirements_pytorch.txt")
    assert sorted(distribution.extras_require["test"]) == listed("requirements_test.txt")


def test_versions_agree():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)[1]
    changelog = re.search(r"^## (Unreleased \()?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert citation == version
    assert version == changelog[2] + (".dev0" if changelog[1] else "")
