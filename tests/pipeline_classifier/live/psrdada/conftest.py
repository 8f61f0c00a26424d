"""Helpers of the tests of PSRDADA rings: pages, the sync segment by offset, threads."""

import ctypes
import struct
import threading
from pathlib import Path

import numpy as np

from pipeline_classifier.live.psrdada.client import Reader, RingError
from pipeline_classifier.live.psrdada.sysv import Segment, Semaphores

BLOCK = 1000
STEP = 0x10000
IMPORTS = "import sys, numpy as np; from pipeline_classifier.live.psrdada.client import *; key = int(sys.argv[1]);"


def page(number: int, nbytes: int = BLOCK) -> bytes:
    """Random bytes, the same ones for the same number."""
    return np.random.default_rng(number).bytes(nbytes)


def fields(key: int) -> dict:
    """The sync segment, read by the offsets of ``ipcsync_t`` in ipcbuf.h, independently of the code under test."""
    segment = Segment(key)
    raw = ctypes.string_at(segment.address, segment.size)
    segment.detach()
    one = {"semkey_connect": ("i", 0), "nbufs": ("Q", 40), "bufsz": ("Q", 48), "w_buf_next": ("Q", 56)}
    one |= {"w_buf_curr": ("Q", 64), "w_state": ("i", 72), "w_xfer": ("Q", 80), "n_readers": ("I", 248)}
    one |= {"on_device_id": ("i", 520)}
    eight = {"semkey_data": ("i", 4), "r_bufs": ("Q", 88), "r_states": ("i", 152), "r_xfers": ("Q", 184)}
    eight |= {"s_buf": ("Q", 256), "s_byte": ("Q", 320), "eod": ("B", 384), "e_buf": ("Q", 392), "e_byte": ("Q", 456)}
    values = {name: struct.unpack_from(f"<{code}", raw, at)[0] for name, (code, at) in one.items()}
    values |= {name: list(struct.unpack_from(f"<8{code}", raw, at)) for name, (code, at) in eight.items()}
    nbufs = values["nbufs"]
    values["count"] = list(raw[528 : 528 + nbufs])
    values["shmkey"] = list(struct.unpack_from(f"<{nbufs}i", raw, 528 + nbufs))
    values["size"] = segment.size
    return values


def put(key: int, offset: int, code: str, value: int) -> None:
    """Overwrite a number in the sync segment."""
    segment = Segment(key)
    ctypes.memmove(segment.address + offset, struct.pack(f"<{code}", value), struct.calcsize(code))
    segment.detach()


def semaphores(key: int, n: int) -> list[int]:
    values = Semaphores(key, n)
    return [values[number] for number in range(n)]


def attached() -> int:
    """Number of shared memory segments that this process has attached."""
    return Path("/proc/self/maps").read_text().count("/SYSV")


def read_transfer(reader: Reader) -> bytes:
    return b"".join(bytes(part) for part in reader)


def in_thread(function, *args) -> tuple[threading.Thread, list]:
    """Run in a thread; the list receives the result, or the RingError that was raised."""
    results: list = []

    def work() -> None:
        try:
            results.append(function(*args))
        except RingError as error:
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, results
