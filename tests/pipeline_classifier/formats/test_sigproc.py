"""SIGPROC files: samples and headers survive the round trip, and a damaged file raises nothing but InputError."""

import io
import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline_classifier.formats.sigproc import (
    Filterbank,
    FilterbankWriter,
    Header,
    pack,
    read_header,
    unpack,
    write_header,
)
from single_pulse_classifier_training.cli import InputError

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
real_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
on_one_file = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

HEADER = Header(nchans=16, nbits=8, tsamp=1.024e-4, fch1=1530.0, foff=-1.25, tstart=59000.48386574)
text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
int32 = st.integers(-(2**31), 2**31 - 1)
coordinate = st.floats(-1e6, 1e6)


def header_bytes(header: Header) -> bytes:
    file = io.BytesIO()
    write_header(file, header)
    return file.getvalue()


def write(path: Path, header: Header, samples: np.ndarray) -> Filterbank:
    with FilterbankWriter(path, header) as file:
        for block in np.array_split(samples, 3):
            file.write(block)
    return Filterbank(path)


def random_samples(header: Header, nsamples: int = 50) -> np.ndarray:
    rng = np.random.default_rng(1)
    shape = (nsamples, header.nchans) if header.nifs == 1 else (nsamples, header.nifs, header.nchans)
    if header.nbits == 32:
        return rng.standard_normal(shape, dtype=np.float32)
    lowest = -(1 << header.nbits - 1) if header.dtype.kind == "i" else 0
    return rng.integers(lowest, lowest + 2**header.nbits, shape).astype(header.dtype)


@given(
    st.builds(
        Header,
        nchans=st.integers(1, 8192).map(lambda n: n * 8),
        nbits=st.sampled_from([1, 2, 4, 8, 16, 32]),
        tsamp=st.floats(1e-6, 9),
        fch1=st.floats(1e5, 1e6),
        foff=st.floats(-1, 1).filter(lambda f: abs(f) > 1e-6),
        tstart=st.floats(0, 1e5),
        nifs=st.integers(1, 4),
        signed=st.booleans(),
        source_name=text,
        rawdatafile=text,
        telescope_id=int32,
        machine_id=int32,
        data_type=int32,
        src_raj=coordinate,
        src_dej=coordinate,
        az_start=coordinate,
        za_start=coordinate,
        nbeams=int32,
        ibeam=int32,
    )
)
@on_one_file
def test_a_header_survives_the_round_trip(tmp_path, header):
    path = tmp_path / "a.fil"
    path.write_bytes(header_bytes(header))
    assert read_header(path) == header
    assert read_header(path).header_bytes == path.stat().st_size


def open_damaged(path: Path, content: bytes) -> None:
    """Write any content to a file: reading it works or raises InputError."""
    path.write_bytes(content)
    try:
        filterbank = Filterbank(path)
    except InputError as error:
        assert str(path) in str(error) and "must" in str(error)
    else:
        assert filterbank.read(0, 10).shape == (min(10, filterbank.nsamples), filterbank.nchans)
        assert np.isfinite(filterbank.frequencies).all() and (filterbank.frequencies > 0).all()


@given(st.integers(0, 300), st.binary(min_size=1, max_size=12))
@on_one_file
def test_overwritten_header_bytes(tmp_path, position, patch):
    whole = header_bytes(HEADER)
    open_damaged(tmp_path / "a.fil", whole[:position] + patch + whole[position + len(patch) :] + bytes(400))


@given(st.integers(0, 700))
@on_one_file
def test_cut_off_anywhere(tmp_path, length):
    open_damaged(tmp_path / "a.fil", (header_bytes(HEADER) + bytes(400))[:length])


@given(st.sampled_from(["nchans", "nbits", "nifs", "tsamp", "fch1", "foff", "tstart"]), st.data())
@on_one_file
def test_any_value_of_any_keyword(tmp_path, keyword, data):
    value = data.draw(int32 if keyword in ("nchans", "nbits", "nifs") else st.floats())
    open_damaged(tmp_path / "a.fil", header_bytes(replace(HEADER, **{keyword: value})) + bytes(400))


@given(st.binary(max_size=200))
@on_one_file
def test_anything_after_the_first_keyword(tmp_path, content):
    open_damaged(tmp_path / "a.fil", b"\x0c\0\0\0HEADER_START" + content)


