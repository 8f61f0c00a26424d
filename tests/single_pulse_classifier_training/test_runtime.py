"""Files appear complete or not at all, and what killed writers left is removed, but not what living ones write."""

import contextlib
import errno
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from single_pulse_classifier_training.runtime import atomic_writer, make_output_folder, save_npy

WRITER = """
import sys
from single_pulse_classifier_training.runtime import atomic_writer
with atomic_writer(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.readline()
    file.write(b" and half")
"""


def test_atomic_writer_leaves_nothing_of_a_failed_write(tmp_path):
    path = tmp_path / "result.npy"
    with pytest.raises(RuntimeError), atomic_writer(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_writer(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"


@contextlib.contextmanager
def writing(path: Path):
    """Another process in the middle of a write."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def test_the_next_run_removes_what_a_killed_one_left_and_not_what_others_write(tmp_path):
    with writing(tmp_path / "a.bin") as killed, writing(tmp_path / "b.bin") as living:
        killed.kill()
        killed.wait()
        (tmp_path / ".theirs.tmp").write_bytes(b"of another program")
        (left, other) = sorted(tmp_path.glob(".?.bin.*.tmp"))
        make_output_folder(tmp_path, "output_dir")
        assert not left.exists() and left.name.startswith(".a.bin") and other.exists()
        living.communicate("\n")
    assert (tmp_path / "b.bin").read_bytes() == b"half and half"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".theirs.tmp", "b.bin"]


def test_files_of_another_machine_are_left_alone_for_an_hour(tmp_path):
    """Its locks may be unknown here. Names of version 0.1 do not tell the machine."""
    for name, age_s in ((".a.0000-7.tmp", 10), (".b.0000-7.tmp", 4000), (".c.7.tmp", 10), (".d.7.tmp", 4000)):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    make_output_folder(tmp_path, "output_dir")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.0000-7.tmp", ".c.7.tmp"]


def test_a_file_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    """The race between a new writer and a process that looks for left-over files."""
    import fcntl

    lock, removed = fcntl.flock, []

    def remove_first(file, operation):
        if not removed:
            removed.extend(tmp_path.iterdir())
            removed[0].unlink()
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with atomic_writer(tmp_path / "a.bin") as file:
        file.write(b"whole")
    assert removed and (tmp_path / "a.bin").read_bytes() == b"whole"


def test_a_file_system_without_locks_is_written_to(tmp_path, monkeypatch):
    def no_locks(file, operation):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    for content in (b"long content", b"new"):
        with atomic_writer(tmp_path / "a.bin") as file:
            file.write(content)
            make_output_folder(tmp_path, "output_dir")
    assert (tmp_path / "a.bin").read_bytes() == b"new"


def test_threads_that_write_the_same_file_write_it_whole(tmp_path):
    def write(number: int) -> None:
        with atomic_writer(tmp_path / "a.bin") as file:
            for _ in range(50):
                file.write(bytes([number]) * 1000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = (tmp_path / "a.bin").read_bytes()
    assert len(content) == 50_000 and len(set(content)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_full_disk_names_the_file(tmp_path):
    """numpy gives neither the name nor a reason."""
    save_npy(tmp_path / "a.npy", np.zeros(3))
    before = (tmp_path / "a.npy").read_bytes()
    no_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, no_limit[1]))
    try:
        with pytest.raises(OSError) as error:
            save_npy(tmp_path / "a.npy", np.zeros(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, no_limit)
    assert error.value.filename == str(tmp_path / "a.npy") and error.value.strerror
    assert (tmp_path / "a.npy").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
