"""Formats of files, recognised by their first bytes."""

from pathlib import Path

SIGNATURES = (
    (b"\x93NUMPY", "a .npy file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"PK\x03\x04", "a zip archive, such as .npz"),
    (b"\x0c\0\0\0HEADER_START", "a SIGPROC file"),
    (b"SIMPLE  =", "a FITS file"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    *((bytes((0x80, protocol)), "a pickle") for protocol in range(2, 6)),
)
HEAD_BYTES = 512


def name_of_format(head: bytes) -> str:
    """Name the format of a file by its first bytes, at least `HEAD_BYTES` or all of them: "an HDF5 file"."""
    if not head:
        return "an empty file"
    for signature, name in SIGNATURES:
        if head.startswith(signature):
            return name
    if not any(byte < 9 or 13 < byte < 32 for byte in head):
        return "a text file"
    return f"a file of unknown format, which begins with {head[:16]!r}"


def format_of(path: str | Path) -> str:
    """Name the format of a file: "an HDF5 file"."""
    with open(path, "rb") as file:
        return name_of_format(file.read(HEAD_BYTES))
