"""Both rings of a stream: creation, keys, connection."""

import pytest

from pipeline_classifier.live.psrdada.client import Reader, RingError, Writer
from pipeline_classifier.live.psrdada.stream import create_rings
from single_pulse_classifier_training.cli import InputError
from tests.pipeline_classifier.live.psrdada.conftest import BLOCK, attached


@pytest.mark.parametrize("arguments", [{"n_readers": 9}, {"n_readers": 0}, {"n_blocks": 0}, {"block_bytes": 0}])
def test_impossible_rings_are_refused(ring_key, parts_of, arguments):
    with pytest.raises(InputError):
        create_rings(ring_key, **{"block_bytes": BLOCK} | arguments)
    assert not any(parts_of(ring_key).values())


def test_every_segment_is_detached(ring_key):
    create_rings(ring_key, BLOCK)
    with Reader(ring_key), Writer(ring_key):
        assert attached() == 2 * (2 + 16 + 8)
    assert attached() == 0


def test_a_second_connection_of_one_reader_is_refused(ring_key):
    create_rings(ring_key, BLOCK)
    with Reader() as reader:
        assert not reader.isConnected
        reader.connect(ring_key)
        with pytest.raises(RingError, match=f"ring 0x{ring_key:x} is already connected"):
            reader.connect(ring_key)
        assert reader.isConnected
        reader.disconnect()
        reader.connect(f"{ring_key:x}")
