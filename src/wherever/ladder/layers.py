"""The rungs: layers that run, count themselves, climb up to the fully connected layer they equal, and step down."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from wherever.ladder.counts import (
    Count,
    Shape,
    Sizes,
    both_shapes,
    checked_biases,
    checked_channels,
    checked_delta,
    checked_middle,
    checked_shape,
    checked_weights,
    count_kernel,
)
from wherever.ladder.memory import available_memory
from wherever.ladder.words import by, in_bytes
from wherever.ops import conv
from wherever.problem import Array

# ---------------------------------------------------------------------------------------------------- the window


def _windows(hidden_shape: Shape, input_shape: Shape) -> Iterator[tuple[Shape, tuple[slice, ...]]]:
    """Give every position i, with the slices of the range of all offsets that hold the offsets i can see.

    In an array over all offsets the offset a has the index a + (H-1): the range starts at -(H-1), which is how far
    the last position sees back. Position i sees a = -i ... N-1-i, that is the indices H-1-i ... H-1-i+N-1.
    """
    for i in np.ndindex(*hidden_shape):
        yield i, tuple(slice(h - 1 - p, h - 1 - p + n) for p, h, n in zip(i, hidden_shape, input_shape, strict=True))


def all_offsets(hidden_shape: Shape, input_shape: Shape) -> Shape:
    """Give the number of offsets in each dimension, H+N-1; for two equal shapes the source's 2H-1."""
    return tuple(h + n - 1 for h, n in zip(hidden_shape, input_shape, strict=True))


def _reframe(V: Array, centre: Shape, new_size: Shape, new_centre: Shape) -> Array:
    """Copy the kernel into an array of another size whose offset 0 lies at `new_centre`; zero where V has no weight."""
    out = np.zeros(new_size + V.shape[len(new_size) :], V.dtype)
    here, there = [], []
    for size, c, new, nc in zip(V.shape, centre, new_size, new_centre, strict=False):
        lowest, highest = max(-c, -nc), min(size - 1 - c, new - 1 - nc)
        here.append(slice(lowest + c, max(highest + c + 1, lowest + c)))
        there.append(slice(lowest + nc, max(highest + nc + 1, lowest + nc)))
    out[tuple(there)] = V[tuple(here)]
    return out


def _energy(values: Array) -> float:
    """Sum the squares, in float64 whatever the type of the values."""
    wide = values.astype(np.result_type(values.dtype, np.float64), copy=False)
    return float(np.sum(np.abs(wide) ** 2))


Layer = TypeVar("Layer", bound="_KernelLayer", covariant=True)


@dataclass(frozen=True)
class Projection(Generic[Layer]):
    """The nearest layer of a rung, and what was lost.

    Attributes
    ----------
    layer : TranslationInvariant, Local or Convolution
        The layer of that rung with the least Σ (W - W')^2, W and W' being the fully connected tensors of both.
    energy, lost : float
        Σ W^2 of the layer that was projected, and Σ (W - W')^2. The energy of the new layer is the difference.
    bias_energy, bias_lost : float
        The same for the biases. They are kept apart because weights are multiplied by pixels and biases are not.
    """

    layer: Layer
    energy: float
    lost: float
    bias_energy: float
    bias_lost: float

    @property
    def share_lost(self) -> float:
        """Share of the weights' energy that was lost, from 0 to 1."""
        return self.lost / self.energy if self.energy else 0.0

    @property
    def bias_share_lost(self) -> float:
        """Share of the biases' energy that was lost, from 0 to 1."""
        return self.bias_lost / self.bias_energy if self.bias_energy else 0.0

    def __str__(self) -> str:
        lost = f"{self.share_lost:.2%} of the weights' energy lost, {self.bias_share_lost:.2%} of the biases'"
        return f"{self.layer!r}: {lost}"


# ----------------------------------------------------------------------------- rung 1: fully connected


