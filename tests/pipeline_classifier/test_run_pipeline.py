"""The live pipeline with stand-ins for TransientX's programs: real processes and rings, of which nothing is left."""

import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from pipeline_classifier import run_pipeline as script
from pipeline_classifier.config import PipelineConfig, TransientXConfig, load_pipeline_config
from pipeline_classifier.detection.classifiers import load_classifiers
from pipeline_classifier.detection.decision import decide
from pipeline_classifier.formats.sigproc import FilterbankWriter
from pipeline_classifier.frontend.pages import PageBatch, PageGrid
from pipeline_classifier.frontend.sources import Layer
from pipeline_classifier.live import transientx
from pipeline_classifier.live.psrdada.client import create_rings, destroy_rings
from pipeline_classifier.simulation.interference import Rfi
from pipeline_classifier.simulation.observation import EFFELSBERG, simulate
from pipeline_classifier.simulation.pulses import Pulse
from single_pulse_classifier_training.checkpoint import Checkpoint, save_checkpoint
from single_pulse_classifier_training.training_models import build_model
from tests.command_line import run_here

ROOT = Path(__file__).resolve().parents[2]
MODEL_NAME = "DM_time_binary_classificator_241002_3_GAP"
SIDE, N_PAGES, PATIENCE_S = 32, 24, 60.0
NSAMPLES = (N_PAGES + 6) * SIDE + 7  # six pages of the sweep are withheld, and a block that is not full is left out
# Each says its arguments in a file, in one line of JSON, with its process id, and that of a child that sleeps.
PREAMBLE = f"""#!{sys.executable}
import json, os, subprocess, sys, time
from pathlib import Path
here, name, words = Path(__file__).parent, Path(__file__).name, sys.argv[1:]
sys.path.insert(0, {str(ROOT)!r})
from pipeline_classifier.live.psrdada.client import (Reader, Writer, create_rings)
sleeper = subprocess.Popen(["sleep", "1000"]).pid if name.startswith("dada_fildb") else 0
policy = os.environ.get("OMP_WAIT_POLICY")
with open(here / "started", "a") as file:
    file.write(json.dumps([name, os.getpid(), sleeper, words, policy]) + "\\n")
value = dict(zip(words[::2], words[1::2]))
"""
FILDB = """
print("reads", value["-f"], flush=True)
with open(value["-f"], "rb") as file, Writer(value["--key_output"]) as writer:
    writer.setHeader("{}")
    writer.write(file.read(), end_of_data=True)
"""
READS = f"""
import numpy as np
assert json.load(open(value["-c"]))["subdedispersion"]["ndm"] == {SIDE}
images = np.load(here / "images.npy")
reader, writer = (Reader(value["--key_input"], timeout_s=60), Writer(value["--key_output"], timeout_s=60))
reader.getHeader()
while not reader.isEndOfData:
    reader.getNextPage()
    reader.markCleared()
"""
DEDISPDB = f"""{READS}
header = dict(dms=0.0, ddm=0.5, ndm={SIDE}, ndump={SIDE}, tsamp=1e-3, fmax=1530, fmin=1210)
writer.setHeader(json.dumps(header))
for image in images:
    writer.write(image, end_of_data=True)
writer.disconnect()
"""
# As in 2025: a header without page length and one transfer; a full block is handed over when the next one is needed.
TODAY = f"""{READS}
obsinfo = dict(fch1=1530.0, foff=-1.25, nchans=256, tsamp=1.024e-4, tstart=59000.48386574)
writer.setHeader(json.dumps(dict(dms=0.0, ddm=0.5, ndm={SIDE}, obsinfo=obsinfo)))
for image in images[:pages]:
    if writer.isHoldingPage:
        writer.markFilled()
    writer.getNextPage()[:] = image.tobytes()
print("data read failed: size not correct", flush=True)
"""
DIES = "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.kill(os.getpid(), 11)"
FAILS = """
print("first")
print("no such beam", file=sys.stderr)
sys.exit(3)
"""
SLEEPS = "time.sleep(1000)"
IGNORES_SIGTERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEPS
DADA_DB = "create_rings(value['-k'], int(value['-b']), int(value['-n']))"
# What an image runtime does with: exec --bind FOLDER --bind FOLDER IMAGE program arguments
RUNTIME = "program = words.index(str(here / 'an image.sif'))\nos.execvp(words[program + 1], words[program + 1 :])"


