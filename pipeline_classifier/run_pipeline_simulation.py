"""Simulate an observation and run the pipeline on it, from file to catalogue, in Python alone.

  python run_pipeline_simulation.py                                  simulates an observation and searches it
  python run_pipeline_simulation.py -c config.json --output-dir out
  python run_pipeline_simulation.py -c config.json --filterbank file.fil --output-dir out
  python run_pipeline_simulation.py -c config.json --through-ring    pages go through a real PSRDADA ring, key_output

Without --filterbank the file that the config names is searched; if it does not exist, one of that name is simulated in
the output folder (Effelsberg geometry, with known pulses and interference). If <name>_truth.csv is beside the
observation, the number of its pulses that were found is printed last. Outputs are those of run_inference.py.
"""

import argparse
import hashlib
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Self

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # packages by their full name, from any folder
    from single_pulse_classifier_training.cli import quiet_interrupts

    quiet_interrupts()

import numpy as np

from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.detection.classifiers import load_classifiers
from pipeline_classifier.detection.decision import decide
from pipeline_classifier.detection.search import SearchResult, check_classified
from pipeline_classifier.detection.workers import prepare_process
from pipeline_classifier.evaluation.recovery import compare, summary
from pipeline_classifier.formats.sigproc import Filterbank, read_header
from pipeline_classifier.frontend.filterbank_pages import pages_of
from pipeline_classifier.frontend.pages import PageGrid
from pipeline_classifier.live.live_search import live_search, missing_pages, open_ring
from pipeline_classifier.live.replay import sent_through_ring
from pipeline_classifier.options import OutputOptions, SearchOptions
from pipeline_classifier.output.results import report, search_and_write
from pipeline_classifier.output.run_files import check_names
from pipeline_classifier.simulation.interference import RFI_LEVELS, random_rfi
from pipeline_classifier.simulation.observation import (
    EFFELSBERG,
    PulseRanges,
    check_size,
    known_pulses,
    random_pulses,
    simulate,
    truth_path,
)
from pipeline_classifier.simulation.pulses import Pulse
from single_pulse_classifier_training.cli import InputError, run_script
from single_pulse_classifier_training.runtime import make_output_folder

logger = logging.getLogger(__name__)

SIMULATED = "simulated"
"""Name of the source in the header of a simulated observation, which may be replaced by another one."""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    SearchOptions.add_to(parser)
    OutputOptions.add_to(parser)
    parser.add_argument("--filterbank", help="SIGPROC filterbank file to search (default: the config's)")
    parser.add_argument(
        "--duration-s", type=float, default=60.0, help="length of a simulated observation (default: %(default)s)"
    )
    parser.add_argument(
        "--pulses", type=int, default=60, help="pulses in a simulated observation (default: %(default)s)"
    )
    parser.add_argument(
        "--rfi",
        choices=RFI_LEVELS,
        default="mild",
        help="interference in a simulated observation (default: %(default)s)",
    )
    parser.add_argument(
        "--through-ring",
        action="store_true",
        help="send the pages through a ring, from which the live search reads them",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of a simulated observation (default: %(default)s)"
    )
    return parser


@dataclass(frozen=True)
class SimulationOptions:
    """The observation to simulate if the file does not exist.

    Attributes
    ----------
    duration_s : float
        Seconds.
    pulses : int
    rfi : str
        Level of interference, one of `RFI_LEVELS`.
    seed : int
    """

    duration_s: float
    pulses: int
    rfi: str
    seed: int

    @classmethod
    def of(cls, args: argparse.Namespace) -> Self:
        """Take the options from parsed arguments, and check them."""
        if not 0 < args.duration_s < float("inf"):
            raise InputError(f"--duration-s must be positive, got {args.duration_s:g}")
        if args.seed < 0:
            raise InputError(f"--seed must be 0 or more, got {args.seed}")
        return cls(args.duration_s, args.pulses, args.rfi, args.seed)


