"""Evaluate the search: how many known pulses it finds, how well it measures them, and how many events are false.

  python evaluate_pipeline.py A.fil B.fil -c config.json --output-dir out      observations with A_truth.csv beside them
  python evaluate_pipeline.py --inject MINE.fil -c config.json --pulses 100    pulses are added to your own file first
  python evaluate_pipeline.py --pulse-free N1.fil N2.fil -c config.json --store    false events per hour, for the model
  python evaluate_pipeline.py --null MINE.fil -c config.json --wanted-rate 1    false events per hour of your own sky

Prints recall by S/N, width and DM, false events per hour, and the errors of time, DM and S/N, over all observations
together. With --detail, recall is also printed by sweep over width, width in ms, DM in pc cm^-3, and the share of the
band that a pulse covers. Recall and false events are also printed for other thresholds, to help choose
"event_threshold" in the config. The same is written to evaluation.json and drawn in evaluation.png.

The S/N is that of a pulse in white noise over all channels, as simulate_observation.py writes it: masked channels and
interference lower what a search can find. The width is the intrinsic one, at half maximum, in samples of the search.
Times are those of the peak before scattering, so that a scattering tail counts as an error of the measured time.

With --inject the file is searched twice, without and with pulses: events that were there before do not count as false,
and their number is printed. The copy with pulses needs as much disk space as the file, in the output folder; it is
removed at the end, or kept with its truth table by --keep.

With --pulse-free the observations have no pulses, and only false events are counted, at several thresholds; the numbers
are written to false_events.json. --store writes the rates into the checkpoint of the candidate classifier, from where
"max_false_per_hour" chooses, with the checksums of the two networks. With --max-false-per-hour the threshold for this
rate becomes the default threshold there. Rates have exact Poisson intervals with a confidence of 95 %.

With --null the observations may have pulses: each is searched forwards, and backwards in time, which turns dispersion
to negative DMs. No pulse can be found backwards, so that all events are false, except for faint responses to bright
pulses, which the forward search explains and which are not counted. The numbers are written to null_events.json. Pulses
with a sweep below two widths look the same in both directions; events of such short sweeps count as false, and their
number is printed.
"""

import argparse
import json
import logging
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # packages by their full name, from any folder
    from single_pulse_classifier_training.cli import quiet_interrupts

    quiet_interrupts()

from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.detection.classifiers import Classifiers, load_classifiers
from pipeline_classifier.detection.decision import EVENT_THRESHOLDS, decide
from pipeline_classifier.detection.search import events_by_threshold
from pipeline_classifier.detection.workers import prepare_process
from pipeline_classifier.evaluation.evaluation_plot import plot_evaluation
from pipeline_classifier.evaluation.evaluation_table import by_threshold, recall_by_property, table
from pipeline_classifier.evaluation.false_rate import count_false_events, false_events_table, pulse_free_hours
from pipeline_classifier.evaluation.injected_pulses import (
    InjectionOptions,
    injected_file,
    injected_path,
    pulses_to_inject,
)
from pipeline_classifier.evaluation.null_search import count_null_events, null_hours
from pipeline_classifier.evaluation.recovery import Outcome, compare, outcome_of, pooled, quality, without_known
from pipeline_classifier.events import Event
from pipeline_classifier.formats.sigproc import Filterbank
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages, pages_of
from pipeline_classifier.options import OutputOptions, SearchOptions
from pipeline_classifier.simulation.observation import known_pulses
from pipeline_classifier.simulation.pulses import Pulse
from pipeline_classifier.simulation.random_observation import pulse_free_observations
from single_pulse_classifier_training.calibration import hours_needed, rate_text, threshold_for_rate
from single_pulse_classifier_training.cli import InputError, run_script
from single_pulse_classifier_training.runtime import atomic_writer, make_output_folder

logger = logging.getLogger(__name__)

MOST_HOURS = 1000.0
"""Most hours to be simulated: a week of computing."""

