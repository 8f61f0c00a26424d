"""Candidate files of FETCH and ``your`` (.h5) and of MeerTRAP (.hdf5): one candidate, with both of its planes.

The layout is that of ``Candidate.save_h5`` of ``your``. The dataset ``data_dm_time`` has trial DMs from 0 to twice the
DM of the candidate; ``data_freq_time``, dedispersed at that DM, has one row for each time, and channels in the order of
the observation. One time of both is half a width long, and the arrival is in the middle.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.file_types import format_of
from single_pulse_classifier_training.runtime import atomic_writer

if TYPE_CHECKING:
    import h5py

DATASETS = ("data_dm_time", "data_freq_time")
PLANE = 256
"""Number of trial DMs and of times."""
MAX_CHANNELS = 65536
MAX_FILE_BYTES = 1 << 28
MAX_ATTRIBUTES = 1000
MAX_ATTRIBUTE_BYTES = 60000
"""Files for all versions of HDF5 hold at most 64 KiB in an attribute."""
COMPRESSION_ROOM = 1 << 20
"""Bytes that a stored plane may have in addition to twice its size; more is a damaged or hostile file."""
LIMITS = {
    "dm": (0.0, 1e7),
    "tcand": (-1e9, 1e9),
    "snr": (-1e7, 1e7),
    "width": (0.0, 1e7),
    "tsamp": (1e-9, 10.0),
    "tstart": (-1e7, 1e7),
    "fch1": (1e-3, 1e7),
    "foff": (-1e6, 1e6),
    "nchans": (1.0, MAX_CHANNELS),
}
"""Attributes that a file must have, with their lowest and highest value; only damaged files exceed them."""
# Raised by h5py on a damaged file.
DAMAGED = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError)


@dataclass(frozen=True, eq=False)
class CandidateFile:
    """A candidate as in a file. Values may be NaN, which FETCH replaces with 0.

    Attributes
    ----------
    dm_time : (256, 256) ndarray of float
        DM-time plane; row 0 is DM 0, and the last row is twice the DM.
    freq_time : (n_channels, 256) ndarray of float
        Dedispersed frequency-time plane; row 0 is the highest frequency.
    attributes : dict
        Attributes of the file with the types that they have there. The text "None" is an unknown value.
    """

    dm_time: np.ndarray
    freq_time: np.ndarray
    attributes: dict[str, Any]

    @property
    def dm(self) -> float:
        """Dispersion measure in pc cm^-3."""
        return float(self.attributes["dm"])

    @property
    def dms(self) -> np.ndarray:
        """Trial DMs of the rows of ``dm_time``, float64 (256,)."""
        return np.linspace(0, 2 * self.dm, PLANE)

    @property
    def snr(self) -> float:
        return float(self.attributes["snr"])

    @property
    def time_s(self) -> float:
        """Arrival after the first sample of the observation, in seconds."""
        return float(self.attributes["tcand"])

    @property
    def tstart(self) -> float:
        """MJD of the first sample of the observation."""
        return float(self.attributes["tstart"])

    @property
    def width_samples(self) -> float:
        """Width in samples of the observation; not its log2, as in the lists from which the files are made."""
        return float(self.attributes["width"])

    @property
    def column_s(self) -> float:
        """Length of a column in seconds."""
        return samples_per_column(self.width_samples) * float(self.attributes["tsamp"])

    @property
    def label(self) -> int:
        """Label of the candidate: 1 for a pulse, 0 for interference, and -1 if it is unknown."""
        value = self.attributes.get("label", -1)
        return int(value) if _is_number(value) else -1


def samples_per_column(width_samples: float) -> int:
    """Return how many samples of the observation are averaged to a column, for a width in samples."""
    return max(1, round(width_samples) // 2)


def read_candidate_file(path: str | Path) -> CandidateFile:
    """Read a candidate file; sizes are checked before anything is read.

    Raises
    ------
    InputError
        If it is not an HDF5 file, is damaged, lacks a dataset or an attribute, or has one with an impossible value.
    """
    import h5py

    path = Path(path)
    kind = format_of(path)
    if kind != "an HDF5 file":
        raise InputError(f"{path}: a candidate file must be an HDF5 file, got {kind}")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise InputError(f"{path}: a candidate file must have at most {MAX_FILE_BYTES} bytes, got {size}")
    try:
        with h5py.File(path, "r", locking=False) as root:
            attributes = _read_attributes(path, root)
            planes = [_read_plane(path, root, name) for name in DATASETS]
    except DAMAGED as error:
        text = " ".join(str(error).split())
        raise InputError(f"{path}: a candidate file must be complete and undamaged, got an error: {text}") from None
    return CandidateFile(planes[0], _house_order(planes[1].T, attributes["foff"]), attributes)


def write_candidate_file(path: str | Path, candidate: CandidateFile) -> None:
    """Write a candidate as FETCH and ``your`` read it, compressed by gzip; the file is complete or absent.

    Raises
    ------
    InputError
        If it lacks an attribute, or has another shape or an impossible value.
    """
    import h5py

    path = Path(path)
    _check_attributes(path, candidate.attributes)
    _check_plane(path, "data_dm_time", candidate.dm_time.shape, candidate.dm_time.dtype)
    _check_plane(path, "data_freq_time", candidate.freq_time.shape[::-1], candidate.freq_time.dtype)
    content = io.BytesIO()
    with h5py.File(content, "w") as root:
        for key, value in candidate.attributes.items():
            texts = isinstance(value, np.ndarray) and value.dtype.kind == "O"
            root.attrs.create(key, value, dtype=h5py.string_dtype() if texts else None)
        freq_time = _house_order(candidate.freq_time, candidate.attributes["foff"]).T
        for name, plane, labels in (
            ("data_freq_time", freq_time, ("time", "frequency")),
            ("data_dm_time", candidate.dm_time, ("dm", "time")),
        ):
            dataset = root.create_dataset(name, data=plane, compression="gzip")
            for dimension, label in zip(dataset.dims, labels, strict=True):
                dimension.label = label
    with atomic_writer(path) as file:
        file.write(content.getbuffer())


def save_candidate(
    folder: str | Path,
    dm_time: np.ndarray,
    freq_time: np.ndarray,
    *,
    dm: float,
    time_s: float,
    snr: float,
    width_samples: int,
    header: Mapping[str, Any],
    label: int = -1,
) -> Path:
    """Write a candidate of a search as a candidate file, and return its path.

    Parameters
    ----------
    folder : str or Path
        The name of the file is that of ``your``: start of the observation, arrival, DM and S/N.
    dm_time : (256, 256) ndarray
        DM-time plane; row 0 is DM 0, and the last row is twice ``dm``. The arrival is in column 128, and a column is
        `samples_per_column` of the width long.
    freq_time : (n_channels, 256) ndarray
        The same times, dedispersed at ``dm``; row 0 is the highest frequency.
    dm : float
        pc cm^-3.
    time_s : float
        Arrival after the first sample of the observation, in seconds.
    snr : float
    width_samples : int
        Width in samples of the observation.
    header : mapping
        Keywords of the observation as in SIGPROC, at least ``tsamp``, ``tstart``, ``fch1``, ``foff`` and ``nchans``;
        None is an unknown value. An ascending band is written as a descending one.
    label : int
        1 for a pulse, 0 for interference, -1 if unknown.

    Raises
    ------
    InputError
        As `write_candidate_file`.
    """
    found = {"dm": float(dm), "tcand": float(time_s), "snr": float(snr), "width": int(width_samples), "label": label}
    known = {key: _text_of(value) if isinstance(value, str | None) else value for key, value in header.items()}
    attributes: dict[str, Any] = known | found | {"dm_opt": -1, "snr_opt": -1}
    _check_attributes(Path(folder), attributes)
    if attributes["foff"] > 0:  # FETCH takes the first channel of every file for the highest frequency
        attributes["fch1"] += attributes["foff"] * (attributes["nchans"] - 1)
        attributes["foff"] *= -1
    name = f"cand_tstart_{attributes['tstart']:.12f}_tcand_{time_s:.7f}_dm_{dm:.5f}_snr_{snr:.5f}"
    path = Path(folder) / f"{name}.h5"
    planes = [np.asarray(plane, dtype=np.float32) for plane in (dm_time, freq_time)]
    write_candidate_file(path, CandidateFile(planes[0], planes[1], attributes | {"cand_id": name}))
    return path


def _house_order(freq_time: np.ndarray, foff: float) -> np.ndarray:
    """Turn a plane between the order of channels in the observation and the highest frequency first."""
    return np.ascontiguousarray(freq_time[::-1] if foff > 0 else freq_time)


def _text_of(value: str | None) -> str:
    """Return a text that HDF5 can hold: UTF-8, without null characters."""
    return str(value).replace("\0", "").encode("utf-8", "replace").decode()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and bool(np.isfinite(value))


def _check_attributes(path: Path, attributes: Mapping[str, Any]) -> None:
    if missing := [name for name in LIMITS if name not in attributes]:
        raise InputError(
            f"{path}: a candidate file must have the attributes {', '.join(LIMITS)}, but lacks {', '.join(missing)}"
        )
    for name, (low, high) in LIMITS.items():
        value = attributes[name]
        if not (_is_number(value) and low <= value <= high) or (name == "foff" and value == 0):
            besides = " other than 0" if name == "foff" else ""
            raise InputError(
                f"{path}: the attribute {name} must be a number from {low:g} to {high:g}{besides}, "
                f"got {str(value)[:100]!r}"
            )


def _check_plane(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if name == "data_dm_time":
        good, requirement = shape == (PLANE, PLANE), f"({PLANE}, {PLANE}), trial DMs and times"
    else:
        good = len(shape) == 2 and shape[0] == PLANE and 1 <= shape[1] <= MAX_CHANNELS
        requirement = f"({PLANE}, 1 to {MAX_CHANNELS}), times and channels"
    if not good:
        raise InputError(f"{path}: the shape of {name} must be {requirement}, got {shape}")
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise InputError(f"{path}: the dtype of {name} must be float16, float32 or float64, got {dtype}")


def _read_attributes(path: Path, root: h5py.File) -> dict[str, Any]:
    """Read the attributes that are numbers or text, and check them."""
    import h5py

    if len(root.attrs) > MAX_ATTRIBUTES:
        raise InputError(
            f"{path}: a candidate file must have at most {MAX_ATTRIBUTES} attributes, got {len(root.attrs)}"
        )
    attributes = {}
    for name in root.attrs:
        stored = root.attrs.get_id(name)
        if (size := stored.get_storage_size()) > MAX_ATTRIBUTE_BYTES:
            raise InputError(f"{path}: the attribute {name} must have at most {MAX_ATTRIBUTE_BYTES} bytes, got {size}")
        if stored.dtype.kind in "biufSO" and h5py.check_ref_dtype(stored.dtype) is None:
            attributes[name] = root.attrs[name]
    _check_attributes(path, attributes)
    return attributes


def _read_plane(path: Path, root: h5py.File, name: str) -> np.ndarray:
    import h5py

    # The operator "in" of h5py would follow a link, even out of the file.
    links = root.id.links
    if not links.exists(name.encode()) or links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise InputError(f"{path}: a candidate file must have the datasets {' and '.join(DATASETS)}, but lacks {name}")
    dataset = root[name]
    if not isinstance(dataset, h5py.Dataset):
        raise InputError(f"{path}: {name} must be a dataset, got {type(dataset).__name__}")
    _check_plane(path, name, dataset.shape, dataset.dtype)
    if dataset.is_virtual or dataset.id.get_create_plist().get_external_count():
        raise InputError(f"{path}: {name} must be stored in this file, got data in another")
    stored, most = dataset.id.get_storage_size(), 2 * dataset.nbytes + COMPRESSION_ROOM
    if not 0 < stored <= most:
        raise InputError(f"{path}: {name} must be stored in 1 to {most} bytes, got {stored}")
    values = dataset[()]
    assert isinstance(values, np.ndarray)
    return values
