"""Processes of torchrun end when it dies, whenever that happens."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAINING = ROOT / "single_pulse_classifier_training" / "training.py"
INFERENCE = ROOT / "pipeline_classifier" / "run_inference.py"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
# Starts a process as torchrun does.
LAUNCHER = """
import subprocess, sys
process = subprocess.Popen(sys.argv[1:], start_new_session=True)
print(process.pid, flush=True)
process.wait()
"""


def write_config(folder: Path) -> Path:
    """The config of a training that does not end."""
    np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 256, (40, 32, 32), dtype=np.uint8))
    np.save(folder / "labels.npy", np.arange(40) % 2)
    keys = {"path_to_files": ".", "resolution": 32, "model_name": "DM_time_binary_classificator_241002_3_GAP"}
    keys |= {"files_by_resolution": {"32": "images.npy"}, "labels": "labels.npy"}
    keys |= {"num_epochs": 10**6, "patience": 10**6, "device": "cpu"}
    (folder / "config.json").write_text(json.dumps(keys))
    return folder / "config.json"


def ends(pid: int, timeout_s: float = 30.0) -> bool:
    """Whether a process, which need not be a child of this one, ends in time."""
    poll = select.poll()
    poll.register(os.pidfd_open(pid), select.POLLIN)
    return bool(poll.poll(1000 * timeout_s))


@pytest.mark.parametrize("script", ["training", "inference"])
def test_a_worker_ends_with_the_launcher(tmp_path, script):
    if script == "training":
        command, begun = [TRAINING, write_config(tmp_path)], "epoch 2"
    else:  # waits for a ring that does not exist
        (tmp_path / "config.json").write_text(json.dumps({"key_output": "7ead0", "output_dir": "."}))
        command, begun = [INFERENCE, "-c", tmp_path / "config.json"], "classifier"
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, sys.executable, *map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT | {"TORCHELASTIC_RUN_ID": "x"},
    )  # fmt: skip
    with launcher:
        worker = int(launcher.stdout.readline())
        try:
            assert any(begun in line for line in launcher.stderr), "the worker did not begin"
            launcher.kill()
            assert ends(worker), "the worker is still there"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("alive", [True, False])
def test_a_worker_that_starts_after_the_launcher_died_does_not_begin(tmp_path, alive):
    with socket.create_server(("localhost", 0)) as store:
        port = store.getsockname()[1]
        if not alive:
            store.close()
        elastic = {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True"}
        elastic |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        command = [sys.executable, TRAINING, tmp_path / "none.json"]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT | elastic, check=False)
    expected = (2, "none.json does not exist") if alive else (1, "torchrun, which started this process, has ended")
    assert (done.returncode, "Traceback" in done.stderr) == (expected[0], False)
    assert expected[1] in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["start", "epoch 2"])
def test_sigkill_of_torchrun_leaves_no_process(tmp_path, moment):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(TRAINING), str(write_config(tmp_path))]
    launcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    workers: list[int] = []
    try:
        while len(workers) < 2:
            children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
            workers = [int(pid) for pid in children if "training.py" in command_line(pid)]
        assert moment == "start" or any(moment in line for line in launcher.stderr)
        launcher.kill()
        assert all(map(ends, workers))
    finally:
        launcher.kill()
        launcher.wait()
        launcher.stderr.close()
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)


def command_line(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