class Site:
    """A folder with everything that a run needs, stand-ins included; its name has a space and quotes."""

    def __init__(self, folder: Path, key: int) -> None:
        self.folder, self.key, self.out = folder, key, folder / "out"
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        self.images = np.random.default_rng(0).standard_normal((N_PAGES, SIDE, SIDE)).astype(np.float32)
        np.save(self.bin / "images.npy", self.images)
        simulate(folder / "ob's.fil", EFFELSBERG, NSAMPLES, [Pulse(0.05, 50.0, 20.0, 1.0)], Rfi(), seed=2)
        torch.manual_seed(3)
        save_checkpoint(folder / "model.pth", Checkpoint(build_model(MODEL_NAME, SIDE).eval(), MODEL_NAME, SIDE))
        (folder / "dedisp.json").write_text(json.dumps({"subdedispersion": {"ndm": SIDE}}))
        self.config = folder / "config.json"
        self.process: subprocess.Popen | None = None
        self.keys = {
            "path_to_models": "./",
            "name_of_the_model": "model.pth",
            "name_of_the_filterbank": "ob's.fil",
            "path_to_a_transientx_config": "dedisp.json",
            "key_input": f"{key:x}",
            "key_output": f"{key + 2:x}",
            "threads_for_transientx": 1,
            "output_dir": "out",
            "idle_timeout_s": 20.0,
            "page_samples": SIDE,
            "input_buffer_size": SIDE * 256,
        }
        self.change()
        for name, code in (("dada_fildb", FILDB), ("dada_dbdedispdb", DEDISPDB), ("dada_db", DADA_DB)):
            self.stand_in(name, code)

    def change(self, **keys: object) -> None:
        self.keys |= keys
        self.config.write_text(json.dumps(self.keys))

    def stand_in(self, name: str, code: str) -> None:
        path = self.bin / name
        path.write_text(PREAMBLE + code)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def begin(self, *options: str) -> subprocess.Popen:
        environment = os.environ | {"PATH": f"{self.bin}:{os.environ['PATH']}"}
        command = [sys.executable, script.__file__, "-c", self.config, *options]
        self.process = subprocess.Popen(
            [*map(str, command)],
            cwd="/",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # also where nohup runs the tests
        )
        return self.process

    def run(self, *options: str) -> tuple[int, str, str]:
        process = self.begin(*options)
        out, errors = process.communicate(timeout=PATIENCE_S)
        assert "Traceback" not in errors, errors
        return process.returncode, out, errors

    def run_here(self, *options: str) -> tuple[int, str, str]:
        """Run in the process of the tests."""
        with mock.patch.dict(os.environ, {"PATH": f"{self.bin}:{os.environ['PATH']}"}):
            done = run_here(script, "-c", self.config, *options)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    def started(self) -> dict[str, list]:
        """Process id, that of its child, words and OMP_WAIT_POLICY, by the name of the program."""
        path = self.bin / "started"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return {name: rest for name, *rest in lines}

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline, "it does not happen"
            time.sleep(0.02)

    def predictions(self) -> np.ndarray:
        return np.load(self.out / "predictions_ob's.npy")


