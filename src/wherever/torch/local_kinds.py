"""What is known of PyTorch's operations: which treat every place by itself, and which see the whole image."""

from __future__ import annotations

import operator

from torch import nn


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Functions and methods, by name, that give at each place what follows from that place alone.
POINTWISE = _names(
    """
    abs absolute acos add addcdiv addcmul alpha_dropout and_ asin atan atan2 bfloat16 bitwise_and bitwise_not
    bitwise_or ceil celu clamp clamp_max clamp_min clip clone contiguous copysign cos cosh detach div double dropout
    dropout1d dropout2d dropout3d elu eq erf erfc exp exp2 expm1 feature_alpha_dropout feature_dropout float floor
    floor_divide floordiv fmod ge gelu gt half hardshrink hardsigmoid hardswish hardtanh hypot invert isfinite isinf
    isnan le leaky_relu lerp log log10 log1p log2 logaddexp logical_and logical_not logical_or logical_xor logit
    logsigmoid lt masked_fill maximum minimum mish mod mul multiply nan_to_num ne neg negative not_ or_ positive pow
    prelu reciprocal relu relu6 remainder round rrelu rsqrt rsub selu sgn sigmoid sign silu sin sinh softplus
    softshrink softsign sqrt square sub subtract tan tanh tanhshrink threshold to true_divide truediv trunc type
    where xlogy xor
    """
)
POINTWISE_MODULES: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Tanhshrink, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardshrink),
    *(nn.Softplus, nn.Softshrink, nn.Softsign, nn.Threshold, nn.Identity, nn.Softmax2d),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
)
IN_PLACE = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul}
IN_PLACE |= {operator.itruediv: operator.truediv}
OVER_AXES = _names(
    """
    all amax amin any argmax argmin cumsum glu log_softmax logsumexp max mean min norm normalize prod softmax
    softmin std sum var
    """
)
GLOBAL_MODULES = {
    nn.AdaptiveAvgPool1d: "pools over the whole image",
    nn.AdaptiveAvgPool2d: "pools over the whole image",
    nn.AdaptiveAvgPool3d: "pools over the whole image",
    nn.AdaptiveMaxPool1d: "pools over the whole image",
    nn.AdaptiveMaxPool2d: "pools over the whole image",
    nn.AdaptiveMaxPool3d: "pools over the whole image",
    nn.MultiheadAttention: "lets every place attend to every other",
    nn.Flatten: "mixes places and channels",
    nn.GroupNorm: "takes statistics over the whole image",
    nn.InstanceNorm1d: "takes statistics over the whole image",
    nn.InstanceNorm2d: "takes statistics over the whole image",
    nn.InstanceNorm3d: "takes statistics over the whole image",
    nn.RNNBase: "carries a state from place to place",
}
GLOBAL_FUNCTIONS = {
    "scaled_dot_product_attention": "lets every place attend to every other",
    "multi_head_attention_forward": "lets every place attend to every other",
    "matmul": "sums over places",
    "bmm": "sums over places",
    "einsum": "may sum over places",
    "baddbmm": "sums over places",
    "flatten": "mixes places and channels",
    "group_norm": "takes statistics over the whole image",
    "instance_norm": "takes statistics over the whole image",
    "fft_fft2": "transforms the whole image",
    "fft_rfft2": "transforms the whole image",
    "cumsum": "sums from place to place",
    "grid_sample": "moves places",
    "roll": "moves places",
    "flip": "moves places",
}
WAY_OUT = {
    "pools over the whole image": "tile the layers before it, and pool what comes out (wherever.tiles.each streams it)",
    "takes statistics over the whole image": (
        "put a normalisation with fixed statistics in its place, a BatchNorm in evaluation mode: a trained one, "
        "or one with the mean and variance of a typical image; with those of this image, which wherever.tiles.each "
        "streams from the layers before it, the numbers stay what they are"
    ),
    "mixes places and channels": "tile the layers before it",
}
# A pool whose result meets the image again: squeeze-and-excitation, global context.
WAY_OUT_OF_GATES = (
    "its result goes back into the image, so put a constant in its place: what it is for a typical image; with what it "
    "is for this one, which wherever.tiles.each streams from the layers before it, the numbers stay what they are"
)