def _is_simulated(path: Path) -> bool:
    try:
        return read_header(path).source_name == SIMULATED
    except InputError:
        return False


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def simulate_missing(path: Path, options: SimulationOptions) -> None:
    """Simulate the observation that is not on disk; a file that was not simulated is never overwritten.

    If it is the one that was simulated before, it keeps its modification time, and thus remains the same input.
    """
    if path.exists() and not (truth_path(path).exists() and _is_simulated(path)):
        raise InputError(f"{path}: must be a new or simulated file, got another one; use another --output-dir")
    nsamples = max(1, round(options.duration_s / EFFELSBERG.tsamp))
    check_size(path, EFFELSBERG, nsamples)
    pulses = random_pulses(options.pulses, PulseRanges(), EFFELSBERG, nsamples, options.seed)
    rfi = random_rfi(options.rfi, EFFELSBERG, nsamples, options.seed)
    header = replace(EFFELSBERG, source_name=SIMULATED)
    earlier = (_digest(path), path.stat()) if path.exists() else None
    simulate(path, header, nsamples, pulses, rfi, options.seed, progress=True)
    if earlier and earlier[0] == _digest(path):
        os.utime(path, ns=(earlier[1].st_atime_ns, earlier[1].st_mtime_ns))
    logger.info("simulated %s: %g s, %d pulses, %s interference", path, options.duration_s, len(pulses), options.rfi)


def pulses_beside(path: Path, config: PipelineConfig) -> list[Pulse] | None:
    """Read the truth table beside an observation; None, with a warning where needed, if there is none that fits."""
    if not truth_path(path).exists():
        return None
    try:
        return known_pulses(path, Filterbank(path, config.ifs).duration_s)
    except InputError as error:
        logger.warning("%s; the events are not compared with this table", error)
        return None


def comparison(pulses: Sequence[Pulse], result: SearchResult, grid: PageGrid) -> str:
    """Describe which pulses were found; those after the end of the part that was searched do not count as missed."""
    recovery = compare(pulses, result.events, grid)
    searched_s = np.inf if result.summary.duration_s is None else result.summary.duration_s
    end_s = np.inf if result.summary.samples_read is None else result.summary.samples_read * grid.tsamp
    counted = recovery.found | (np.array([pulse.time_s for pulse in pulses], float) <= end_s)
    recovery = replace(recovery, event_of_pulse=recovery.event_of_pulse[counted])
    lines = summary(list(compress(pulses, counted)), result.events, recovery, searched_s or np.inf)
    if not counted.all():
        lines += f"\n{'pulses after the end of the search':>40} {int((~counted).sum())} (not counted)"
    return lines


def run(args: argparse.Namespace) -> SearchResult:
    """Simulate the observation if there is none, search it, and compare with the known pulses."""
    output, simulation = OutputOptions.of(args, ring=args.through_ring), SimulationOptions.of(args)
    options = SearchOptions.of(args)
    config = options.load_config()
    config = config.model_copy(update={"max_plots": output.most_plots(config)})
    folder = make_output_folder(config.output_path, "output_dir")
    classifiers = load_classifiers(config, with_channels=not args.through_ring)
    path = Path(args.filterbank or config.filterbank_path)
    if not args.filterbank and not path.exists():
        path = folder / path.name
        simulate_missing(path, simulation)

    config.warn_of_unused_settings()
    pulses = pulses_beside(path, config)
    if args.through_ring:
        # The outputs have the name of the file that is sent, and the stream ends with it.
        changes = {"name_of_the_filterbank": path.name, "n_spectra": None, "stop_at_end_of_data": True}
        ring_config = config.model_copy(update=changes)
        with (
            sent_through_ring(path, ring_config) as (ended, settings),
            open_ring(ring_config, ended, settings) as ring,
        ):
            result, grid = live_search(ring, classifiers, config, ended), ring.grid
    else:
        source = pages_of(path, config.front_end())
        inputs = [path, *options.files_read(config)]
        check_names([(source.name, source.files)], [layer.suffix for layer in source.layers], inputs, folder)
        decision = decide(config, classifiers, source.layers)
        result, grid = search_and_write(source, classifiers, decision, config, output), source.grid
    print(report(result))
    if sentence := missing_pages(result.summary):
        raise InputError(f"--through-ring: {sentence}")
    check_classified(path, result.summary, config, not args.through_ring)
    if pulses is not None:
        print(comparison(pulses, result, grid))
    return result


def main() -> None:
    run_script(get_parser(), run, prepare_process)


if __name__ == "__main__":
    main()
