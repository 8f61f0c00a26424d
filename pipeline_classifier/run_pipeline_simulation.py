"""The dry run: the whole job of the live pipeline, from an observation to a catalogue, with nothing but Python.

  python run_pipeline_simulation.py                                  simulates an observation, and says what it found
  python run_pipeline_simulation.py -c config.json --output-dir out
  python run_pipeline_simulation.py -c config.json --filterbank file.fil --output-dir out
  python run_pipeline_simulation.py -c config.json --through-ring    pages go through a real PSRDADA ring, key_output

Without --filterbank the file that the config names is searched; if it is not on disk, one is simulated under its name
in the output folder (Effelsberg geometry; pulses and interference that are known). Where <name>_truth.csv lies beside
the observation, the run ends with how many of its pulses were found. Outputs are those of run_inference.py.
"""

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # packages by their full name, from any folder

from pipeline_classifier.config import load_pipeline_config
from pipeline_classifier.detection.search import (
    SearchResult,
    add_search_options,
    load_classifier,
    open_filterbank,
    with_search_options,
)
from pipeline_classifier.evaluation.recovery import compare, summary
from pipeline_classifier.formats.sigproc import Filterbank
from pipeline_classifier.frontend.sources import FilterbankPages
from pipeline_classifier.live.live_search import live_search, open_ring
from pipeline_classifier.live.replay import sent_through_ring
from pipeline_classifier.live.ring_pages import RingPages
from pipeline_classifier.output.html_report import add_report_options, check_report_options, search_and_write
from pipeline_classifier.output.results import report
from pipeline_classifier.simulation.interference import RFI_LEVELS, random_rfi
from pipeline_classifier.simulation.observation import (
    EFFELSBERG,
    PulseRanges,
    known_pulses,
    random_pulses,
    simulate,
    truth_path,
)
from single_pulse_classifier_training.cli import InputError, run_script
from single_pulse_classifier_training.runtime import make_output_folder

logger = logging.getLogger(__name__)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_search_options(parser)
    add_report_options(parser)
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
        help="another process sends the pages through a ring, and the live search reads them; no pictures are drawn",
    )
    parser.add_argument("--seed", type=int, default=0, help="of a simulated observation (default: %(default)s)")
    return parser


def simulate_missing(path: Path, args: argparse.Namespace) -> None:
    """Simulate the observation that is not on disk; never over a file that was not simulated."""
    if path.exists() and not truth_path(path).exists():
        raise InputError(f"{path} is not a simulated file: it will not be overwritten, give another --output-dir")
    if not 0 < args.duration_s < float("inf"):
        raise InputError(f"--duration-s is {args.duration_s:g}; valid: above 0")
    if args.seed < 0:
        raise InputError(f"--seed is {args.seed}; valid: 0 or more")
    nsamples = max(1, round(args.duration_s / EFFELSBERG.tsamp))
    pulses = random_pulses(args.pulses, PulseRanges(), EFFELSBERG, nsamples, args.seed)
    rfi = random_rfi(args.rfi, EFFELSBERG, nsamples, args.seed)
    simulate(path, replace(EFFELSBERG, source_name="simulated"), nsamples, pulses, rfi, args.seed, progress=True)
    logger.info("simulated %s: %g s, %d pulses, %s interference", path, args.duration_s, len(pulses), args.rfi)


def run(args: argparse.Namespace) -> SearchResult:
    """Do what the command line asks for; return the result."""
    check_report_options(args, ring=args.through_ring)
    config = with_search_options(load_pipeline_config(args.config), args)
    output_dir = make_output_folder(Path(args.output_dir or config.resolve(config.output_dir)), "output_dir")
    classifier = load_classifier(config)
    path = Path(args.filterbank or config.filterbank_path)
    if not args.filterbank and not path.exists():
        path = output_dir / path.name
        simulate_missing(path, args)

    source: FilterbankPages | RingPages
    if args.through_ring:
        # The outputs have the name of the file that is sent, and its end is the end.
        changes = {"name_of_the_filterbank": path.name, "n_spectra": None, "stop_at_end_of_data": True}
        live_config = config.model_copy(update=changes)
        with sent_through_ring(path, live_config) as ended, open_ring(live_config, ended) as source:
            result = live_search(source, classifier, output_dir, config.n_spectra, config.threads, ended)
    else:
        source = open_filterbank(path, config)
        result = search_and_write(source, classifier, output_dir, config, args)
    print(report(result))
    if truth_path(path).exists():
        pulses = known_pulses(path, Filterbank(path, config.ifs).duration_s)
        recovery = compare(pulses, result.events, source.grid)
        print(summary(pulses, result.events, recovery, result.account["duration_s"]))
    return result


def main() -> None:
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
