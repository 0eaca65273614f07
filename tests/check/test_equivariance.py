"""Equivariance of functions and networks of which it is known where they break."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from wherever import check
from wherever.check.equivariance import shifted
from wherever.check.probes import views

torch = pytest.importorskip("torch")
nn = torch.nn
pytest.importorskip("matplotlib")

X = np.random.default_rng(0).random((32, 30))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def images(*shape):
    return torch.from_numpy(np.random.default_rng(0).random(shape))


# ------------------------------------------------------------------------------------------------------------ functions


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from(["wrap", "constant", "nearest", "reflect"]))
@settings(max_examples=25)
def test_a_filter_breaks_its_border_alone_and_circularly_nothing(down, across, mode):
    size = (2 * down + 1, 2 * across + 1)
    weights = np.random.default_rng(1).random(size)
    result = check.equivariance(lambda x: ndimage.correlate(x, weights, mode=mode), X, shifts=[1, 3, (2, 5), (-4, 1)])
    layer = result["model"]
    assert layer.stride == (1, 1)
    assert layer.window == size
    assert layer.margins == ((down, down), (across, across))
    assert np.nanmax(layer.inside) < 1e-12
    assert layer.period(result.shifts, 1e-9) == 1
    if mode == "wrap":
        assert result.equivariant
        assert "equivariant, borders included" in result.sentence
    else:
        assert layer.border.min() > 1e-3
        assert f"its border, {max(down, across)} place" in result.sentence
        # The map says that nothing but the border breaks.
        assert np.nanmax(layer.map[down:-down, across:-across]) < 1e-12
        assert np.nanmin(layer.map[0]) > 1e-6


@given(st.integers(2, 5), st.integers(0, 3))
@settings(max_examples=15)
def test_a_stride_is_exact_for_its_multiples_alone(stride, offset):
    x = np.random.default_rng(0).random((60, 60))
    result = check.equivariance(lambda x: x[offset::stride, offset::stride] ** 2, x, shifts=range(1, 13))
    layer = result["model"]
    assert layer.stride == (stride, stride)
    assert layer.window == (1, 1)
    assert layer.period(result.shifts, 1e-9) == stride
    assert layer.error("inside") < 1e-12
    assert layer.error("inside", on_stride=False) > 0.1
    assert f"exact inside for shifts by multiples of {stride}" in result.sentence


def test_what_depends_on_the_position_is_nowhere_exact():
    ramp = np.linspace(1, 2, 30)
    result = check.equivariance(lambda x: x * ramp, X)
    assert result["model"].period(result.shifts, 1e-6) is None
    across = check.equivariance(lambda x: x * ramp, X, shifts=[(0, 1), (0, 2)])
    assert across["model"].period(across.shifts, 1e-6) is None
    assert "nowhere exact inside" in across.sentence
    down = check.equivariance(lambda x: x * ramp, X, shifts=[(1, 0), (5, 0)])
    assert down.equivariant


def test_a_result_without_places_should_not_change():
    mean = check.equivariance(lambda x: x.mean(axis=(0, 1)), np.dstack([X, X, X]))
    assert mean.equivariant
    assert "does not change" in mean.sentence
    corner = check.equivariance(lambda x: x[:2, :2].ravel(), X)
    assert not corner.equivariant
    assert corner["model"].places == ()
    assert "shifts change it by up to" in corner.sentence


def test_other_axes_types_and_boundaries():
    channels_first = np.random.default_rng(0).random((3, 24, 20))
    result = check.equivariance(lambda x: ndimage.uniform_filter(x, (1, 3, 5)), channels_first, axes=(-2, -1))
    assert result["model"].window == (3, 5)
    assert result["model"].error("inside") < 1e-12
    whole = (X * 255).astype(np.uint8)
    result = check.equivariance(lambda x: ndimage.median_filter(x, 3, mode="wrap"), whole)
    assert result.equivariant
    sound = np.random.default_rng(0).standard_normal(200)
    result = check.equivariance(lambda x: np.convolve(x, np.ones(9), "valid"), sound, boundary="zeros")
    assert result["model"].window == (9,)
    assert result["model"].period(result.shifts, 1e-6) == 1
    black = np.zeros((32, 32))
    black[12:20, 12:20] = 1
    result = check.equivariance(
        lambda x: ndimage.uniform_filter(x, 3, mode="constant"), black, [1, 2], boundary="zeros"
    )
    assert result.equivariant


@given(
    st.lists(st.integers(-3, 3), min_size=2, max_size=2).filter(any),
    st.sampled_from(["wrap", "zeros", "edge", "reflect"]),
)
def test_shifts_move_what_is_at_i_to_i_plus_d(move, boundary):
    moved = shifted(X, tuple(move), (0, 1), boundary)
    assert moved.shape == X.shape
    np.testing.assert_array_equal(moved[8:20, 8:20], X[8 - move[0] : 20 - move[0], 8 - move[1] : 20 - move[1]])


# ------------------------------------------------------------------------------------------------------------- networks


def test_lenet_breaks_at_its_padding_poolings_and_end():
    lenet = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 10),
    )
    before = {name: value.clone() for name, value in lenet.state_dict().items()}
    lenet.train()
    result = check.equivariance(lenet, images(3, 1, 28, 28).float())
    assert lenet.training
    assert all((value == before[name]).all() for name, value in lenet.state_dict().items())
    assert not any(module._forward_hooks for module in lenet.modules())
    strides = [layer.stride and layer.stride[0] for layer in result.layers]
    assert strides == [1, 1, 2, 2, 2, 4, None, None, None]
    assert [layer.window and layer.window[0] for layer in result.layers][:6] == [5, 5, 6, 14, 14, 16]
    assert result["2"].period(result.shifts, 1e-6) == 2
    assert result["5"].period(result.shifts, 1e-6) == 4
    # Every layer is exact inside by multiples of its stride.
    assert all(layer.error("inside") < 1e-9 for layer in result.layers if layer.stride)
    said = [(layer.name, word) for layer, word in result.breaks()]
    assert [name for name, _ in said] == ["0", "2", "5", "6"]
    for (_, word), expected in zip(said, ("2 places wide", "2 pixels", "4 pixels", "no places"), strict=True):
        assert expected in word
    assert "Conv2d 5x5 padding 2" in str(result)


def test_a_circular_network_is_exactly_equivariant():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 5, padding=2, padding_mode="circular"),
    )
    result = check.equivariance(net, images(2, 2, 24, 18))
    assert result.equivariant
    assert max(float(layer.whole.max()) for layer in result.layers) < 1e-12
    assert result.breaks() == []
    strided = nn.Sequential(*net, nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    result = check.equivariance(strided, images(2, 2, 24, 18), shifts=[2, 4])
    assert result.equivariant
    assert "does not change" in result.sentence


def test_valid_convolutions_have_no_border():
    result = check.equivariance(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Conv2d(2, 1, 3)), images(1, 1, 20, 20))
    last = result["the whole"]
    assert last.margins == ((0, 0), (0, 0))
    assert np.isnan(last.border[-1]) or last.border.max() > 0  # the seam of what went around
    assert last.period(result.shifts, 1e-9) == 1


class UNet(nn.Module):
    """Two resolutions, a skip connection, and a dictionary of results."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)
        self.c = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x):
        a = self.a(x).relu()
        deep = self.up(self.b(self.pool(a)).relu())
        return {"map": self.c(torch.cat([a, deep], 1)), "features": [deep]}


