"""Sound as an image: how much of each pitch, by time (the log-mel spectrogram)."""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW, HOP = 256, 80  # samples: 32 ms, and 10 ms, of 8,000 a second


def mel_filters(bands: int, rate: int, window: int = WINDOW) -> Tensor:
    """Make triangles over frequencies that stand evenly on the mel scale, m = 2595 log10(1 + f / 700).

    Each is 1 at its own frequency and 0 at its neighbours' (Davis and Mermelstein 1980).

    Returns
    -------
    Tensor, (bands, window // 2 + 1)
    """
    top = 2595 * torch.log10(torch.tensor(1 + rate / 2 / 700))
    edges = 700 * (10 ** (torch.linspace(0, 1, bands + 2) * top / 2595) - 1)  # Hz
    frequencies = torch.linspace(0, rate / 2, window // 2 + 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return torch.minimum((frequencies - low) / (middle - low), (high - frequencies) / (high - middle)).clamp(min=0)


def log_mel(samples: Tensor, bands: int, frames: int, rate: int, depth: float = 60) -> Tensor:
    """Compute the log-mel spectrogram of one sound, in the middle of an image.

    Loudness is taken out: levels count from the loudest, what is `depth` decibels below it is silence, and `depth`
    decibels are 1. So is what voice and microphone give to all sounds: each band loses its mean over time (cepstral
    mean normalisation, Atal 1974). Before and after the sound is 0.

    Parameters
    ----------
    samples : Tensor, (samples,)
    bands, frames : int
        Height (the lowest pitch first) and width of the image. What is longer loses both ends.
    rate : int
        Samples a second.
    depth : float
        Decibels.

    Returns
    -------
    Tensor, (bands, frames)
    """
    spectrum = torch.stft(
        samples, WINDOW, HOP, window=torch.hann_window(WINDOW), pad_mode="constant", return_complex=True
    )
    power = mel_filters(bands, rate) @ spectrum.abs().square()
    level = 10 * torch.log10(power.clamp(min=1e-10))
    image = (1 + (level - level.max()) / depth).clamp(min=0)
    image = image - image.mean(dim=1, keepdim=True)
    spare = frames - image.shape[1]
    return torch.nn.functional.pad(image, (spare // 2, spare - spare // 2))