@pytest.mark.parametrize(
    "keyword, value",
    [
        ("nchans", 0),
        ("nchans", 2**30),
        ("nbits", 3),
        ("nifs", 0),
        ("tsamp", 0.0),
        ("tsamp", float("nan")),
        ("fch1", -5.0),
        ("fch1", 1e-300),
        ("fch1", float("inf")),
        ("foff", 0.0),
        ("foff", -200.0),
        ("tstart", float("nan")),
    ],
)
def test_an_impossible_value_is_named(tmp_path, keyword, value):
    path = tmp_path / "a.fil"
    path.write_bytes(header_bytes(replace(HEADER, **{keyword: value})) + bytes(400))
    with pytest.raises(InputError, match=f"a.fil: {keyword} must .*, got "):
        Filterbank(path)
    with pytest.raises(InputError, match=keyword):
        FilterbankWriter(tmp_path / "b.fil", replace(HEADER, **{keyword: value}))


START, END = b"\x0c\0\0\0HEADER_START", b"\x0a\0\0\0HEADER_END"


def string(text: str) -> bytes:
    return struct.pack("<i", len(text)) + text.encode()


@pytest.mark.parametrize("before", ["src_raj", "HEADER_END"])
@pytest.mark.parametrize(
    "value",
    [
        *(struct.pack("<i", number) for number in (0, -1, 8, 12345)),
        *(struct.pack("<d", number) for number in (0.0, 1.0, 59000.5, -np.inf)),
        *(struct.pack("<q", number) for number in (0, 5, -1, 10**12)),
        *(string(text) for text in ("", "a", "abc", "four", "fifth", "GBT 350 MHz", "x" * 79)),
    ],
)
def test_the_value_of_an_unknown_keyword_is_skipped(tmp_path, value, before):
    path, whole = tmp_path / "a.fil", header_bytes(HEADER)
    at = whole.index(string(before))
    path.write_bytes(whole[:at] + string("refrm") + value + whole[at:])
    header = read_header(path)
    assert header == HEADER and header.header_bytes == path.stat().st_size
    assert (
        header.unknown_keywords == ("refrm",) and "unknown keywords, which are not used: refrm" in header.warnings()[0]
    )


def test_unknown_and_missing_keywords_are_named(tmp_path):
    path, whole = tmp_path / "a.fil", header_bytes(HEADER)
    path.write_bytes(whole.replace(b"tsamp", b"tsomp"))
    with pytest.raises(InputError, match="lacks tsamp and has the unknown 'tsomp'"):
        read_header(path)
    path.write_bytes(whole.replace(END, string("odd") + b"\xff\xff\xff" + END))
    with pytest.raises(InputError, match="or have a value of 4 or 8 bytes or a string, got 'odd'"):
        read_header(path)
    start, end = START, END
    path.write_bytes(start + struct.pack("<i6si", 6, b"nchans", 4) + end)
    with pytest.raises(InputError, match="lacks nbits, tsamp, fch1, foff"):
        read_header(path)


def with_table(table: np.ndarray) -> bytes:
    """The header with a table of frequencies in place of fch1 and foff."""
    whole = header_bytes(HEADER)
    for keyword in ("fch1", "foff"):
        at = whole.index(string(keyword))
        whole = whole[:at] + whole[at + 16 :]
    rows = b"".join(string("fchannel") + struct.pack("<d", frequency) for frequency in table)
    at = whole.index(string("nchans"))
    return whole[:at] + string("FREQUENCY_START") + rows + string("FREQUENCY_END") + whole[at:]


@pytest.mark.parametrize("foff", [-1.25, 0.3])
def test_a_table_of_frequencies_in_equal_steps(tmp_path, foff):
    path, table = tmp_path / "a.fil", 1530.0 + foff * np.arange(16)
    for dtype in (np.float64, np.float32):
        path.write_bytes(with_table(table.astype(dtype)) + bytes(400))
        file = Filterbank(path)
        assert file.header.warnings() == [] and file.nsamples == 25
        np.testing.assert_allclose(file.frequencies, np.sort(table)[::-1], atol=1e-4)
    many = 1e5 - 0.5 * np.arange(65536)  # a header longer than those of any observation without a table
    path.write_bytes(with_table(many).replace(struct.pack("<i", 16), struct.pack("<i", 65536), 1) + bytes(65536))
    assert Filterbank(path).nchans == 65536 and Filterbank(path).header.foff == -0.5


@pytest.mark.parametrize(
    "table, message",
    [
        (np.append(np.linspace(1530, 1500, 15), 1400), "equal steps of frequency, .* from -100 to -2.14286 MHz"),
        (np.full(16, 1500.0), "foff must be a number of MHz other than 0"),
        (np.full(16, np.nan), "equal steps"),
        (np.linspace(1530, 1500, 15), "nchans = 16 frequencies, got 15"),
        (np.linspace(1530, 1500, 17), "nchans = 16 frequencies, got 17"),
    ],
)
def test_another_table_of_frequencies_is_refused(tmp_path, table, message):
    (tmp_path / "a.fil").write_bytes(with_table(table) + bytes(400))
    with pytest.raises(InputError, match=message):
        Filterbank(tmp_path / "a.fil")


