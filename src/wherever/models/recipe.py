"""The command that every recipe is: its options, its table, its picture.

A module ends with::

    def recipe(options: Options) -> Report: ...

    if __name__ == "__main__":
        main(recipe, __doc__, epochs=20)

and is run by ``python -m wherever.models.NAME --data DIR [--epochs N] [--seed N] [--sample N] [--plot FILE.png]``.
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeAlias

from wherever.check.words import Cells, printed
from wherever.cli.common import guarded, plot_format
from wherever.files.outputs import write_atomically
from wherever.models.training import Trained

Panel: TypeAlias = Callable[[Any], None]
"""Draws on one pair of matplotlib's axes."""

_COLOURS = ("#2f7f86", "#c9503c", "#b8892b", "#5b5b9b", "#6b6b6b")


@dataclass(frozen=True)
class Options:
    """What the command was given.

    Attributes
    ----------
    data : Path
        The folder of data.
    epochs : int
        Passes over the training examples.
    seed : int
    sample : int or None
        How many training and, at most, test examples to use; None for all.
    """

    data: Path
    epochs: int
    seed: int = 0
    sample: int | None = None


@dataclass(frozen=True)
class Report:
    """What a recipe found.

    Attributes
    ----------
    name : str
        The title: what was trained on what.
    cells : list of (header, rows)
        Tables, as text.
    sentence : str
        What the numbers say.
    panels : list of Panel
        Drawn side by side, at most three in a row: see `curves` and `learning`.
    """

    name: str
    cells: list[Cells]
    sentence: str
    panels: list[Panel] = field(default_factory=list)

    def title(self) -> str:
        """Give the title."""
        return self.name

    def tables(self) -> list[Cells]:
        """Give the tables."""
        return self.cells

    def draw(self, path: Path | io.BytesIO, file_format: str | None = None) -> None:
        """Write the panels as a picture (PNG, SVG, PDF)."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        columns = 2 if len(self.panels) == 4 else min(len(self.panels), 3)
        rows = -(-len(self.panels) // columns)
        figure = Figure(figsize=(3.6 * columns + 0.6, 3.4 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        for axis, panel in zip_longest(figure.subplots(rows, columns, squeeze=False).flat, self.panels):
            if panel is None:
                axis.set_axis_off()
            else:
                panel(axis)
        figure.savefig(path, dpi=110, format=file_format)


def main(
    recipe: Callable[[Options], Report], text: str | None, *, epochs: int, arguments: Sequence[str] | None = None
) -> None:
    """Run a recipe as a command, and end the program.

    Parameters
    ----------
    recipe : callable
        Trains, and gives a `Report`.
    text : str
        The module's docstring, whose first line is the help.
    epochs : int
        How many, unless --epochs says otherwise.
    arguments : sequence of str, optional
        What was given; taken from the command line when None.
    """
    parser = argparse.ArgumentParser(description=(text or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with the data")
    parser.add_argument("--epochs", type=_positive, default=epochs, metavar="N", help=f"passes (default {epochs})")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of what is drawn at random (default 0)")
    parser.add_argument("--sample", type=_positive, metavar="N", help="train and test on N examples, for a quick look")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw learning curves and what else there is")
    parser.add_argument("--debug", action="store_true", help="on an error, show where it happened")
    given = parser.parse_args(arguments)

    def run(debug: bool) -> int:
        file_format = None if given.plot is None else plot_format(given.plot)
        report = recipe(Options(given.data, given.epochs, given.seed, given.sample))
        if given.plot is not None:
            drawn = io.BytesIO()
            report.draw(drawn, file_format)
            write_atomically(given.plot, drawn.getvalue())
        print(printed(report))
        return 0

    guarded(run)(debug=given.debug)


def _positive(text: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


# ------------------------------------------------------------------------------------------------------------- panels


def curves(
    title: str,
    x: str,
    y: str,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    log: bool = False,
    markers: bool = True,
) -> Panel:
    """Make a panel of lines, each with its name.

    Parameters
    ----------
    title, x, y : str
        What is written above and at the axes.
    lines : mapping of name to (xs, ys)
    log : bool
        Whether x is on a logarithmic scale, its values written at it.
    markers : bool
        Whether points are marked.
    """

    def panel(axis: Any) -> None:
        for (name, (xs, ys)), colour in zip(lines.items(), _COLOURS, strict=False):
            axis.plot(xs, ys, "o-" if markers else "-", color=colour, markersize=4, label=name)
        if log:
            axis.set_xscale("log")
            ticks = sorted({value for xs, _ in lines.values() for value in xs})
            axis.set_xticks(ticks, [f"{value:,g}" for value in ticks], fontsize=8)
            axis.minorticks_off()
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(x, fontsize=9)
        axis.set_ylabel(y, fontsize=9)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)

    return panel


def picture(title: str, image: Any, classes: Sequence[str] = (), colours: Sequence[str] = _COLOURS) -> Panel:
    """Make a panel that shows a photograph (H, W, 3) from 0 to 1, or a map of classes (H, W) with its legend.

    Parameters
    ----------
    title : str
    image : array
    classes : sequence of str
        What the numbers of a map stand for.
    colours : sequence of str
        Of the classes.
    """

    def panel(axis: Any) -> None:
        from matplotlib.colors import ListedColormap
        from matplotlib.patches import Patch

        map_ = ListedColormap(colours[: len(classes)]) if classes else None
        axis.imshow(image, map_, vmin=-0.5, vmax=len(classes) - 0.5)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
        if classes:
            marks = [Patch(color=colour, label=name) for name, colour in zip(classes, colours, strict=False)]
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "ncols": len(classes)}
            axis.legend(handles=marks, fontsize=8, frameon=False, handlelength=1, columnspacing=1, **place)

    return panel


def learning(runs: Mapping[str, Trained[Any]], score: str = "test accuracy") -> list[Panel]:
    """Make the two panels of learning curves: training loss and test score by epoch."""
    loss = {name: ([e.number for e in run.epochs], [e.loss for e in run.epochs]) for name, run in runs.items()}
    tests = {
        name: ([e.number for e in run.epochs], [e.score for e in run.epochs if e.score is not None])
        for name, run in runs.items()
    }
    return [
        curves("training", "epoch", "loss", loss, markers=False),
        curves("test", "epoch", score, tests, markers=False),
    ]