Evaluated = tuple[dict[str, Any], dict[float, Outcome]]
"""Entry of an observation in evaluation.json, and the outcome of its pulses at each threshold."""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("filterbanks", nargs="*", help="SIGPROC files with <name>_truth.csv beside each")
    SearchOptions.add_to(parser)
    OutputOptions.add_plots_to(parser)
    parser.add_argument(
        "--detail", action="store_true", help="print recall also by sweep over width, width in ms, DM and share of band"
    )
    InjectionOptions.add_to(parser)
    group = parser.add_argument_group("false events per hour")
    group.add_argument("--pulse-free", nargs="+", metavar="FILE", help="SIGPROC files without pulses")
    group.add_argument(
        "--pulse-free-hours",
        type=float,
        metavar="HOURS",
        help="simulate so many hours of strong interference instead, in many bands (about ten minutes per hour)",
    )
    group.add_argument("--store", action="store_true", help="write the rates into the candidate classifier")
    group.add_argument("--null", nargs="+", metavar="FILE", help="SIGPROC files that are searched backwards in time")
    group.add_argument("--joined", action="store_true", help="the files of --null are one observation")
    group.add_argument(
        "--wanted-rate",
        type=float,
        metavar="RATE",
        help="print the lowest threshold with at most RATE false events per hour in the files of --null",
    )
    return parser


def check_mode(args: argparse.Namespace) -> None:
    """Raise InputError unless exactly one kind of observation is given."""
    modes = {
        "observations with <name>_truth.csv beside them": args.filterbanks,
        "--inject FILE": args.inject,
        "--null FILE": args.null,
        "--pulse-free FILE": args.pulse_free,
        "--pulse-free-hours HOURS": args.pulse_free_hours,
    }
    given = [name for name, value in modes.items() if value is not None and value != []]
    if len(given) != 1:
        raise InputError(f"one of {', '.join(modes)} must be given, got {' and '.join(given) or 'none'}")
    if args.store and not args.pulse_free and not args.pulse_free_hours:
        raise InputError("--store must be used with --pulse-free FILE or --pulse-free-hours HOURS")
    for name in ("joined", "wanted_rate"):
        if getattr(args, name) not in (None, False) and not args.null:
            raise InputError(f"--{name.replace('_', '-')} must be used with --null FILE")
    if args.null and args.max_false_per_hour is not None:
        raise InputError("--null must be used with --wanted-rate, got --max-false-per-hour")
    if args.wanted_rate is not None and not 0 < args.wanted_rate < math.inf:
        raise InputError(f"--wanted-rate must be a positive number, got {args.wanted_rate:g}")
    if args.pulse_free_hours is not None and not 0 < args.pulse_free_hours <= MOST_HOURS:
        raise InputError(f"--pulse-free-hours must be above 0, at most {MOST_HOURS:g}, got {args.pulse_free_hours:g}")


@dataclass(frozen=True)
class Searched:
    """An observation that was searched.

    Attributes
    ----------
    source : FilterbankPages
    chosen : float
        Event threshold of the `Decision`, or its page threshold if pages decide.
    events : dict of float to list of Event
        Events found at each threshold.
    duration_s : float
        Seconds searched.
    """

    source: FilterbankPages
    chosen: float
    events: dict[float, list[Event]]
    duration_s: float


def searched(path: str | Path, config: PipelineConfig, classifiers: Classifiers) -> Searched:
    """Search an observation at the threshold of its decision and, if candidates decide, at `EVENT_THRESHOLDS`."""
    source = pages_of(path, config.front_end())
    decision = decide(config, classifiers, source.layers)
    chosen = decision.threshold if decision.event_threshold is None else decision.event_threshold
    thresholds = {chosen} if decision.event_threshold is None else {chosen, *EVENT_THRESHOLDS}
    _, events = events_by_threshold(source, classifiers, decision, sorted(thresholds), config.threads)
    return Searched(source, chosen, events, round(source.duration_s, 3))