class FullyConnected:
    """Every hidden pixel has its own weight for every pixel: ``H[i,j] = U[i,j] + Σ_kl W[i,j,k,l] X[k,l]``.

    Parameters
    ----------
    W : array, shape (*hidden, *input), with channels (*hidden, d, *input, c)
        The weights. Integers become float64.
    U : array, shape (*hidden), with channels (*hidden, d)
        The biases, which take the type of W; complex ones make W complex. Their shape says which axes of W belong to
        the hidden representation.
    channels : bool
        Whether the last axis of the hidden representation and the last axis of the image are channels.

    The hidden representation may have any shape, also another number of dimensions than the image (1000 hidden units
    without a place); the view by offsets and the steps down need as many dimensions as the image has.

    Raises
    ------
    ValueError
        If the shape of W does not begin with that of U, or nothing is left for the image.
    """

    def __init__(self, W: npt.ArrayLike, U: npt.ArrayLike, *, channels: bool = False) -> None:
        self.U, self.W = checked_biases("U", U, checked_weights(W))
        self.channels = channels
        of_image = self.W.ndim - self.U.ndim
        given = f"W has shape {self.W.shape} and U {self.U.shape}"
        if self.W.shape[: self.U.ndim] != self.U.shape or self.U.ndim == 0 or of_image == 0 or 0 in self.W.shape:
            raise ValueError(f"{given}; they must be (*hidden, *input) and (*hidden), with no size zero")
        if channels and (self.U.ndim == 1 or of_image == 1):
            raise ValueError(f"{given}; with channels they must be (*hidden, d, *input, c) and (*hidden, d)")

    def __repr__(self) -> str:
        return f"FullyConnected({self._described()}, {self.W.dtype})"

    def _described(self) -> str:
        c, d = self._channel_counts
        ends = (f":{c}", f":{d}") if self.channels else ("", "")
        return f"{by(self.input_shape)}{ends[0]} -> {by(self.hidden_shape)}{ends[1]}"

    @property
    def hidden_shape(self) -> Shape:
        """Spatial shape of the hidden representation."""
        return self.U.shape[:-1] if self.channels else self.U.shape

    @property
    def input_shape(self) -> Shape:
        """Spatial shape of the image."""
        shape = self.W.shape[self.U.ndim :]
        return shape[:-1] if self.channels else shape

    @property
    def _channel_counts(self) -> tuple[int, int]:
        return (self.W.shape[-1], self.U.shape[-1]) if self.channels else (1, 1)

    @property
    def _weights(self) -> Array:
        """The weights with both channel axes, (*hidden, d, *input, c), also where there is one channel only."""
        c, d = self._channel_counts
        return self.W.reshape(*self.hidden_shape, d, *self.input_shape, c)

    @property
    def _biases(self) -> Array:
        return self.U.reshape(*self.hidden_shape, self._channel_counts[1])

    # -- running and counting

    def __call__(self, x: npt.ArrayLike) -> Array:
        """Run the layer on one image: a single product of a matrix and a vector.

        Parameters
        ----------
        x : array, shape (*input), with channels (*input, c)

        Returns
        -------
        array, shape (*hidden), with channels (*hidden, d)
        """
        X = np.asarray(x)
        expected = self.W.shape[self.U.ndim :]
        if X.shape != expected:
            raise ValueError(f"x has shape {X.shape}; this layer is bound to images of shape {expected}")
        X = X.astype(np.result_type(X.dtype, self.W.dtype), copy=False)
        H: Array = np.tensordot(self.W, X, axes=X.ndim) + self.U
        return H

    @staticmethod
    def describe(input_shape: Sizes, hidden_shape: Sizes, channels: Iterable[int] = (1, 1)) -> Count:
        """Count such a layer from its shapes; `channels` are how many in, how many out. Every term is in the image."""
        inputs, hidden = checked_shape("input_shape", input_shape), checked_shape("hidden_shape", hidden_shape)
        c, d = checked_channels(channels)
        n_in, n_hidden = math.prod(inputs) * c, math.prod(hidden) * d
        return Count(n_in * n_hidden, n_hidden, n_in * n_hidden, n_in * n_hidden, n_in, n_hidden)

    def count(self) -> Count:
        """Count this layer; the same as `describe` of its shapes."""
        return self.describe(self.input_shape, self.hidden_shape, self._channel_counts)

    def energy(self) -> float:
        """Sum of the squared weights."""
        return _energy(self.W)

    # -- the same layer by offsets: V[i,j,a,b] = W[i,j,i+a,j+b]

    def at(self, position: Iterable[int], offset: Iterable[int]) -> Any:
        """Give ``V[i,j,a,b]``, the weight that `position` (i, j) has for the pixel at `offset` (a, b) from it.

        With channels, the (d, c) matrix of the weights there. IndexError where (i+a, j+b) is outside the image: V is
        not defined there, which is why W and V have equally many weights.
        """
        self._same_dimensions("at")
        i, away = tuple(map(operator.index, position)), tuple(map(operator.index, offset))
        pixel = tuple(p + a for p, a in zip(i, away, strict=True))
        for what, place, shape in (("position", i, self.hidden_shape), ("pixel", pixel, self.input_shape)):
            if not all(0 <= p < size for p, size in zip(place, shape, strict=True)):
                raise IndexError(f"position {i}, offset {away}: {what} {place} is outside {by(shape)}")
        weights = self._weights[i][(slice(None), *pixel)]
        return weights if self.channels else weights[0, 0]

    def to_offsets(self) -> Array:
        """Give ``V[i,j,a,b] = W[i,j,i+a,j+b]`` as one array.

        Returns
        -------
        V : array, shape (*hidden, *offsets), with channels (*hidden, d, *offsets, c)
            There are H+N-1 offsets in each dimension, from -(H-1) to N-1; offset a has the index a + H-1. Where i+a is
            outside the image V is not defined and the array holds zero.
        """
        self._same_dimensions("to_offsets")
        c, d = self._channel_counts
        offsets = all_offsets(self.hidden_shape, self.input_shape)
        V = np.zeros((*self.hidden_shape, d, *offsets, c), self.W.dtype)
        W = self._weights
        for i, seen in _windows(self.hidden_shape, self.input_shape):
            V[i][(slice(None), *seen)] = W[i]
        return V if self.channels else V.reshape(*self.hidden_shape, *offsets)

    @classmethod
    def from_offsets(
        cls, V: npt.ArrayLike, U: npt.ArrayLike, input_shape: Sizes, *, channels: bool = False
    ) -> FullyConnected:
        """Build the layer from ``V[i,j,a,b]`` as `to_offsets` gives it: ``W[i,j,k,l] = V[i,j,k-i,l-j]``.

        Raises
        ------
        ValueError
            If V does not have all offsets, or is not zero at an offset that leads out of the image (no W has such a
            weight: the two views correspond one to one only because V has none there either).
        """
        inputs = checked_shape("input_shape", input_shape)
        weights, biases = checked_weights(V), np.asarray(U)
        hidden, d = (biases.shape[:-1], biases.shape[-1:]) if channels else (biases.shape, ())
        c = weights.shape[-1:] if channels else ()
        if len(hidden) != len(inputs):
            raise ValueError(f"U has {len(hidden)} spatial dimensions, input_shape {inputs}; they must agree")
        expected = (*hidden, *d, *all_offsets(hidden, inputs), *c)
        if weights.shape != expected:
            between = f"all offsets between {by(hidden)} and {by(inputs)}"
            raise ValueError(f"V has shape {weights.shape}; {between} need {expected}")
        W = np.empty((*hidden, *d, *inputs, *c), weights.dtype)
        for i, seen in _windows(hidden, inputs):
            W[i] = weights[i][(slice(None), *seen) if channels else seen]
        outside = np.count_nonzero(weights) - np.count_nonzero(W)
        if outside:
            raise ValueError(f"V is not zero at {outside} places outside the image; no fully connected layer has these")
        return cls(W, biases, channels=channels)

    def _same_dimensions(self, what: str) -> None:
        if len(self.hidden_shape) != len(self.input_shape):
            raise ValueError(
                f"{what}: no offset leads from a hidden unit of {self.hidden_shape} to a pixel of {self.input_shape}; "
                "the hidden representation must have as many dimensions as the image"
            )


