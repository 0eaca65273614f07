"""Tiled models, against the models on whole images: random networks, what they see, and what is refused."""

from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from wherever.tiles import NotTranslationInvariantError  # noqa: E402
from wherever.torch import replace, tiled  # noqa: E402

MODES = ("zeros", "reflect", "replicate", "circular")
ACCURACY = 8e-6


class Beside(nn.Module):
    """Two ways through, added or side by side: a skip connection."""

    def __init__(self, inner, join):
        super().__init__()
        self.inner, self.join = inner, join

    def forward(self, x):
        y = self.inner(x)
        x = functional.interpolate(x, size=y.shape[2:], mode="nearest")
        return torch.cat([x, y], 1) if self.join else x[:, : y.shape[1]] + y[:, : x.shape[1]]


def layer(draw, channels, spatial, depth=0):
    """A random layer, and the number of its channels."""
    kind = draw.choice(("conv", "conv", "conv", "pool", "average", "transposed", "up", "norm", "beside", "pad"))
    kernel = tuple(draw.randint(1, 7 if spatial < 3 else 3) for _ in range(spatial))
    stride, dilation = (tuple(draw.choice((1, 1, 2, 3)) for _ in range(spatial)) for _ in range(2))
    after = draw.randint(1, 6)
    conv, transposed, pool, average, norm = (
        getattr(nn, f"{name}{spatial}d") for name in ("Conv", "ConvTranspose", "MaxPool", "AvgPool", "BatchNorm")
    )
    extent = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    if kind == "conv":
        padding = tuple(draw.randint(0, e // 2) for e in extent)
        if all(s == 1 for s in stride) and draw.random() < 0.3:
            padding = "same"
        mode = draw.choice(MODES)
        return conv(channels, after, kernel, stride, padding, dilation, padding_mode=mode), after
    if kind == "transposed":
        more = tuple(draw.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
        cut = tuple(draw.randint(0, e - 1) for e in extent)
        return transposed(channels, after, kernel, stride, cut, more, dilation=dilation), after
    if kind == "pool":
        padding = tuple(draw.randint(0, k // 2) for k in kernel)
        return pool(kernel, stride, padding, dilation, ceil_mode=draw.random() < 0.5), channels
    if kind == "average":
        padding = tuple(draw.randint(0, k // 2) for k in kernel)
        return average(kernel, stride, padding, draw.random() < 0.5, draw.random() < 0.5), channels
    if kind == "up":
        linear = ("linear", "bilinear", "trilinear")[spatial - 1]
        mode = draw.choice(("nearest", "nearest-exact", linear, linear, *(["bicubic"] if spatial == 2 else [])))
        align = draw.random() < 0.5 if not mode.startswith("nearest") else None
        return nn.Upsample(scale_factor=draw.choice((2, 3, 1.5, 0.7)), mode=mode, align_corners=align), channels
    if kind == "norm":
        normal = norm(channels)
        normal.running_mean.uniform_(-1, 1)
        normal.running_var.uniform_(0.5, 2)
        return nn.Sequential(normal, draw.choice((nn.ReLU(inplace=True), nn.GELU(), nn.Tanh()))), channels
    if kind == "pad" or depth:
        name = draw.choice(("Zero", "Reflection", "Replication", "Circular"))
        return getattr(nn, f"{name}Pad{spatial}d")(tuple(draw.randint(0, 3) for _ in range(2 * spatial))), channels
    inner, after = layer(draw, channels, spatial, depth=1)
    join = draw.random() < 0.5
    return Beside(inner, join), channels + after if join else min(channels, after)


def random_case(seed):
    """A random network that can be applied to a random image, and both."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    while True:
        spatial = draw.choice((1, 2, 2, 2, 2, 3))
        channels = start = draw.randint(1, 4)
        layers = []
        for _ in range(draw.randint(1, 8)):
            made, channels = layer(draw, channels, spatial)
            layers.append(made)
        model = nn.Sequential(*layers).eval()
        longest = {1: 300, 2: 90, 3: 20}[spatial]
        x = torch.randn(draw.randint(1, 2), start, *(draw.randint(longest // 3, longest) for _ in range(spatial)))
        try:
            with torch.no_grad():
                y = model(x)
        except RuntimeError:  # an image too small for this network
            continue
        if 0 < y.numel() < 400_000 and float(y.abs().max()) > 0:
            return draw, model, x, y


# What PyTorch says about "same" with kernels of even length.
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("part", range(20))
def test_random_networks_in_tiles_are_what_they_are_at_once(part):
    for seed in range(10 * part, 10 * part + 10):
        draw, model, x, y = random_case(seed)
        tile = [draw.randint(max(1, n // 4), n) for n in y.shape[2:]]
        got = tiled(model, tile=tile)(x)
        assert got.shape == y.shape
        assert got.dtype == y.dtype
        assert float((got - y).abs().max()) <= ACCURACY * float(y.abs().max()), (seed, tile, model)


class UNet(nn.Module):
    """The usual network for segmentation: down, up, and across."""

    def __init__(self, channels=(8, 16, 32, 64), linear=False):
        super().__init__()
        before = (3, *channels)
        self.down = nn.ModuleList(self.block(a, b) for a, b in zip(before, channels, strict=False))
        pairs = list(zip(channels[::-1], channels[-2::-1], strict=False))
        self.up = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), nn.Conv2d(a, b, 1))
            if linear
            else nn.ConvTranspose2d(a, b, 2, 2)
            for a, b in pairs
        )
        self.join = nn.ModuleList(self.block(2 * b, b) for _, b in pairs)
        self.last = nn.Conv2d(channels[0], 2, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_out" if "Transpose" in type(module).__name__ else "fan_in"
                )

    @staticmethod
    def block(a, b):
        half = [nn.Conv2d(b, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
        return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(inplace=True), *half)

    def forward(self, x):
        kept = []
        for number, block in enumerate(self.down):
            x = block(x if number == 0 else functional.max_pool2d(x, 2))
            kept.append(x)
        for up, join, other in zip(self.up, self.join, kept[-2::-1], strict=True):
            x = up(x)
            high, wide = other.size(2) - x.size(2), other.shape[3] - x.shape[3]
            x = functional.pad(x, [wide // 2, wide - wide // 2, high // 2, high - high // 2])
            x = join(torch.cat([other, x], dim=1))
        return self.last(x)


def naive(model, x, tile, overlap):
    """What people do: tiles with some pixels around them, each as if it were an image."""
    (_, _, high, wide), rows = x.shape, []
    for top in range(0, high, tile):
        row = []
        for left in range(0, wide, tile):
            t, lo = max(0, top - overlap), max(0, left - overlap)
            y = model(x[:, :, t : top + tile + overlap, lo : left + tile + overlap])
            row.append(y[:, :, top - t : top - t + tile, left - lo : left - lo + tile])
        rows.append(torch.cat(row, 3))
    return torch.cat(rows, 2)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("size", [(208, 176), (203, 181)])
def test_a_u_net_has_no_seams_where_guessed_overlaps_have(linear, size):
    torch.manual_seed(0)
    model = UNet(linear=linear).eval()
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        y = model(x)
        seams = float((naive(model, x, 64, 16) - y).abs().max() / y.abs().max())
    got = tiled(model, tile=64)(x)
    assert float((got - y).abs().max() / y.abs().max()) < 1e-5
    assert seams > 1e-3
    # A border within reach is the only thing that lets tiles differ: the interior sees what the field says.
    assert tiled(model, tile=64).field((1, 3, 256, 256)).halo[0][0] > 16


def test_the_field_of_a_u_net_is_known():
    field = tiled(UNet().eval()).field()
    # 8 levels: 2 convolutions of 3 at stride 1, 2, 4, 8 down; the same up.
    assert str(field).startswith("sees ")
    assert field.stride == (1, 1)


@pytest.mark.parametrize("seed", range(40))
def test_the_field_is_what_gradients_reach(seed):
    """Of networks with positive weights and no maxima, the places with a gradient are exactly those that are seen."""
    draw = random.Random(seed)
    layers = []
    for _ in range(draw.randint(1, 5)):
        kernel, stride, dilation = draw.randint(1, 5), draw.choice((1, 1, 2, 3)), draw.choice((1, 1, 2, 3))
        kind = draw.choice(("conv", "conv", "average", "transposed", "nearest", "linear"))
        if kind == "conv":
            layers.append(nn.Conv1d(1, 1, kernel, stride, draw.randint(0, 3), dilation, bias=False))
        elif kind == "average":
            layers.append(nn.AvgPool1d(kernel, stride))
        elif kind == "transposed":
            layers.append(
                nn.ConvTranspose1d(1, 1, kernel, stride, draw.randint(0, kernel - 1), dilation=dilation, bias=False)
            )
        else:
            align = False if kind == "linear" else None
            layers.append(nn.Upsample(scale_factor=draw.choice((2, 3, 4)), mode=kind, align_corners=align))
    model = nn.Sequential(*layers).double().eval()
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
    x = torch.ones(1, 1, 2400, dtype=torch.float64, requires_grad=True)
    y = model(x)
    (axis,) = tiled(model).field((1, 1, 2400)).axes
    period = len(axis.intervals)
    for place in range(y.shape[2] // 2, y.shape[2] // 2 + 2 * period):
        (gradient,) = torch.autograd.grad(y[0, 0, place], x, retain_graph=True)
        seen = torch.nonzero(gradient[0, 0]).flatten().tolist()
        if seen:
            assert axis.of(place) == (seen[0], seen[-1] + 1)
    assert axis.size == max(high - low for low, high in axis.intervals)


class Pyramid(nn.Module):
    """Several results of several resolutions, with channels last in between, as newer networks have them."""

    def __init__(self):
        super().__init__()
        self.stem, self.deeper = nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.norm, self.mlp = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.wide = nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x):
        x = self.stem(x)
        y = self.mlp(self.norm(self.wide(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        x = x + self.scale * y
        a, b = torch.chunk(x, 2, dim=1)
        a = a.mul_(2)
        x = torch.cat([a.relu_() + a, b], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        probability = torch.softmax(functional.interpolate(x, scale_factor=4, mode="bilinear"), dim=1)
        return {"fine": probability, "coarse": [x, self.deeper(x)[:, :, 1:, :-1].mean(1)]}


def test_several_results_of_several_resolutions():
    torch.manual_seed(0)
    model = Pyramid().eval()
    x = torch.randn(2, 3, 96, 132)
    with torch.no_grad():
        y = model(x)
    got = tiled(model, tile=24)(x)
    pairs = [(got["fine"], y["fine"]), *zip(got["coarse"], y["coarse"], strict=True)]
    assert len(pairs) == 3
    for a, b in pairs:
        assert a.shape == b.shape
        assert float((a - b).abs().max()) <= ACCURACY * float(b.abs().max())


def test_layers_of_this_package_and_of_pytorch_agree():
    torch.manual_seed(0)
    model = UNet().eval()
    x = torch.randn(1, 3, 72, 72)
    with torch.no_grad():
        y = model(x)
    got = tiled(replace(model), tile=24)(x)
    assert float((got - y).abs().max() / y.abs().max()) < 1e-5


def test_memory_bounds_tiles():
    model, x = UNet().eval(), torch.randn(1, 3, 512, 512)
    with torch.no_grad():
        y = model(x)
    with pytest.raises(ValueError, match=r"memory: .* not enough for the smallest tile"):
        tiled(model, memory="100 kB")(x)
    got = tiled(model, memory="24 MB")(x)
    assert float((got - y).abs().max() / y.abs().max()) < 1e-5


class Attention(nn.Module):
    """Every place sees every other."""

    def forward(self, x):
        flat = x.flatten(2).transpose(1, 2)
        return functional.scaled_dot_product_attention(flat, flat, flat)


class Gate(nn.Module):
    """Squeeze and excitation: channels are weighted by what the whole image shows."""

    def __init__(self, channels):
        super().__init__()
        self.pool, self.weigh = nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.weigh(self.pool(x)))


class Bend(nn.Module):
    """A program that asks for values."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


def with_(layer):
    return nn.Sequential(nn.Conv2d(3, 4, 3), layer)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            with_(nn.AdaptiveAvgPool2d(1)).eval(),
            r"1 \(AdaptiveAvgPool2d\) pools over the whole image.*tile the layers before",
        ),
        (with_(nn.Flatten()).eval(), r"1 \(Flatten\) mixes places"),
        (
            with_(nn.GroupNorm(2, 4)).eval(),
            r"GroupNorm\) takes statistics over the whole image.*BatchNorm in evaluation",
        ),
        (with_(Gate(4)).eval(), r"AdaptiveAvgPool2d\) pools over .*goes back into the image.*constant"),
        (with_(nn.BatchNorm2d(4, track_running_stats=False)).eval(), r"BatchNorm2d\) takes statistics"),
        (with_(Attention()).eval(), "flatten .*mixes places and channels"),
        (with_(nn.Linear(14, 4)).eval(), r"Linear\) mixes places"),
        (with_(nn.Softmax(dim=-1)).eval(), "Softmax.* pools over the whole image"),
        (with_(Bend()).eval(), "cannot be traced.*move that out"),
        (with_(nn.BatchNorm2d(4)), "the model is in training mode.*call model.eval"),
    ],
)
def test_what_sees_the_whole_image_is_named(model, words):
    with pytest.raises(NotTranslationInvariantError, match=words):
        tiled(model)(torch.zeros(1, 3, 16, 16))


def test_what_the_messages_say_keeps_the_numbers():
    """Statistics and gates of the image itself, in their place: the numbers are those of the whole."""
    torch.manual_seed(0)
    first, norm, gate = nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), Gate(4)
    x = torch.randn(1, 3, 40, 44)
    with torch.no_grad():
        y = gate(norm(first(x)))
        fixed = nn.BatchNorm2d(4, eps=norm.eps)
        groups = first(x).reshape(2, -1)
        fixed.running_mean = groups.mean(1).repeat_interleave(2)
        fixed.running_var = groups.var(1, correction=0).repeat_interleave(2)
        held = gate.pool(fixed.eval()(first(x)))
        gate.pool = nn.Identity()

        class Held(nn.Module):
            def __init__(self):
                super().__init__()
                self.weights = nn.Parameter(torch.sigmoid(gate.weigh(held)))

            def forward(self, x):
                return x * self.weights

        got = tiled(nn.Sequential(first, fixed, Held()).eval(), tile=16)(x)
    assert float((got - y).abs().max() / y.abs().max()) < 1e-5


def test_axes_may_be_kept_or_not():
    class Means(nn.Module):
        def forward(self, x):
            x = x.permute(0, 2, 3, 1)
            means, best = x.mean(-1, True), x.max(3, keepdim=True)[0]
            return (means + best).permute(0, 3, 1, 2) + x.amax(-1).unsqueeze(1)

    model = with_(Means()).eval()
    x = torch.randn(1, 3, 30, 35)
    assert torch.allclose(tiled(model, tile=9)(x), model(x), atol=1e-6)


def test_places_can_be_told_to_be_treated_alike():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.vector_norm(x, dim=1, keepdim=True)

    model = with_(Odd()).eval()
    with pytest.raises(NotTranslationInvariantError, match=r"linalg_vector_norm.*pointwise="):
        tiled(model)(torch.zeros(1, 3, 16, 16))
    x = torch.randn(1, 3, 40, 40)
    got = tiled(model, tile=9, pointwise=[torch.linalg.vector_norm])(x)
    assert torch.allclose(got, model(x), atol=1e-6)


def test_a_tiled_model_is_for_inference():
    model = tiled(with_(nn.ReLU()).eval())
    with pytest.raises(ValueError, match="cannot be trained"):
        model.train()
    assert not model(torch.randn(1, 3, 9, 9)).requires_grad
    with pytest.raises(TypeError, match="model: expected"):
        tiled(lambda x: x)
    with pytest.raises(ValueError, match="cannot take images of shape"):
        model(torch.zeros(1, 4, 9, 9))
    with pytest.raises(ValueError, match="tile: "):
        tiled(with_(nn.ReLU()).eval(), tile=(3, 4, 5))(torch.zeros(1, 3, 9, 9))