def evaluate_known(path: str, pulses: Sequence[Pulse], config: PipelineConfig, classifiers: Classifiers) -> Evaluated:
    """Search an observation whose pulses are known."""
    done = searched(path, config, classifiers)
    outcomes = {}
    for threshold, events in done.events.items():
        recovery = compare(pulses, events, done.source.grid)
        outcomes[threshold] = outcome_of(pulses, events, recovery, done.source.grid, done.source.tsamp, done.duration_s)
    return record(path, done, outcomes[done.chosen]), outcomes


def evaluate_injected(
    options: InjectionOptions, pulses: Sequence[Pulse], config: PipelineConfig, classifiers: Classifiers, path: Path
) -> Evaluated:
    """Search a file without and with pulses (in a copy at ``path``); its own events do not count as false."""
    with injected_file(options, pulses, config.ifs, path) as copy:
        original = searched(options.path, config, classifiers)
        done = searched(copy, config, classifiers)
    outcomes = {}
    for threshold, events in done.events.items():
        recovery = compare(pulses, events, done.source.grid)
        recovery = without_known(recovery, events, original.events[threshold], done.source.grid)
        outcomes[threshold] = outcome_of(pulses, events, recovery, done.source.grid, done.source.tsamp, done.duration_s)
    row = record(options.path, done, outcomes[done.chosen])
    return row | {"events_before_injection": len(original.events[done.chosen])}, outcomes


def record(path: str | Path, done: Searched, outcome: Outcome) -> dict[str, object]:
    """Return the entry of an observation in evaluation.json."""
    return {
        "filterbank": str(path),
        "duration_s": outcome.duration_s,
        "threshold": done.chosen,
        "pulses": len(outcome.snr),
        "found": int(outcome.found.sum()),
        "events": len(done.events[done.chosen]),
        "false_events": len(outcome.false_snr),
    }


def measure_false_events(args: argparse.Namespace, config: PipelineConfig) -> dict[str, object]:
    """Count the false events of observations without pulses, and store the rates if asked to.

    Returns
    -------
    measured : dict
        Content of false_events.json.
    """
    from single_pulse_classifier_training.checkpoint import update_checkpoint

    path, rate = candidate_classifier_of(config, "--pulse-free"), args.max_false_per_hour
    hours = args.pulse_free_hours if args.pulse_free is None else pulse_free_hours(args.pulse_free, config.ifs)
    if rate is not None and rate * hours < 1:
        raise InputError(f"--max-false-per-hour is too low: {hours_needed(rate, hours)}")
    folder = make_output_folder(config.output_path, "output_dir")
    if args.store:
        make_output_folder(path.resolve().parent, "candidate_classifier")
    config = config.model_copy(update={"max_false_per_hour": None})
    classifiers = load_classifiers(config, warn_if_not_measured=False)
    config.warn_of_unused_settings()
    with tempfile.TemporaryDirectory(prefix=".pulse_free_", dir=folder) as simulated:
        files = args.pulse_free or pulse_free_observations(hours, Path(simulated))
        false = count_false_events(files, config, classifiers)
    print("\n".join(false_events_table(false)))
    values: dict[str, Any] = {"thresholds": false.thresholds(), "measured_pair": classifiers.pair}
    measured: dict[str, object] = {"model": config.model_path.name, "candidate_classifier": path.name}
    measured |= {"hours": false.hours, "observations": args.pulse_free or "simulated"} | values
    write_json(folder / "false_events.json", measured)
    if args.store:
        update_checkpoint(path, **values)
    for written in [folder / "false_events.json", *([path] if args.store else [])]:
        print(f"{'written':>28} {written}")
    if rate is not None:  # last, as no threshold may have so low a rate
        threshold, _ = threshold_for_rate(false.thresholds(), rate, of="the candidate classifier")
        print(f"{f'threshold for {rate:g} per hour':>28} {threshold:.4g}")
        if args.store:
            update_checkpoint(path, threshold=threshold)
    return measured


