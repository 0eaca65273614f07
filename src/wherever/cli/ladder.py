"""`wherever ladder`: the numbers on the way from a fully connected layer to a convolution."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table as Lines

from wherever.cli.common import note, plot_format
from wherever.files.outputs import write_atomically
from wherever.ladder import Table, table


def ladder(
    image: Annotated[
        str, typer.Option(metavar="SIZES", help="Shape of the image: 1000x1000; a sound 16000; a volume 64x64x64.")
    ] = "1000x1000",
    hidden: Annotated[
        str | None,
        typer.Option(metavar="SIZES", help="Shape of the hidden representation; that of the image if not given."),
    ] = None,
    delta: Annotated[
        str,
        typer.Option(metavar="N", help="How far a local layer sees, in pixels; one number or one per dimension, 10x5."),
    ] = "10",
    channels: Annotated[str, typer.Option(metavar="IN:OUT", help="Channels of the convolution, in and out.")] = "3:16",
    json: Annotated[bool, typer.Option("--json", help="Print JSON with exact numbers.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the table: weights and memory, and what fits here.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Run the layers that fit into the free memory.")
    ] = True,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> int:
    """Count weights, memory and work from a fully connected layer to a convolution, and run what fits here."""
    image_shape = parse_sizes("--image", image)
    hidden_shape = image_shape if hidden is None else parse_sizes("--hidden", hidden)
    reach = parse_sizes("--delta", delta, least=0)
    if len(hidden_shape) != len(image_shape):
        raise ValueError(
            f"--hidden {hidden}: needs as many dimensions as --image {image}; a kernel leads from one to the other"
        )
    if len(reach) not in (1, len(image_shape)):
        raise ValueError(f"--delta {delta}: give one number, or one for each dimension of --image {image}")
    pair = parse_channels(channels)
    file_format = None if plot is None else plot_format(plot)
    result = table(
        image_shape,
        hidden_shape,
        reach if len(reach) > 1 else reach[0],
        pair,
        measure=measure,
        progress=lambda name: note(f"running: {name}"),
    )
    if plot is not None:
        drawn = io.BytesIO()
        result.plot(drawn, file_format=file_format)
        write_atomically(plot, drawn.getvalue())
    if json:
        print(result.to_json())
    else:
        _show(result)
    return 0


def parse_sizes(option: str, text: str, least: int = 1) -> tuple[int, ...]:
    """Turn "1000x1000" into (1000, 1000)."""
    parts = re.split("[x×]", text.replace(" ", ""))
    if not all(re.fullmatch("-?[0-9]+", part) for part in parts):
        raise ValueError(f"{option} {text}: write whole numbers with x between them, one for each dimension: 1000x1000")
    if any(int(part) < least for part in parts):
        raise ValueError(f"{option} {text}: every number must be at least {least}")
    return tuple(int(part) for part in parts)


def parse_channels(text: str) -> tuple[int, int]:
    """Turn "3:16" into (3, 16)."""
    match = re.fullmatch(r"([0-9]+):([0-9]+)", text.replace(" ", ""))
    if match is None or 0 in (pair := (int(match[1]), int(match[2]))):
        raise ValueError(f"--channels {text}: write IN:OUT, two whole numbers of at least 1, for example 3:16")
    return pair


def _show(result: Table) -> None:
    """Print the table, two lines a rung: exact numbers above, those of the source and upper numbers below."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, 120))
    lines = Lines("rung", title=result.title(), title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in ("weights", "memory", "multiply-adds"):
        lines.add_column(name, justify="right")
    lines.add_column("here")
    lines.add_column("time", justify="right")
    for row, cells in zip(result.rows, result.cells(), strict=True):
        cell = dict(zip(Table.HEADER, cells, strict=True))
        colour = "red" if row.fits is False else "green"
        source = "" if row.source is None else f"\n[dim]source {cell['the source']}[/dim]"
        lines.add_row(
            f"{row.name}\n[dim]{row.formula.replace('[', chr(92) + '[')}[/dim]",
            cell["how many"] + source,
            cell["memory"],
            f"{cell['multiply-adds']}\n[dim]upper {cell['upper number']}[/dim]",
            f"[{colour}]{cell['here']}[/{colour}]",
            cell["time"],
        )
    console.print(lines)
    console.print(f"\n{result.caption()}", style="dim")
