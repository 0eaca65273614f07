"""How much of trained weights lies on each rung: shares of their energy that are local, and translation invariant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wherever.ladder.counts import Shape, Sizes, checked_shape, checked_weights
from wherever.ladder.layers import FullyConnected, _windows, all_offsets
from wherever.ladder.words import by
from wherever.problem import Array


@dataclass(frozen=True)
class Shares:
    """The energy of a fully connected layer, divided among the rungs; print it.

    Every rung is a linear subspace of the tensors W, so that the energy of the nearest layer of a rung, divided by
    Σ W^2, is a share from 0 to 1. Weights without any structure have the share that the rung has of the dimensions,
    which is what the names with `chance` give: what lies above it was learnt.

    Attributes
    ----------
    input_shape, hidden_shape : tuple of int
    channels : tuple of int
        How many in, how many out.
    energy : float
        Σ W^2.
    invariant, chance_invariant : float
        Share of the energy that is translation invariant, at any offset; what it is by chance.
    deltas : array, shape (n,), int
        Every Δ from 0 up to that which reaches across the whole image.
    near, chance_near : array, shape (n,)
        Share of the weights within Δ, the same at every position or not.
    local, chance_local : array, shape (n,)
        Share that is both translation invariant and within Δ: what a convolution with such a kernel keeps.
    V : array, shape (*offsets, c, d)
        The nearest translation invariant layer; offset a has the index a + H-1.
    """

    input_shape: Shape
    hidden_shape: Shape
    channels: tuple[int, int]
    energy: float
    invariant: float
    chance_invariant: float
    deltas: npt.NDArray[np.int64]
    near: npt.NDArray[np.float64]
    chance_near: npt.NDArray[np.float64]
    local: npt.NDArray[np.float64]
    chance_local: npt.NDArray[np.float64]
    V: Array

    def reach(self, share: float = 0.9) -> int:
        """Give the least Δ within which that share of the translation invariant energy lies."""
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}; it must be above 0 and at most 1")
        return int(np.argmax(self.local >= share * self.local[-1] * (1 - 1e-12)))

    def kernel(self, delta: int) -> Array:
        """Give the nearest convolution's kernel, shape (2Δ+1, ..., c, d), zero where there is no such offset."""
        out = np.zeros((*(2 * delta + 1,) * len(self.input_shape), *self.V.shape[-2:]), self.V.dtype)
        here, there = [], []
        for h, n in zip(self.hidden_shape, self.input_shape, strict=True):
            low, high = max(-delta, 1 - h), min(delta, n - 1)
            here.append(slice(low + h - 1, high + h))
            there.append(slice(low + delta, high + delta + 1))
        out[tuple(there)] = self.V[tuple(here)]
        return out

    def __str__(self) -> str:
        c, d = self.channels
        lines = [
            f"{by(self.input_shape)}:{c} -> {by(self.hidden_shape)}:{d}, shares of the weights' energy "
            "(in brackets: of weights without structure)",
            f"translation invariant            {self.invariant:7.2%}  ({self.chance_invariant:.2%})",
        ]
        for delta in [d for d in (0, 1, 2, 3, 5, 10) if d < len(self.deltas)]:
            lines.append(
                f"Δ = {delta:<2}  within {self.near[delta]:7.2%}  ({self.chance_near[delta]:.2%})"
                f"   and invariant {self.local[delta]:7.2%}  ({self.chance_local[delta]:.2%})"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Give everything but the kernel in plain Python types."""
        plain: dict[str, Any] = {"input_shape": list(self.input_shape), "hidden_shape": list(self.hidden_shape)}
        plain |= {"channels": list(self.channels), "energy": self.energy}
        plain |= {"invariant": self.invariant, "chance_invariant": self.chance_invariant}
        for name in ("deltas", "near", "chance_near", "local", "chance_local"):
            plain[name] = getattr(self, name).tolist()
        return plain


def shares(
    W: npt.ArrayLike | FullyConnected,
    input_shape: Sizes | None = None,
    hidden_shape: Sizes | None = None,
    *,
    layout: Literal["channels_last", "channels_first"] = "channels_last",
) -> Shares:
    """Divide the energy of trained weights among the rungs: how much is translation invariant, how much is local.

    Parameters
    ----------
    W : array, or FullyConnected
        The weights of a layer in which every hidden unit sees the whole image: of shape (outputs, inputs), as
        PyTorch's `Linear` has them, or with places and channels as axes of their own. A tensor of PyTorch is taken
        as it is. The Jacobian of a network from images to images is such a tensor, too.
    input_shape, hidden_shape : int or sequence of int
        Places of the image and of the hidden representation, with equally many dimensions; `hidden_shape` is
        `input_shape` if not given. How many channels there are follows from the size of W. Not to be given with a
        `FullyConnected` layer, which knows them.
    layout : {"channels_last", "channels_first"}
        The order in which places and channels of outputs and of inputs are counted in W. PyTorch's `Flatten` puts
        channels first. Without channels both are the same.

    Returns
    -------
    Shares

    Raises
    ------
    ValueError
        If the sizes do not match, a weight is not finite, or all are zero.

    Notes
    -----
    The projections are those of `Convolution.project`: the mean over the positions that see an offset, for each pair
    of channels; and zero beyond Δ in any dimension. Both are orthogonal and commute, so that all shares follow from
    Σ W^2 and from n(a) V(a)^2 at every offset a, n(a) being how often it occurs.

    Hidden units of an ordinary network have no place: permuting them changes nothing that it computes. Where no loss
    ties a hidden unit to a place, project the Jacobian from image to output instead.

    Examples
    --------
    >>> import numpy as np
    >>> from wherever.ladder import Local, shares
    >>> kernel = Local(np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0.]]))
    >>> found = shares(kernel.fully_connected((8, 8)))
    >>> round(found.invariant, 6), found.reach()
    (1.0, 1)
    >>> noise = shares(np.random.default_rng(0).standard_normal((64, 64)), (8, 8))
    >>> bool(abs(noise.invariant - noise.chance_invariant) < 0.02)
    True
    """
    weights, inputs, hidden = _as_tensor(W, input_shape, hidden_shape, layout)
    d, c = weights.shape[len(hidden)], weights.shape[-1]
    offsets = all_offsets(hidden, inputs)
    total = np.zeros((d, *offsets, c), np.result_type(weights.dtype, np.float64))
    squares, often = np.zeros(offsets), np.zeros(offsets)
    for i, seen in _windows(hidden, inputs):
        here = weights[i].astype(total.dtype, copy=False)
        total[(slice(None), *seen)] += here
        squares[seen] += (np.abs(here) ** 2).sum(axis=(0, -1))
        often[seen] += 1
    energy = float(squares.sum())
    if not math.isfinite(energy) or energy == 0:
        raise ValueError(f"W has the energy {energy}; its weights must be finite and not all zero")
    kept = (np.abs(total) ** 2).sum(axis=(0, -1)) / often
    away = np.max(
        np.meshgrid(
            *(np.abs(np.arange(1 - h, n)) for h, n in zip(hidden, inputs, strict=True)), indexing="ij", sparse=False
        ),
        axis=0,
    ).ravel()

    def within(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        summed: npt.NDArray[np.float64] = np.cumsum(np.bincount(away, values.ravel()))
        return summed / float(values.sum())

    invariant = float(kept.sum() / energy)
    chance = often.size / often.sum()
    V = np.moveaxis(total, 0, -1) / often[..., None, None]
    return Shares(
        inputs,
        hidden,
        (c, d),
        energy,
        min(invariant, 1.0),
        chance,
        np.arange(away.max() + 1),
        within(squares),
        within(often),
        within(kept) * min(invariant, 1.0) if invariant else np.zeros(away.max() + 1),
        within(np.ones_like(often)) * chance,
        V,
    )


def _as_tensor(
    W: Any, input_shape: Sizes | None, hidden_shape: Sizes | None, layout: str
) -> tuple[Array, Shape, Shape]:
    """Bring weights to the shape (*hidden, d, *input, c)."""
    if isinstance(W, FullyConnected):
        if input_shape is not None or hidden_shape is not None:
            raise ValueError("input_shape and hidden_shape are those of the fully connected layer; do not give them")
        W._same_dimensions("shares")
        return W._weights, W.input_shape, W.hidden_shape
    if layout not in ("channels_last", "channels_first"):
        raise ValueError(f"layout is {layout!r}; it must be 'channels_last' or 'channels_first'")
    if input_shape is None:
        raise ValueError("input_shape is missing: the places of the image that W was trained on, for example (28, 28)")
    weights = checked_weights(W.detach().cpu() if hasattr(W, "detach") else W)
    inputs = checked_shape("input_shape", input_shape)
    hidden = inputs if hidden_shape is None else checked_shape("hidden_shape", hidden_shape)
    if len(hidden) != len(inputs):
        raise ValueError(
            f"hidden_shape is {by(hidden)} and input_shape {by(inputs)}; no offset leads from one to the other unless "
            "they have equally many dimensions"
        )
    outputs = _split(weights.shape, math.prod(hidden), math.prod(inputs))
    if outputs is None:
        raise ValueError(
            f"W has shape {weights.shape}; it must hold (outputs, inputs) with outputs a multiple of the "
            f"{math.prod(hidden)} places of {by(hidden)} and inputs of the {math.prod(inputs)} of {by(inputs)}"
        )
    d, c = outputs // math.prod(hidden), weights.size // outputs // math.prod(inputs)
    if layout == "channels_last":
        return weights.reshape(*hidden, d, *inputs, c), inputs, hidden
    n = len(hidden)
    weights = weights.reshape(d, *hidden, c, *inputs)
    return np.moveaxis(weights, (0, n + 1), (n, 2 * n + 1)), inputs, hidden


def _split(shape: Shape, hidden: int, inputs: int) -> int | None:
    """Find how many of the axes of W belong to the outputs: give the number of outputs, None where no cut fits."""
    for cut in range(1, len(shape)):
        outputs, rest = math.prod(shape[:cut]), math.prod(shape[cut:])
        if outputs and rest and outputs % hidden == 0 and rest % inputs == 0:
            return outputs
    return None
