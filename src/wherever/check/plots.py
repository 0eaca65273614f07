"""Pictures of what the checks found; needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from wherever.check.layers import Equivariance, Layer
from wherever.check.locality import Locality
from wherever.check.sharing import Sharing
from wherever.check.stationarity import STATISTICS, Stationarity
from wherever.check.words import chance, percent

_BLUE, _RED, _INK, _GREY, _PALE = "#2f7f86", "#c9503c", "#222222", "#6b6b6b", "#b9d3d5"
_MOST_MAPS, _MOST_ROWS = 6, 60


def draw(
    path: str | Path | IO[bytes], results: Sequence[Stationarity | Locality | Sharing], file_format: str | None = None
) -> None:
    """Draw results below each other, each with its sentence.

    Parameters
    ----------
    path : str, Path or binary file
        Where to write it; the ending of the name chooses the format.
    results : sequence of Stationarity, Locality or Sharing
    file_format : str, optional
        "png", "svg", "pdf"; needed for a file without a name.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [0.9 + 0.42 * len(r.fits) if isinstance(r, Sharing) else 3.3 for r in results]
    figure = Figure(figsize=(10.5, sum(heights) + 0.4 * len(results)), layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(len(results), 1, height_ratios=heights, hspace=0.06, squeeze=False)[:, 0]
    for part, result in zip(parts, results, strict=True):
        part.suptitle(_wrapped(result.sentence), fontsize=10.5, color=_INK, x=0.01, ha="left")
        if isinstance(result, Stationarity):
            _positions(part, result)
        elif isinstance(result, Locality):
            _distances(part, result)
        else:
            _fits(part, result)
    figure.savefig(path, dpi=130, format=file_format)


def _wrapped(text: str, width: int = 115) -> str:
    import textwrap

    # Numbers stay with what belongs to them.
    return "\n".join(textwrap.wrap(text.replace(" %", "\u00a0%").replace(" = ", "\u00a0=\u00a0"), width))


def _positions(part: Any, result: Stationarity) -> None:
    axes = part.subplots(1, len(result.dependences))
    for axis, item in zip(axes, result.dependences, strict=True):
        shown = item.map[..., 0]
        # The same scale for all: half a standard deviation is a strong dependence of a mean over images.
        picture = axis.imshow(shown, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title(f"{STATISTICS[item.name]}: {percent(item.effect)}, {chance(item.p)}", fontsize=9.5, color=_INK)
    part.colorbar(picture, ax=axes, shrink=0.75, label="standard deviations")


def _distances(part: Any, result: Locality) -> None:
    left, right = part.subplots(1, 2)
    d = result.distances
    left.axhline(0, color=_GREY, linewidth=0.8)
    left.axhline(result.level, color=_GREY, linewidth=0.8, linestyle=(0, (5, 3)))
    if not np.isnan(result.standard_error).any():
        low, high = result.correlation - 2 * result.standard_error, result.correlation + 2 * result.standard_error
        left.fill_between(d, low, high, color=_PALE, linewidth=0)
    left.plot(d, result.down, color=_RED, linewidth=1, linestyle=(0, (1, 1.5)), label="down")
    left.plot(d, result.across, color=_RED, linewidth=1, label="across")
    left.plot(d, result.correlation, color=_BLUE, linewidth=1.8, label="all directions")
    if math.isfinite(result.length):
        left.plot([result.length], [result.level], "o", color=_BLUE)
        left.annotate(
            f"{result.length:.1f} pixels",
            (result.length, result.level),
            (8, 5),
            textcoords="offset points",
            color=_BLUE,
        )
    left.set_xlabel("distance in pixels")
    left.set_ylabel("correlation")
    left.set_xlim(0, d[-1])
    left.legend(frameon=False, fontsize=9)
    shown = np.maximum(result.explained, 0)
    colours = [_BLUE if delta == result.delta else _PALE for delta in result.deltas]
    right.bar(result.deltas, shown, yerr=2 * result.explained_error, color=colours, ecolor=_GREY, width=0.7)
    right.set_xticks(result.deltas, [f"{delta}\n{2 * delta + 1}x{2 * delta + 1}" for delta in result.deltas])
    right.set_ylim(0, max(1.0, float(shown.max()) * 1.05) if shown.max() > 0.05 else 0.1)
    right.set_xlabel("Δ, and the window")
    right.set_ylabel(f"explained of {result.target}")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)


def _fits(part: Any, result: Sharing) -> None:
    axis = part.subplots()
    names = [fit.name for fit in result.fits]
    for y, fit in enumerate(result.fits):
        colour = _BLUE if fit is result.supported else _GREY
        axis.errorbar(fit.score, y, xerr=2 * fit.error or None, fmt="o", color=colour, capsize=3, markersize=6)
        axis.annotate(percent(fit.score), (fit.score, y), (0, 6), textcoords="offset points", ha="center", color=colour)
    axis.axvline(result.fits[0].score, color=_GREY, linewidth=0.8, linestyle=(0, (5, 3)), zorder=0)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.75)
    axis.margins(x=0.12)
    what = "images told right" if result.measure == "accuracy" else f"explained of {result.target}"
    axis.set_xlabel(f"share of {what}, held out; bars: two standard errors of the difference to one kernel")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


