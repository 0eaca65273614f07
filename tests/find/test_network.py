"""Networks as detectors: their numbers are PyTorch's, training finds the thing, and all else is as usual."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scenes import box, scene

torch = pytest.importorskip("torch")

from wherever.files.sources import ArraySource  # noqa: E402
from wherever.find import Detector, average_precision, choosing  # noqa: E402
from wherever.find.augment import Variety, Views  # noqa: E402
from wherever.find.choosing import METHODS, Trial  # noqa: E402
from wherever.find.features import Eye, Picture, learn_mix  # noqa: E402
from wherever.find.fitting import Task  # noqa: E402
from wherever.find.learning import as_member, load_member, small_network  # noqa: E402
from wherever.find.mining import Miner, Pool, is_background  # noqa: E402
from wherever.find.network import Network, as_module  # noqa: E402
from wherever.find.sweep import Template, distinct, maps_of  # noqa: E402
from wherever.find.tiled import all_candidates, grid  # noqa: E402
from wherever.find.training import Scene  # noqa: E402

PLACES = [(20, 20, 24), (120, 40, 24), (60, 110, 24), (170, 130, 24)]
BOXES = np.array([box(p) for p in PLACES], float)
SHAPE = (180, 220)
NONE = np.zeros((0, 4))
TEMPLATE = Template(4 / 3, 37, 37, 24.0, 24.0, stride=4)
LEVELS, PENALTIES = (-1, 0, 1), (0.3, 0.0, 0.3)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [scene(PLACES, SHAPE, seed) for seed in range(4)]


def network(channels: int = 1, members: int = 1, **template) -> Network:
    """Return a network of the usual shape with random weights."""
    torch.manual_seed(0)
    found = []
    for _ in range(members):
        module = small_network(TEMPLATE, channels, width=4).eval()
        with torch.no_grad():
            for part in module:
                if isinstance(part, torch.nn.BatchNorm2d):
                    part.running_mean.normal_()
                    part.running_var.uniform_(0.5, 2)
        found.append(replace(as_member(module), share=0.7))
    eye = Eye(np.eye(channels, dtype=np.float32), 0.0, 0.0)
    return Network(replace(TEMPLATE, **template), eye, tuple(found), LEVELS, PENALTIES)


def knowing(scorer: Network, channels: int) -> Detector:
    """Return a detector that was not trained, but knows a network."""
    from wherever.find.calibration import Calibration
    from wherever.find.storage import Learnt

    return Detector(kind="learned")._knowing(Learnt(scorer, Calibration(1.0, 0.0, False), channels, 0.5))


def test_folded_normalisations_compute_the_same():
    module = small_network(TEMPLATE, 2, width=4)
    module(torch.randn(8, 2, 45, 49))  # moves the statistics
    module.eval()
    x = torch.randn(1, 2, 45, 49)
    member = as_member(module)
    assert (member.field, member.stride) == ((37, 37), 4)
    with torch.no_grad():
        assert_allclose(as_module([member]).eval()(x).numpy(), module(x).numpy(), atol=1e-5)


def test_training_goes_on_from_folded_weights():
    member = network(2).members[0]
    module, x = small_network(TEMPLATE, 2, width=4), torch.randn(8, 2, 37, 37)
    load_member(module, member, x)
    expected = as_module([replace(member, share=1.0)]).eval()(x)
    assert_allclose(module.eval()(x).detach().numpy(), expected.detach().numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(37, 37), (40, 98), (121, 37), (330, 317), (20, 20)])
def test_tiles_of_a_network_are_the_whole(shape):
    scorer = network(2, members=2)
    maps = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    pads = ((18, 18), (18, 18)) if shape == (20, 20) else ((0, 0), (3, 5))
    scores, _ = scorer.scores(maps, pads, 0.25)
    with torch.no_grad():
        expected = as_module(scorer.members)(torch.from_numpy(np.pad(maps, ((0, 0), *pads)))[None])[0, 0].numpy() - 0.25
    assert_allclose(scores, expected, atol=1e-4)


def test_it_is_accelerated_once_that_pays(monkeypatch):
    monkeypatch.setattr("wherever.find.network.PATIENCE", 0.0)
    scorer = network()
    maps = np.random.default_rng(0).standard_normal((1, 60, 60)).astype(np.float32)
    first, second = (scorer.scores(maps, ((0, 0), (0, 0)))[0] for _ in range(2))
    assert scorer._runner._fast
    assert_allclose(first, second, atol=1e-4)


@pytest.mark.parametrize("below", [0.0, -4.5])
def test_windows_of_training_are_those_of_the_sweep(pictures, below):
    """What an example looks like, what is mined beside it, and what is swept are the same windows."""
    scorer = network(below=below)
    eye = Eye(learn_mix([pictures[0][:, :, None]], 1), 0.0, 0.0)
    scorer = replace(scorer, eye=eye)
    picture = Picture(pictures[0][:, :, None], eye.mix)
    places = scorer.template.centre(np.array([8]), np.array([10]), 0)
    size = np.array([scorer.template.width, scorer.template.height]) / 2
    boxes = np.hstack([places - size, places + size])
    plain = Views([picture], [boxes], scorer.template, eye, Variety(False, False, 0.0, 0.0)).plain()
    up, left = scorer.template.padding
    maps = np.pad(maps_of(scorer, picture)(0), ((0, 0), (up, up), (left, left)))
    swept = maps[:, 32 : 32 + 37, 40 : 40 + 37]
    # examples are kept in finer cells, so they are a little smoother
    assert np.corrcoef(plain.numpy().ravel(), swept.ravel())[0, 1] > 0.95
    miner = Miner([Scene(picture, NONE, NONE)], replace(scorer, levels=(0,)))
    windows = miner.drawn(24, np.random.default_rng(0))
    every = np.lib.stride_tricks.sliding_window_view(maps, (37, 37), axis=(1, 2))[0].reshape(-1, 37 * 37)
    for window in windows[:4]:
        assert np.abs(every - window.ravel()).max(axis=1).min() < 1e-4


def test_background_is_neither_near_examples_nor_ignored():
    marked = Scene(None, BOXES[:1], NONE, ignored=np.array([[100.0, 0, 200, 80]]))
    boxes = np.array([BOXES[0], BOXES[0] + 4, BOXES[1], BOXES[2]])
    assert is_background(boxes, marked).tolist() == [False, False, False, True]


def test_a_pool_keeps_the_latest():
    pool = Pool((1, 2, 2), 5)
    for number in range(4):
        pool.add(np.full((2, 1, 2, 2), number, np.float32))
    drawn = pool.draw(100, np.random.default_rng(0))
    assert (len(pool), pool.seen) == (5, 8)
    assert sorted(drawn.unique().tolist()) == [1, 2, 3]


def test_views_vary_around_the_thing(pictures):
    scorer = network(below=-3.0)
    picture = Picture(pictures[0][:, :, None], np.ones((1, 1), np.float32))
    views = Views([picture], [BOXES], scorer.template, scorer.eye, Variety(True, True, 0.2, 1.0))
    drawn = views.draw(10, np.random.default_rng(0))
    assert drawn.shape == (10, 1, 37, 37)
    assert torch.isfinite(drawn).all()
    assert len({d.sum().item() for d in drawn}) == 10


@pytest.mark.parametrize("tile", [(64, 64), (31, 600)])
def test_finds_in_tiles_are_those_of_the_whole(pictures, tile):
    detector = knowing(network(below=2.0), 1)
    image = pictures[0]
    sweep = detector.sweep(ArraySource(image[:, :, None]))
    found = detector._finds(distinct(all_candidates(sweep, grid(SHAPE, tile), -np.inf)), SHAPE[::-1])
    expected = detector.find(image, threshold=0)
    assert_allclose(found.boxes, expected.boxes)
    assert_allclose(found.scores, expected.scores, atol=1e-5)
    for rows in (slice(0, 64), slice(64, 180)):
        part = sweep.score_map(((rows.start, rows.stop), (0, 220)))
        assert_allclose(detector._probability(part), detector.score_map(image)[rows], atol=1e-5)


def test_it_comes_back_from_a_file(pictures, tmp_path):
    detector = knowing(network(2, members=2, right=1.5), 2)
    image = np.dstack(pictures[:2])
    detector.save(tmp_path / "a.detector")
    again = Detector.load(tmp_path / "a.detector")
    assert_array_equal(again.score_map(image), detector.score_map(image))
    assert again.fingerprint() == detector.fingerprint()
    assert again.get_params() == detector.get_params()


def test_layers_that_do_not_fit_are_refused():
    scorer = network(1)
    wrong = replace(scorer, template=replace(scorer.template, rows=41))
    with pytest.raises(ValueError, match="do not fit"):
        wrong.holding(scorer.arrays(), scorer.strides)


def test_a_short_training_finds_what_is_to_be_found(pictures):
    told = []
    detector = Detector(kind="learned", budget=6, upright=True)
    detector.fit(pictures[:3], [BOXES] * 3, complete=True, progress=told.append, clock=time.process_time)
    finds = detector.find(pictures[3], threshold=0)
    assert average_precision([finds], [BOXES], match="centre").ap > 0.9
    assert [r.done for r in told] == sorted(r.done for r in told)
    assert told[-1].done == 1
    assert not detector.interrupted_
    detector.set_params(budget=0.5).fit(pictures[:3], [BOXES] * 3, complete=True, resume=True, clock=time.process_time)
    finds = detector.find(pictures[3], threshold=0)
    assert average_precision([finds], [BOXES], match="centre").ap > 0.9


def test_an_interruption_keeps_what_was_learnt(pictures):
    def interrupt(round_) -> None:
        raise KeyboardInterrupt

    detector = Detector(kind="learned", budget=30).fit(pictures[:2], [BOXES] * 2, progress=interrupt)
    assert detector.interrupted_
    assert len(detector.find(pictures[3], top=3)) == 3


def test_an_interrupted_comparison_leaves_the_closed_form(pictures, monkeypatch):
    def interrupted(tasks, method, training):
        raise KeyboardInterrupt

    monkeypatch.setattr(choosing, "trial", interrupted)
    detector = Detector(kind="auto", budget=1).fit(pictures[:2], [BOXES] * 2, complete=True)
    assert (detector.kind_, detector.interrupted_) == ("closed", True)


def test_one_example_is_enough_to_begin(pictures):
    detector = Detector(kind="learned", budget=0.2).fit(pictures[0], BOXES[0], negatives=[[0, 0, 20, 20]])
    assert not detector.calibrated_
    assert len(detector.find(pictures[0], top=5)) == 5


@pytest.mark.parametrize(
    ("parameters", "options", "message"),
    [
        ({"kind": "best"}, {}, r"kind must be one of 'closed'.*got 'best'"),
        ({"kind": "learned", "budget": 0}, {}, "budget must be a number of seconds above 0; got 0"),
        ({"kind": "learned", "any_rotation": True}, {}, "any_rotation"),
        ({"kind": "learned"}, {"resume": True}, "no network to train further"),
        ({}, {"resume": True}, "no network to train further"),
        ({}, {"ignore": [[0, 0, 500, 500]]}, "ignore: the box"),
    ],
)
def test_what_cannot_be_is_said(pictures, parameters, options, message):
    with pytest.raises(ValueError, match=message):
        Detector(**parameters).fit(pictures[0], BOXES, **options)


def test_without_pytorch_the_way_out_is_said(pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "wherever\[torch\]"'):
        Detector(kind="learned").fit(pictures[0], BOXES)


def test_views_of_local_contrast_are_what_the_kernel_sees(pictures):
    """The windows on which a head is trained are those of the sweep."""
    detector = Detector().fit(pictures[0], BOXES[:1])
    kernel = detector.kernel_
    picture = Picture(pictures[0][:, :, None], kernel.eye.mix)
    views = Views([picture], [BOXES], kernel.template, kernel.eye, Variety(False, False, 0.0, 0.0))
    windows = views.plain().flatten(1).numpy()
    middle = np.sqrt(kernel.template.width * kernel.template.height)
    for window, (x0, y0, x1, y1) in zip(windows, BOXES, strict=True):
        expected = picture.window(
            kernel.eye,
            (x0 + x1) / 2,
            (y0 + y1) / 2,
            kernel.template.cell * (x1 - x0) / middle,
            kernel.template.rows,
            kernel.template.columns,
            0.0,
        )
        assert np.corrcoef(window, expected.ravel())[0, 1] > 0.9


def test_a_head_is_added_to_the_kernel(pictures, tmp_path):
    detector = Detector(kind="head", budget=2).fit(pictures[:2], [BOXES] * 2, complete=True, clock=time.process_time)
    assert detector.kind_ == "head"
    assert len(detector.kernel_.members) == 2
    finds = detector.find(pictures[3], threshold=0)
    assert average_precision([finds], [BOXES]).ap > 0.9
    detector.save(tmp_path / "a.detector")
    again = Detector.load(tmp_path / "a.detector")
    assert again.kind_ == "head"
    assert_array_equal(again.score_map(pictures[3]), detector.score_map(pictures[3]))
    again.set_params(budget=0.3).fit(pictures[:2], [BOXES] * 2, complete=True, resume=True)
    assert average_precision([again.find(pictures[3], threshold=0)], [BOXES]).ap > 0.9


@pytest.mark.parametrize("count", [1, 2])
def test_the_kind_is_chosen_by_what_it_finds_elsewhere(pictures, count, monkeypatch):
    """With trials whose outcome is known, the best one is fitted to all pictures."""
    seen = []

    def fake(name, precision):
        def trial(tasks, method, training):
            seen.append((name, [len(known.pictures) for known, _ in tasks]))
            return Trial(precision, [np.array([2.0, 1.0, -1.0])], [np.array([True, True, False])])

        return trial

    outcomes = {"closed": 0.5, "head": 0.8, "learned": 0.7}
    by_method = {method: fake(name, outcomes[name]) for name, method in METHODS.items()}
    monkeypatch.setattr(choosing, "SLOWEST", 0.0)
    monkeypatch.setattr(choosing, "trial", lambda tasks, method, training: by_method[method](tasks, method, training))
    detector = Detector(kind="auto", budget=1).fit(pictures[:count], [BOXES] * count, complete=True)
    assert detector.kind_ == "head"
    assert detector.calibrated_
    assert [name for name, _ in seen] == ["closed", "head", "learned"]
    assert seen[0][1] == [1, 1]


def test_a_picture_in_halves_keeps_its_boxes_and_ignores_those_that_are_cut(pictures):
    cut = [[100, 5, 130, 35], [5, 140, 29, 164], [190, 10, 214, 34], [10, 60, 34, 84], [180, 90, 204, 114]]
    task = Task([pictures[0][:, :, None]], [np.array(cut, float)], [NONE], [NONE], True, None, 10, 5, False, False, 0)
    (left, right), (again, _) = choosing.folds(task)
    assert len(left.pictures) == len(right.pictures) == 1
    halves = sorted((left, right), key=lambda t: len(t.boxes[0]))
    assert again.pictures[0].shape == right.pictures[0].shape
    assert sorted(len(h.boxes[0]) for h in halves) == [2, 2]
    assert all(len(h.ignored[0]) == 1 for h in halves)
    assert sum(h.pictures[0].shape[1] for h in halves) == SHAPE[1]


def test_without_a_complete_marking_the_closed_form_is_kept(pictures):
    assert Detector(kind="auto", budget=1).fit(pictures[0], BOXES).kind_ == "closed"
