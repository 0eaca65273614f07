"""What calls keep of their weights: found again by every byte, never by an array that may have changed; and bounded."""

import threading

import numpy as np
import pytest
from strategies import bits, numbers

from wherever import ops
from wherever.engine import packed
from wherever.engine.plan import choose
from wherever.problem import ConvProblem

PROBLEM = ConvProblem.from_shapes((1, 9, 9, 3), (4, 3, 3, 3), layout="channels_last")


@pytest.fixture(autouse=True)
def nothing_kept():
    """Nothing is kept of other tests."""
    packed._kept.clear()
    yield
    packed._kept.clear()


def size():
    return sum(kept.size for each in packed._kept.values() for kept in each)


@pytest.fixture
def preparations(monkeypatch):
    """How often anything was prepared."""
    done = []
    prepare = packed.Choice.prepare
    monkeypatch.setattr(packed.Choice, "prepare", lambda self, *numbers: done.append(1) or prepare(self, *numbers))
    return done


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (32, 64, 3, 3)])
def test_the_same_numbers_are_prepared_once(preparations, shape):
    x, w = numbers((1, 9, 9, shape[1]), "float32"), numbers(shape, "float32", 1)
    bias = numbers(shape[0], "float32", 2)
    y = ops.conv(x, w, bias, layout="channels_last")
    turned = np.ascontiguousarray(w.transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0)
    for same in (w, w.copy(), turned):
        assert bits(ops.conv(x, same, bias.copy(), layout="channels_last")) == bits(y)
    assert len(preparations) == 1


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (32, 64, 3, 3)])
@pytest.mark.parametrize("place", [0, -1])
def test_weights_that_changed_in_place_are_seen(preparations, shape, place):
    x, w = numbers((1, 9, 9, shape[1]), "float32"), numbers(shape, "float32", 1)
    bias = numbers(shape[0], "float32", 2)
    ops.conv(x, w, bias, layout="channels_last")
    for array in (w, bias):
        array.flat[place] += 1
        y = ops.conv(x, w, bias, layout="channels_last")
        packed._kept.clear()
        assert bits(y) == bits(ops.conv(x, w.copy(), bias, layout="channels_last"))
    y = ops.conv(x, w, layout="channels_last")
    assert bits(y) != bits(ops.conv(x, w, bias, layout="channels_last"))
    assert len(preparations) == 6


def test_numbers_of_equal_bytes_and_other_types_are_others(preparations):
    problem = ConvProblem.from_shapes((1, 3, 20), (2, 3, 4), dtype="float64")
    choice = choose(problem, prepared=False)
    w = numbers(problem.w_shape, "float64")
    first = packed.prepared(choice, w)
    assert packed.prepared(choice, w.view("int64")) is not first
    assert packed.prepared(choice, w.view(w.dtype.newbyteorder())) is not first
    assert packed.prepared(choice, w) is first
    assert len(preparations) == 3


def test_different_weights_of_one_problem_are_kept_side_by_side(preparations):
    x = numbers((1, 9, 9, 3), "float32")
    layers = [numbers((4, 3, 3, 3), "float32", seed) for seed in range(5)]
    for _ in range(3):
        for w in layers:
            ops.conv(x, w, layout="channels_last")
    assert len(preparations) == 5


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(packed, "_MOST", 100_000)
    x = numbers((1, 9, 9, 3), "float32")
    for seed in range(200):
        n = 9 + seed % 20
        w = numbers((4, 3, 3, 3), "float32", seed)
        ops.conv(np.resize(x, (1, n, n, 3)), w, layout="channels_last")
        assert 0 < size() <= 100_000
    large = numbers((2000, 1600), "float32")
    before = size()
    ops.conv(np.ones((1, 1, 1, 1600), np.float32), large[:, :, None, None], layout="channels_last")
    assert size() == before


def test_problems_of_ever_other_sizes_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(packed, "_PROBLEMS", 5)
    w = numbers((4, 3, 3, 3), "float32")
    for n in range(9, 30):
        ops.conv(np.ones((1, n, n, 3), np.float32), w, layout="channels_last")
        assert 0 < len(packed._kept) <= 5


def test_gradients_by_the_weights_keep_nothing():
    x = numbers((1, 3, 9, 9), "float32")
    ops.conv_weight_gradient(numbers((1, 4, 7, 7), "float32"), x, (4, 3, 3, 3))
    assert not packed._kept


def test_many_threads_with_weights_of_their_own():
    x = numbers((1, 9, 9, 3), "float32")
    layers = [numbers((4, 3, 3, 3), "float32", seed) for seed in range(12)]
    truth = [bits(ops.conv(x, w, layout="channels_last")) for w in layers]
    wrong = []

    def work(first):
        for step in range(200):
            number = (first + step * 5) % len(layers)
            if bits(ops.conv(x, layers[number], layout="channels_last")) != truth[number]:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