def part_ids(parts: dict) -> set[int]:
    """Of all segments and semaphores of a stream."""
    return {part.get("shmid", part.get("semid")) for kind in parts.values() for part in kind}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def site(tmp_path, ring_key, parts_of):
    """Nothing may be left of any run: no ring, no program, no child of one."""
    site = Site(tmp_path / 'it\'s "here"', ring_key)
    yield site
    if site.process:
        site.process.kill()
        site.process.communicate()
    left = [pid for pid, child, *_ in site.started().values() for pid in (pid, child) if pid and alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    rings = any(parts_of(site.key).values()) or any(parts_of(site.key + 2).values())
    sweep_rings(site)
    assert not left and not rings


def sweep_rings(site: Site) -> None:
    for key in (site.key, site.key + 2):
        destroy_rings(key)


def expected(site: Site) -> np.ndarray:
    config = load_pipeline_config(site.config, {"device": "cpu"})
    classifiers, pages = load_classifiers(config), PageBatch.of_pages(site.images, np.arange(N_PAGES) * SIDE, 0)
    decision = decide(config, classifiers, [Layer(PageGrid(np.arange(SIDE), SIDE), np.empty(0, int))])
    return decision.classes(classifiers.pages.classify(pages).probabilities)


@pytest.mark.parametrize("rings", ["own", "dada_db"])
@pytest.mark.parametrize("image", [None, "an image.sif"])
def test_from_a_filterbank_to_predictions(site, rings, image):
    site.change(make_rings_with=rings, path_to_pulsarx_singularity_image=image and str(site.bin / image))
    if image:
        (site.bin / image).touch()
        site.stand_in("apptainer", RUNTIME)
    code, out, errors = site.run()
    assert code == 0, errors
    assert np.array_equal(site.predictions(), expected(site)) and len(site.predictions()) == N_PAGES
    started = site.started()
    assert started["dada_fildb"][2] == ["--key_output", site.keys["key_input"], "-f", str(site.folder / "ob's.fil")]
    assert started["dada_dbdedispdb"][2] == [
        *("--key_input", site.keys["key_input"], "--key_output", site.keys["key_output"]),
        *("-c", str(site.folder / "dedisp.json"), "-t", "1"),
    ]
    assert started["dada_dbdedispdb"][3] == "passive"
    if rings == "dada_db":
        assert started["dada_db"][2] == ["-k", site.keys["key_output"], "-b", str(4 * SIDE * SIDE), "-n", "64"]
    if image:
        assert started["apptainer"][2][:4] == ["exec", "--bind", str(site.folder), str(site.bin / image)]
    assert (site.out / "dada_fildb_ob's.log").read_text() == f"reads {site.folder / chr(111)}b's.fil\n"
    assert "dada_dbdedispdb ended" in out


def test_mjds_come_from_the_filterbank_when_the_ring_does_not_say(site):
    site.change(min_snr=0, candidate_classifier=None)
    code, _, errors = site.run("--threshold", "0")
    assert code == 0, errors
    names, *rows = (site.out / "candidates_ob's.csv").read_text().splitlines()
    assert rows
    for row in rows:
        values = dict(zip(names.split(","), row.split(",")))
        assert float(values["mjd"]) == pytest.approx(EFFELSBERG.tstart + float(values["time_s"]) / 86400, abs=1e-9)


def test_n_spectra_ends_programs_that_never_do(site):
    site.change(n_spectra=10)
    site.stand_in("dada_dbdedispdb", IGNORES_SIGTERM.replace("time.sleep", DEDISPDB + "\ntime.sleep"))
    code, out, errors = site.run()
    assert code == 0 and "n_spectra of 10 pages reached" in out, errors
    assert np.array_equal(site.predictions(), expected(site)[:10])


@pytest.mark.parametrize("program", ["dada_fildb", "dada_dbdedispdb"])
def test_a_program_that_fails_at_the_start(site, program):
    site.stand_in(program, FAILS)
    code, out, errors = site.run()
    last = errors.splitlines()[-1]
    assert code == 2 and out == ""
    assert f"{program} ended with exit code 3" in last and "first | no such beam" in last


def test_a_program_that_fails_on_the_way_leaves_what_came(site):
    site.stand_in("dada_dbdedispdb", DEDISPDB + "print('lost the beam', flush=True)\nos.kill(os.getpid(), 15)")
    code, out, errors = site.run()
    assert code == 2 and "dada_dbdedispdb ended with SIGTERM" in errors.splitlines()[-1], errors
    assert "lost the beam" in errors.splitlines()[-1] and "pages" in out
    assert np.array_equal(site.predictions(), expected(site))


@pytest.mark.parametrize("image", [None, "an image.sif"])
def test_the_segmentation_fault_after_the_last_page_is_the_normal_end(site, image, caplog):
    """Its last page is in a block that it did not hand over."""
    site.change(path_to_pulsarx_singularity_image=image and str(site.bin / image))
    if image:  # a runtime that reports the signal of the program as a shell does
        (site.bin / image).touch()
        site.stand_in(
            "apptainer",
            RUNTIME.replace("os.execvp", "code = os.spawnvp").replace("(words[", "(0, words[")
            + "\nsys.exit(code if code >= 0 else 128 - code)",
        )
    site.stand_in("dada_fildb", FILDB + "time.sleep(0.6)")  # it exits after dada_dbdedispdb died
    site.stand_in("dada_dbdedispdb", f"pages = {N_PAGES}{TODAY}{DIES}")
    with caplog.at_level("INFO"):
        code, out, errors = site.run_here()
    assert code == 0, errors
    assert np.array_equal(site.predictions(), expected(site)) and "dada_dbdedispdb ended" in out
    said = [record.getMessage() for record in caplog.records]
    assert sum("SIGSEGV" in line for line in said) == 1
    warnings = {record.name for record in caplog.records if record.levelname == "WARNING"}
    assert warnings <= {"pipeline_classifier.detection.classifiers"}, "only that this pair of networks was not measured"
    summary = json.loads((site.out / "summary_ob's.json").read_text())
    assert summary["pages"] == summary["pages_expected"] == N_PAGES and summary["first_page"] == 0


def test_a_segmentation_fault_before_the_last_page_is_an_error(site):
    site.stand_in("dada_dbdedispdb", f"pages = {N_PAGES - 2}{TODAY}{DIES}")
    code, out, errors = site.run_here()
    last = errors.splitlines()[-1]
    assert code == 2 and f"{N_PAGES - 3} of {N_PAGES} pages came (dada_dbdedispdb ended)" in last, errors
    assert np.array_equal(site.predictions(), expected(site)[: N_PAGES - 3])


def test_a_segmentation_fault_while_the_file_is_read_is_an_error(site, monkeypatch):
    monkeypatch.setattr(transientx, "FEEDER_ENDS_S", 0.3)
    site.stand_in("dada_fildb", FILDB + SLEEPS)
    site.stand_in("dada_dbdedispdb", f"pages = {N_PAGES}{TODAY}{DIES}")
    code, _, errors = site.run_here()
    last = errors.splitlines()[-1]
    assert code == 2 and "dada_dbdedispdb ended with SIGSEGV" in last and "dada_fildb was still running" in last, errors


def test_a_program_that_hangs_is_an_error(site):
    site.change(idle_timeout_s=1.0)
    site.stand_in("dada_dbdedispdb", f"pages = 10{TODAY}{SLEEPS}")
    code, out, errors = site.run_here()
    last = errors.splitlines()[-1]
    assert code == 2 and f"9 of {N_PAGES} pages came (no page for 1 s); dada_dbdedispdb was still running" in last
    assert "pages expected  24" in out and np.array_equal(site.predictions(), expected(site)[:9])


def test_all_pages_of_a_program_that_never_ends(site):
    """The dada_dbdedispdb of 2024."""
    site.change(idle_timeout_s=1.0)
    site.stand_in("dada_dbdedispdb", DEDISPDB + SLEEPS)
    code, out, errors = site.run_here()
    assert code == 0 and "no page for 1 s" in out, errors
    assert np.array_equal(site.predictions(), expected(site))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_it_waits(site, number):
    site.stand_in("dada_dbdedispdb", SLEEPS)
    site.begin()
    site.wait_until(lambda: len(site.started()) == 2)
    site.process.send_signal(number)
    _, errors = site.process.communicate(timeout=PATIENCE_S)
    assert site.process.returncode == 130 and "Traceback" not in errors, errors


def test_a_signal_while_it_searches(site):
    site.stand_in("dada_dbdedispdb", DEDISPDB + SLEEPS)
    site.begin()
    site.wait_until(
        lambda: (site.out / "predictions_ob's.npy").exists() and (site.predictions() != -1).sum() == N_PAGES
    )
    site.process.send_signal(signal.SIGTERM)
    out, errors = site.process.communicate(timeout=PATIENCE_S)
    assert site.process.returncode == 0 and "SIGTERM" in out, errors
    assert np.array_equal(site.predictions(), expected(site))


def test_dada_db_that_fails(site):
    site.change(make_rings_with="dada_db")
    site.stand_in(
        "dada_db", f"if value['-k'].endswith('{site.keys['key_output'][-3:]}'): sys.exit('no room')\n" + DADA_DB
    )
    code, _, errors = site.run()
    assert code == 2 and "dada_db ended with exit code 1" in errors.splitlines()[-1] and "no room" in errors
    assert "dada_fildb" not in site.started()


def test_a_ring_of_somebody_else_is_left_alone(site, parts_of):
    create_rings(site.key + 2, 4096)
    before = part_ids(parts_of(site.key + 2))
    code, _, errors = site.run()
    assert code == 2 and f"ring 0x{site.key + 2:x} exists already" in errors.splitlines()[-1]
    assert part_ids(parts_of(site.key + 2)) == before and site.started() == {} and not any(parts_of(site.key).values())
    sweep_rings(site)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"path_to_pulsarx_singularity_image": "none.sif"}, "none.sif"),
        ({"name_of_the_filterbank": "none.fil"}, "none.fil"),
        ({"path_to_a_transientx_config": None}, "path_to_a_transientx_config"),
        ({"name_of_the_model": "none.pth"}, "none.pth"),
        ({"key_input": "none"}, "key_input"),
    ],
)
def test_what_is_missing_is_said_before_anything_starts(site, monkeypatch, keys, named):
    site.change(**keys)
    monkeypatch.setenv("PATH", f"{site.bin}:{os.environ['PATH']}")
    done = run_here(script, "-c", site.config)
    assert done.returncode == 2 and named in done.stderr.splitlines()[-1] and done.stdout == ""
    assert site.started() == {}


