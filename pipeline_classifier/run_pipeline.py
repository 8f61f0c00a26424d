"""The live pipeline: a filterbank file through TransientX's front end and PSRDADA rings to predictions and events.

  python run_pipeline.py -c config.json               makes the rings, starts the programs, classifies, cleans up
  python run_pipeline.py -c config.json --dry-run     prints what would be started, without starting it

  ring key_input    16 blocks, each of the spectra of one page: input_buffer_size is set for the file
  ring key_output   64 blocks of one page
  dada_fildb        reads the filterbank of the config into key_input
  dada_dbdedispdb   cleans and dedisperses from key_input into key_output
  this process      searches key_output as run_inference.py does

The programs run in path_to_pulsarx_singularity_image (apptainer or singularity), or from PATH if the config names no
image. Each has its log in the output folder, <program>_<name>.log. The run ends when n_spectra pages have come, when
dada_dbdedispdb has ended and all pages are read, when no page has come for idle_timeout_s, when a program fails, and on
Ctrl-C or SIGTERM. In every case it stops the programs and destroys the rings that it made, and no others. The exit
code is 0 if all pages of the file came, or n_spectra, or if a signal ended the run; 2, with one sentence, if a program
failed or pages are missing; 130 if a signal came before the first page.
"""

import argparse
import logging
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # packages by their full name, from any folder
    from single_pulse_classifier_training.cli import quiet_interrupts

    quiet_interrupts()

from pipeline_classifier.config import PipelineConfig, parse_key
from pipeline_classifier.detection.classifiers import load_classifiers
from pipeline_classifier.detection.search import SearchResult, check_classified
from pipeline_classifier.detection.workers import prepare_process
from pipeline_classifier.formats.sigproc import Filterbank
from pipeline_classifier.live.live_search import ending_signals, live_search, missing_pages, open_ring, ring_settings
from pipeline_classifier.live.processes import Child, Command
from pipeline_classifier.live.psrdada.client import create_rings, destroy_rings
from pipeline_classifier.live.psrdada.ring import Ring
from pipeline_classifier.live.psrdada.sysv import Segment
from pipeline_classifier.live.replay import PAGES_IN_RING
from pipeline_classifier.live.transientx import Programs, expected_pages, fitted
from pipeline_classifier.options import OutputOptions, SearchOptions
from pipeline_classifier.output.results import report
from single_pulse_classifier_training.cli import InputError, run_script
from single_pulse_classifier_training.runtime import make_output_folder

logger = logging.getLogger(__name__)

INPUT_BLOCKS = 16
RINGS_TIMEOUT_S = 10.0
RUNTIMES = ("apptainer", "singularity")


@dataclass(frozen=True)
class RingPlan:
    """A ring to be made by ``command``, or by this process if there is none.

    Attributes
    ----------
    key : str
        Hexadecimal.
    block_bytes, n_blocks : int
    command : Command or None
    """

    key: str
    block_bytes: int
    n_blocks: int
    command: Command | None

    def __str__(self) -> str:
        made = shlex.join(self.command.words) if self.command else "made by this process"
        return f"ring 0x{self.key}: {self.n_blocks} blocks of {self.block_bytes} bytes, {made}"


