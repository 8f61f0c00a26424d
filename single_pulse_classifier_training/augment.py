"""Random changes of training images, applied to a whole batch on its device.

Every change draws from the global random generator of torch, whose state is saved in last.pth.
"""

from collections.abc import Sequence

import torch
from torch import nn

from single_pulse_classifier_training.channels import DM_TIME
from single_pulse_classifier_training.cli import InputError

# Sizes of the changes, chosen by hand; not tuned on data. Levels are grey levels of 0..255; with the robust normaliser,
# the noise of a page has a standard deviation of 10.2 levels.
NOISE_LEVELS = 4.0  # standard deviation
ROW_OFFSET_LEVELS = 3.0  # standard deviation
ROW_GAIN = 0.05  # standard deviation
FAINTEST = 0.6  # smallest factor on a pulse
PART_OF_PAGES = 0.3  # fraction of the pages in which rows are dropped
MOST_ROWS_DROPPED = 0.1  # largest fraction of the rows of a page
MOST_SHIFT = 2.0  # pixels
MOST_SCALE = 1.25  # of a centred image, in either direction


def augmentation(centred: bool = False, channels: Sequence[str] = DM_TIME) -> nn.Module:
    """Return a module that applies changes as they occur in observations, one after the other.

    It takes and returns float tensors (N, C, n_dm, n_time) with values 0..255.

    Parameters
    ----------
    centred : bool
        Whether the images are cutouts centred on a peak and scaled to its width. Otherwise they are pages, in which a
        pulse may be anywhere.
    channels : sequence of str
        Channels of an image.

    Raises
    ------
    InputError
        If pages have other channels than DM-time.
    """
    if not centred and tuple(channels) != DM_TIME:
        raise InputError("key 'augment' must be false for images of several channels that are not scaled by 'noise'")
    # Importing torchvision takes more than a second.
    from torchvision.transforms import v2

    changes = [Jitter(channels)] if centred else [RollInTime(), FainterPulse(), RowBaseline(), RowDropOut()]
    noise = v2.GaussianNoise(sigma=NOISE_LEVELS, clip=False)
    if tuple(channels) != DM_TIME:
        noise = InUse(noise, channels)
    return v2.Compose([*changes, noise, v2.Lambda(lambda images: images.clamp(0.0, 255.0))])


class Jitter(nn.Module):
    """Shift each image by up to two pixels and scale both axes by 0.8 to 1.25, like errors in a measured peak.

    A new pixel takes the value of the nearest old one; beyond the edges, of the outermost one. All channels are changed
    alike in time; the sub-bands of the frequency-time channels stay where they are.

    Parameters
    ----------
    channels : sequence of str
        Channels of an image.
    """

    def __init__(self, channels: Sequence[str] = DM_TIME):
        super().__init__()
        self.moves_rows = torch.tensor([name in DM_TIME for name in channels])[:, None]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        n_pages, _, n_dm, n_time = images.shape
        scale = MOST_SCALE ** torch.empty((n_pages, 1), device=images.device).uniform_(-1.0, 1.0)

        def places(size: int) -> torch.Tensor:
            shift = torch.empty((n_pages, 1), device=images.device).uniform_(-MOST_SHIFT, MOST_SHIFT)
            offsets = torch.arange(size, device=images.device) - size // 2
            return (size // 2 + scale * offsets + shift).round().clamp(0, size - 1).to(torch.int64)

        rows, columns = places(n_dm), places(n_time)
        unmoved = torch.arange(n_dm, device=images.device)
        rows = torch.where(self.moves_rows.to(images.device), rows[:, None], unmoved)
        images = images.gather(2, rows[..., None].expand_as(images))
        return images.gather(3, columns[:, None, None, :].expand_as(images))


class InUse(nn.Module):
    """Apply a change, except to the sub-bands without a good channel, whose values are 0.

    Parameters
    ----------
    change : nn.Module
    channels : sequence of str
        Channels of an image.
    """

    def __init__(self, change: nn.Module, channels: Sequence[str]):
        super().__init__()
        self.change = change
        self.has_sub_bands = torch.tensor([name not in DM_TIME for name in channels])[:, None, None]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        unused = (images == 0) & self.has_sub_bands.to(images.device)
        return torch.where(unused, images, self.change(images))


class RollInTime(nn.Module):
    """Roll each page along time by a random number of columns.

    The roll wraps around: a pulse cut by one edge of the page continues at the other edge, unlike in an observation.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        n_pages, _, _, n_time = images.shape
        shifts = torch.randint(n_time, (n_pages, 1), device=images.device)
        columns = (torch.arange(n_time, device=images.device) - shifts) % n_time
        return images.gather(3, columns[:, None, None, :].expand_as(images))


class FainterPulse(nn.Module):
    """Make everything above the noise fainter, by a random factor of 0.6 to 1 for each page.

    Deviations from the median of the page are multiplied by the factor, and noise is added to restore its variance.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        factor = torch.empty((len(images), 1, 1, 1), device=images.device).uniform_(FAINTEST, 1.0)
        values = images.flatten(1)
        quartiles = torch.quantile(values[:, :: max(1, values.shape[1] // 4096)], _QUARTILES.to(images.device), dim=1)
        low, median, high = quartiles[:, :, None, None, None]
        sigma = (high - low) / 1.349  # inter-quartile range of a normal distribution
        noise = torch.randn_like(images) * sigma * (1 - factor**2).sqrt()
        return median + factor * (images - median) + noise


class RowBaseline(nn.Module):
    """Multiply each DM row by a random gain near 1 and add a small random offset."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        n_pages, _, n_dm, _ = images.shape
        offset, gain = torch.randn((2, n_pages, 1, n_dm, 1), device=images.device)
        return images * (1 + ROW_GAIN * gain) + ROW_OFFSET_LEVELS * offset


class RowDropOut(nn.Module):
    """Set up to a tenth of the rows to the mean of the page, in some of the pages."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        n_pages, _, n_dm, _ = images.shape
        part = torch.rand((n_pages, 1, 1, 1), device=images.device) * MOST_ROWS_DROPPED
        part *= torch.rand_like(part) < PART_OF_PAGES
        dropped = torch.rand((n_pages, 1, n_dm, 1), device=images.device) < part
        return torch.where(dropped, images.mean(dim=(2, 3), keepdim=True), images)


_QUARTILES = torch.tensor([0.25, 0.5, 0.75])