def test_a_network_of_several_resolutions_and_results():
    result = check.equivariance(UNet(), images(1, 1, 40, 48))
    assert result["the whole[0]"].stride == (1, 1)
    assert result["the whole[0]"].period(result.shifts, 1e-6) == 2
    up = next(word for layer, word in result.breaks() if layer.name == "up")
    assert "exact inside for multiples of 2 alone" in up
    chosen = check.equivariance(UNet(), images(1, 1, 40, 48), layers=["p*", "b"])
    assert [layer.name for layer in chosen.layers] == ["pool", "b"]


class Positions(nn.Module):
    """A network that adds something to every place."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3)
        self.positions = nn.Parameter(torch.rand(1, 4, 22, 22))
        self.b = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.b(self.a(x) + self.positions)


def test_added_positions_are_found():
    result = check.equivariance(Positions(), images(1, 1, 24, 24))
    assert [(layer.name, word.split(":")[0]) for layer, word in result.breaks()] == [("b", "depends on the position")]
    assert result["a"].error("inside") < 1e-12


class Float32(nn.Module):
    """A network with a type written into it."""

    def forward(self, x):
        return nn.functional.conv2d(x, torch.ones(1, 1, 3, 3, dtype=torch.float32), padding=1)


def test_a_model_that_knows_one_type_alone():
    result = check.equivariance(Float32(), images(1, 1, 16, 16).float())
    assert result.tolerance == 1e-3
    assert result["the whole"].error("inside") < 1e-5
    assert result["the whole"].margins == ((1, 1), (1, 1))


def test_a_network_that_sees_everything_has_no_inside():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.InstanceNorm2d(2), nn.Conv2d(2, 1, 3, padding=1))
    result = check.equivariance(net, images(1, 1, 16, 16))
    assert result["1"].window == (None, None)
    assert not result["1"].has_inside
    assert "every place sees a border" in result.sentence


def test_sounds_volumes_and_functions_of_tensors():
    sound = nn.Sequential(nn.Conv1d(1, 2, 5, stride=2, padding=2), nn.Conv1d(2, 2, 3, dilation=2))
    result = check.equivariance(sound, images(1, 1, 100))
    assert result["the whole"].stride == (2,)
    assert result["the whole"].window == (13,)
    volume = nn.Conv3d(1, 1, (1, 3, 3), padding=(0, 1, 1), padding_mode="circular")
    assert check.equivariance(volume, images(1, 1, 8, 9, 10), shifts=[1, (1, 2, 3)]).equivariant
    pooled = check.equivariance(lambda x: nn.functional.max_pool2d(x, 2), images(2, 3, 16, 16))
    assert pooled["model"].stride == (2, 2)


def test_large_images_are_cut_in_the_middle():
    x = np.random.default_rng(0).random((300, 200))
    (down, across) = views(lambda x: {"y": ndimage.uniform_filter(x, (9, 31))[::3]}, x, (0, 1))["y"]
    assert (down.stride, across.stride) == (3, 1)
    assert across.window == 31
    assert down.window == 9


# -------------------------------------------------------------------------------------------------------- large images


class Watched(nn.Module):
    """Keeps in mind how large the images are that a network is given."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.most = inner, []

    def __deepcopy__(self, memo):
        return self

    def forward(self, x):
        self.most.append(x.shape[2] * x.shape[3])
        return self.inner(x)


