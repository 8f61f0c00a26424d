"""Candidate files of FETCH, ``your`` and MeerTRAP, classified: the columns of FETCH as CSV."""

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline_classifier.detection.candidate_classifier import CandidateClassifier
from pipeline_classifier.detection.candidate_frames import cutouts_of
from pipeline_classifier.formats.candidate_files import read_candidate_file
from pipeline_classifier.formats.file_names import safe_field
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.runtime import atomic_writer

logger = logging.getLogger(__name__)

AT_ONCE = 64
"""Files whose cutouts are in memory at the same time."""


@dataclass(frozen=True)
class ClassifiedFiles:
    """Result of the classification of candidate files.

    Attributes
    ----------
    files : list of Path
        Those that could be read.
    probabilities : (n,) ndarray of float32
        -1 where the network has no finite output.
    unreadable : list of Path
    """

    files: list[Path]
    probabilities: np.ndarray
    unreadable: list[Path]


def classify_files(files: Sequence[Path], classifier: CandidateClassifier) -> ClassifiedFiles:
    """Classify candidate files; those that cannot be read are logged."""
    read: list[Path] = []
    unreadable: list[Path] = []
    probabilities = [np.empty(0, np.float32)]
    for group in (files[first : first + AT_ONCE] for first in range(0, len(files), AT_ONCE)):
        cutouts = []
        for path in group:
            try:
                cutouts.append(cutouts_of(read_candidate_file(path)))
            except InputError as error:
                logger.error("%s", error)
                unreadable.append(path)
            except OSError as error:
                logger.error("%s: %s", path, error.strerror or error)
                unreadable.append(path)
            else:
                read.append(path)
        if cutouts:
            dm_time, frequency_time = map(np.stack, zip(*cutouts, strict=True))
            probabilities.append(classifier.probabilities_of(dm_time, frequency_time))
    return ClassifiedFiles(read, np.concatenate(probabilities), unreadable)


def write_results(path: Path, classified: ClassifiedFiles, threshold: float) -> None:
    """Write file, probability and label (1 pulse, 0 artefact, -1 not classified); the list is complete or absent."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("candidate", "probability", "label"))
    for file, probability in zip(classified.files, classified.probabilities.tolist(), strict=True):
        label = -1 if probability < 0 else int(probability >= threshold)
        writer.writerow((safe_field(str(file)), f"{probability:.6f}", label))
    with atomic_writer(path) as out:
        out.write(text.getvalue().encode("utf-8", "surrogateescape"))
