"""Classify the pages of an observation, live or on disk, and list its single pulses.

  python run_inference.py -c config.json                           the PSRDADA ring key_output of the config, live
  python run_inference.py -c config.json --filterbank              the filterbank that the config names
  python run_inference.py --filterbank file.fil --output-dir out   another filterbank
  python run_inference.py --filterbank a.fil b.fil 'data/*.fil'    many files, in turn; the models are loaded once
  python run_inference.py --filterbank a_1.fil a_2.fil --joined    one observation in several files, without gaps
  python run_inference.py --pages batch.npy                        dedispersed candidates
  python run_inference.py --filterbank a.fil --candidate-list l    the candidates that another program lists
  python run_inference.py --candidates 'dir/*.h5'                  candidate files of FETCH, your and MeerTRAP

A ring is read until n_spectra pages have come, none has come for idle_timeout_s, its writer has died, or SIGINT or
SIGTERM arrives. The outputs are named after the config's filterbank; they grow while the ring is read and are valid at
any moment. Progress is in status_<name>.json. Pictures show the DM-time plane and no spectrum.

Many files are divided among the processes of `torchrun --nproc-per-node=N run_inference.py ...`, of `srun -n N`, or of
a Slurm array; catalogue.csv has the events of all. With --resume a file is skipped if its results exist and were made
from the same file, with the same config and models, or if another process is searching it: after an interruption,
repeat the command. The exit code is 0 only if every file of the process is finished.

A batch is one file, (N, 256, 256) or (N, 1, 256, 256), for a single page page[None]: float32 pages (row 0 = lowest DM),
which the model's normaliser turns into images, or uint8 images as in a training set (row 0 = highest DM), which are
used unchanged if they are scaled as the model expects, and scaled again otherwise.

Written to the output folder; each file is complete or absent, and replaces that of an earlier search of the same input
only at the end of a search. While a file is searched, its results so far are in unfinished_<name>/, where they remain
if the search is stopped:
  predictions_<name>.npy     int32 per page: 1 pulse, 0 artefact, -1 not classified
  probabilities_<name>.npy   float32 per page, of being a pulse; -1 not classified
  candidates_<name>.csv      one row per event: time_s, mjd (top channel), dm_pc_cm3, snr, width_ms, probability, ...
  candidates_<name>.cands, heimdall_<name>.csv   the same events in the columns of TransientX and heimdall
  summary_<name>.json        the run summary
  event_<name>_NNNN.png      a picture of each of the most probable and brightest events (--no-plots: none;
                             --max-plots N, --all-plots: of N, of all; --saliency: with the evidence for a pulse)
  report_<name>.html         with --report: one self-contained page with all results
  cand_tstart_....h5         with --save-candidates: each event as a candidate file of FETCH
--plots-only draws the missing pictures of an earlier search from its list of candidates, without a search.
The run summary and the table of events are printed on standard output. If no page could be classified, or the models
have no finite output, the results are written, and the exit code is 2.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # packages by their full name, from any folder
    from single_pulse_classifier_training.cli import quiet_interrupts

    quiet_interrupts()

from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.detection import many_files
from pipeline_classifier.detection.classifiers import load_candidate_classifier, load_classifiers
from pipeline_classifier.detection.decision import decide, event_threshold_of
from pipeline_classifier.detection.parts import Part, part_of_this_process
from pipeline_classifier.detection.search import SearchResult, check_classified
from pipeline_classifier.detection.workers import one_thread_each, prepare_process, wait_for_packages
from pipeline_classifier.formats.candidate_lists import read_candidate_list
from pipeline_classifier.formats.joined import open_observation
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages, pages_of
from pipeline_classifier.frontend.sources import ArrayPages, ChannelSource
from pipeline_classifier.frontend.threads import thread_count
from pipeline_classifier.live.live_search import live_search, open_ring
from pipeline_classifier.options import CandidateOptions, OutputOptions, SearchOptions
from pipeline_classifier.output.classified_files import classify_files, write_results
from pipeline_classifier.output.classified_list import classify_list
from pipeline_classifier.output.results import draw_later, report, search_and_write
from pipeline_classifier.output.run_files import InUse, check_names, lock, remove_unfinished
from single_pulse_classifier_training.cli import InputError, run_script
from single_pulse_classifier_training.runtime import make_output_folder, use_gpu

logger = logging.getLogger(__name__)

MOST_NAMES = 20  # in a message


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    SearchOptions.add_to(parser)
    OutputOptions.add_to(parser)
    CandidateOptions.add_to(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--filterbank",
        nargs="*",
        metavar="FILE",
        help="SIGPROC filterbank files, or quoted patterns (default without FILE: the config's)",
    )
    what.add_argument("--pages", help="one .npy batch of dedispersed pages or images")
    what.add_argument(
        "--candidates", nargs="+", metavar="FILE", help="candidate files of FETCH, your or MeerTRAP, or quoted patterns"
    )
    parser.add_argument("--joined", action="store_true", help="the filterbank files are one observation, without gaps")
    parser.add_argument(
        "--plots-only", action="store_true", help="draw the missing pictures of an earlier search; nothing is searched"
    )
    parser.add_argument("--resume", action="store_true", help="skip filterbank files whose results exist")
    return parser


def run(args: argparse.Namespace) -> SearchResult | list[SearchResult]:
    """Search what the command line names; return the result, or those of many files."""
    listed = CandidateOptions.of(args)
    ring = args.pages is None and args.filterbank is None and args.candidates is None
    output = OutputOptions.of(args, ring)
    if (args.joined or args.resume) and args.filterbank is None:
        raise InputError(f"{'--joined' if args.joined else '--resume'} must be used with --filterbank")
    if args.joined and args.resume:
        raise InputError("only one of --joined and --resume may be given, got both")
    options = SearchOptions.of(args)
    config = options.load_config()
    if listed.candidates is not None:
        return classify_candidates(listed.candidates, config)
    if listed.candidate_list is not None:
        return classify_listed(args, listed, config, options.files_read(config))
    if args.plots_only:
        return draw_only(args, config, output)
    if ring:
        result = search_ring(config.model_copy(update={"max_plots": output.most_plots(config)}))
        print(report(result))
        check_classified(f"the ring 0x{config.key_output}", result.summary, config, with_channels=False)
        return result
    part = part_of_this_process()
    if (args.joined or args.pages is not None) and part.rank > 0:
        logger.info("share %d of %d: nothing, as share 1 searches the one observation", part.rank + 1, part.n)
        return []
    inputs = options.files_read(config)
    if args.pages is not None:
        source: FilterbankPages | ArrayPages = ArrayPages(args.pages, config.trial_dms(), config.page_samples)
        result = search_one(source, config, output, [Path(args.pages), *inputs])
    else:
        config.warn_of_unused_settings()
        files = many_files.expand(args.filterbank) or [config.filterbank_path]
        if not args.joined and (len(files) > 1 or part.n > 1 or args.resume):
            return search_many(files, part, config, output, inputs, args.resume)
        settings = config.front_end()
        if settings.device != "cpu":
            wait_for_packages()
        source = pages_of(files if args.joined else files[0], settings)
        result = search_one(source, config, output, [*files, *inputs])
    print(report(result))
    check_classified(source.files[0], result.summary, config, isinstance(source, ChannelSource))
    return result


def draw_only(args: argparse.Namespace, config: PipelineConfig, output: OutputOptions) -> list[SearchResult]:
    """Draw the missing pictures of earlier searches; there are no results."""
    if args.pages is None and args.filterbank is None:
        raise InputError("--plots-only must be used with a file, got a ring, which cannot be read again")
    for option in ("resume", "report", "saliency", "no_plots", "save_candidates"):
        if getattr(args, option):
            raise InputError(f"only one of --plots-only and --{option.replace('_', '-')} may be given, got both")
    part = part_of_this_process()
    if args.pages is not None:
        sources = [args.pages]
    else:
        files = many_files.expand(args.filterbank) or [config.filterbank_path]
        sources = [files] if args.joined else files
    for path in part.of(sources):
        if args.pages is not None:
            source: FilterbankPages | ArrayPages = ArrayPages(path, config.trial_dms(), config.page_samples)
        else:
            source = FilterbankPages(path, config.front_end())
        draw_later(source, config, output)
    return []


def classify_listed(
    args: argparse.Namespace, listed: CandidateOptions, config: PipelineConfig, inputs: Sequence[Path]
) -> SearchResult | list[SearchResult]:
    """Classify the candidates in the list of another search; ``inputs`` are the other files that the run reads."""
    files = many_files.expand(args.filterbank) or [config.filterbank_path]
    if len(files) > 1:
        raise InputError(f"--candidate-list must be used with one filterbank file, got {len(files)}")
    if part_of_this_process().rank > 0:
        return []
    assert listed.candidate_list is not None
    candidates = read_candidate_list(listed.candidate_list, listed.list_format)
    source = FilterbankPages(files[0], config.front_end())
    suffixes = [layer.suffix for layer in source.layers]
    check_names([(source.name, source.files)], suffixes, [*files, candidates.path, *inputs], config.output_path)
    make_output_folder(config.output_path, "output_dir")
    classifiers = load_classifiers(config)
    if classifiers.candidates is None:
        raise InputError("candidate_classifier must be a model to classify a list of candidates, got null")
    event_threshold = decide(config, classifiers, source.layers).event_threshold or 0.0
    result = classify_list(source, candidates, classifiers.candidates, event_threshold, config, listed.keep_all)
    print(report(result))
    return result


def classify_candidates(patterns: Sequence[str], config: PipelineConfig) -> list[SearchResult]:
    """Classify candidate files, and write the results in the columns of FETCH; there are no results of a search."""
    files = many_files.expand(patterns, "--candidates")
    folder = make_output_folder(config.output_path, "output_dir")
    if part_of_this_process().rank > 0:
        return []
    wait_for_packages()
    classifier, model = load_candidate_classifier(config, with_channels=True)
    if classifier is None or model is None:
        raise InputError("candidate_classifier must be a model to classify candidates, got null")
    one_thread_each()
    threshold, _ = event_threshold_of(config, classifier.checkpoint)
    classified = classify_files(files, classifier)
    path = folder / f"results_{model.stem}.csv"
    write_results(path, classified, threshold)
    pulses = int((classified.probabilities >= threshold).sum())
    print(f"{len(classified.files)} candidates, {pulses} with a probability of {threshold:.4g} or more\nwritten {path}")
    if classified.unreadable:
        n, names = len(classified.unreadable), some_of(classified.unreadable)
        raise InputError(f"--candidates: all {len(files)} files must be readable, got {n} that are not ({names})")
    return []


def search_ring(config: PipelineConfig) -> SearchResult:
    """Search the ring ``key_output``."""
    make_output_folder(config.output_path, "output_dir")
    classifiers = load_classifiers(config, with_channels=False)
    with open_ring(config) as ring:
        return live_search(ring, classifiers, config)


def search_one(
    source: FilterbankPages | ArrayPages, config: PipelineConfig, output: OutputOptions, inputs: Sequence[Path]
) -> SearchResult:
    """Search one observation or batch; ``inputs`` are its files and the others that the run reads."""
    suffixes = [layer.suffix for layer in source.layers]
    check_names([(source.name, source.files)], suffixes, inputs, config.output_path)
    folder = make_output_folder(config.output_path, "output_dir")
    if isinstance(source, FilterbankPages):
        source.begin(config.threads)  # while torch is imported
    classifiers = load_classifiers(config, with_channels=isinstance(source, ChannelSource))
    if isinstance(source, ArrayPages):
        source.scale_for(classifiers.pages.checkpoint.normaliser)
    decision = decide(config, classifiers, source.layers)
    is_in_catalogue = many_files.is_in_catalogue(folder, source.name)
    identity = many_files.fingerprint(source.files[0], many_files.settings_fingerprint(config))
    result = search_and_write(source, classifiers, decision, config, output)
    if is_in_catalogue and result.summary.pages_classified and len(source.files) == 1:
        many_files.finish(folder, source.files[0], identity, result.files, output.names())
        many_files.write_catalogue(folder)
    return result


def search_many(
    files: Sequence[Path],
    part: Part,
    config: PipelineConfig,
    output: OutputOptions,
    inputs: Sequence[Path],
    resume: bool,
) -> list[SearchResult]:
    """Search this process's part of the files, one after the other, and join the catalogue."""
    mine, settings = part.of(files), config.front_end()
    if part.n > 1:
        logger.info("share %d of %d: %d of %d files", part.rank + 1, part.n, len(mine), len(files))
    for path in mine:
        open_observation(path, settings.ifs)  # an error in any file is reported before the first is searched
    suffixes = [layer.suffix for layer in FilterbankPages(mine[0], settings).layers] if mine else []
    check_names([(path.stem, [path]) for path in files], suffixes, [*files, *inputs], config.output_path)
    folder = make_output_folder(config.output_path, "output_dir")
    for path in [] if resume else mine:
        with lock(folder, path.stem):
            pass  # likewise a file that another process is searching
    wait_for_packages()
    use_gpu(part.local_rank)
    classifiers = load_classifiers(config)
    if config.max_false_per_hour is not None:  # likewise a rate that cannot be reached
        for path in mine:
            source = FilterbankPages(path, settings)
            decide(config, classifiers, source.layers)
    how, asked = many_files.settings_fingerprint(config), output.names()
    if config.threads is None:
        config = config.model_copy(update={"threads": max(1, thread_count(None) // part.n_local)})
    results, held, unusable = [], [], []
    for number, path in enumerate(mine, start=1):
        identity = many_files.fingerprint(path, how)
        if resume and many_files.is_done(folder, path, identity, asked):
            logger.info("%s is finished (%d of %d)", path, number, len(mine))
            with suppress(InUse):
                remove_unfinished(folder, path.stem)
            continue
        source = pages_of(path, settings)
        decision = decide(config, classifiers, source.layers)
        try:
            result = search_and_write(source, classifiers, decision, config, output)
        except InUse:
            logger.warning("%s is skipped (%d of %d): another process is searching it", path, number, len(mine))
            held.append(path)
            continue
        results.append(result)
        print(f"{path}: {len(result.events)} events, {result.summary.times_real_time} times real time", flush=True)
        try:
            check_classified(path, result.summary, config)
        except InputError as error:
            logger.error("%s", error)
            unusable.append(path)
        else:
            many_files.finish(folder, path, identity, result.files, asked)
    remaining = many_files.not_done(folder, files, how)
    print(many_files.write_catalogue(folder, remaining))
    held = [path for path in held if path in remaining]
    if others := [path for path in remaining if path not in held + unusable]:
        logger.warning(
            "%d of %d files are not searched yet: %s; if no other process is searching them, repeat the command with "
            "--resume",
            len(others),
            len(files),
            some_of(others),
        )
    problems = [f"{len(unusable)} without anything that could be classified ({some_of(unusable)})"] if unusable else []
    problems += [f"{len(held)} that another process is searching ({some_of(held)})"] if held else []
    if problems:
        raise InputError(f"{folder}: all {len(mine)} files must be finished, got {' and '.join(problems)}")
    return results


def some_of(paths: Sequence[Path]) -> str:
    """The first `MOST_NAMES` paths, for a message."""
    return ", ".join(map(str, paths[:MOST_NAMES])) + (", ..." if len(paths) > MOST_NAMES else "")


def main() -> None:
    run_script(get_parser(), run, prepare_process)


if __name__ == "__main__":
    main()
