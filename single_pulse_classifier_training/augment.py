"""Random changes of training images, on their device and over the whole batch at once."""

import torch

NOISE_LEVELS = 4.0
ROW_OFFSET_LEVELS = 3.0


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Roll in time, noise, and a new baseline for every DM row.

    Parameters
    ----------
    images : float tensor (N, 1, n_dm, n_time), values 0..255
    generator : on the device of the images

    Returns
    -------
    float tensor of the same shape, clipped to 0..255

    Notes
    -----
    The roll wraps around: a pulse that is cut by a page edge comes back at the other one, which no observation does.
    """
    images = roll_in_time(images, generator)
    n_pages, _, n_dm, _ = images.shape
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    row_offsets = torch.randn((n_pages, 1, n_dm, 1), generator=generator, device=images.device)
    return (images + NOISE_LEVELS * noise + ROW_OFFSET_LEVELS * row_offsets).clamp_(0.0, 255.0)


def roll_in_time(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Roll each page of (N, 1, n_dm, n_time) along time by its own random number of columns."""
    n_pages, _, _, n_time = images.shape
    shifts = torch.randint(n_time, (n_pages, 1), generator=generator, device=images.device)
    columns = (torch.arange(n_time, device=images.device) - shifts) % n_time
    return images.gather(3, columns[:, None, None, :].expand_as(images))
