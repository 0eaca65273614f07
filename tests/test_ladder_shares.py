"""Shares of the weights' energy: the projections of the ladder, at every Δ at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherever.ladder import Convolution, FullyConnected, Local, TranslationInvariant, shares

sizes = st.integers(1, 2).flatmap(
    lambda n: st.tuples(*[st.tuples(*[st.integers(1, 5)] * n)] * 2)  # an image and a hidden representation
)


@given(sizes, st.integers(1, 2), st.integers(1, 3), st.booleans(), st.integers(0, 2**32 - 1))
def test_every_delta_is_the_projection_on_that_convolution(shapes, c, d, first, seed):
    inputs, hidden = shapes
    W = np.random.default_rng(seed).standard_normal((*hidden, d, *inputs, c))
    layer = FullyConnected(W, np.zeros((*hidden, d)), channels=True)
    n = len(inputs)
    given_weights = np.moveaxis(W, (n, 2 * n + 1), (0, n + 1)) if first else W
    matrix = given_weights.reshape(np.prod(hidden) * d, -1)
    found = shares(matrix, inputs, hidden, layout="channels_first" if first else "channels_last")
    assert found.channels == (c, d)
    for delta in found.deltas:
        projection = Convolution.project(layer, int(delta))
        assert found.local[delta] == pytest.approx(1 - projection.share_lost, abs=1e-12)
        np.testing.assert_allclose(found.kernel(int(delta)), projection.layer.V, atol=1e-12)
    assert found.local[-1] == pytest.approx(found.invariant)
    assert found.near[-1] == pytest.approx(1)
    again = shares(layer)
    np.testing.assert_allclose(again.local, found.local, atol=1e-12)


@given(st.integers(1, 3), st.integers(4, 6), st.integers(0, 2**32 - 1))
def test_a_convolution_is_wholly_local_and_invariant(delta, size, seed):
    kernel = Local(np.random.default_rng(seed).standard_normal((2 * delta + 1,) * 2))
    found = shares(kernel.fully_connected((size, size)))
    assert found.invariant == pytest.approx(1)
    assert found.local[delta] == pytest.approx(1)
    assert found.reach(1.0) == delta


def test_random_weights_have_the_shares_of_the_dimensions():
    W = np.random.default_rng(0).standard_normal((400, 400))
    found = shares(W, (20, 20))
    assert found.chance_invariant == pytest.approx(39**2 / 400**2)
    np.testing.assert_allclose(found.near, found.chance_near, atol=0.02)
    np.testing.assert_allclose(found.local, found.chance_local, atol=0.002)
    assert "translation invariant" in str(found)
    assert found.to_dict()["deltas"][-1] == 19


def test_what_is_local_but_not_invariant_is_told_apart():
    rng = np.random.default_rng(0)
    mask = Local(np.ones((3, 3))).fully_connected((12, 12)).W
    found = shares(rng.standard_normal(mask.shape) * mask, (12, 12))
    assert found.near[1] == pytest.approx(1)
    assert found.invariant < 4 * 9 / mask.sum()
    far = TranslationInvariant(rng.standard_normal((23, 23))).fully_connected((12, 12))
    assert shares(far).invariant == pytest.approx(1)
    assert shares(far).near[1] < 0.2


def test_tensors_of_pytorch_are_taken_as_they_are():
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(3 * 16, 2 * 16)
    found = shares(layer.weight, (4, 4), layout="channels_first")
    assert found.channels == (3, 2)
    convolution = torch.nn.Conv2d(3, 2, 3, padding=1, bias=False).double()
    basis = torch.eye(48, dtype=torch.float64).reshape(48, 3, 4, 4)
    matrix = convolution(basis).reshape(48, 32).T
    found = shares(matrix, (4, 4), layout="channels_first")
    assert found.local[1] == pytest.approx(1)
    kernel = convolution.weight.detach().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_allclose(found.kernel(1), kernel, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((6, 6)),), "input_shape is missing"),
        ((np.ones((6, 6)), (4,)), r"W has shape \(6, 6\); it must hold"),
        ((np.ones((6, 6)), (6,), (2, 3)), "equally many dimensions"),
        ((np.zeros((6, 6)), (6,)), "energy 0.0"),
        ((np.full((6, 6), np.nan), (6,)), "energy nan"),
        ((FullyConnected(np.ones((6, 6)), np.ones(6)), (6,)), "do not give them"),
        ((FullyConnected(np.ones((6, 2, 3)), np.ones(6)),), "shares: no offset leads"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        shares(*arguments)
    with pytest.raises(ValueError, match="layout is 'last'"):
        shares(np.ones((6, 6)), (6,), layout="last")
    with pytest.raises(ValueError, match="share is 0"):
        shares(np.ones((6, 6)), (6,)).reach(0)
