"""Several files as one observation: the samples equal those of a single file, wherever it was split."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline_classifier.formats import joined as joined_files
from pipeline_classifier.formats.joined import BackwardFiles, JoinedFilterbank, open_observation
from pipeline_classifier.formats.sigproc import Filterbank, FilterbankWriter, Header
from single_pulse_classifier_training.cli import InputError

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
HEADER = Header(nchans=16, nbits=8, tsamp=1.024e-4, fch1=1530.0, foff=-1.25, tstart=59000.48386574)
NSAMPLES = 60


def write(path: Path, header: Header, samples: np.ndarray, start: float = 0.0) -> Path:
    """Samples that begin ``start`` samples after the header's own start time."""
    with FilterbankWriter(path, replace(header, tstart=header.tstart + start * header.tsamp / 86400)) as file:
        file.write(samples)
    return path


def random_samples(header: Header) -> np.ndarray:
    rng = np.random.default_rng(1)
    shape = (NSAMPLES, header.nchans) if header.nifs == 1 else (NSAMPLES, header.nifs, header.nchans)
    if header.nbits == 32:
        return rng.standard_normal(shape, dtype=np.float32)
    low = -(1 << header.nbits - 1) if header.dtype.kind == "i" else 0
    return rng.integers(low, low + 2**header.nbits, shape).astype(header.dtype)


@given(
    splits=st.sets(st.integers(1, NSAMPLES - 1), max_size=4),
    nbits=st.sampled_from([1, 2, 4, 8, 16, 32]),
    signed=st.booleans(),
    nifs=st.integers(1, 2),
    foff=st.sampled_from([-1.25, 1.25]),
    start=st.integers(0, NSAMPLES + 5),
    n=st.integers(0, NSAMPLES + 5),
    backwards=st.booleans(),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_samples_as_one_file(tmp_path, splits, nbits, signed, nifs, foff, start, n, backwards):
    header = replace(HEADER, nbits=nbits, signed=signed, nifs=nifs, foff=foff)
    samples = random_samples(header)
    whole = Filterbank(write(tmp_path / "whole.fil", header, samples))
    edges = [0, *sorted(splits), NSAMPLES]
    paths = [write(tmp_path / f"{a}.fil", header, samples[a:b], a) for a, b in pairwise(edges)]
    joined = JoinedFilterbank(paths[::-1] if backwards else paths)
    read, expected = joined.read(start, n), whole.read(start, n)
    np.testing.assert_array_equal(read, expected)
    assert read.dtype == expected.dtype and read.flags.c_contiguous and read.flags.writeable
    with mock.patch.object(joined_files, "ROWS_AT_ONCE", 7):
        turned = open_observation(BackwardFiles(paths))
        read, expected = turned.read(start, n), whole.read(0, NSAMPLES)[::-1][start : start + n]
    np.testing.assert_array_equal(read, expected)
    assert read.dtype == expected.dtype and read.flags.c_contiguous and read.flags.writeable
    assert turned.ends == [NSAMPLES - edge for edge in edges[-2::-1]]
    for observation in (joined, turned):
        for name in ("nsamples", "nchans", "tsamp", "tstart", "bytes_left_over", "ifs", "header"):
            assert getattr(observation, name) == getattr(whole, name)
        np.testing.assert_array_equal(observation.frequencies, whole.frequencies)
        assert observation.path.stem == "0"
        with pytest.raises(ValueError, match="negative"):
            observation.read(-1, 5)


@pytest.mark.parametrize(
    "shift, message",
    [
        (0.0, None),
        (0.5, None),
        (-0.9, None),
        (1.0, None),
        (1.3, "a gap of 0.00013312 s"),
        (1000.0, "a gap of 0.1024 s"),
        (-3.0, "an overlap of 0.0003072 s"),
    ],
)
def test_a_gap_or_an_overlap_of_more_than_a_sample_is_refused(tmp_path, shift, message):
    header = replace(HEADER, tstart=0.0)  # MJDs near zero hold a sample to many digits
    samples = random_samples(header)
    paths = [write(tmp_path / "a.fil", header, samples), write(tmp_path / "b.fil", header, samples, NSAMPLES + shift)]
    if message is None:
        assert JoinedFilterbank(paths).nsamples == 2 * NSAMPLES
    else:
        with pytest.raises(InputError, match=f"b.fil: must start at the end of .*a.fil, got {message} .*separately"):
            JoinedFilterbank(paths)


def test_the_rounding_of_an_mjd_is_not_a_gap(tmp_path):
    """An MJD of 59000 has a precision of 0.6 us, more than three of these samples."""
    header = replace(HEADER, tsamp=2e-7)
    samples = random_samples(header)
    ulp_s = np.spacing(header.tstart) * 86400
    paths = [write(tmp_path / f"{k}.fil", header, samples, k * NSAMPLES + k * 0.9 * ulp_s / 2e-7) for k in range(2)]
    assert JoinedFilterbank(paths).nsamples == 2 * NSAMPLES


@pytest.mark.parametrize(
    "keyword, value",
    [
        ("nchans", 8),
        ("nbits", 4),
        ("nifs", 2),
        ("signed", True),
        ("tsamp", 1.0245e-4),
        ("fch1", 1531.0),
        ("foff", 1.25),
    ],
)
def test_files_that_differ_are_named(tmp_path, keyword, value):
    other = replace(HEADER, **{keyword: value})
    paths = [
        write(tmp_path / "a.fil", HEADER, random_samples(HEADER)),
        write(tmp_path / "b.fil", other, random_samples(other), NSAMPLES),
    ]
    with pytest.raises(InputError, match=f"b.fil: {keyword} must be .*a.fil, got {value}"):
        JoinedFilterbank(paths)


def test_an_if_can_be_selected_and_an_empty_list_is_refused(tmp_path):
    header = replace(HEADER, nifs=2)
    samples = random_samples(header)
    paths = [write(tmp_path / "a.fil", header, samples[:20]), write(tmp_path / "b.fil", header, samples[20:], 20)]
    np.testing.assert_array_equal(JoinedFilterbank(paths, ifs=1).read(15, 10), samples[15:25, 1])
    with pytest.raises(InputError, match="ifs must be 'sum' or from 0 to 1, got 2"):
        JoinedFilterbank(paths, ifs=2)
    with pytest.raises(InputError, match="filterbank: at least one file must be given"):
        JoinedFilterbank([])


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
def test_two_files_of_one_real_observation():
    b, a = (DATA / f"parkes_uwl_crab_{letter}_8bit.fil" for letter in "ba")
    joined = JoinedFilterbank([b, a])
    assert joined.nsamples == 8192 and joined.path == a
    np.testing.assert_array_equal(joined.read(4000, 200)[:96], Filterbank(a).read(4000, 96))
    np.testing.assert_array_equal(joined.read(4000, 200)[96:], Filterbank(b).read(0, 104))
