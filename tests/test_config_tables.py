"""The README of each folder has every config key, with its default."""

import json
import re
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from pipeline_classifier.config import DEFAULT_CONFIG, PipelineConfig
from single_pulse_classifier_training.config import TrainingConfig

ROOT = Path(__file__).resolve().parents[1]


def documented(readme: Path, schema: type) -> dict[str, str | None]:
    """Key and default of each row of the table whose first key belongs to the schema."""
    for table in re.findall(r"^\| key \| default \| meaning \|\n\|[-|]+\|\n((?:\|.*\|\n)+)", readme.read_text(), re.M):
        found = {}
        for row in table.splitlines():
            keys, default, _ = (cell.strip() for cell in row.strip("|").split("|", 2))
            names = re.findall(r"`([^`]+)`", keys)
            values = [value.strip().strip("`") for value in default.split(", ")] if default else [None]
            values = values * len(names) if len(values) == 1 else values
            found |= dict(zip(names, values, strict=True))
        if set(found) & set(schema.model_fields):
            return found
    raise AssertionError(f"{readme} has no table of the config")


@pytest.mark.parametrize(
    "schema, folder", [(PipelineConfig, "pipeline_classifier"), (TrainingConfig, "single_pulse_classifier_training")]
)
def test_every_key_is_in_the_table_with_its_default(schema, folder):
    table = documented(ROOT / folder / "README.md", schema)
    assert set(table) == set(schema.model_fields)
    for name, field in schema.model_fields.items():
        if field.default is PydanticUndefined:
            assert table[name] is None
        elif str(field.default).startswith(str(DEFAULT_CONFIG.parent)):
            assert table[name] == str(Path(field.default).relative_to(DEFAULT_CONFIG.parent))
        elif isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
            assert float(table[name]) == field.default
        else:
            assert table[name] == (field.default if isinstance(field.default, str) else json.dumps(field.default))
