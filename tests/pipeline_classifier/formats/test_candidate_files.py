"""Candidate files: every value survives the round trip, in the axis order of either side, and other files are refused."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline_classifier.formats.candidate_files import (
    CandidateFile,
    read_candidate_file,
    samples_per_column,
    save_candidate,
    write_candidate_file,
)
from single_pulse_classifier_training.cli import InputError

DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "pages"
HEADER = {"tsamp": 1.26646875e-3, "tstart": 58682.620316710374, "fch1": 1465.0, "foff": -1.0, "nchans": 336}
FOUND = {"dm": 475.284, "time_s": 2.02888, "snr": 16.8128, "width_samples": 4}


def planes(n_channels: int = 64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    dm_time, freq_time = rng.normal(size=(256, 256)), rng.normal(size=(n_channels, 256))
    dm_time[0, 255], freq_time[0, 128] = np.nan, 50
    return dm_time.astype(np.float32), freq_time.astype(np.float32)


def file_with(path: Path, **changes: object) -> Path:
    """Write a file with some values changed; those that are None are absent."""
    dm_time, freq_time = planes(4)
    data = {"data_dm_time": dm_time, "data_freq_time": freq_time.T}
    attributes = HEADER | {"dm": 56.7, "tcand": 1.0, "snr": 7.0, "width": 2}
    with h5py.File(path, "w") as root:
        for key, value in (attributes | data | changes).items():
            if value is None:
                continue
            if isinstance(value, dict):
                root.create_dataset(key, **value)
            elif key in data:
                root[key] = value
            else:
                root.attrs[key] = value
    return path


def same(a: CandidateFile, b: CandidateFile) -> None:
    np.testing.assert_array_equal(a.dm_time, b.dm_time)
    np.testing.assert_array_equal(a.freq_time, b.freq_time)
    assert a.dm_time.dtype == b.dm_time.dtype and a.freq_time.dtype == b.freq_time.dtype
    assert sorted(a.attributes) == sorted(b.attributes)
    for key, value in a.attributes.items():
        other = b.attributes[key]
        assert type(value) is type(other) and (np.array_equal(value, other) or value != value and other != other), key


@pytest.mark.parametrize("fch1, foff", [(1465.0, -1.0), (1130.0, 1.0)])
def test_a_candidate_of_a_search_is_what_fetch_reads(tmp_path, fch1, foff):
    dm_time, freq_time = planes()
    header = HEADER | {"fch1": fch1, "foff": foff, "source_name": "FRB\0 180417 \udce9", "src_raj": None}
    path = save_candidate(tmp_path, dm_time, freq_time, **FOUND, header=header)
    assert path == tmp_path / "cand_tstart_58682.620316710374_tcand_2.0288800_dm_475.28400_snr_16.81280.h5"
    with h5py.File(path) as root:
        assert dict(root.attrs) == HEADER | {
            "cand_id": path.stem, "dm": 475.284, "dm_opt": -1, "tcand": 2.02888, "snr": 16.8128, "snr_opt": -1,
            "width": 4, "label": -1, "source_name": "FRB 180417 ?", "src_raj": "None",
        }  # fmt: skip
        stored = root["data_freq_time"]
        assert stored.compression == root["data_dm_time"].compression == "gzip" and stored.dtype == np.float32
        assert [dimension.label for dimension in stored.dims] == ["time", "frequency"]
        np.testing.assert_array_equal(stored[()], freq_time.T)
        np.testing.assert_array_equal(root["data_dm_time"], dm_time)
    found = read_candidate_file(path)
    np.testing.assert_array_equal(found.freq_time, freq_time)
    np.testing.assert_array_equal(found.dm_time, dm_time)
    assert found.freq_time.flags.c_contiguous
    assert (found.dm, found.time_s, found.snr, found.width_samples, found.label) == (475.284, 2.02888, 16.8128, 4, -1)
    assert found.tstart == 58682.620316710374 and found.column_s == 2 * 1.26646875e-3
    assert found.dms[0] == 0 and found.dms[-1] == 2 * 475.284 and len(found.dms) == 256


def test_the_first_channel_of_an_ascending_band_is_the_lowest_frequency(tmp_path):
    path = file_with(tmp_path / "a.h5", foff=0.5)
    with h5py.File(path) as root:
        stored = root["data_freq_time"][()]
    np.testing.assert_array_equal(read_candidate_file(path).freq_time, stored[:, ::-1].T)


def test_a_column_is_half_a_width():
    """MeerTRAP's widths are rounded: 28 samples are 27.99998."""
    assert [samples_per_column(width) for width in (0, 1, 2, 3, 4, 27.99998, 28)] == [1, 1, 1, 1, 2, 14, 14]


names = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=8)
values = st.one_of(
    st.floats(width=32).map(np.float32),
    st.floats().map(np.float64),
    st.integers(-(2**31), 2**31 - 1).map(np.int64),
    st.booleans().map(np.bool_),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9),
    st.binary(min_size=1, max_size=9).map(lambda text: np.bytes_(text.strip(b"\0") or b"a")),
    st.lists(st.floats(allow_nan=False), min_size=1, max_size=4).map(np.array),
    st.lists(st.text("ab", max_size=3), min_size=1, max_size=4).map(lambda texts: np.array(texts, dtype=object)),
)


@given(
    st.dictionaries(names, values, max_size=5), st.sampled_from(["f2", "f4", "f8"]), st.integers(1, 5), st.booleans()
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_value_survives_the_round_trip(tmp_path, more, dtype, n_channels, ascending):
    dm_time, freq_time = planes(n_channels)
    dm_time[10:-10] = 0  # so that gzip is fast
    found = {"dm": np.float64(56.7), "tcand": np.float64(-0.5), "snr": np.float32(7), "width": np.int64(3)}
    header = HEADER | {"foff": 0.5 if ascending else -0.5, "nchans": np.int64(n_channels)}
    numbers = {key: np.float64(value) if isinstance(value, float) else value for key, value in header.items()}
    candidate = CandidateFile(dm_time.astype(dtype), freq_time.astype(dtype), more | numbers | found)
    write_candidate_file(tmp_path / "a.h5", candidate)
    same(read_candidate_file(tmp_path / "a.h5"), candidate)


DAMAGE = [
    ({"dm": None, "width": None}, "must have the attributes dm, tcand, .*, nchans, but lacks dm, width$"),
    ({"tsamp": "None"}, "the attribute tsamp must be a number from 1e-09 to 10, got 'None'$"),
    ({"snr": np.nan}, "the attribute snr must be a number .*, got 'nan'$"),
    ({"dm": np.array([1.0, 2.0])}, "the attribute dm must be a number"),
    ({"foff": 0.0}, r"the attribute foff must be a number from -1e\+06 to 1e\+06 other than 0, got '0.0'$"),
    ({"nchans": True}, "the attribute nchans must be a number"),
    ({"mask": np.zeros(60001, np.uint8)}, "the attribute mask must have at most 60000 bytes, got 60001$"),
    ({f"a{number}": 1 for number in range(1001)}, "must have at most 1000 attributes, got 1010$"),
    ({"data_dm_time": None}, "must have the datasets data_dm_time and data_freq_time, but lacks data_dm_time$"),
    ({"data_freq_time": h5py.SoftLink("/data_dm_time")}, "must have the datasets .*, but lacks data_freq_time$"),
    ({"data_dm_time": np.zeros((128, 256), "f4")}, r"data_dm_time must be \(256, 256\), trial DMs and times, got \(128, 256\)$"),
    ({"data_freq_time": np.zeros((64, 255), "f4")}, r"data_freq_time must be \(256, 1 to 65536\), times and channels, got \(64, 255\)$"),
    ({"data_freq_time": np.zeros(256, "f4")}, r"data_freq_time must be \(256, 1 to 65536\), times and channels, got \(256,\)$"),
    ({"data_freq_time": {"shape": (256, 10**9), "dtype": "f4"}}, r"got \(256, 1000000000\)$"),
    ({"data_freq_time": {"shape": (256, 8), "dtype": "f4"}}, r"data_freq_time must be stored in 1 to \d+ bytes, got 0$"),
    ({"data_freq_time": np.zeros((256, 8), "c8")}, "the dtype of data_freq_time must be float16, float32 or float64, got complex64$"),
]  # fmt: skip


@pytest.mark.parametrize("changes, message", DAMAGE)
def test_a_file_with_an_error_is_refused_in_one_sentence(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        read_candidate_file(file_with(tmp_path / "a.h5", **changes))
    assert str(caught.value).startswith(f"{tmp_path / 'a.h5'}: ") and "\n" not in str(caught.value)


def test_data_in_other_files_are_not_read(tmp_path):
    file_with(tmp_path / "a.h5", data_dm_time=None)
    layout = h5py.VirtualLayout((256, 256), "f4")
    layout[:] = h5py.VirtualSource(tmp_path / "b.h5", "data_dm_time", (256, 256))
    with h5py.File(tmp_path / "a.h5", "a") as root:
        root.create_virtual_dataset("data_dm_time", layout)
    with pytest.raises(InputError, match="data_dm_time must be stored in this file, got data in another$"):
        read_candidate_file(tmp_path / "a.h5")


def test_a_file_that_is_not_complete_or_not_hdf5_is_refused(tmp_path):
    path = file_with(tmp_path / "a.h5")
    content = path.read_bytes()
    for length in (0, 4, 8, 100, 2000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(
            InputError, match="a.h5: a candidate file must be (an HDF5 file, got|complete and undamaged)"
        ):
            read_candidate_file(path)
    path.write_bytes(b"16.8 1602 2.0 1 127 475.2 22 1601 1604\n")
    with pytest.raises(InputError, match="a.h5: a candidate file must be an HDF5 file, got a text file$"):
        read_candidate_file(path)


def test_what_could_not_be_read_is_not_written(tmp_path):
    dm_time, freq_time = planes()
    without_tsamp = {key: value for key, value in HEADER.items() if key != "tsamp"}
    for arrays, header, message in (
        ((dm_time[:128], freq_time), HEADER, r"data_dm_time must be \(256, 256\)"),
        ((dm_time, freq_time[0]), HEADER, r"data_freq_time must be \(256, 1 to 65536\)"),
        ((dm_time, freq_time), without_tsamp, "but lacks tsamp$"),
    ):
        with pytest.raises(InputError, match=message):
            save_candidate(tmp_path, *arrays, **FOUND, header=header)
    candidate = CandidateFile(
        np.zeros((256, 256), int), freq_time, HEADER | {"dm": 1, "tcand": 1, "snr": 1, "width": 1}
    )
    with pytest.raises(InputError, match="the dtype of data_dm_time must be float16, float32 or float64, got int64$"):
        write_candidate_file(tmp_path / "a.h5", candidate)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name, dm, width, column",
    [
        ("fetch_askap_frb180417.h5", 475.284, 2, 129),
        ("meertrap_DM21.18_20200328T030706_ib.hdf5", 21.183, 28, 128),
        ("meertrap_DM21.18_20200330T025612.hdf5", 21.183, 136, 128),
        ("meertrap_DM21.18_20200330T030419.hdf5", 21.183, 120, 127),
    ],
)
def test_real_candidates(tmp_path, name, dm, width, column):
    if not (DATA / name).is_file():
        pytest.skip(f"{DATA / name} is not there: real candidates are kept outside the repository")
    found = read_candidate_file(DATA / name)
    assert found.dm == pytest.approx(dm) and found.width_samples == pytest.approx(width, abs=1e-3)
    assert found.freq_time.mean(axis=0).argmax() == column
    write_candidate_file(tmp_path / name, found)
    same(read_candidate_file(tmp_path / name), found)