def planned(site: Site) -> list[str]:
    code, out, errors = site.run_here("--dry-run")
    assert code == 0, errors
    return out.splitlines()


@pytest.mark.parametrize(("nchans", "td", "nbits"), [(128, 1, 8), (256, 4, 8), (100, 1, 2)])
def test_blocks_of_the_rings_are_pages_whatever_the_config_says(site, caplog, nchans, td, nbits):
    header = replace(EFFELSBERG, nchans=nchans, nbits=nbits)
    with FilterbankWriter(site.folder / "ob's.fil", header) as writer:
        writer.write(np.zeros((4096, nchans), header.dtype))
    settings = {"downsample": {"td": td, "fd": 1}, "subdedispersion": {"ndm": SIDE}}
    (site.folder / "dedisp.json").write_text(json.dumps(settings))
    with caplog.at_level("INFO"):
        lines = planned(site)
    assert (
        f"16 blocks of {SIDE * td * nchans} bytes" in lines[0] and f"64 blocks of {4 * SIDE * SIDE} bytes" in lines[1]
    )
    assert f"input_buffer_size is {SIDE * td * nchans} instead of {SIDE * 256}" in caplog.text


def test_no_more_threads_than_cores(site, caplog):
    site.change(threads_for_transientx=480)
    with caplog.at_level("INFO"):
        lines = planned(site)
    cores = len(os.sched_getaffinity(0))
    assert any(line.endswith(f"-t {cores}") for line in lines)
    assert caplog.text.count("one per core, instead of 480") == 1


