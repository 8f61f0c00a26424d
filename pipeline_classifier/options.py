"""Options of the command line that scripts share, as small dataclasses."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from pipeline_classifier.config import DEFAULT_CONFIG, PipelineConfig, load_pipeline_config
from pipeline_classifier.formats.candidate_list_formats import FORMATS
from pipeline_classifier.formats.file_names import output_name
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.runtime import DEVICES

LONGEST_SET = "._DM_time_dataset_realbased_training_4096x4096.npy.0123-4194304.tmp"
"""What files of a training set add to its name."""


def add_config_option(parser: argparse.ArgumentParser, what: str = "config of the pipeline") -> None:
    """Add ``-c``."""
    parser.add_argument("-c", "--config", default=DEFAULT_CONFIG, help=f"{what} (default: %(default)s)")


@dataclass(frozen=True)
class SearchOptions:
    """What the command line changes in the config of a search; None leaves a key as it is.

    Attributes
    ----------
    config : Path or None
        None for the included config.
    output_dir, device : str or None
    threshold, event_threshold, max_false_per_hour : float or None
    """

    config: Path | None = None
    output_dir: str | None = None
    device: str | None = None
    threshold: float | None = None
    event_threshold: float | None = None
    max_false_per_hour: float | None = None

    @staticmethod
    def add_to(parser: argparse.ArgumentParser) -> None:
        """Add the options to a parser."""
        parser.add_argument("-c", "--config", help=f"config of the pipeline (default: {DEFAULT_CONFIG})")
        parser.add_argument(
            "--output-dir", help="folder of the results (default: output_dir of the config; without -c, this folder)"
        )
        parser.add_argument("--device", choices=DEVICES, help="default: device of the config")
        decision = parser.add_mutually_exclusive_group()
        decision.add_argument(
            "--threshold",
            type=float,
            help="minimum probability for a page to be classified as a pulse (default: the config's, else the model's)",
        )
        decision.add_argument(
            "--max-false-per-hour",
            type=float,
            metavar="RATE",
            help="use the lowest threshold stored in the model that has at most this many false events per hour "
            "(false pages, without a candidate classifier)",
        )
        parser.add_argument(
            "--event-threshold",
            type=float,
            help="minimum candidate probability for a peak to be an event (default: the config's, else the model's)",
        )

    @classmethod
    def of(cls, args: argparse.Namespace) -> Self:
        """Take the options from parsed arguments, and check them."""
        for option, value in (("--threshold", args.threshold), ("--event-threshold", args.event_threshold)):
            if value is not None and not 0.0 <= value <= 1.0:
                raise InputError(f"{option} must be a probability from 0 to 1, got {value}")
        rate = args.max_false_per_hour
        if rate is not None and not 0.0 < rate < np.inf:
            raise InputError(f"--max-false-per-hour must be a positive number, got {rate:g}")
        if rate is not None and args.event_threshold is not None:
            raise InputError("only one of --max-false-per-hour and --event-threshold may be given, got both")
        config = None if args.config is None else Path(args.config)
        return cls(config, args.output_dir, args.device, args.threshold, args.event_threshold, rate)

    def load_config(self) -> PipelineConfig:
        """Load the config with these options in place of its keys."""
        changes: dict[str, object] = {}
        if self.max_false_per_hour is not None:
            changes = {"threshold": None, "event_threshold": None}
        elif self.threshold is not None or self.event_threshold is not None:
            changes = {"max_false_per_hour": None}
        for name in ("device", "threshold", "event_threshold", "max_false_per_hour"):
            if (value := getattr(self, name)) is not None:
                changes[name] = value
        # Relative to the working directory, unlike the key of a config; the included one lies among the source files.
        output_dir = "." if self.config is None and self.output_dir is None else self.output_dir
        if output_dir is not None:
            changes["output_dir"] = str(Path(output_dir).absolute())
        return load_pipeline_config(self.config or DEFAULT_CONFIG, changes)

    def files_read(self, config: PipelineConfig) -> list[Path]:
        """Return the files that a search with the loaded config reads, except the observation."""
        transientx = config.path_to_a_transientx_config
        candidates = config.candidate_classifier_path, config.candidate_classifier_dmt_path
        paths = [self.config or DEFAULT_CONFIG, config.model_path, *candidates]
        return [path for path in paths if path] + ([config.resolve(transientx)] if transientx else [])


@dataclass(frozen=True)
class OutputOptions:
    """What is written beside the lists of events.

    Attributes
    ----------
    plots : bool
        Pictures of events.
    report : bool
        One HTML page with all results.
    saliency : bool
        In the pictures, the parts of the page that the network reacted to.
    max_plots : int or None
        Largest number of pictures; None for that of the config.
    all_plots : bool
        A picture of each event, however many there are.
    save_candidates : bool
        Each event as a candidate file of FETCH.
    """

    plots: bool = True
    report: bool = False
    saliency: bool = False
    max_plots: int | None = None
    all_plots: bool = False
    save_candidates: bool = False

    @staticmethod
    def add_plots_to(parser: argparse._ActionsContainer) -> None:
        """Add ``--no-plots``."""
        parser.add_argument("--no-plots", action="store_true", help="draw no pictures")

    @classmethod
    def add_to(cls, parser: argparse.ArgumentParser) -> None:
        """Add all options to a parser."""
        plots = parser.add_mutually_exclusive_group()
        cls.add_plots_to(plots)
        plots.add_argument(
            "--max-plots",
            type=int,
            metavar="N",
            help="draw at most N pictures, those of the most probable and brightest events (default: the config's)",
        )
        plots.add_argument("--all-plots", action="store_true", help="draw a picture of every event")
        parser.add_argument("--report", action="store_true", help="also write report_<name>.html")
        parser.add_argument(
            "--saliency",
            action="store_true",
            help="show in the picture of each event what the network reacted to; reads the observation again",
        )

        parser.add_argument(
            "--save-candidates",
            action="store_true",
            help="write each event of a filterbank file as a candidate file (.h5) of FETCH; reads the file again",
        )

    @classmethod
    def of(cls, args: argparse.Namespace, ring: bool) -> Self:
        """Take the options from parsed arguments; raise InputError for an option that a ring does not support."""
        for option in ("report", "saliency", "save_candidates"):
            if ring and getattr(args, option):
                option = option.replace("_", "-")
                raise InputError(f"--{option} must be used with a file, got a ring, which cannot be read again")
        if args.saliency and args.no_plots:
            raise InputError("only one of --saliency and --no-plots may be given, got both")
        if args.max_plots is not None and args.max_plots < 0:
            raise InputError(f"--max-plots must be 0 or more, got {args.max_plots}")
        if args.save_candidates and getattr(args, "pages", None) is not None:
            raise InputError("--save-candidates must be used with a filterbank file, got pages, which have no channels")
        plots = not args.no_plots
        return cls(plots, args.report, args.saliency, args.max_plots, args.all_plots, args.save_candidates)

    def names(self) -> list[str]:
        """Return the names of the outputs that are asked for."""
        return [name for name in ("plots", "report", "saliency", "save_candidates") if getattr(self, name)]

    def most_plots(self, config: PipelineConfig) -> int | None:
        """Return the largest number of pictures, None for all."""
        if not self.plots or self.all_plots:
            return None if self.plots else 0
        return config.max_plots if self.max_plots is None else self.max_plots


@dataclass(frozen=True)
class CandidateOptions:
    """Candidates that another program has found.

    Attributes
    ----------
    candidates : list of str or None
        Candidate files, or patterns.
    candidate_list : Path or None
        List of an observation.
    list_format : str or None
        Its format; by default it is recognised by the content.
    keep_all : bool
        Keep duplicates in the catalogue.
    """

    candidates: list[str] | None = None
    candidate_list: Path | None = None
    list_format: str | None = None
    keep_all: bool = False

    @staticmethod
    def add_to(parser: argparse.ArgumentParser) -> None:
        """Add the options to a parser."""
        parser.add_argument(
            "--candidate-list",
            type=Path,
            metavar="LIST",
            help="classify the candidates in the list of another search of the filterbank file; nothing is searched",
        )
        parser.add_argument("--list-format", choices=sorted(FORMATS), help="format of the list (default: by content)")
        parser.add_argument("--keep-all", action="store_true", help="keep duplicates of the list in the catalogue")

    @classmethod
    def of(cls, args: argparse.Namespace) -> Self:
        """Take the options from parsed arguments; raise InputError for what they cannot be combined with."""
        if args.candidate_list is None:
            for option in ("list_format", "keep_all"):
                if getattr(args, option):
                    raise InputError(f"--{option.replace('_', '-')} must be used with --candidate-list")
        elif args.filterbank is None:
            raise InputError("--candidate-list must be used with --filterbank, got another input")
        if args.candidates is None and args.candidate_list is None:
            return cls()
        what = "--candidates" if args.candidate_list is None else "--candidate-list"
        for option in ("joined", "resume", "plots_only", "report", "saliency", "save_candidates"):
            if getattr(args, option):
                raise InputError(f"only one of {what} and --{option.replace('_', '-')} may be given, got both")
        return cls(args.candidates, args.candidate_list, args.list_format, args.keep_all)


def check_distinct(paths: Sequence[str | Path]) -> None:
    """Raise InputError if a file is named twice: its images would be in both the training and the validation set."""
    seen: set[Path] = set()
    for path in paths:
        if (real := Path(path).resolve()) in seen:
            raise InputError(f"{path}: every file must be given once, got it twice")
        seen.add(real)


def set_name(name: str | None, observations: Sequence[str | Path]) -> str:
    """Return the name of a training set: ``--name``, or the file name of the first observation without its suffix."""
    name = name or Path(observations[0]).stem
    if Path(name).name != name:
        raise InputError(f"--name must be a name without folders (see --output-dir), got {name}")
    return output_name(observations[0], name, LONGEST_SET)
