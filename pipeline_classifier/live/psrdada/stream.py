"""A PSRDADA stream, that is, a header ring and a data ring: create and destroy both, connect to both."""

import time
from typing import Generic, Self, TypeVar

from pipeline_classifier.config import parse_key
from pipeline_classifier.live.psrdada.protocol import RingReader, RingWriter
from pipeline_classifier.live.psrdada.ring import MAX_READERS, RingDestroyed, RingError, make_ring, remove_ring
from single_pulse_classifier_training.cli import InputError


def create_rings(
    key: str | int,
    block_bytes: int,
    n_blocks: int = 16,
    n_readers: int = 1,
    header_blocks: int = 8,
    header_bytes: int = 4096,
) -> None:
    """Create the rings of a stream, as ``dada_db -k key -b block_bytes -n n_blocks -r n_readers`` does.

    Parameters
    ----------
    key : str or int
        Key of the data ring; a string is hexadecimal.
    block_bytes, n_blocks : int
        Size and number of the blocks of the data ring.
    n_readers : int
        Number of readers, 1 to 8. A block is reused when all of them have cleared it.
    header_blocks, header_bytes : int
        Number and size of the blocks of the header ring.

    Raises
    ------
    RingError
        If the key, or one derived from it, is in use.
    """
    key = parse_key(key)
    if not 1 <= n_readers <= MAX_READERS:
        raise InputError(f"n_readers must be between 1 and {MAX_READERS}, got {n_readers}")
    if block_bytes < 1 or n_blocks < 1:
        raise InputError(f"block_bytes and n_blocks must be positive, got {block_bytes} and {n_blocks}")
    try:
        make_ring(key, n_blocks, block_bytes, n_readers)
        try:
            make_ring(key + 1, header_blocks, header_bytes, n_readers)
        except BaseException:
            remove_ring(key)
            raise
    except FileExistsError as error:
        raise RingError(
            f"ring 0x{key:x}: its keys must be free, but one is in use; destroy the old ring (dada_db -d -k {key:x})"
        ) from error


def destroy_rings(key: str | int) -> None:
    """Destroy the rings of a stream, or those that exist, as ``dada_db -d -k key`` does."""
    key = parse_key(key)
    remove_ring(key)
    remove_ring(key + 1)


End = TypeVar("End", RingReader, RingWriter)


class Stream(Generic[End]):
    """Header ring and data ring of a stream, connected and disconnected together: base of ``Reader`` and ``Writer``."""

    _end: type[End]

    def __init__(self, key: str | int | None = None, timeout_s: float = 10.0) -> None:
        self.timeout_s = timeout_s
        self.isEndOfData = False
        self.isHoldingPage = False
        self._rings: list[End] = []
        if key is not None:
            self.connect(key)

    def connect(self, key: str | int) -> None:
        """Attach and lock both rings; if that fails, nothing stays attached.

        Raises
        ------
        RingTimeout
            If the rings did not exist, or could not be locked, within ``timeout_s``.
        RingError
            If it is connected already, or the rings cannot be used (see ``Ring``).
        """
        if self._rings:
            raise RingError(f"{self._data} is already connected; call disconnect first")
        key = parse_key(key)
        deadline = time.monotonic() + self.timeout_s
        self.isEndOfData = self.isHoldingPage = False
        try:
            for ring_key in (key + 1, key):
                self._rings.append(self._end(ring_key, key, max(0.0, deadline - time.monotonic())))
            for ring in self._rings:
                ring.lock(max(0.0, deadline - time.monotonic()))
        except BaseException:
            self._release()
            raise

    @property
    def isConnected(self) -> bool:
        return bool(self._rings)

    @property
    def _header(self) -> End:
        return self._ring(0)

    @property
    def _data(self) -> End:
        return self._ring(1)

    def _ring(self, number: int) -> End:
        if not self._rings:
            raise RingError("not connected to a ring; call connect first")
        return self._rings[number]

    def _release(self) -> None:
        """Unlock and detach, even if the rings have been destroyed."""
        for ring in reversed(self._rings):
            try:
                ring.unlock()
            except RingDestroyed:
                pass  # no lock to release
            finally:
                ring.detach()
        self._rings = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        self._release()