# -------------------------------------------------------------------------------------------------------------- layers


def draw_layers(path: str | Path | IO[bytes], result: Equivariance, file_format: str | None = None) -> None:
    """Draw the errors of all layers for all shifts, and maps of the layers at which something breaks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    layers = result.layers[-_MOST_ROWS:]
    mapped = _mapped(result)
    tall = max(2.2, 0.24 * len(layers) + 1.3)
    columns = max(len(mapped), 1)
    figure = Figure(figsize=(10.5, tall + (4.4 if mapped else 0)), layout="constrained")
    FigureCanvasAgg(figure)
    top: Any = figure
    below: Any = None
    if mapped:
        top, below = cast(Any, figure.subfigures(2, 1, height_ratios=[tall, 4.4]))
    norm = LogNorm(1e-3, 1, clip=True)
    # Colour says the inside, where there is one; a layer without has nothing but its whole.
    axes = top.subplots(1, 2, sharey=True)
    kinds = (("inside, or the whole where there is none", "inside"), ("border", "border"))
    for axis, (title, kind) in zip(axes, kinds, strict=True):
        errors = np.array([_row(layer, kind) for layer in layers])
        # Errors below the scale are shown as its lower end, places without a value stay white.
        picture = axis.imshow(
            np.ma.masked_invalid(np.where(errors < 1e-3, 1e-3, errors)), cmap="magma_r", norm=norm, aspect="auto"
        )
        axis.set_xticks(
            range(len(result.shifts)), [",".join(map(str, s)) for s in result.shifts], rotation=90, fontsize=8
        )
        axis.set_yticks(range(len(layers)), [_short(layer) for layer in layers], fontsize=8.5)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("shift in pixels, " + ("down,across" if len(result.size) == 2 else "for each axis"))
        axis.tick_params(length=0)
    top.colorbar(picture, ax=axes, label="error")
    if below is not None:
        grid = below.subplots(2, columns, squeeze=False)
        for column, layer in enumerate(mapped):
            for row, values in enumerate((layer.map, layer.map_between)):
                axis = grid[row, column]
                axis.set_xticks([])
                axis.set_yticks([])
                if values is None:
                    axis.set_axis_off()
                    continue
                shown = np.ma.masked_invalid(np.where(values < 1e-3, 1e-3, values))
                axis.imshow(
                    shown if shown.ndim == 2 else shown[None],
                    cmap="magma_r",
                    norm=norm,
                    aspect="auto" if shown.ndim == 1 else None,
                )
                if row == 0:
                    axis.set_title(_short(layer), fontsize=8.5)
        for row, words in zip(grid, ("by whole places", "between places"), strict=True):
            shown_axes = [axis for axis in row if axis.axison]
            if shown_axes:
                shown_axes[0].set_ylabel(words, fontsize=9)
        below.suptitle("where it breaks", fontsize=10)
    figure.savefig(path, dpi=130, format=file_format)


def _row(layer: Layer, kind: str) -> Any:
    values = getattr(layer, kind)
    return layer.whole if kind == "inside" and not layer.has_inside else values


def _short(layer: Layer) -> str:
    name = f"{layer.name} {layer.kind}".strip()
    return name if len(name) <= 34 else f"{name[:33]}…"


def _mapped(result: Equivariance) -> list[Layer]:
    """Choose the layers to map: where something new goes wrong, and the last with places."""
    flat = [layer for layer in result.layers if layer.map is not None or layer.map_between is not None]
    flat = [layer for layer in flat if len(layer.places) <= 2]
    broken = [layer for layer, _ in result.breaks() if layer in flat]
    chosen: list[Layer] = []
    for layer in [*broken[: _MOST_MAPS - 1], *flat[-1:]]:
        if not any(layer is other for other in chosen):
            chosen.append(layer)
    return chosen
