"""A training that is killed, stopped or out of disk space continues as if nothing had happened."""

import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from single_pulse_classifier_training import training, training_state
from single_pulse_classifier_training.checkpoint import load_checkpoint, load_training_state
from single_pulse_classifier_training.distributed import Ranks
from tests.command_line import run_here

SCRIPT = Path(__file__).resolve().parents[2] / "single_pulse_classifier_training" / "training.py"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
MODEL_NAME = "DM_time_binary_classificator_241002_3_dropout"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with images that a network can learn from, and their labels."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    images = (60 + 10 * random.normal(size=(400, 32, 32))).clip(0, 255).astype(np.uint8)
    labels = np.arange(400) % 2
    images[labels == 1, :, 12:15] += 15
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    return folder


def write_config(data: Path, path: Path, **changes) -> Path:
    """The config of a short training with every source of chance in it: order, dropout, augmentation."""
    content = {
        "path_to_files": str(data), "resolution": 32, "model_name": MODEL_NAME,
        "files_by_resolution": {"32": "images.npy"}, "labels": "labels.npy", "learning_rate": 1e-3, "num_epochs": 6,
        "patience": 6, "batch_size": 16, "augment": True, "scheduler": "cosine", "warmup_epochs": 1.5,
        "gradient_clip": 1.0, "device": "cpu",
    }  # fmt: skip

    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content | changes))
    return path