@pytest.mark.parametrize(("reach", "stride", "same"), [(1, 4, True), (2, 2, False)])
def test_of_a_large_image_a_part_is_looked_at_that_holds_what_layers_see(reach, stride, same):
    kernel = 8 * reach + 1
    net = nn.Sequential(
        nn.Conv2d(1, 3, kernel, padding=kernel // 2 if same else 0), nn.ReLU(), nn.Conv2d(3, 2, 3, stride, 1)
    ).double()
    watched = Watched(net)
    x = images(1, 1, 900, 1000)
    result = check.equivariance(watched, x)
    assert max(watched.most) <= 128 * 128
    assert result.size == (900, 1000)
    assert result.part[0] >= kernel + 2 * stride
    last = result.layers[-1]
    assert last.stride == (stride, stride)
    assert last.window == (kernel + 2, kernel + 2)
    assert last.error("inside") < 1e-12
    assert last.period(result.shifts, 1e-9) == stride
    assert f"images of 900 x 1000 pixels (looked at: a part of {result.part[0]} x " in str(result)
    assert result.to_dict()["part"] == list(result.part)
    # The part is looked at as any image of its size is.
    alone = check.equivariance(net, x[..., : result.part[0], : result.part[1]])
    assert (alone.part, alone["0"].window, alone["2"].margins) == (result.part, (kernel, kernel), last.margins)


def test_parts_hold_the_shifts_that_are_asked_for_and_something_to_see():
    x = np.zeros((1000, 800))
    x[700:, :200] = np.random.default_rng(0).random((300, 200))
    result = check.equivariance(lambda x: ndimage.uniform_filter(x, 5), x, shifts=[(150, 0), (0, -3)])
    assert result.part == (192, 64)
    assert result["model"].error("inside") < 1e-12
    assert result["model"].error("border") > 1e-3
    thin = check.equivariance(lambda x: ndimage.uniform_filter1d(x, 9), x.ravel())
    assert thin.part == (64,)
    assert thin["model"].window == (9,)


def test_models_of_one_size_are_given_the_whole_and_global_ones_a_part():
    ramp = np.linspace(1, 2, 300)
    x = np.random.default_rng(0).random((300, 300))
    fixed = check.equivariance(lambda x: x * ramp, x, shifts=[(0, 1), (0, 3)])
    assert fixed.part == fixed.size == (300, 300)
    assert "nowhere exact inside" in fixed.sentence
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.InstanceNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    result = check.equivariance(net, images(1, 1, 300, 300))
    assert result.part == (64, 64)
    assert result["0"].window == (3, 3)
    assert not result["1"].has_inside
    assert "1 (InstanceNorm2d): sees a border from every place of the part looked at, and differs by" in result.sentence


def test_results_turn_plain_and_are_drawn():
    result = check.equivariance(UNet(), images(1, 1, 24, 24))
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["layers"][1]["stride"] == [2, 2]
    assert plain["layers"][1]["exact_for_multiples_of"] == 2
    for shown in (result, check.equivariance(lambda x: x.sum(), X), check.equivariance(np.sort, X[0])):
        file = io.BytesIO()
        shown.plot(file, file_format="png")
        assert file.getvalue().startswith(b"\x89PNG")
    with pytest.raises(KeyError, match="there is a, pool"):
        result["conv9"]


@pytest.mark.parametrize(
    ("model", "x", "options", "error", "message"),
    [
        (3, X, {}, TypeError, "model is int"),
        (np.sqrt, np.zeros((0, 3)), {}, ValueError, r"x has shape \(0, 3\)"),
        (np.log, -X, {}, ValueError, "NaN or infinite"),
        (np.sqrt, X, {"shifts": [0]}, ValueError, "must not be zero everywhere"),
        (np.sqrt, X, {"shifts": [40]}, ValueError, "40"),
        (np.sqrt, X, {"shifts": [(1, 2, 3)]}, ValueError, "there are 2 spatial axes"),
        (np.sqrt, X, {"axes": (0, 0)}, ValueError, "different axes"),
        (np.sqrt, X, {"axes": (5,)}, ValueError, "which has 2"),
        (np.sqrt, X, {"boundary": "mirror"}, ValueError, "boundary is 'mirror'"),
        (np.sqrt, X, {"layers": ["conv*"]}, ValueError, "fits none of model"),
        (np.sqrt, X[:1, :1], {}, ValueError, "too small to be shifted"),
        (lambda x: x.ravel()[: int(100 * x[0, 0])], X, {}, ValueError, "after a shift"),
        (nn.ReLU(), X, {}, ValueError, r"images \(N, C, \*S\)"),
    ],
)
def test_bad_input(model, x, options, error, message):
    with np.errstate(invalid="ignore"), pytest.raises(error, match=message):
        check.equivariance(model, x, **options)