# ------------------------------------------------------------------ what all rungs with a kernel share


class _KernelLayer:
    """A layer whose weights depend on the offset alone; not on the position, and so not on the size of the image.

    Such a layer is bound to no image: it runs on every size, and whatever depends on a size (multiply-adds, energy, the
    fully connected tensor) is asked for with one. `hidden_shape` is that of the image unless given.
    """

    def __init__(self, V: Array, u: Any, centre: Shape, *, channels: bool = False) -> None:
        self.V, self.u, self.centre, self.channels = V, u, centre, channels

    def __repr__(self) -> str:
        lowest, highest = self._range()
        spans = ", ".join(f"{lo}..{hi}" for lo, hi in zip(lowest, highest, strict=True))
        c, d = self._kernel.shape[-2:]
        return f"{type(self).__name__}(offsets {spans}{f', channels {c}:{d}' if self.channels else ''}, {self.V.dtype})"

    @property
    def _kernel(self) -> Array:
        """The kernel with both channel axes, (*offsets, c, d), also where there is one channel only."""
        return self.V if self.channels else self.V[..., np.newaxis, np.newaxis]

    @property
    def _bias(self) -> Array:
        """The biases as an array of shape (d,)."""
        return np.atleast_1d(self.u)

    def _range(self) -> tuple[Shape, Shape]:
        """Give the lowest and the highest offset in each dimension."""
        return tuple(-c for c in self.centre), tuple(r - 1 - c for r, c in zip(self.V.shape, self.centre, strict=False))

    def _shapes(self, input_shape: Sizes, hidden_shape: Sizes | None) -> tuple[Shape, Shape]:
        inputs = checked_shape("input_shape", input_shape, len(self.centre))
        return inputs, inputs if hidden_shape is None else checked_shape("hidden_shape", hidden_shape, len(self.centre))

    def __call__(self, x: npt.ArrayLike, hidden_shape: Sizes | None = None) -> Array:
        """Run the layer on one image of any size, through `wherever.conv`.

        Parameters
        ----------
        x : array, shape (*input), with channels (*input, c)
        hidden_shape : shape of the result, None for that of the image

        Returns
        -------
        array, shape (*hidden), with channels (*hidden, d)
            Outside the image there is nothing to sum: the boundary is zero.
        """
        X = np.asarray(x)
        n, c = len(self.centre), self._kernel.shape[-2]
        if X.ndim != n + self.channels or (self.channels and X.shape[-1] != c) or 0 in X.shape:
            wanted = f"{n} spatial dimensions" + (f" and {c} channels as its last axis" if self.channels else "")
            raise ValueError(f"x has shape {X.shape}; this layer takes images with {wanted}")
        X = X.astype(np.result_type(X.dtype, self.V.dtype), copy=False)
        inputs, hidden = self._shapes(X.shape[:n], hidden_shape)
        # Output i reads the pixels i+lowest ... i+highest, so i = 0 needs -lowest zeros before the image, and the last,
        # i = H-1, needs H-1+highest-(N-1) behind it; if that is negative, pixels at the end are never read.
        padding, read = [], []
        for size, h, lo, hi in zip(inputs, hidden, *self._range(), strict=True):
            behind = h - 1 + hi - (size - 1)
            padding.append((-lo, max(behind, 0)))
            read.append(slice(0, size + min(behind, 0)))
        X = X[tuple(read)]
        kernel = np.moveaxis(self._kernel, (-1, -2), (0, 1))  # V[a,b,c,d] is the operation's w[d,c,a,b]
        bias = self._bias.astype(X.dtype, copy=False)
        if self.channels:
            return conv(X, kernel, bias, padding=padding, layout="channels_last")
        H: Array = conv(X[np.newaxis], kernel, bias, padding=padding)[0]
        return H

    def count(self, input_shape: Sizes, hidden_shape: Sizes | None = None) -> Count:
        """Count this layer on images of one size; the same as `describe` of its shapes."""
        c, d = self._kernel.shape[-2:]
        return count_kernel(*self._shapes(input_shape, hidden_shape), *self._range(), (c, d))

    def energy(self, input_shape: Sizes, hidden_shape: Sizes | None = None) -> float:
        """Sum the squared weights of the fully connected layer it equals, without building that.

        ``Σ_a n(a) V[a]^2``, n(a) being how often the offset a leads from a hidden pixel to a pixel of the image.
        """
        return self._energy_of(self._kernel, *self._shapes(input_shape, hidden_shape))

    def _energy_of(self, V: Array, inputs: Shape, hidden: Shape) -> float:
        """Give the energy of weights that lie where this layer's lie."""
        squares = np.abs(V.astype(np.result_type(V.dtype, np.float64), copy=False)) ** 2
        # n(a) is a product over the dimensions, so that the sum is done one dimension at a time.
        for size, h, lo, hi in zip(inputs, hidden, *self._range(), strict=True):
            a = np.arange(lo, hi + 1)
            often = np.clip(np.minimum(h, size - a) - np.maximum(0, -a), 0, None)
            squares = np.tensordot(often.astype(np.float64), squares, axes=1)
        return float(squares.sum())

    def fully_connected(self, input_shape: Sizes, hidden_shape: Sizes | None = None) -> FullyConnected:
        """Climb up: the fully connected layer that this one equals on images of one size.

        ``W[i,j,k,l] = V[k-i,l-j]``, zero for the offsets that V does not have; ``U[i,j] = u``.

        Raises
        ------
        MemoryError
            If the tensor does not fit into the memory that is free here; the message says what it needs.
        """
        inputs, hidden = self._shapes(input_shape, hidden_shape)
        c, d = self._kernel.shape[-2:]
        needed, free = FullyConnected.describe(inputs, hidden, (c, d)).bytes(self.V.dtype), available_memory()
        if free is not None and needed > free:
            raise MemoryError(
                f"the fully connected layer {by(inputs)} -> {by(hidden)} that this equals needs {needed} bytes "
                f"({in_bytes(needed)}); {in_bytes(free)} are free here"
            )
        first = tuple(h - 1 for h in hidden)
        V = _reframe(self._kernel, self.centre, all_offsets(hidden, inputs), first)
        V = np.moveaxis(V, -1, 0)  # (d, *offsets, c)
        W = np.empty((*hidden, d, *inputs, c), self.V.dtype)
        for i, seen in _windows(hidden, inputs):
            W[i] = V[(slice(None), *seen)]
        U = np.broadcast_to(self._bias, (*hidden, d)).copy()
        if self.channels:
            return FullyConnected(W, U, channels=True)
        return FullyConnected(W.reshape(*hidden, *inputs), U.reshape(hidden))


