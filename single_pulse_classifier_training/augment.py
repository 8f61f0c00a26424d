"""Random changes of training images, on their device and over the whole batch at once.

Every change draws from torch's global random generator, whose state a checkpoint keeps.
"""

import torch
from torch import nn

NOISE_LEVELS = 4.0
ROW_OFFSET_LEVELS = 3.0
ROW_GAIN = 0.05
FAINTEST = 0.6
PART_OF_PAGES = 0.3
MOST_ROWS_DROPPED = 0.1
MOST_SHIFT = 2.0  # pixels


def augmentation(centred: bool = False) -> nn.Module:
    """The changes that an observation makes too, one after the other.

    Takes and gives float tensors (N, 1, n_dm, n_time) with values 0..255.

    Parameters
    ----------
    centred : the images are peaks in the middle, scaled to their width, and not pages in which a pulse may be anywhere
    """
    # Importing torchvision takes more than a second.
    from torchvision.transforms import v2

    changes = [Jitter()] if centred else [RollInTime(), FainterPulse(), RowBaseline(), RowDropOut()]
    noise = v2.GaussianNoise(sigma=NOISE_LEVELS, clip=False)
    return v2.Compose([*changes, noise, v2.Lambda(lambda images: images.clamp(0.0, 255.0))])


class Jitter(nn.Module):
    """Measure each peak a little wrong: shift it by up to two pixels, and scale both axes by 0.8 to 1.25.

    The pixels are the nearest ones, at the edges the outermost.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        n_pages, _, n_dm, n_time = images.shape
        scale = 1.25 ** torch.empty((n_pages, 1), device=images.device).uniform_(-1.0, 1.0)

        def places(size: int) -> torch.Tensor:
            shift = torch.empty((n_pages, 1), device=images.device).uniform_(-MOST_SHIFT, MOST_SHIFT)
            offsets = torch.arange(size, device=images.device) - size // 2
            return (size // 2 + scale * offsets + shift).round().clamp(0, size - 1).to(torch.int64)

        rows, columns = places(n_dm), places(n_time)
        images = images.gather(2, rows[:, None, :, None].expand_as(images))
        return images.gather(3, columns[:, None, None, :].expand_as(images))


class RollInTime(nn.Module):
    """Roll each page along time by its own number of columns.

    The roll wraps around: a pulse that is cut by a page edge comes back at the other one, which no observation does.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        n_pages, _, _, n_time = images.shape
        shifts = torch.randint(n_time, (n_pages, 1), device=images.device)
        columns = (torch.arange(n_time, device=images.device) - shifts) % n_time
        return images.gather(3, columns[:, None, None, :].expand_as(images))


class FainterPulse(nn.Module):
    """Make all that stands out of the noise fainter by a factor of its own for each page, 0.6 to 1.

    The page is drawn towards its median by the factor, and new noise fills up what its old noise has lost.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        factor = torch.empty((len(images), 1, 1, 1), device=images.device).uniform_(FAINTEST, 1.0)
        values = images.flatten(1)
        quartiles = torch.quantile(values[:, :: max(1, values.shape[1] // 4096)], _QUARTILES.to(images.device), dim=1)
        low, median, high = quartiles[:, :, None, None, None]
        sigma = (high - low) / 1.349
        noise = torch.randn_like(images) * sigma * (1 - factor**2).sqrt()
        return median + factor * (images - median) + noise


class RowBaseline(nn.Module):
    """Give every DM row a small offset and gain of its own."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        n_pages, _, n_dm, _ = images.shape
        offset, gain = torch.randn((2, n_pages, 1, n_dm, 1), device=images.device)
        return images * (1 + ROW_GAIN * gain) + ROW_OFFSET_LEVELS * offset


class RowDropOut(nn.Module):
    """In some of the pages, set up to a tenth of the rows to the mean of the page."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        n_pages, _, n_dm, _ = images.shape
        part = torch.rand((n_pages, 1, 1, 1), device=images.device) * MOST_ROWS_DROPPED
        part *= torch.rand_like(part) < PART_OF_PAGES
        dropped = torch.rand((n_pages, 1, n_dm, 1), device=images.device) < part
        return torch.where(dropped, images.mean(dim=(2, 3), keepdim=True), images)


_QUARTILES = torch.tensor([0.25, 0.5, 0.75])
