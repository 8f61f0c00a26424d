"""The house: imports go down the layers only, nothing imports a script, and no name shadows the standard library."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PIPELINE, TRAINING = "pipeline_classifier", "single_pulse_classifier_training"
LAYERS = [
    {"live"},
    {"output", "evaluation"},
    {"detection"},
    {"options", "simulation"},
    {"config"},
    {"frontend"},
    {"formats"},
    {"events", "times", "dispersion"},
    {TRAINING},
]
FILES = sorted((ROOT / PIPELINE).rglob("*.py")) + sorted((ROOT / TRAINING).rglob("*.py"))


def is_script(path: Path) -> bool:
    return path.parent.name in (PIPELINE, TRAINING) and 'if __name__ == "__main__":' in path.read_text()


def room_of(module: str) -> str | None:
    """Room of a module of this project: a package or a file of the pipeline's top, or the training folder."""
    parts = module.split(".")
    if parts[0] == TRAINING:
        return TRAINING
    return parts[1] if parts[0] == PIPELINE and len(parts) > 1 else None


def imports_of(path: Path) -> set[str]:
    """Full names of all modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: packages are imported by their full name"
            assert node.module is not None
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SCRIPTS = {module_of(path) for path in FILES if is_script(path)}


def level(room: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if room in layer)


def test_every_room_has_a_layer():
    rooms = {room_of(module_of(path)) for path in FILES if module_of(path) not in SCRIPTS} - {None}
    assert rooms == set().union(*LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    here = module_of(path)
    for name in imports_of(path):
        assert name not in SCRIPTS, f"{here} imports the script {name}"
        there = room_of(name)
        if there is None or here in SCRIPTS:
            assert here in SCRIPTS or not name.startswith(PIPELINE) or name == PIPELINE
            if here.startswith(TRAINING):
                assert not name.startswith(PIPELINE), f"{here} imports {name}: training knows nothing of the pipeline"
            continue
        room = room_of(here)
        assert room is not None
        assert there == room or level(room) < level(there), f"{here} imports {name}, which is not below {room}"


def test_no_name_shadows_the_standard_library():
    names = {part for path in FILES for part in path.relative_to(ROOT).with_suffix("").parts} - {"__init__"}
    assert not names & sys.stdlib_module_names


def test_the_top_of_the_pipeline_is_small():
    assert len(list((ROOT / PIPELINE).glob("*.py"))) <= 18
    assert {path.name for path in (ROOT / TRAINING).iterdir() if path.is_dir()} <= {
        "checkpoints", "data", "images", "__pycache__",
    }  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_and_modules_are_short(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 80, f"{node.name} has more than 80 lines"
            if node.name == "__init__":
                parameters = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                assert len(parameters) - 1 <= 6, "more than 6 parameters: use a settings object"
