"""FCN: any size of image, scores that move with the image, skips that begin as nothing, and discs that are learnt."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("rich")
pytest.importorskip("PIL")

from wherever.models.data import Labelled  # noqa: E402
from wherever.models.fcn import FCN, confusion, cropped, fit, floats, iou, mask, predict, recipe  # noqa: E402
from wherever.models.recipe import Options  # noqa: E402
from wherever.models.training import outputs, seeded  # noqa: E402


@pytest.mark.parametrize("skips", [0, 1, 2])
def test_every_size_of_image_has_as_many_answers(skips):
    model = FCN(skips=skips).eval()
    for size in ((1, 1), (33, 70), (64, 96)):
        assert model(torch.rand(1, 3, *size)).shape == (1, 4, *size)


def test_scores_move_with_the_image_by_strides_of_32():
    model = FCN(channels=(3, 4, 4, 4, 4, 4)).eval()
    for score in model.scores:
        torch.nn.init.normal_(score.weight)
    x = torch.rand(1, 3, 384, 320)
    first, moved = outputs(model, x), outputs(model, x.roll((32, -64), (2, 3)))
    inside = slice(160, 224)
    assert torch.allclose(moved[..., 192:256, 96:160], first[..., inside, inside], atol=1e-4)


def test_finer_layers_begin_as_nothing_and_enlarging_as_interpolation():
    model = FCN().eval()
    x = torch.rand(1, 3, 128, 128)
    finer = outputs(model, x)
    model.skips = 0
    assert torch.allclose(outputs(model, x)[..., 64, 64], finer[..., 64, 64], atol=0.05)
    ramp = torch.arange(6.0).expand(1, 4, 6, 6)
    expected = torch.nn.functional.interpolate(ramp, scale_factor=2, mode="bilinear")
    assert torch.allclose(model.enlarge[0](ramp)[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-5)


def test_the_smaller_of_two_boxes_counts():
    found = mask([("Platelets", (2, 1, 4, 3)), ("RBC", (1, 0, 6, 4)), ("WBC", (5, 2, 9, 9))], 5, 8)
    assert found.tolist() == [
        [0, 1, 1, 1, 1, 1, 0, 0],
        [0, 1, 3, 3, 1, 1, 0, 0],
        [0, 1, 3, 3, 1, 1, 2, 2],
        [0, 1, 1, 1, 1, 1, 2, 2],
        [0, 0, 0, 0, 0, 2, 2, 2],
    ]


def test_crops_turn_images_and_truth_alike():
    y = torch.randint(4, (5, 40, 50), dtype=torch.uint8)
    x = (60 * y)[:, None].expand(-1, 3, -1, -1)
    for seed in range(8):
        with seeded(seed):
            image, truth = cropped(x, y, 32)
        assert image.shape == (5, 3, 32, 32)
        assert torch.equal(floats(60 * truth.byte()), image[:, 0])
    assert cropped(x, y, 64)[1].numel() == y.numel()


def test_intersection_over_union_by_hand():
    truth, predicted = torch.tensor([[0, 0, 1], [1, 1, 2]]), torch.tensor([[0, 1, 1], [1, 0, 2]])
    counts = confusion(predicted, truth, 3)
    assert counts.tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 1]]
    assert iou(counts).tolist() == pytest.approx([1 / 3, 1 / 2, 1])


def discs(n, seed=0, size=96):
    """Images of noise with a large dim disc (class 1) and a small bright one (class 3)."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(60, (n, 3, size, size), generator=rng, dtype=torch.uint8)
    y = torch.zeros(n, size, size, dtype=torch.uint8)
    i, j = torch.arange(size)[:, None], torch.arange(size)
    for image, truth in zip(x, y, strict=True):
        for kind, radius, value in ((1, 20, 60), (3, 8, 150)):
            down, right = torch.randint(size, (2,), generator=rng).tolist()
            disc = (i - down) ** 2 + (j - right) ** 2 < radius**2
            image[:, disc] += value
            truth[disc] = kind
    return Labelled(x, y)


def test_discs_are_learnt_and_finer_layers_see_small_ones():
    data, test = discs(40), discs(20, 1)
    coarse = fit(data, epochs=8)
    finer = fit(data, epochs=5, start=fit(data, epochs=2, start=coarse.model).model)
    scores = [iou(confusion(predict(run.model, test.x), test.y)) for run in (coarse, finer)]
    assert [run.model.skips for run in (coarse, finer)] == [0, 2]
    assert scores[1][1] > 0.8
    assert scores[1][3] > max(0.5, scores[0][3])


def test_its_recipe(data):
    report = recipe(Options(data, epochs=1, sample=6))
    assert "6 photographs of blood, tested on 6" in report.title()
    assert [len(rows) for _, rows in report.tables()] == [3]
    assert len(report.panels) == 5
