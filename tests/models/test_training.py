"""The training loop, augmentation and the command that recipes share."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("rich")
pytest.importorskip("PIL")

from torch import nn  # noqa: E402

from wherever.models.augmentation import mirrored, shifted, warped  # noqa: E402
from wherever.models.data import DataError, Labelled  # noqa: E402
from wherever.models.recipe import Options, Report, curves, learning, main  # noqa: E402
from wherever.models.training import accuracy, count_weights, outputs, seeded, train  # noqa: E402


def halves(n, seed=0):
    """Points of a plane, and on which side of a line they lie."""
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return Labelled(x, (x.sum(dim=1) > 0).long())


def build():
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))


def test_it_learns_and_keeps_what_happened():
    run = train(build, halves(500), halves(300, 1), epochs=6, rate=0.02)
    assert [epoch.number for epoch in run.epochs] == [1, 2, 3, 4, 5, 6]
    assert run.epochs[-1].loss < 0.2 < 0.5 < math.log(2)
    assert run.score == run.epochs[-1].score > 0.95
    assert run.score == accuracy(outputs(run.model, halves(300, 1).x), halves(300, 1).y)
    assert not run.model.training
    assert count_weights(run.model) == 3 * 8 + 9 * 2


def test_a_seed_repeats_a_training_and_leaves_the_generator_alone():
    before = torch.random.get_rng_state()
    first, again, other = (train(build, halves(100), epochs=2, seed=seed).epochs for seed in (3, 3, 4))
    assert first == again != other
    assert first[-1].score is None
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_rate_grows_then_falls_and_every_step_is_followed():
    rates, batches = [], []
    model = nn.Linear(2, 2)
    optimiser = torch.optim.SGD(model.parameters(), 0.5)

    def note(same):
        assert same is model
        rates.append(optimiser.param_groups[0]["lr"])

    train(
        lambda: model,
        halves(95),
        epochs=4,
        batch=10,
        augment=lambda x, y: (x, batches.append(len(y)) or y),
        optimiser=lambda _: optimiser,
        after_step=note,
    )
    assert batches == 4 * [*9 * [10], 5]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert (top, len(rates)) == (3, 40)
    assert max(rates) == pytest.approx(0.5, rel=0.02)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_a_run_without_a_test_has_no_score():
    with pytest.raises(ValueError, match="no test"):
        _ = train(build, halves(20), epochs=1).score


def test_shifts_repeat_the_border():
    x = torch.arange(12.0).view(1, 1, 3, 4)
    assert shifted(x, 1, 0)[0, 0].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert shifted(x, 0, -2)[0, 0, 0].tolist() == [2, 3, 3, 3]


def test_half_of_the_images_are_mirrored():
    x = torch.rand(200, 1, 3, 4)
    with seeded(0):
        out = mirrored(x)
    same = (out == x).flatten(1).all(dim=1)
    assert 70 < same.sum() < 130
    assert torch.equal(out[~same], x[~same].flip(-1))


def blob(down, right, height=40, width=48):
    i, j = torch.arange(height)[:, None], torch.arange(width)
    return torch.exp(-((i - down) ** 2 + (j - right) ** 2) / 8.0).expand(64, 1, -1, -1)


def centre(x):
    """Where the mass of each image lies: (N, 2)."""
    weights = x[:, 0] / x[:, 0].sum(dim=(1, 2), keepdim=True)
    rows, columns = torch.arange(x.shape[-2]) * 1.0, torch.arange(x.shape[-1]) * 1.0
    return torch.stack([(weights.sum(2) * rows).sum(1), (weights.sum(1) * columns).sum(1)], dim=1)


def test_warps_move_turn_and_resize_by_as_much_as_is_said():
    with seeded(0):
        assert torch.allclose(warped(blob(20, 20)), blob(20, 20), atol=1e-5)
        moved = centre(warped(blob(20, 20), move=3)) - torch.tensor([20.0, 20.0])
        assert 2.5 < moved.abs().max() < 3.01
        middle = torch.tensor([19.5, 23.5])
        turned = centre(warped(blob(19.5, 33.5), turn=30)) - middle  # ten to the right of the middle
        assert torch.allclose(turned.norm(dim=1), torch.tensor(10.0), atol=0.05)
        angles = torch.atan2(turned[:, 0], turned[:, 1]).abs() * 180 / torch.pi
        assert 25 < angles.max() < 30.5
        sized = (centre(warped(blob(19.5, 33.5), size=0.2)) - middle)[:, 1]
        assert 8.2 < sized.min() < 8.9
        assert 11.3 < sized.max() < 12.6
        bent = centre(warped(blob(20, 20), bend=1.5, smooth=6)) - torch.tensor([20.0, 20.0])
        assert 1 < bent.std() < 2


def command(capsys, recipe, *arguments):
    with pytest.raises(SystemExit) as end:
        main(recipe, "Says what it does.\n\nMore.", epochs=2, arguments=[str(a) for a in arguments])
    printed = capsys.readouterr()
    return end.value.code, printed.out, printed.err


def recipe(options):
    if not options.data.is_dir():
        raise DataError(f"{options.data}: not there")
    run = train(build, halves(options.sample or 50), halves(20), epochs=options.epochs, seed=options.seed)
    rows = [["it", f"{run.score:.0%}"]]
    more = curves("more", "images", "accuracy", {"a": ([1, 10, 100], [0.1, 0.5, 0.9])}, log=True)
    return Report("Halves", [(("network", "accuracy"), rows)], "It learns.", [*learning({"it": run}), more, more])


def test_the_command_prints_a_table_and_draws(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "it.png"
    code, out, err = command(capsys, recipe, "--data", tmp_path, "--plot", path, "--epochs", 3, "--seed", 1)
    assert (code, err) == (0, "")
    title, _, header, rule, row, _, sentence = out.splitlines()
    assert (title, sentence) == ("Halves", "It learns.")
    assert header.split() == ["network", "accuracy"]
    assert set(rule) == {"-"}
    assert row.split()[0] == "it"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_command_passes_its_options_on(capsys, tmp_path):
    seen = []
    command(capsys, lambda options: seen.append(options), "--data", tmp_path, "--sample", 7)
    assert seen == [Options(tmp_path, epochs=2, seed=0, sample=7)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data"),
        (["--data", "nowhere"], "nowhere: not there"),
        (["--data", ".", "--epochs", "0"], "'0' is no whole number from 1"),
        (["--data", ".", "--plot", "it.docx"], "--plot it.docx: the name must end in one of"),
    ],
)
def test_bad_input_is_said_and_exit_code_2(capsys, arguments, message):
    code, out, err = command(capsys, recipe, *arguments)
    assert (code, out) == (2, "")
    assert message in err
