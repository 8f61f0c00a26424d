"""Names of the channels of an image: the views of one candidate."""

from collections.abc import Sequence

CHANNELS = ("freq_time", "dm_time", "undispersed")
"""All channels, in the order in which images and networks have them: frequency-time at the DM of the peak, DM-time, and
frequency-time of the same samples without dedispersion."""
FREQUENCY_TIME = ("freq_time", "undispersed")
DM_TIME: tuple[str, ...] = ("dm_time",)
"""Channels of images and checkpoints that do not name any."""


def check_channels(names: Sequence[str]) -> None:
    """Raise ValueError unless the names are some of ``CHANNELS``, in this order."""
    if not names or list(names) != [name for name in CHANNELS if name in names]:
        raise ValueError(f"must be some of {', '.join(CHANNELS)}, in this order, got {', '.join(names) or 'none'}")


def channels_of_input(kind: str, stored: Sequence[str]) -> tuple[str, ...]:
    """Return the channels that a network of an input takes.

    Parameters
    ----------
    kind : {"dmt", "ft", "dmft"}
    stored : sequence of str
        Channels of the images.
    """
    wanted = {"dmt": DM_TIME, "ft": FREQUENCY_TIME, "dmft": CHANNELS}[kind]
    return tuple(name for name in stored if name in wanted)
