"""Compiled loops against a reference in numpy."""

import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_classifier.frontend import kernels


@given(
    n=st.integers(1, 40),
    columns=st.integers(1, 60),
    origin=st.integers(0, 30),
    stretch=st.integers(1, 20),
    shifts=st.lists(st.integers(0, 25), min_size=2, max_size=2),
    inside=st.integers(0, 6),
    kind=st.sampled_from([np.int16, np.int32]),
)
@settings(deadline=None)
def test_samples_are_added_at_their_delays_where_the_plane_has_columns(
    n, columns, origin, stretch, shifts, inside, kind
):
    """One sub-band of three channels, of which the first two are summed before; two trial DMs with different shifts."""
    data = np.random.default_rng(0).integers(-128, 128, (3, n)).astype(np.int8)
    plane = np.random.default_rng(1).integers(-100, 100, (2, columns)).astype(kind)
    expected = plane.copy()
    for row, shift in zip(expected, shifts, strict=True):
        for channel, delay in enumerate((shift, shift + inside, shift)):
            for t in range(n):
                if 0 <= origin + t - delay < columns:
                    row[origin + t - delay] += data[channel, t]
    pitch = stretch + inside
    sub_bands = np.array([[0, 3, inside, min(shifts), max(shifts), pitch, 1]])
    additions = np.array([[0, pitch + inside, 3 * pitch, stretch]])
    summands = np.array([[[3 * pitch, 2 * pitch, shift] for shift in shifts]])
    memory = np.full(3 * pitch + stretch, 999, np.int16)
    kernels.dedisperse(data, plane, origin, sub_bands, additions, summands, memory, stretch)
    np.testing.assert_array_equal(plane, expected)


@pytest.mark.parametrize(("first", "width"), [(0, 5), (-3, 10), (-20, 10), (7, 10), (30, 4), (-2, 12)])
def test_samples_outside_the_data_are_zeros(first, width):
    data = np.arange(1, 21, dtype=np.int8).reshape(2, 10)
    memory = np.full(40, 99, np.int16)
    kernels._copy_samples(data, first, width, 15, memory)
    padded = np.pad(data, ((0, 0), (50, 50)))[:, 50 + first : 50 + first + width]
    for channel in range(2):
        np.testing.assert_array_equal(memory[15 * channel :][:width], padded[channel])
    assert (memory[15 + width :] == 99).all() and (memory[width:15] == 99).all()


LOOP = """from pipeline_classifier.frontend.kernels import kernel

@kernel
def twice(x):
    return 2 * x

@kernel
def four_times(x):
    return 2 * twice(x)
"""


@pytest.mark.parametrize("is_writable", [True, False])
def test_compilation_is_announced_once_and_a_cache_that_cannot_be_written(tmp_path, monkeypatch, caplog, is_writable):
    """A cached loop is loaded without a word; without a cache it is compiled again, with a warning."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/none")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "loop_of_test.py").write_text(LOOP)
    if not is_writable:
        (tmp_path / "__pycache__").touch()
    caplog.set_level(logging.INFO)
    said = []
    for _ in range(2):
        kernels._log_compilation.cache_clear()  # as in a new process
        kernels._warn_without_cache.cache_clear()
        caplog.clear()
        loops = importlib.import_module("loop_of_test")
        assert not caplog.records and loops.four_times(3) == 12 and loops.twice(3) == 6
        said.append([record.message for record in caplog.records])
        del sys.modules["loop_of_test"]
    compiled = [message for message in said[0] if "are compiled for this machine" in message]
    warned = [message for message in said[0] if "NUMBA_CACHE_DIR" in message]
    assert (len(compiled), len(warned)) == (1, not is_writable)
    assert said[1] == ([] if is_writable else said[0])


CLEANED = """import sys
import numpy as np
from pipeline_classifier.frontend.cleaning_kernels import write_samples

generator = np.random.default_rng(0)
raw = generator.integers(90, 110, (640, 64), np.uint8)
nodes, scale, coefficient, series = (generator.random(n, np.float32) for n in ((3, 64), 64, 64, 640))
out = np.empty((64, 640), np.float32)
write_samples(raw, nodes, 200, scale, coefficient, series, np.zeros(640, bool), np.float32(0), out)
sys.stdout.buffer.write(out.tobytes())
"""


def test_loops_round_alike_in_the_process_that_compiles_them_and_in_one_that_loads_them(tmp_path):
    command, root = [sys.executable, "-c", CLEANED], Path(__file__).resolve().parents[3]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    compiled, loaded = (
        subprocess.run(command, cwd=root, env=environment, check=True, stdout=subprocess.PIPE).stdout for _ in range(2)
    )
    assert len(compiled) == 4 * 64 * 640 and compiled == loaded
    assert list(tmp_path.rglob("*.write_samples-*.nbc"))


@given(
    values=st.lists(
        st.sampled_from([-3.0, -0.0, 0.0, 1.0, 1.0 + 2**-23, 7.5, 1e30, np.inf, -np.inf]) | st.floats(-1, 1, width=32),
        min_size=1,
        max_size=40,
    ),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_selection_equals_a_partition(values, data):
    values = np.array([values, values[::-1]], np.float32)
    rank = data.draw(st.integers(0, values.shape[1] - 1))
    expected, selected = np.partition(values, rank, axis=1)[:, rank], np.empty(2, np.float32)
    kernels.select(values, rank, selected)
    assert (selected == expected).all() or not np.isfinite(expected).all()


def test_values_that_are_not_numbers_are_selected_last():
    values = np.array([[np.nan, 2, np.nan, 1, 3], [np.nan] * 5], np.float32)
    selected = np.empty(2, np.float32)
    kernels.select(values, 2, selected)
    assert selected.tolist() == [3.0, 0.0]


@pytest.mark.parametrize("kind", ["normal", "of few values", "powers", "one outlier"])
def test_selection_of_any_values(kind):
    """Few distinct values, a range of magnitudes and an outlier are where bisection takes long or ends early."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((5, 2001)).astype(np.float32)
    if kind == "of few values":
        values = np.round(4 * values) * np.float32(0.008)
    elif kind == "powers":
        values = np.ldexp(np.float32(1), rng.integers(-140, 120, values.shape)) * np.sign(values)
    elif kind == "one outlier":
        values[:, 7] = 3e38
    for rank in (0, 1, 999, 1000, 1999, 2000):
        selected = np.empty(5, np.float32)
        kernels.select(values, rank, selected)
        np.testing.assert_array_equal(selected, np.partition(values, rank, axis=1)[:, rank])
