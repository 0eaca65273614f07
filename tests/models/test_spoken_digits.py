"""Sound: spectrograms of tones, networks that do not care when a word comes, and words learnt from few."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("rich")
pytest.importorskip("PIL")

from wherever.models.data import RATE, Spoken  # noqa: E402
from wherever.models.recipe import Options  # noqa: E402
from wherever.models.spectrogram import WINDOW, log_mel, mel_filters  # noqa: E402
from wherever.models.spoken_digits import (  # noqa: E402
    BANDS,
    FRAMES,
    NETWORKS,
    SpectrogramCNN,
    TimeDelayNetwork,
    fit,
    moved,
    recipe,
    spectrograms,
)
from wherever.models.training import outputs  # noqa: E402

BUILDS = pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)


def tone(*hertz, seconds=0.3):
    """Tones one after the other, in faint noise."""
    time = torch.arange(int(RATE * seconds / len(hertz))) / RATE
    sound = torch.cat([torch.sin(2 * torch.pi * f * time) for f in hertz])
    return 0.5 * sound + 1e-3 * torch.randn(len(sound), generator=torch.Generator().manual_seed(0))


def test_filters_are_triangles_that_add_up_to_one():
    filters = mel_filters(20, RATE)
    assert filters.shape == (20, WINDOW // 2 + 1)
    frequencies = torch.linspace(0, RATE / 2, WINDOW // 2 + 1)
    middle = (frequencies > 300) & (frequencies < 3000)
    assert torch.allclose(filters.sum(dim=0)[middle], torch.tensor(1.0), atol=1e-4)


def test_a_higher_tone_is_further_up_and_a_later_one_further_right():
    rising = log_mel(tone(500, 2000), BANDS, FRAMES, RATE)
    assert rising.shape == (BANDS, FRAMES)
    low, high = (part.sum(dim=1).argmax() for part in rising.tensor_split(2, dim=1))
    middles = mel_filters(BANDS, RATE).argmax(dim=1) * RATE / WINDOW  # Hz
    assert [middles[n].item() for n in (low, high)] == pytest.approx([500, 2000], rel=0.1)
    assert rising.sum(dim=1).abs().max() < 1e-4
    assert (rising[:, :20] == 0).all()


def test_loudness_does_not_count_and_long_sounds_lose_both_ends():
    assert torch.allclose(log_mel(tone(700), 20, 50, RATE), log_mel(tone(700) / 8, 20, 50, RATE), atol=1e-4)
    whole, part = (log_mel(tone(700, 900, seconds=0.6), 20, frames, RATE) for frames in (70, 30))
    assert part.shape == (20, 30)
    assert torch.equal(whole[:, 20:50], part)


def test_the_time_delay_network_does_not_see_when():
    """Its mean over time is of the same values, if what is around the word is silence."""
    model = TimeDelayNetwork().eval()
    x = torch.zeros(1, 1, BANDS, 160)
    x[..., 50:80] = torch.rand(BANDS, 30)
    assert torch.allclose(outputs(model, x), outputs(model, x.roll(20, -1)), atol=1e-5)
    assert not torch.allclose(outputs(model, x), outputs(model, x.roll(2, -2)), atol=1e-3)


def test_the_cnn_takes_images_of_any_size():
    assert SpectrogramCNN()(torch.zeros(2, 1, 8, 70)).shape == (2, 10)


def words(n, seed):
    """Rising and falling tones (digits 0 and 1) of any pitch, which begin at any time."""
    rng = torch.Generator().manual_seed(seed)
    sounds = []
    for digit in (torch.arange(n) % 2).tolist():
        pitch, before, after = torch.rand(3, generator=rng).tolist()
        base = 300 + 700 * pitch
        steps = (base, 1.5 * base, 2 * base)
        sound = tone(*(steps if digit == 0 else reversed(steps)))
        blanks = [1e-3 * torch.randn(int(RATE * 0.2 * t), generator=rng) for t in (before, after)]
        sounds.append(Spoken(torch.cat([blanks[0], sound, blanks[1]]), digit, "piper"))
    return spectrograms(sounds)


@BUILDS
def test_it_learns_what_rises_and_what_falls(build):
    data, test = words(160, 0), words(60, 1)
    run = fit(build, data, test, epochs=8)
    assert run.score > 0.9
    assert moved([run.model], [test], 0, 10) > 0.85
    assert moved([run.model], [test], 0, 0) == run.score


def test_its_recipe(data):
    report = recipe(Options(data, epochs=1, sample=20))
    assert "20 words of 3 speakers to train on, 20 of another" in report.title()
    assert [len(rows) for _, rows in report.tables()] == [2, 2, 2]
    assert len(report.panels) == 4
