"""Names of outputs: the longest one can be written, by any process."""

import os

import pytest

from pipeline_classifier.formats.file_names import output_name, safe_field
from pipeline_classifier.options import set_name
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.runtime import atomic_writer


@pytest.mark.parametrize(
    "named, longest",
    [
        (output_name, "probabilities_{}_dms15_x64.npy"),
        (lambda path: set_name(None, [path]), "{}_DM_time_dataset_realbased_training_4096x4096.npy"),
    ],
)
@pytest.mark.parametrize("letter", ["x", "\N{GREEK SMALL LETTER MU}"])
def test_the_longest_name_can_be_written(tmp_path, monkeypatch, named, longest, letter):
    monkeypatch.setattr(os, "getpid", lambda: 4194304)
    for count in range(100, 255):
        try:
            name = named(f"{letter * count}.fil")
        except InputError as error:
            assert f"got {count * len(letter.encode())}" in str(error)
            break
        with atomic_writer(tmp_path / longest.format(name)) as file:
            file.write(b"written")
    assert count * len(letter.encode()) > 180 and len(list(tmp_path.iterdir())) == count - 100


def test_names_are_one_field():
    assert safe_field("=1\t2") == "'=1_2" and safe_field("B0531+21") == "B0531+21"