@pytest.mark.parametrize("unit, factor", [("GHz", 1e-3), ("kHz", 1e3), ("Hz", 1e6)])
@pytest.mark.parametrize("ascending", [False, True])
def test_frequencies_in_other_units_are_named(tmp_path, unit, factor, ascending):
    foff = (1.25 if ascending else -1.25) * factor
    (tmp_path / "a.fil").write_bytes(header_bytes(replace(HEADER, fch1=1530 * factor, foff=foff)) + bytes(400))
    with pytest.raises(InputError, match=f"a.fil: fch1 must be in MHz, .* look like .*{unit}.*, got "):
        Filterbank(tmp_path / "a.fil")


@pytest.mark.parametrize("tstart, phrase", [(0.0, "no start time"), (-3.5, "MJD -3.5, is before 1858")])
def test_a_start_before_mjd_0_is_a_warning(tmp_path, tstart, phrase):
    (tmp_path / "a.fil").write_bytes(header_bytes(replace(HEADER, tstart=tstart)) + bytes(400))
    [warning] = Filterbank(tmp_path / "a.fil").header.warnings()
    assert phrase in warning


def test_files_that_are_not_observations(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Filterbank(tmp_path / "absent.fil")
    with pytest.raises(InputError, match=rf"{tmp_path}: must be .*, got a folder; .* '{tmp_path}/\*.fil'"):
        Filterbank(tmp_path)
    path = tmp_path / "empty.fil"
    for content, message in (
        (b"", "HEADER_START, got an empty file"),
        (b"SIMPLE  =                    T", "got a FITS file .convert it"),
        (b"\x93NUMPY\x01\x00", "got a .npy file .search it with --pages"),
        (b"\x01\x02", "which begins with b'"),
        (header_bytes(HEADER), "got 0 bytes"),
        (header_bytes(HEADER) + bytes(15), "got 15 bytes"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            Filterbank(path)


@pytest.mark.parametrize("foff", [-1.25, 1.25])
@pytest.mark.parametrize(
    "nbits, signed", [(1, 0), (1, 1), (2, 0), (2, 1), (4, 0), (4, 1), (8, 0), (8, 1), (16, 0), (16, 1), (32, 0)]
)
def test_what_was_written_is_read(tmp_path, nbits, signed, foff):
    header = replace(HEADER, nbits=nbits, signed=bool(signed), foff=foff)
    samples = random_samples(header)
    filterbank = write(tmp_path / "a.fil", header, samples)
    descending = samples[:, ::-1] if foff > 0 else samples
    read = filterbank.read(0, 1000)
    assert read.dtype == header.dtype and read.flags.c_contiguous and read.flags.writeable
    np.testing.assert_array_equal(read, descending)
    np.testing.assert_array_equal(filterbank.read(13, 9), descending[13:22])
    assert filterbank.read(50, 5).shape == filterbank.read(10**12, 5).shape == (0, 16)
    assert filterbank.frequencies[0] == max(1530.0, 1530.0 + 15 * foff)
    np.testing.assert_allclose(np.diff(filterbank.frequencies), -1.25)


def test_a_single_channel_has_no_negative_stride(tmp_path):
    header = replace(HEADER, nchans=1, foff=0.5)
    samples = random_samples(header)
    read = write(tmp_path / "a.fil", header, samples).read(0, 50)
    np.testing.assert_array_equal(read, samples)
    assert min(read.strides) > 0


def test_the_lowest_bits_of_a_byte_come_first():
    assert pack(np.array([1, 0, 0, 0, 0, 0, 0, 1], np.uint8), 1) == 0b10000001
    assert pack(np.array([3, 0, 1, 2], np.uint8), 2) == 0b10010011
    assert pack(np.array([5, 12], np.uint8), 4) == 0xC5
    # Two's complement: -1 is all ones, the lowest value the highest bit alone.
    assert pack(np.array([-1, -8], np.int8), 4) == 0x8F
    assert list(unpack(np.array([0x8F], np.uint8), 4, signed=True)) == [-1, -8]
    for wrong in (np.array([16, 0], np.uint8), np.array([8, 0], np.int8), np.array([-9, 0], np.int8)):
        with pytest.raises(ValueError, match="does not fit"):
            pack(wrong, 4)


@pytest.mark.parametrize(
    "nbits, signed, summed",
    [
        (2, False, np.uint16),
        (4, True, np.int32),
        (8, False, np.uint16),
        (8, True, np.int32),
        (16, False, np.int32),
        (32, False, np.float32),
    ],
)
def test_ifs_are_summed_or_chosen(tmp_path, nbits, signed, summed):
    header = replace(HEADER, nbits=nbits, signed=signed, nifs=3, foff=0.5)
    samples = random_samples(header)
    filterbank = write(tmp_path / "a.fil", header, samples)
    read = filterbank.read(0, 50)
    assert read.dtype == summed
    np.testing.assert_allclose(read, samples[:, :, ::-1].sum(axis=1, dtype=np.float64), atol=1e-5)
    np.testing.assert_array_equal(Filterbank(tmp_path / "a.fil", ifs=2).read(4, 5), samples[4:9, 2, ::-1])
    for wrong in (3, -1, "mean"):
        with pytest.raises(InputError, match="ifs must be 'sum' or from 0 to 2, got"):
            Filterbank(tmp_path / "a.fil", ifs=wrong)


def test_a_file_cut_off_in_mid_sample(tmp_path):
    samples = random_samples(HEADER)
    write(tmp_path / "a.fil", HEADER, samples)
    content = (tmp_path / "a.fil").read_bytes()
    (tmp_path / "a.fil").write_bytes(content[:-20])
    filterbank = Filterbank(tmp_path / "a.fil")
    assert (filterbank.nsamples, filterbank.bytes_left_over) == (48, 12)
    np.testing.assert_array_equal(filterbank.read(0, 50), samples[:48])


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="expected uint8"), FilterbankWriter(tmp_path / "a.fil", HEADER) as file:
        file.write(random_samples(HEADER))
        file.write(np.zeros((3, 16), np.float32))
    assert list(tmp_path.iterdir()) == []
    # A header that cannot be encoded fails after the temporary file is open.
    with pytest.raises(UnicodeEncodeError), FilterbankWriter(tmp_path / "a.fil", replace(HEADER, source_name="\ud800")):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_gets_its_name_when_it_is_complete_and_on_disk(tmp_path, monkeypatch):
    path, synced = tmp_path / "a.fil", []
    path.write_bytes(b"old")

    def record_and_sync(descriptor: int, fsync=os.fsync) -> None:
        synced.append((os.fstat(descriptor).st_size, path.read_bytes()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record_and_sync)
    with FilterbankWriter(path, HEADER) as file:
        file.write(random_samples(HEADER))
        assert path.read_bytes() == b"old"
    assert synced == [(path.stat().st_size, b"old")]
    assert Filterbank(path).nsamples == 50 and list(tmp_path.iterdir()) == [path]


@real_data
@pytest.mark.parametrize(
    "name, nchans, fch1, foff, tsamp_us, nsamples, tstart",
    [
        ("parkes_uwl_crab_a_8bit.fil", 832, 4030, -4, 512, 4096, 58543.330387),
        ("parkes_uwl_crab_b_8bit.fil", 832, 4030, -4, 512, 4096, 58543.330412),
        ("askap_frb180417_beam28.fil", 336, 1465, -1, 1266.47, 5120, 58682.620317),
        ("crab_parkes_706-1402MHz_512us_4.2s.fil", 174, 1398, -4, 512, 8192, 58543.330387),
    ],
)
def test_real_headers(name, nchans, fch1, foff, tsamp_us, nsamples, tstart):
    filterbank = Filterbank(DATA / name)
    header = filterbank.header
    assert (header.nchans, header.nbits, header.nifs, header.fch1, header.foff) == (nchans, 8, 1, fch1, foff)
    assert filterbank.nsamples == nsamples and filterbank.bytes_left_over == 0
    assert header.tsamp * 1e6 == pytest.approx(tsamp_us, abs=0.01)
    assert header.tstart == pytest.approx(tstart, abs=1e-6)


@real_data
@pytest.mark.parametrize("nbits, least", [(4, 0.95), (2, 0.9), (1, 0.75)])
def test_requantised_real_data_follow_the_original(nbits, least):
    original = Filterbank(DATA / "parkes_uwl_crab_a_8bit.fil").read(0, 4096).astype(np.float64)
    coarse = Filterbank(DATA / f"parkes_uwl_crab_a_{nbits}bit.fil").read(0, 4096).astype(np.float64)
    original -= original.mean(axis=0)
    coarse -= coarse.mean(axis=0)
    correlation = (original * coarse).mean(axis=0) / (original.std(axis=0) * coarse.std(axis=0))
    assert np.median(correlation) > least