@dataclass(frozen=True)
class Plan:
    """What a run starts, in this order: rings, then programs."""

    rings: tuple[RingPlan, ...]
    programs: tuple[Command, ...]

    @property
    def commands(self) -> tuple[Command, ...]:
        """All programs of the plan, those that make rings first."""
        return (*(ring.command for ring in self.rings if ring.command), *self.programs)

    def __str__(self) -> str:
        programs = (f"start {shlex.join(command.words)}\n  log {command.log}" for command in self.programs)
        return "\n".join([*map(str, self.rings), *programs, f"read ring 0x{self.rings[-1].key}"])


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    SearchOptions.add_to(parser)
    OutputOptions.add_plots_to(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and what is missing, and start nothing")
    return parser


def in_image(image: Path | None, folders: list[Path], words: list[str]) -> tuple[str, ...]:
    """Return the command line of a program, which runs in the image, if there is one, with access to the folders."""
    if image is None:
        return tuple(words)
    runtime = next(filter(shutil.which, RUNTIMES), RUNTIMES[0])
    binds = [word for folder in dict.fromkeys(folders) for word in ("--bind", str(folder))]
    return (runtime, "exec", *binds, str(image), *words)


def make_plan(config: PipelineConfig) -> Plan:
    """Return the rings and programs that the config asks for."""
    if config.path_to_a_transientx_config is None:
        raise InputError("path_to_a_transientx_config must name TransientX's config file for dada_dbdedispdb, got null")
    filterbank, transientx = config.filterbank_path, config.resolve(config.path_to_a_transientx_config)
    named = (config.path_to_pulsarx_singularity_image, config.path_to_tensorflow_psrdada_singularity_image)
    pulsarx, psrdada = (config.resolve(image) if image else None for image in named)
    folders = [filterbank.parent, transientx.parent]

    def log(program: str) -> Path:
        return config.output_path / f"{program}_{filterbank.stem}.log"

    def ring(key: str, block_bytes: int, n_blocks: int) -> RingPlan:
        if config.make_rings_with == "own":
            return RingPlan(key, block_bytes, n_blocks, None)
        words = in_image(psrdada or pulsarx, [], ["dada_db", "-k", key, "-b", str(block_bytes), "-n", str(n_blocks)])
        return RingPlan(key, block_bytes, n_blocks, Command("dada_db", words, log(f"dada_db_{key}")))

    keys = str(config.key_input), str(config.key_output)
    page_bytes = 4 * config.transientx.subdedispersion.ndm * config.page_samples
    sizes = (config.input_buffer_size, INPUT_BLOCKS), (page_bytes, PAGES_IN_RING)
    fildb = ["dada_fildb", "--key_output", keys[0], "-f", str(filterbank)]
    dedispdb = ["dada_dbdedispdb", "--key_input", keys[0], "--key_output", keys[1], "-c", str(transientx)]
    dedispdb += ["-t", str(config.threads_for_transientx)]
    programs = (Command(words[0], in_image(pulsarx, folders, words), log(words[0])) for words in (fildb, dedispdb))
    rings = tuple(ring(key, *size) for key, size in zip(keys, sizes, strict=True))
    return Plan(rings, tuple(programs))


def missing(config: PipelineConfig, plan: Plan) -> Iterator[str]:
    """Yield a sentence for each requirement of the plan that is not met."""
    words = {word for command in plan.commands for word in command.words}
    for key in ("path_to_pulsarx_singularity_image", "path_to_tensorflow_psrdada_singularity_image"):
        image = getattr(config, key) and str(config.resolve(getattr(config, key)))
        if image in words and not Path(image).exists():
            yield f"{key}: {image} does not exist"
    for word in dict.fromkeys(command.words[0] for command in plan.commands):
        if not shutil.which(word):
            remedy = "install Apptainer or Singularity" if word in RUNTIMES else "set path_to_pulsarx_singularity_image"
            yield f"{word} is not on PATH: {remedy}, or add it to PATH"
    if not config.filterbank_path.is_file():
        yield f"the filterbank {config.filterbank_path} does not exist"
    for ring in plan.rings:
        if is_taken(ring.key):
            yield f"ring 0x{ring.key} exists already: destroy it (dada_db -d -k {ring.key}), or use another key"


def is_taken(key: str) -> bool:
    """Return whether shared memory exists under one of the two keys of a ring (data and header)."""
    for number in (parse_key(key), parse_key(key) + 1):
        try:
            Segment(number).detach()
        except FileNotFoundError:
            continue
        except OSError:
            pass  # it belongs to another user
        return True
    return False


@contextmanager
def ring_of(plan: RingPlan) -> Iterator[None]:
    """Make a ring, which must not exist before, and destroy it after the ``with`` block."""
    if plan.command is None:
        create_rings(plan.key, plan.block_bytes, plan.n_blocks)
    try:
        if plan.command:
            with Child(plan.command) as dada_db:
                code = dada_db.wait(RINGS_TIMEOUT_S)
                if code is None:
                    raise InputError(f"dada_db did not make ring 0x{plan.key} within {RINGS_TIMEOUT_S:g} s")
                if code:
                    raise InputError(dada_db.failure)
            for key in (parse_key(plan.key), parse_key(plan.key) + 1):
                Ring(key, parse_key(plan.key), RINGS_TIMEOUT_S, read_only=True).detach()
        yield
    finally:
        destroy_rings(plan.key)


Entered = TypeVar("Entered")


class CleanUp(ExitStack):
    """An exit stack that is unwound on SIGTERM and SIGHUP, as on Ctrl-C; signals do not interrupt the unwinding."""

    def __enter__(self) -> Self:
        self._starting = self._told = False
        self._before = {number: signal.signal(number, self._told_to_end) for number in ending_signals()}
        return super().__enter__()

    def _told_to_end(self, *_: object) -> None:
        self._told = True
        if not self._starting:
            raise KeyboardInterrupt

    def start(self, make: Callable[..., AbstractContextManager[Entered]], *args: object) -> Entered:
        """Enter ``make(*args)``; a signal takes effect once the context is on the stack."""
        self._starting = True
        try:
            return self.enter_context(make(*args))
        finally:
            self._starting = False
            if self._told:
                raise KeyboardInterrupt

    def __exit__(self, *exception: Any) -> bool | None:
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)
        try:
            return super().__exit__(*exception)
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)


def run(args: argparse.Namespace) -> SearchResult | Plan:
    """Run the live pipeline; return the result, or the plan of a dry run."""
    config = SearchOptions.of(args).load_config()
    if args.no_plots:
        config = config.model_copy(update={"max_plots": 0})
    observation = Filterbank(config.filterbank_path) if config.filterbank_path.is_file() else None
    if observation:
        config = fitted(config, observation)
    plan = make_plan(config)
    if args.dry_run:
        print(plan)
        for sentence in missing(config, plan):
            logger.warning("%s", sentence)
        return plan
    for sentence in missing(config, plan):
        raise InputError(sentence)
    assert observation  # otherwise it is missing
    pages = expected_pages(config, observation)
    settings = replace(
        ring_settings(config),
        tstart=observation.tstart,
        pages_expected=min(pages, config.n_spectra or pages),
        from_file=True,
    )
    make_output_folder(config.output_path, "output_dir")
    classifiers = load_classifiers(config, with_channels=False)
    with CleanUp() as stack:
        for ring in plan.rings:
            stack.start(ring_of, ring)
        programs = Programs(*[stack.start(Child, command) for command in plan.programs])
        source = stack.enter_context(
            open_ring(config, programs.ended, replace(settings, writer_finished=programs.finished))
        )
        result = live_search(source, classifiers, config, programs.ended)
        errors, running = programs.failures, programs.running
        if programs.died_at_end:
            logger.info("dada_dbdedispdb died by SIGSEGV after the end of its input, as it always does")
    print(report(result))
    if sentence := missing_pages(result.summary):
        errors.append(sentence + "".join(f"; {name} was still running" for name in running))
    if errors:
        raise InputError("; ".join(errors))
    check_classified(config.filterbank_path, result.summary, config, with_channels=False)
    return result


def main() -> None:
    run_script(get_parser(), run, prepare_process)


if __name__ == "__main__":
    main()