def measure_null(args: argparse.Namespace, config: PipelineConfig) -> dict[str, object]:
    """Count the false events of observations that may have pulses; return the content of null_events.json."""
    path, rate = candidate_classifier_of(config, "--null"), args.wanted_rate
    observations = [args.null] if args.joined else [[file] for file in args.null]
    hours = null_hours(observations, config.ifs)
    if rate is not None and rate * hours < 1:
        raise InputError(f"--wanted-rate is too low: {hours_needed(rate, hours)}")
    written = make_output_folder(config.output_path, "output_dir") / "null_events.json"
    classifiers = load_classifiers(config, warn_if_not_measured=False)
    config.warn_of_unused_settings()
    null = count_null_events(observations, config, classifiers)
    print("\n".join(null.table()))
    measured: dict[str, object] = {"model": config.model_path.name, "candidate_classifier": path.name}
    measured |= {"hours": null.false.hours, "observations": observations, "thresholds": null.rows()}
    write_json(written, measured)
    print(f"{'written':>28} {written}")
    if rate is not None:  # last, as no threshold may have so low a rate
        threshold, count = null.threshold_for(rate)
        print(f"{f'threshold for {rate:g} per hour':>28} {threshold:.4g}, with {rate_text(count, null.false.hours)}")
    return measured


def candidate_classifier_of(config: PipelineConfig, option: str) -> Path:
    """Return the path of the candidate classifier; InputError without one."""
    if config.candidate_classifier_path is None:
        raise InputError(f"{option} must be used with a candidate classifier; evaluate.py measures rates of pages")
    return config.candidate_classifier_path


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write figures, complete or not at all."""
    with atomic_writer(path) as file:
        file.write((json.dumps(content, indent=4) + "\n").encode())


def run(args: argparse.Namespace) -> dict[str, object]:
    """Evaluate; return the content of evaluation.json, false_events.json or null_events.json."""
    check_mode(args)
    injection, output = InjectionOptions.of(args), OutputOptions(plots=not args.no_plots)
    config = SearchOptions.of(args).load_config()
    if args.pulse_free or args.pulse_free_hours:
        return measure_false_events(args, config)
    if args.null:
        return measure_null(args, config)
    if injection:
        truths = [pulses_to_inject(injection, config)]
    else:
        truths = [known_pulses(path, Filterbank(path, config.ifs).duration_s) for path in args.filterbanks]
    folder = make_output_folder(config.output_path, "output_dir")
    copy = injected_path(injection, folder) if injection else None
    classifiers = load_classifiers(config)
    config.warn_of_unused_settings()
    if injection and copy:
        evaluated = [evaluate_injected(injection, truths[0], config, classifiers, copy)]
    else:
        evaluated = [
            evaluate_known(path, pulses, config, classifiers)
            for path, pulses in zip(args.filterbanks, truths, strict=True)
        ]
    records, outcomes = zip(*evaluated, strict=True)
    outcome = pooled([parts[row["threshold"]] for row, parts in zip(records, outcomes, strict=True)])
    evaluation: dict[str, Any] = {"model": config.model_path.name, "observations": list(records)}
    evaluation |= quality(outcome, config.trial_dms()) | recall_by_property(outcome)
    evaluation["by_threshold"] = by_threshold(outcomes, config.trial_dms())

    written = [folder / "evaluation.json"]
    write_json(written[0], evaluation)
    if output.plots:
        written.append(folder / "evaluation.png")
        plot_evaluation(written[1], evaluation, outcome)
    print(table(evaluation, args.detail))
    for path in written:
        print(f"{'written':>28} {path}")
    return evaluation


def main() -> None:
    run_script(get_parser(), run, prepare_process)


if __name__ == "__main__":
    main()
