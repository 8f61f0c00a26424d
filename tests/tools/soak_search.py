"""Searches of several files that are killed, run twice at once, or find the disk full: nothing is lost, twice or stale.

    python tests/tools/soak_search.py
    python tests/tools/soak_search.py --kills 3 --pairs 1 --full 2 --seed 5

Four short observations are searched again and again, with one of two configs that find different numbers of events.
After each interruption the results of an observation must be those of one of the configs, all of them and to the bit; if
it was killed while it replaced them, each file must be. A last search without interruption must leave the results of its
config and nothing else. Exit code 1 if anything differs. The searches run in forks of this process, so that kills are
spread over the search, not over the import of torch.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import csv
import errno
import json
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from pipeline_classifier import run_inference
from pipeline_classifier.detection import many_files
from pipeline_classifier.output.run_files import outputs_in
from pipeline_classifier.simulation.interference import Rfi
from pipeline_classifier.simulation.observation import EFFELSBERG, simulate
from pipeline_classifier.simulation.pulses import Pulse
from single_pulse_classifier_training.cli import run_script
from tests.benchmarks.measure import print_table

HEADER = replace(EFFELSBERG, nchans=64, foff=-5.0, tsamp=4.096e-4)
NAMES = ("obs", "obs_2", "obs_x4", "other")
CONFIGS = {"all": {"min_snr": 6.25}, "bright": {"min_snr": 25.0}}
PATIENCE_S = 300.0


class Differs(Exception):
    """Results that are not as they must be."""


def require(holds: bool, *what: object) -> None:
    if not holds:
        raise Differs(" ".join(map(str, what)))


@dataclass(frozen=True)
class Ended:
    """Exit code of a search (negative: the signal that killed it), and what it wrote to standard error."""

    code: int
    errors: str


class Search:
    """A search of all observations in a fork of this process.

    Parameters
    ----------
    site : Path
        Folder of the observations and configs; the results are in its folder ``out``.
    config : str
        Name of the config.
    options : str
        Further options of the command line.
    prepare : callable, optional
        Called in the new process before the search.
    """

    def __init__(self, site: Path, config: str, *options: str, prepare: Callable[[], object] = int) -> None:
        files = [str(site / f"{name}.fil") for name in NAMES]
        words = [
            "-c",
            str(site / f"{config}.json"),
            "--output-dir",
            str(site / "out"),
            "--filterbank",
            *files,
            *options,
        ]
        self.reader, writer = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(writer, 2)
                prepare()
                sys.argv = ["run_inference.py", *words]
                run_inference.main()
                code = 0
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(writer)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def ends(self) -> Ended:
        """Wait for the end."""
        with open(self.reader, errors="replace") as file:
            errors = file.read()
        return Ended(os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), errors)


Results = dict[str, bytes]


def results_of(out: Path, name: str) -> Results:
    """Content of the outputs of an observation; that of the run summary, which has times, does not count."""
    paths = [path for path in outputs_in(out, name) if not path.name.startswith("done_")]
    return {path.name: b"" if path.name.startswith("summary_") else path.read_bytes() for path in paths}


class Checks:
    """The results of undisturbed searches, and the comparison of others with them."""

    def __init__(self, site: Path) -> None:
        self.site, self.out = site, site / "out"
        self.expected: dict[str, dict[str, Results]] = {}
        self.catalogues: dict[str, list[list[str]]] = {}
        self.seconds = 0.0
        for config in CONFIGS:
            shutil.rmtree(self.out, ignore_errors=True)
            began = time.monotonic()
            ended = Search(site, config).ends()
            self.seconds = time.monotonic() - began
            require(ended.code == 0, ended.errors)
            self.expected[config] = {name: results_of(self.out, name) for name in NAMES}
            self.catalogues[config] = self.catalogue()
        require(len(self.catalogues["all"]) > len(self.catalogues["bright"]) > len(NAMES), "the configs must differ")

    def catalogue(self) -> list[list[str]]:
        with open(self.out / many_files.CATALOGUE, newline="") as file:
            return list(csv.reader(file))

    def interrupted(self) -> None:
        """Check the results after an interruption."""
        for name in NAMES:
            found, sets = results_of(self.out, name), [self.expected[config][name] for config in CONFIGS]
            if (self.out / f"done_{name}.json").exists():
                require(found in sets, name, "is finished, but its results are neither of one config nor of the other")
            for file, content in found.items():
                require(any(content == results.get(file) for results in sets), file, "is not whole")
        rows = self.catalogue()[1:]
        require(len(set(map(tuple, rows))) == len(rows), "the catalogue has events twice")
        known = [row for rows in self.catalogues.values() for row in rows]
        require(all(row in known for row in rows), "the catalogue has unknown events")

    def complete(self, config: str) -> None:
        """Search without interruption, and check that only the results of this search are there."""
        ended = Search(self.site, config, "--resume").ends()
        require(ended.code == 0, ended.errors)
        for name in NAMES:
            require(
                results_of(self.out, name) == self.expected[config][name], name, "differs from an undisturbed search"
            )
        require(self.catalogue() == self.catalogues[config], "the catalogue differs from that of an undisturbed search")
        files = {file for results in self.expected[config].values() for file in results}
        files |= {f"done_{name}.json" for name in NAMES} | {many_files.CATALOGUE, ".catalogue.lock"}
        left_over = {path.name for path in self.out.iterdir()} ^ files
        require(not left_over, "missing or left over:", sorted(left_over))


def killed(checks: Checks, draw: random.Random, count: int, *options: str) -> list[object]:
    """Kill searches at random moments or, every other one, when it makes, renames or removes a file."""
    hit = 0
    for number in range(count):
        config, moment_s, files = draw.choice(list(CONFIGS)), draw.uniform(0, checks.seconds), draw.randrange(200)
        if number % 2:
            search = Search(checks.site, config, *options, prepare=partial(after_files, files, checks.out, kill_this))
        else:
            search = Search(checks.site, config, *options)
            time.sleep(moment_s)
            search.kill()
        hit += search.ends().code == -signal.SIGKILL
        checks.interrupted()
    for config in CONFIGS:
        checks.complete(config)
    return [" ".join(["SIGKILL", *options]), count, f"{hit} killed"]


def at_once(checks: Checks, draw: random.Random, count: int) -> list[object]:
    """Start two searches one shortly after the other, and kill one of them in every other pair."""
    refused = 0
    for number in range(count):
        pair = []
        for config in draw.choices(list(CONFIGS), k=2):
            pair.append(Search(checks.site, config, *draw.choice([(), ("--resume",)])))
            time.sleep(draw.uniform(0, 0.5 * checks.seconds))
        if number % 2:
            draw.choice(pair).kill()
        for search in pair:
            ended = search.ends()
            refusals = ("must be searched by one process at a time", "that another process is searching")
            one_sentence = ended.code == 2 and any(refusal in ended.errors for refusal in refusals)
            require(ended.code in (0, -signal.SIGKILL) or one_sentence, ended.errors)
            refused += one_sentence
        checks.interrupted()
    checks.complete("all")
    return ["two at once", count, f"{refused} refused"]


def disk_full(checks: Checks, draw: random.Random, count: int) -> list[object]:
    """Let files not grow beyond a random size, or let no file be made after a random number of them."""
    largest = max(len(content) for results in checks.expected["all"].values() for content in results.values())
    failed = 0
    for number in range(count):
        size, left = round(largest ** draw.uniform(0.4, 0.98)), draw.randrange(100)
        limit = (
            partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
            if number % 2
            else partial(after_files, left, checks.out, no_space)
        )
        ended = Search(checks.site, draw.choice(list(CONFIGS)), prepare=limit).ends()
        require(ended.code in (0, 2) and "Traceback" not in ended.errors, ended.errors)
        failed += ended.code == 2
        checks.interrupted()
    for config in CONFIGS:
        checks.complete(config)
    return ["disk full", count, f"{failed} failed"]


def after_files(count: int, folder: Path, what: Callable[[str, Path], object]) -> None:
    """Call ``what`` whenever this process makes, renames or removes a file in a folder, after ``count`` of them."""

    def hook(event: str, args: tuple) -> None:
        nonlocal count
        changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
        if changes or (event == "open" and isinstance(args[2], int) and args[2] & os.O_CREAT):
            path = args[0]
            if isinstance(path, (str, os.PathLike)) and (folder in Path(path).parents or not Path(path).is_absolute()):
                count -= 1
                if count < 0:
                    what(event, Path(path))

    sys.addaudithook(hook)


def kill_this(event: str, path: Path) -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def no_space(event: str, path: Path) -> None:
    """Raise the error of a full disk, unless a file is removed."""
    if event not in ("os.remove", "os.rmdir"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="with and without --resume (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=10, help="of searches at once (default: %(default)s)")
    parser.add_argument("--full", type=int, default=10, help="searches on a full disk (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    return parser


def run(args: argparse.Namespace) -> None:
    """Run all interruptions and print the table."""
    signal.alarm(round(PATIENCE_S * (1 + (2 * args.kills + 2 * args.pairs + args.full) / 10)))  # a search that hangs
    draw, rows = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        for number, name in enumerate(NAMES):
            pulses = [Pulse(0.4 + 0.1 * number, 56.77, 40.0, 2.0), Pulse(1.4, 30.0, 15.0, 2.0)]
            simulate(site / f"{name}.fil", HEADER, round(2 / HEADER.tsamp), pulses, Rfi(), seed=number)
        for name, keys in CONFIGS.items():
            (site / f"{name}.json").write_text(json.dumps({"block_samples": 2048, "threads": 1, **keys}))
        try:
            checks = Checks(site)
            for scenario, count, *options in (
                (killed, args.kills),
                (killed, args.kills, "--resume"),
                (at_once, args.pairs),
                (disk_full, args.full),
            ):
                began = time.monotonic()
                row = scenario(checks, draw, count, *options)
                rows.append([*row, f"{time.monotonic() - began:.1f}"])
        except Differs as error:
            print(f"{error}\nIn {site / 'out'}: {sorted(path.name for path in (site / 'out').iterdir())}")
            sys.exit(1)
    print_table(["interruption", "searches", "outcome", "seconds"], rows)


def main() -> None:
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
