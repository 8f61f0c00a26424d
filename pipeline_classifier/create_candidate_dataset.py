"""Make a training set for the candidate classifier from observations whose pulses are known.

  python create_candidate_dataset.py A.fil B.fil --output-dir data --name crab
      labels from A_truth.csv and B_truth.csv beside the observations (simulate_observation.py writes them)

Every peak that a search shows to the candidate classifier gives one candidate. It is a pulse if its time and DM agree
with one in the truth table; it is left out if they nearly agree.

Written to the output folder; files of an earlier set of the same name are replaced:
  training_<name>_candidates.json  config for training.py with the settings of the included model
and, as <name>_DM_time_dataset_peaks_...:
  training_64x64.npy     (N, 3, 64, 64) uint8 images: frequency-time, DM-time, frequency-time without dedispersion;
                         row 0 = highest frequency or DM
  labels_training.npy    (N,) strings, Pulse or Artefact
  groups_training.npy    (N,) int64, number of the pulse or, for artefacts, of the stretch of eight pages
  snr_training.npy       (N,) float32, S/N of the pulse as the truth table gives it, NaN for artefacts
  set.json               description: files, normaliser, classes, observations
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # packages by their full name, from any folder
    from single_pulse_classifier_training.cli import quiet_interrupts

    quiet_interrupts()

import numpy as np
from tqdm import tqdm

from pipeline_classifier.config import PipelineConfig, load_pipeline_config
from pipeline_classifier.detection.candidate_cutouts import SIDE, candidate_images, cutout
from pipeline_classifier.detection.decision import GATE_PART, Decision
from pipeline_classifier.detection.event_finder import EventFinder
from pipeline_classifier.detection.frequency_time import FrequencyTime
from pipeline_classifier.detection.page_classifier import Classified
from pipeline_classifier.detection.peaks import Peak
from pipeline_classifier.detection.workers import prepare_process
from pipeline_classifier.evaluation.known_events import origin_of
from pipeline_classifier.evaluation.recovery import Matcher
from pipeline_classifier.events import Event
from pipeline_classifier.frontend.boxcar import BoxcarSearch, page_snrs
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.frontend.pages import PageGrid
from pipeline_classifier.frontend.sources import Layer
from pipeline_classifier.frontend.threads import map_in_order
from pipeline_classifier.options import add_config_option, check_distinct, set_name
from pipeline_classifier.simulation.observation import known_pulses, truth_path
from single_pulse_classifier_training.channels import CHANNELS
from single_pulse_classifier_training.cli import InputError, run_script
from single_pulse_classifier_training.labelled_set import CANDIDATES, SetPaths, begin_set, finish_set
from single_pulse_classifier_training.runtime import make_output_folder, save_npy

logger = logging.getLogger(__name__)

NEARLY = 3.0
"""Factor on the tolerances of a match: a peak that agrees with a pulse only within these wider tolerances is left out,
as it may be a badly measured pulse. Chosen by hand; not tuned on data."""
PAGES_PER_GROUP = 8  # artefacts of adjacent pages may be the same interference; chosen by hand
LEAST_SNR = 5.5
"""Minimum S/N of peaks: below the ``min_snr`` of events, so that the training set has fainter ones too. Chosen by
hand; not tuned on data."""

Peaks = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("observations", nargs="+", help="SIGPROC filterbank files with <name>_truth.csv beside each")
    add_config_option(parser, "config with DM grid and cleaning")
    parser.add_argument("--output-dir", default=".", help="folder of the set (default: the current folder)")
    parser.add_argument("--name", help="name of the set (default: that of the first observation)")
    return parser


class Recorder:
    """Takes the place of the candidate classifier in a search, and keeps the images of every peak."""

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []

    def probabilities(
        self,
        searched: BoxcarSearch,
        grid: PageGrid,
        peaks: Sequence[Peak],
        frequency_time: np.ndarray | None = None,
    ) -> np.ndarray:
        """Keep the images of peaks; all are taken for interference, so that those in their bow ties are found too."""
        dm_time = np.stack([cutout(searched, grid, peak) for peak in peaks])
        self.images.append(candidate_images(dm_time, frequency_time))
        return np.zeros(len(peaks), np.float32)


def labelled_peaks(layer: Layer, images: np.ndarray, peaks: Sequence[Event], matcher: Matcher) -> Peaks:
    """Return the images of the peaks of a layer that are clearly pulses or clearly not, and their labels.

    Parameters
    ----------
    layer : Layer
    images : (N, 3, SIDE, SIDE) ndarray of uint8
        Images of the peaks.
    peaks : sequence of Event
    matcher : Matcher

    Returns
    -------
    images : (n, 3, SIDE, SIDE) ndarray of uint8
    is_pulse : (n,) ndarray of bool
    group : (n,) ndarray of int64
        Number of the pulse, or -1 minus that of the stretch of pages.
    snr : (n,) ndarray of float32
        S/N of the pulse, NaN for artefacts.
    """
    chosen, is_pulse, group, snr = [], [], [], []
    for number, peak in enumerate(peaks):
        where = peak.time_s, peak.dm_pc_cm3, peak.width_ms / 1e3
        pulses = matcher.matches(*where)
        if not len(pulses) and len(matcher.matches(*where, NEARLY)):
            continue
        stretch = int(peak.time_s / (layer.grid.tsamp * layer.grid.n_time * PAGES_PER_GROUP))
        chosen.append(number)
        is_pulse.append(len(pulses) > 0)
        group.append(pulses[0] if len(pulses) else -1 - stretch)
        snr.append(matcher.snrs[pulses].max() if len(pulses) else np.nan)
    return images[chosen], np.array(is_pulse, bool), np.array(group, np.int64), np.array(snr, np.float32)


def plan(paths: Sequence[str], config: PipelineConfig) -> list[tuple[FilterbankPages, Matcher]]:
    """Open every observation and its truth table, before any of them is read."""
    check_distinct(paths)
    settings = replace(config.front_end(), overlap=0.0, time_downsample=(1,))
    planned = []
    for path in paths:
        source = FilterbankPages(path, settings)
        if not source.grid.sweeps:
            raise InputError(f"{path}: must have more than one channel and trial DM for a pulse to have a sweep")
        planned.append((source, Matcher(known_pulses(path, source.duration_s), source.grid)))
    return planned


def peaks_of(observation: tuple[FilterbankPages, Matcher]) -> Peaks:
    """All peaks of an observation, as `labelled_peaks` returns them, with groups numbered from 0."""
    source, matcher = observation
    decision = Decision(threshold=0, event_threshold=0, min_snr=LEAST_SNR, snr_gate=GATE_PART * LEAST_SNR)
    recorders, found = [Recorder() for _ in source.layers], [list[Event]() for _ in source.layers]
    finders = [
        EventFinder(layer, decision, recorder, FrequencyTime(source, layer))
        for layer, recorder in zip(source.layers, recorders, strict=True)
    ]
    for batch in source.planes(1):
        snrs = page_snrs(batch, finders[batch.layer].grid.noise).beginning
        pages = Classified(np.ones(len(batch), np.float32), snrs, 0, 0)
        found[batch.layer] += finders[batch.layer].add(batch, pages)
    parts = []
    for layer, finder, recorder, events in zip(source.layers, finders, recorders, found, strict=True):
        events += finder.finish()
        images = np.concatenate([np.empty((0, len(CHANNELS), SIDE, SIDE), np.uint8), *recorder.images])
        parts.append(labelled_peaks(layer, images, events, matcher))
    source.release()
    images, is_pulse, group, snr = (np.concatenate(column) for column in zip(*parts, strict=True))
    return images, is_pulse, np.unique(group, return_inverse=True)[1], snr


def run(args: argparse.Namespace) -> dict[str, Path]:
    """Make the set; return the files by kind."""
    config, name = load_pipeline_config(args.config), set_name(args.name, args.observations)
    config.warn_of_unused_settings()
    planned = plan(args.observations, config)
    paths = SetPaths(make_output_folder(Path(args.output_dir), "--output-dir"), name, CANDIDATES, (SIDE,))
    found = map_in_order(peaks_of, planned, config.threads)
    parts, groups = [], 0
    for images, is_pulse, group, snr in tqdm(found, total=len(planned), unit="file", disable=None):
        parts.append((images, is_pulse, group + groups, snr))
        groups += int(group.max(initial=-1)) + 1
    images, is_pulse, group, snr = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not len(images):
        raise InputError(f"{args.observations[0]}: must have a peak of S/N {LEAST_SNR:g}, got none in any observation")
    if not is_pulse.any():
        logger.warning("no peak is one of the known pulses; check that the trial DMs cover theirs")
    begin_set(paths)
    save_npy(paths.images[SIDE], images)
    columns = {"labels": np.where(is_pulse, "Pulse", "Artefact"), "groups": group, "snr": snr}
    # A column of a cutout is a quarter of the width of its peak, and a row the DM that sweeps over it.
    facts: dict[str, Any] = {"normaliser": "noise", "dms": None, "tsamp_s": None, "page_s": None}
    facts |= {"pulse_free_hours": None, "channels": list(CHANNELS)}
    facts["origin"] = [origin_of(source, truth_path(source.files[0])) for source, _ in planned]
    return finish_set(paths, columns, facts)


def main() -> None:
    run_script(get_parser(), run, prepare_process)


if __name__ == "__main__":
    main()