def _one_bias(u: complex, kernel: Array) -> tuple[Any, Array]:
    """Check the bias of a layer without channels; bring it and the kernel to one type."""
    bias, kernel = checked_biases("u", u, kernel)
    if bias.shape:
        raise ValueError(f"u has shape {bias.shape}; it must be one number (Convolution has one for each channel)")
    return bias[()], kernel


# ---------------------------------------------------------------------- rung 2: translation invariance


class TranslationInvariant(_KernelLayer):
    """The same weights at every position: ``H[i,j] = u + Σ_ab V[a,b] X[i+a,j+b]``.

    Parameters
    ----------
    V : array, one axis for each dimension
        The weight of each offset. All offsets within an image of H x W pixels are (2H-1) x (2W-1), a in (-H, H).
    u : number
        The bias, of the type of V; a complex one makes V complex.
    centre : sequence of int, optional
        The index of offset 0 in V; the middle if not given, which needs odd sizes. With a hidden representation of H
        and an image of N pixels the offsets run from -(H-1) to N-1, and the centre is H-1.

    Raises
    ------
    ValueError
        If a size is zero, if a size is even and no centre is given, the centre lies outside V, or u is not one number.
    """

    def __init__(self, V: npt.ArrayLike, u: complex = 0.0, *, centre: Iterable[int] | None = None) -> None:
        kernel = checked_weights(V)
        shape = checked_shape("V.shape", kernel.shape)
        if centre is None:
            if any(size % 2 == 0 for size in shape):
                raise ValueError(f"V has shape {shape}, which has no middle; give centre, the index of offset 0")
            centre = [size // 2 for size in shape]
        zero = tuple(map(operator.index, centre))
        if len(zero) != len(shape) or not all(0 <= at < size for at, size in zip(zero, shape, strict=True)):
            raise ValueError(f"centre is {zero}; it must be an index into V, whose shape is {shape}")
        bias, kernel = _one_bias(u, kernel)
        super().__init__(kernel, bias, zero)

    @staticmethod
    def describe(input_shape: Sizes, hidden_shape: Sizes | None = None) -> Count:
        """Count such a layer with all offsets between an image and its hidden representation."""
        inputs, hidden = both_shapes(input_shape, hidden_shape)
        return count_kernel(inputs, hidden, tuple(1 - h for h in hidden), tuple(n - 1 for n in inputs), (1, 1))

    @classmethod
    def project(cls, layer: FullyConnected) -> Projection[TranslationInvariant]:
        """Step down from the fully connected layer: the nearest translation invariant one.

        ``V[a,b]`` is the mean of ``V[i,j,a,b]`` over the positions (i,j) where it is defined, u the mean of ``U[i,j]``.
        The mean is what is nearest to many numbers in the least-squares sense, and each offset is such a question
        of its own.

        Raises
        ------
        ValueError
            If the layer has channels (then step down to `Convolution`), or another number of hidden dimensions.
        """
        if not isinstance(layer, FullyConnected):
            raise TypeError(f"layer is {layer!r}; this step is taken from a FullyConnected layer")
        if layer.channels:
            raise ValueError("the layer has channels, this rung has none; use Convolution.project(layer, delta=...)")
        V, lost = _mean_over_positions(layer)
        u, bias_lost = _mean_bias(layer)
        centre = tuple(h - 1 for h in layer.hidden_shape)
        return Projection(cls(V[..., 0, 0], u[0], centre=centre), layer.energy(), lost, _energy(layer.U), bias_lost)


def _mean_over_positions(layer: FullyConnected) -> tuple[Array, float]:
    """Average V[i,j,a,b] over (i,j): the kernel (*offsets, c, d) and the energy of what deviates from it."""
    layer._same_dimensions("project")
    hidden, inputs, W = layer.hidden_shape, layer.input_shape, layer._weights
    c, d = layer._channel_counts
    offsets = all_offsets(hidden, inputs)
    total = np.zeros((d, *offsets, c), np.result_type(W.dtype, np.float64))
    often = np.zeros((*offsets, 1))
    for i, seen in _windows(hidden, inputs):  # each position lays its weights down where it sees them
        total[(slice(None), *seen)] += W[i]
        often[seen] += 1
    V = (total / often).astype(W.dtype)
    lost = sum(_energy(W[i] - V[(slice(None), *seen)]) for i, seen in _windows(hidden, inputs))
    return np.moveaxis(V, 0, -1), lost


def _mean_bias(layer: FullyConnected) -> tuple[Array, float]:
    """Average U[i,j,d] over (i,j): the biases (d,) and the energy of what deviates from them."""
    U = layer._biases
    u = U.mean(axis=tuple(range(U.ndim - 1)), dtype=np.result_type(U.dtype, np.float64)).astype(U.dtype)
    return u, _energy(U - u)


# ------------------------------------------------------------------------------------ rung 3: locality


class Local(_KernelLayer):
    """Only what is near counts: ``H[i,j] = u + Σ_{|a|<=Δ} Σ_{|b|<=Δ} V[a,b] X[i+a,j+b]``.

    Parameters
    ----------
    V : array, 2Δ+1 weights along each dimension
        The kernel; Δ may differ between the dimensions.
    u : number
        The bias, of the type of V; a complex one makes V complex.

    Raises
    ------
    ValueError
        If a size of V is not odd, or u is not one number.
    """

    def __init__(self, V: npt.ArrayLike, u: complex = 0.0) -> None:
        bias, kernel = _one_bias(u, checked_weights(V))
        super().__init__(kernel, bias, checked_middle(kernel.shape))

    @property
    def delta(self) -> Shape:
        """Δ in each dimension."""
        return self.centre

    @staticmethod
    def describe(
        input_shape: Sizes,
        hidden_shape: Sizes | None = None,
        *,
        delta: Sizes,
    ) -> Count:
        """Count such a layer: (2Δ+1)^n weights, whatever the size of the image."""
        inputs, hidden = both_shapes(input_shape, hidden_shape)
        reach = checked_delta(delta, len(inputs))
        return count_kernel(inputs, hidden, tuple(-r for r in reach), reach, (1, 1))

    @classmethod
    def project(
        cls,
        layer: FullyConnected | TranslationInvariant | Local,
        delta: Sizes,
        *,
        input_shape: Sizes | None = None,
        hidden_shape: Sizes | None = None,
    ) -> Projection[Local]:
        """Step down: the nearest local layer is the kernel, cut off beyond `delta`.

        Parameters
        ----------
        layer : FullyConnected, TranslationInvariant or Local
            From a fully connected layer both steps are taken at once, and the losses of both add up.
        delta : int or one int for each dimension
        input_shape, hidden_shape
            The image for which the energy is counted; needed for layers that are not bound to a size themselves. (The
            nearest layer is the same for each.)
        """
        if layer.channels:
            raise ValueError("the layer has channels, this rung has none; use Convolution.project(layer, delta=...)")
        V, u, energies = _cut(layer, delta, input_shape, hidden_shape)
        return Projection(cls(V[..., 0, 0], u[0]), *energies)


def _cut(
    layer: FullyConnected | TranslationInvariant | Local | Convolution,
    delta: Sizes,
    input_shape: Sizes | None,
    hidden_shape: Sizes | None,
) -> tuple[Array, Array, tuple[float, float, float, float]]:
    """Project on the layers with a kernel |a| <= delta: the kernel (*offsets, c, d), the biases (d,), the energies."""
    kernel: _KernelLayer
    if isinstance(layer, FullyConnected):
        if input_shape is not None or hidden_shape is not None:
            raise ValueError("input_shape and hidden_shape are those of the fully connected layer; do not give them")
        V, lost = _mean_over_positions(layer)
        u, bias_lost = _mean_bias(layer)
        energy, bias_energy = layer.energy(), _energy(layer.U)
        inputs, hidden = layer.input_shape, layer.hidden_shape
        kernel = _KernelLayer(V, u, tuple(h - 1 for h in hidden), channels=True)
    else:
        if input_shape is None:
            raise ValueError(
                f"input_shape is missing: the energy of {layer!r} depends on how often each offset occurs in the image"
            )
        kernel = layer
        inputs, hidden = kernel._shapes(input_shape, hidden_shape)
        energy, lost = kernel.energy(inputs, hidden), 0.0
        bias_energy, bias_lost = math.prod(hidden) * _energy(kernel._bias), 0.0
    reach = checked_delta(delta, len(inputs))
    V = _reframe(kernel._kernel, kernel.centre, tuple(2 * r + 1 for r in reach), reach)
    far = kernel._kernel - _reframe(V, reach, kernel._kernel.shape[:-2], kernel.centre)  # what lies beyond delta
    lost += kernel._energy_of(far, inputs, hidden)
    return V, kernel._bias, (energy, lost, bias_energy, bias_lost)


# ------------------------------------------------------------------------------------ rung 4: channels


class Convolution(_KernelLayer):
    """A vector at every place: ``H[i,j,d] = u[d] + Σ_{|a|<=Δ} Σ_{|b|<=Δ} Σ_c V[a,b,c,d] X[i+a,j+b,c]``.

    Parameters
    ----------
    V : array, shape (2Δ+1, ..., 2Δ+1, c, d)
        The kernel, input channels and output channels last, in the source's order of indices.
    u : number or array, shape (d,)
        One bias for each output channel, of the type of V; a complex one makes V complex.

    Every pair of channels (c, d) is a `Local` layer of its own; their outputs are summed over c. This rung is the first
    that gives back some of what the two before it took away. With Δ = 0 the layer is a matrix of c x d weights that is
    applied to the vector at each pixel: a fully connected layer over the channels, the same at every pixel.

    Raises
    ------
    ValueError
        If V has no spatial axis, a spatial size is not odd, or u does not have d values.
    """

    def __init__(self, V: npt.ArrayLike, u: npt.ArrayLike = 0.0) -> None:
        bias, kernel = checked_biases("u", u, checked_weights(V))
        shape = checked_shape("V.shape", kernel.shape)
        if len(shape) < 3:
            raise ValueError(f"V has shape {shape}; it must be (2Δ+1, ..., c, d) with at least one spatial axis")
        if bias.shape not in ((), shape[-1:]):
            raise ValueError(f"u has shape {bias.shape}; it must be one number, or one for each of d = {shape[-1]}")
        super().__init__(kernel, np.broadcast_to(bias, shape[-1:]).copy(), checked_middle(shape[:-2]), channels=True)

    @property
    def delta(self) -> Shape:
        """Δ in each dimension."""
        return self.centre

    def pair(self, c: int, d: int) -> Local:
        """Give the kernel from input channel c to output channel d as a layer without channels and without bias."""
        return Local(self.V[..., c, d])

    @staticmethod
    def describe(
        input_shape: Sizes,
        hidden_shape: Sizes | None = None,
        *,
        delta: Sizes,
        channels: Iterable[int],
    ) -> Count:
        """Count such a layer: (2Δ+1)^n · c · d weights, `channels` being (c, d)."""
        inputs, hidden = both_shapes(input_shape, hidden_shape)
        reach = checked_delta(delta, len(inputs))
        return count_kernel(inputs, hidden, tuple(-r for r in reach), reach, checked_channels(channels))

    @classmethod
    def project(
        cls,
        layer: FullyConnected | TranslationInvariant | Local | Convolution,
        delta: Sizes,
        *,
        input_shape: Sizes | None = None,
        hidden_shape: Sizes | None = None,
    ) -> Projection[Convolution]:
        """Step down: the nearest convolution with kernels |a| <= delta.

        Both principles speak of places and leave channels alone. So each pair of channels of ``W[i,j,d,k,l,c]`` is
        projected by itself: mean over the positions, cut beyond delta. From a layer without channels this is a
        convolution with one channel in and one out. The rung of translation invariance *with* channels is the
        projection with a delta that reaches across the whole image.

        Parameters
        ----------
        layer : FullyConnected (with channels or without), TranslationInvariant, Local or Convolution
        delta : int or one int for each dimension
        input_shape, hidden_shape
            As for `Local.project`.
        """
        V, u, energies = _cut(layer, delta, input_shape, hidden_shape)
        return Projection(cls(V, u), *energies)