@pytest.fixture
def config(data, tmp_path):
    """Return a function that writes the config into a new folder and returns its path."""
    return lambda folder, **changes: write_config(data, tmp_path / folder / "config.json", **changes)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A training that nothing disturbed, and how long it took."""
    path = write_config(data, tmp_path_factory.mktemp("whole") / "config.json")
    began = time.monotonic()
    train(path)
    return path, time.monotonic() - began


def command(config: Path, *options: str) -> list[str]:
    return [sys.executable, str(SCRIPT), str(config), *options]


def train(config: Path, *options: str, returncode: int = 0, **settings) -> subprocess.CompletedProcess:
    done = subprocess.run(
        command(config, *options), capture_output=True, text=True, env=ENVIRONMENT, check=False, **settings
    )
    assert done.returncode == returncode, done.stderr
    return done


def train_here(config: Path, *options: str, returncode: int = 0) -> subprocess.CompletedProcess:
    """The same inside of the process of the tests, without the start of another one."""
    done = run_here(training, config, *options)
    assert done.returncode == returncode, done.stderr
    return done


def checkpoints(config: Path, model_name: str = MODEL_NAME) -> Path:
    return config.parent / "checkpoints" / f"ch_point_{model_name}_32"


def assert_same_training(config: Path, other: Path, model_name: str = MODEL_NAME) -> None:
    """Same weights, history, optimiser, and random state, to the last bit; same files."""
    one, two = checkpoints(config, model_name), checkpoints(other, model_name)
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    for name in ("best.pth", "last.pth"):
        weights, others = (load_checkpoint(folder / name, "cpu").model.state_dict() for folder in (one, two))
        for key, tensor in weights.items():
            assert torch.equal(tensor, others[key]), key
    states = [load_training_state(folder / "last.pth")[1] for folder in (one, two)]
    assert states[0]["progress"]["history"] == states[1]["progress"]["history"]
    assert states[0]["rng_states"][0]["torch"].equal(states[1]["rng_states"][0]["torch"])
    for key, moments in states[0]["optimiser"]["state"].items():
        for name, tensor in moments.items():
            assert torch.equal(tensor, states[1]["optimiser"]["state"][key][name])


def test_killed_at_random_moments_it_ends_with_the_same_weights(whole, config):
    """SIGKILL from the start of the process to its end, with a state saved every few steps."""
    (whole, duration), killed = whole, config("killed", checkpoint_interval_s=0.05)
    random = np.random.default_rng(1)
    kills = 0
    for part in random.uniform(0.5, 1.0, 3):
        process = subprocess.Popen(command(killed, "--resume"), stderr=subprocess.DEVNULL, env=ENVIRONMENT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(part * duration)
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills > 0
    train(killed, "--resume")
    assert_same_training(whole, killed)


@pytest.mark.slow
def test_killed_while_it_writes_a_checkpoint(config):
    """The network is large enough (38 MB with the optimiser's moments) to be caught in the middle of a write."""
    name = "DM_time_binary_classificator_241002_1"
    changes = {"model_name": name, "num_epochs": 2, "batch_size": 64}
    whole, killed = config("whole", **changes), config("killed", **changes, checkpoint_interval_s=0.001)
    train(whole)
    folder = checkpoints(killed, name)
    for _ in range(2):
        process = subprocess.Popen(command(killed, "--resume"), stderr=subprocess.DEVNULL, env=ENVIRONMENT)
        written = set(folder.glob(".*.tmp"))
        while process.poll() is None and set(folder.glob(".*.tmp")) <= written:
            pass
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
        assert list(folder.glob(".*.tmp")), "it was not killed in the middle of a write"
        last = folder / "last.pth"
        assert not last.exists() or load_checkpoint(last, "cpu")
    train(killed, "--resume")
    assert_same_training(whole, killed, name)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_exits(whole, config, number):
    stopped = config("stopped")
    process = subprocess.Popen(command(stopped), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "epoch 2" in line:
            process.send_signal(number)
    assert process.wait() == 128 + number
    assert "--resume continues" in lines[-1] and not any("Traceback" in line for line in lines)
    progress = load_training_state(checkpoints(stopped) / "last.pth")[1]["progress"]
    assert progress["epoch"] == 3 and 1 <= progress["n_batches"] <= 20
    train(stopped, "--resume")
    assert_same_training(whole[0], stopped)


def test_a_finished_training_resumed_reports_again_and_more_epochs_go_on(config):
    path = config("a", scheduler=None, num_epochs=2)
    first = train_here(path)
    weights = (checkpoints(path) / "last.pth").read_bytes()
    again = train_here(path, "--resume")
    assert again.stdout.splitlines()[:-1] == first.stdout.splitlines()[:-1]
    assert (checkpoints(path) / "last.pth").read_bytes() == weights
    longer = train_here(config("a", scheduler=None, num_epochs=3), "--resume")
    assert longer.stdout.startswith("epochs:      3")
    whole = config("b", scheduler=None, num_epochs=3)
    train_here(whole)
    assert_same_training(whole, path)


def test_resume_refuses_another_training(config):
    train_here(config("a", num_epochs=1))
    done = train_here(config("a", num_epochs=2, learning_rate=0.1), "--resume", returncode=2)
    assert "learning_rate must be 0.001 to resume" in done.stderr.splitlines()[-1]
    done = train_here(config("a", num_epochs=2), "--resume", returncode=2)
    assert "num_epochs must be 1 to resume" in done.stderr.splitlines()[-1]
    assert "with the scheduler cosine the learning rate depends on it, got 2" in done.stderr.splitlines()[-1]
    last = checkpoints(config("a")) / "last.pth"
    last.write_bytes((last.parent / "best.pth").read_bytes())
    done = train_here(config("a"), "--resume", returncode=2)
    assert "must hold a training state" in done.stderr.splitlines()[-1]
    last.write_bytes(last.read_bytes()[:1000])
    done = train_here(config("a"), "--resume", returncode=2)
    assert "cannot be read: it is damaged" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("key", "before", "after", "message"),
    [
        ("tsamp_s", 0.001, 0.002, "tsamp_s must be 0.001 to resume"),
        ("dms", [0.5 * row for row in range(32)], [1.0 * row for row in range(32)], "dms must be 32 from 0 to 15.5 to"),
    ],
)
def test_resume_refuses_other_dms_or_sampling_times_which_the_best_checkpoint_does_not_have(
    config, key, before, after, message
):
    """Also of a finished training, whose best.pth would keep the old values."""
    keys = {"num_epochs": 1, "scheduler": None}
    train_here(config("a", **keys, **{key: before}))
    train_here(config("a", **keys, **{key: before}), "--resume")
    done = train_here(config("a", **keys, **{key: after}), "--resume", returncode=2)
    assert message in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("changed", ["images", "labels", "groups"])
def test_resume_refuses_a_set_that_was_changed(data, config, tmp_path, changed):
    """Same files and shapes, other content; a copy of the same files is accepted."""
    copy = Path(shutil.copytree(data, tmp_path / "copy"))
    np.save(data / "groups.npy", np.arange(400) // 8)
    np.save(copy / "groups.npy", np.arange(400) // 8)
    train_here(config("a", num_epochs=1, scheduler=None, groups="groups.npy"))
    moved = {"num_epochs": 2, "scheduler": None, "groups": "groups.npy", "path_to_files": str(copy)}
    train_here(config("a", **moved), "--resume")
    content = np.load(copy / f"{changed}.npy")
    content[[5, 300]] = content[[300, 5]] if changed == "images" else 1 - content[[5, 300]]
    np.save(copy / f"{changed}.npy", content)
    done = train_here(config("a", **(moved | {"num_epochs": 3})), "--resume", returncode=2)
    assert "last.pth: the images, labels and groups must be those of the interrupted" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("key", "value"), [("optimiser", {}), ("rng_states", [{}]), ("progress", {"epoch": 2})])
def test_resume_refuses_a_state_without_one_of_its_parts(config, key, value):
    path = config("a", num_epochs=1)
    train_here(path)
    last = checkpoints(path) / "last.pth"
    content = torch.load(last, weights_only=True)
    content["training"][key] = value
    torch.save(content, last)
    done = train_here(path, "--resume", returncode=2)
    assert "last.pth: the training state must be one that training.py wrote" in done.stderr.splitlines()[-1]


def test_a_full_disk_is_one_sentence_and_leaves_earlier_checkpoints_intact(config):
    path = config("a", num_epochs=1, scheduler=None)
    train_here(path)
    before = {file.name: file.read_bytes() for file in checkpoints(path).iterdir()}
    # 90 kB hold the weights but not the optimiser's moments besides: the write of last.pth stops half-way.
    limit = 90_000
    done = train(
        config("a", num_epochs=3, scheduler=None), "--resume", returncode=2,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert "File too large" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert "last.pth" in done.stderr.splitlines()[-1]
    after = {file.name: file.read_bytes() for file in checkpoints(path).iterdir()}
    assert after["last.pth"] == before["last.pth"]
    assert load_checkpoint(checkpoints(path) / "best.pth", "cpu")
    assert not [name for name in after if name.endswith(".tmp")]


def one_of_two(rank: int, port: int, arguments: list[str], signal_at: int, pipe) -> None:
    """Train as torchrun starts it, in a fork of the tests; send the number of steps before it ends.

    The process of rank 1 gets SIGTERM twice, as from a batch system and from torchrun, after ``signal_at`` steps.
    """
    steps = 0
    after_step = training_state.Watch.after_step

    def counted(watch: training_state.Watch, ranks: Ranks) -> tuple[int, bool]:
        nonlocal steps
        steps += 1
        if rank == 1 and steps == signal_at:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        return after_step(watch, ranks)

    training_state.Watch.after_step = counted
    os.environ |= {"RANK": f"{rank}", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": f"{port}"}
    torch.set_num_threads(1)
    try:
        training.run(training.get_parser().parse_args(arguments))
    finally:
        pipe.send(steps)


def two_processes(config: Path, *options: str, signal_at: int = 0) -> tuple[list[int], list[int]]:
    """Train in two processes; return their exit codes and numbers of steps."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    fork, pipes, processes = multiprocessing.get_context("fork"), [], []
    for rank in range(2):
        pipe, end = fork.Pipe()
        process = fork.Process(target=one_of_two, args=(rank, port, [str(config), *options], signal_at, end))
        process.start()
        pipes.append(pipe)
        processes.append(process)
    steps = [pipe.recv() if pipe.poll(60) else -1 for pipe in pipes]
    for process in processes:
        process.join(10)
        process.kill()
        process.join()
    return [process.exitcode for process in processes], steps


def test_two_processes_train_as_one(config, monkeypatch):
    """The same weights as one process with the same batches; a signal to one stops both, and they continue."""
    changes = {"model_name": "DM_time_binary_classificator_241002_3", "augment": False, "class_weights": True}
    changes |= {"scheduler": None, "num_epochs": 2}
    alone, together, stopped = (config(folder, **changes) for folder in ("alone", "together", "stopped"))
    train_here(alone)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, str(SCRIPT), str(together)], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epochs:") == 1
    name = changes["model_name"]
    one, two = (load_training_state(checkpoints(path, name) / "last.pth") for path in (alone, together))
    for key, tensor in one[0].model.state_dict().items():
        assert torch.allclose(tensor, two[0].model.state_dict()[key], rtol=1e-3, atol=1e-5), key
    for record, other in zip(one[1]["progress"]["history"], two[1]["progress"]["history"], strict=True):
        assert record == pytest.approx(other, rel=1e-3)

    monkeypatch.setattr(training_state, "AGREEMENT_S", 0.01)
    codes, steps = two_processes(stopped, signal_at=5)
    assert codes == [143, 143] and steps[0] == steps[1] >= 5
    progress = load_training_state(checkpoints(stopped, name) / "last.pth")[1]["progress"]
    assert 20 * (progress["epoch"] - 1) + progress["n_batches"] == steps[0] < 40
    assert two_processes(stopped, "--resume") == ([0, 0], [40 - steps[0]] * 2)
    assert_same_training(together, stopped, name)


def test_processes_agree_once_per_second_and_not_after_every_step(monkeypatch):
    """Steps of 1 ms: the next agreement is chosen from the time of the slowest process."""
    clock, agreements = [0.0], []

    class TwoRanks(Ranks):
        def largest(self, *values_here: float) -> list[float]:
            agreements.append(clock[0])
            return [15.0 if clock[0] > 4 else 0.0, 0.0, 2 * values_here[2]]

    monkeypatch.setattr(training_state.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(training_state.signal, "signal", lambda *_: None)
    watch = training_state.Watch(600.0)
    for step in range(1, 10_000):
        clock[0] = step / 1000
        number, due = watch.after_step(TwoRanks(0, 2))
        if number:
            break
    assert number == 15 and not due and len(agreements) < 12
    assert np.diff(agreements) == pytest.approx(0.5, rel=0.01)
