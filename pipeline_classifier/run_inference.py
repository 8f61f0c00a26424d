"""Classify the pages of an observation, live or on disk, and list its single pulses.

  python run_inference.py -c config.json                           the PSRDADA ring key_output of the config, live
  python run_inference.py -c config.json --filterbank              the filterbank that the config names
  python run_inference.py --filterbank file.fil --output-dir out   another filterbank
  python run_inference.py --filterbank a.fil b.fil 'data/*.fil'    many, one after the other; the model is loaded once
  python run_inference.py --filterbank a_1.fil a_2.fil --joined    one observation in several files, without gaps
  python run_inference.py --pages batch.npy                        candidates that are dedispersed already

A ring is waited for, and read until n_spectra pages came, none came for idle_timeout_s, its writer died, or SIGINT or
SIGTERM. Its outputs have the name of the config's filterbank and grow while it is read, valid at any moment; beside
them status_<name>.json says how it goes. No pictures are drawn.

Many files are shared by the processes of `torchrun --nproc-per-node=N run_inference.py ...`, of `srun -n N`, or of a
Slurm array. catalogue.csv has the events of all. With --resume a file is left out if its results are there, made from a
file of the same name, size and time, with the same config and model: the same command goes on where a run was cut off.

A batch is (N, 256, 256) or (N, 1, 256, 256): float32 pages (row 0 = lowest DM), which the model's normaliser turns into
images, or uint8 images as in a training set (row 0 = highest DM), which are taken as they are.

Written to the output folder, from files each one whole or not at all:
  predictions_<name>.npy     int32 per page: 1 pulse, 0 artefact, -1 not classified
  probabilities_<name>.npy   float32 per page, of being a pulse; -1 not classified
  candidates_<name>.csv      one row per event: time_s, mjd (top channel), dm_pc_cm3, snr, width_ms, probability, ...
  event_<name>_NNNN.png      one picture per event (--no-plots: none; --saliency: with what the network looked at)
  report_<name>.html         with --report: all of it, with the pictures, as one page that needs nothing else
The account of the run and the table of events go to standard output.
"""

import argparse
import logging
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # packages by their full name, from any folder

from pipeline_classifier.config import PipelineConfig, load_pipeline_config
from pipeline_classifier.detection import many_files
from pipeline_classifier.detection.search import (
    SearchResult,
    add_search_options,
    load_classifier,
    open_filterbank,
    page_interval_s,
    set_threshold,
    thread_count,
    with_search_options,
)
from pipeline_classifier.frontend.sources import ArrayPages, FilterbankPages, open_observation
from pipeline_classifier.live.live_search import live_search, open_ring
from pipeline_classifier.output.html_report import add_report_options, check_report_options, search_and_write
from pipeline_classifier.output.results import report
from single_pulse_classifier_training.cli import InputError, run_script
from single_pulse_classifier_training.runtime import make_output_folder, use_gpu

logger = logging.getLogger(__name__)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_search_options(parser)
    add_report_options(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--filterbank",
        nargs="*",
        metavar="FILE",
        help="SIGPROC filterbank files, or quoted patterns; without a FILE the config's",
    )
    what.add_argument("--pages", help=".npy batch of dedispersed pages or images")
    parser.add_argument("--joined", action="store_true", help="the filterbank files are one observation, without gaps")
    parser.add_argument("--resume", action="store_true", help="leave out filterbank files that are done")
    return parser


def run(args: argparse.Namespace) -> SearchResult | list[SearchResult]:
    """Do what the command line asks for; return the result, or those of many files."""
    check_report_options(args, ring=not args.pages and args.filterbank is None)
    if (args.joined or args.resume) and args.filterbank is None:
        raise InputError(f"{'--joined' if args.joined else '--resume'} goes with --filterbank")
    config = with_search_options(load_pipeline_config(args.config), args)
    share = many_files.share_of_this_process()
    files = many_files.expand(args.filterbank) if args.filterbank else []
    many = args.filterbank is not None and not args.joined and (len(files) > 1 or share.n > 1 or args.resume)
    if many:
        return search_many(files or [config.filterbank_path], share, config, args)
    source: ArrayPages | FilterbankPages | None = None
    if args.pages:
        source = ArrayPages(args.pages, config.front_end()[0])
    elif args.filterbank is not None:
        source = open_filterbank((files if args.joined else files[0]) if files else config.filterbank_path, config)
    output_dir = make_output_folder(Path(args.output_dir or config.resolve(config.output_dir)), "output_dir")
    classifier = load_classifier(config)
    if source:
        result = search_and_write(source, classifier, output_dir, config, args)
    else:
        with open_ring(config) as ring:
            result = live_search(ring, classifier, output_dir, config.n_spectra, config.threads)
    print(report(result))
    return result


def search_many(
    files: list[Path], share: many_files.Share, config: PipelineConfig, args: argparse.Namespace
) -> list[SearchResult]:
    """Search this process's share of the files, one after the other, and join the catalogue."""
    mine = share.of(files)
    for path in mine:
        open_observation(path, config.ifs)  # whatever is wrong with one is said before the first is searched
    output_dir = make_output_folder(Path(args.output_dir or config.resolve(config.output_dir)), "output_dir")
    use_gpu(share.local_rank)
    classifier = load_classifier(config)
    if config.threads is None:
        config.threads = max(1, thread_count(None) // share.n_local)
    if config.max_false_per_hour is not None:  # whether it can be reached is said before the first is searched
        for path in mine:
            source = open_filterbank(path, config)
            set_threshold(classifier, source.grid, page_interval_s(source))
    models = [model for model in (config.model_path, config.second_look_path) if model]
    settings = config.model_dump(exclude={"threads"})
    results = []
    for number, path in enumerate(mine, start=1):
        identity = many_files.fingerprint(path, models, settings)
        if args.resume and many_files.is_done(output_dir, path, identity):
            logger.info("%s is done (%d of %d)", path, number, len(mine))
            continue
        many_files.begin(output_dir, path)
        result = search_and_write(open_filterbank(path, config), classifier, output_dir, config, args)
        many_files.finish(output_dir, path, identity)
        results.append(result)
        print(f"{path}: {len(result.events)} events, {result.account['times_real_time']} times real time", flush=True)
    print(many_files.write_catalogue(output_dir))
    return results


def main() -> None:
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