def test_files_that_give_no_pages_are_refused(site):
    with FilterbankWriter(site.folder / "ob's.fil", replace(EFFELSBERG, nbits=32)) as writer:
        writer.write(np.zeros((4096, 256), np.float32))
    code, _, errors = site.run_here()
    assert code == 2 and "dada_fildb reads at most 8 bits per sample, got 32" in errors.splitlines()[-1]
    with FilterbankWriter(site.folder / "ob's.fil", EFFELSBERG) as writer:
        writer.write(np.zeros((7 * SIDE - 1, 256), np.uint8))
    code, _, errors = site.run_here()
    last = errors.splitlines()[-1]
    assert code == 2 and f"at least {7 * SIDE} samples" in last and f"got {7 * SIDE - 1}" in last
    assert site.started() == {}


@pytest.mark.parametrize(
    ("nsamples", "nchans", "keys", "pages"),
    [
        # One minute of the original's observation: the sweep of DM 127.5 takes 6 blocks of 256, a subband's one more.
        (585938, 256, {}, 2288 - 6 - 1),
        (585938, 64, {}, 2288 - 6 - 1),
        (585938, 256, {"downsample": {"td": 4, "fd": 1}}, 572 - 2 - 1),
        (585938, 256, {"subdedispersion": {"dms": 0.0, "ddm": 4.0, "ndm": 256}}, 2288 - 42 - 3),
    ],
)
def test_how_many_pages_a_file_gives(nsamples, nchans, keys, pages):
    """As the loop of dada_dbdedispdb counts: no page until what has been read exceeds the delays by a page."""
    config = PipelineConfig()
    config.transientx = TransientXConfig(**keys)
    frequencies = 1530.0 - 320 / nchans * np.arange(nchans)
    observation = SimpleNamespace(
        nsamples=nsamples, nchans=nchans, frequencies=frequencies, tsamp=1.024e-4, path="a.fil"
    )
    assert transientx.expected_pages(config, observation) == pages


def test_a_dry_run_starts_nothing(site):
    (site.bin / "dada_fildb").unlink()
    code, out, errors = site.run("--dry-run")
    assert code == 0 and site.started() == {} and not site.out.exists()
    [fildb] = [shlex.split(line) for line in out.splitlines() if "dada_fildb" in line and line.startswith("start")]
    assert fildb[1:] == ["dada_fildb", "--key_output", site.keys["key_input"], "-f", str(site.folder / "ob's.fil")]
    assert "dada_fildb is not on PATH" in errors
